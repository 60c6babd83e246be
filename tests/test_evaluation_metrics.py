"""Every metric against an independent float64 computation by NumPy and SciPy; statistics that
depend on no batches, order or processes."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch

from ahpa.evaluation.frechet import FDR6, frechet_distance
from ahpa.evaluation.metrics import build_metrics
from ahpa.evaluation.sliced import squared_wasserstein, unit_directions
from ahpa.evaluation.statistics import KINDS, Moments, Rows, SplitSums
from ahpa.registry import METRICS, ConfigError, UserError, build
from ahpa.registry.contracts import Need
from ahpa.testing import check_metric

NAMES = [
    "fid",
    "sfid",
    "is",
    "precision-recall",
    "kid",
    "cmmd",
    "fd-dinov2",
    "mind",
    "clipscore",
    "pickscore",
    "fd:tiny-vit",
    "kid:tiny-vit",
    "precision-recall:tiny-vit",
    "mind:tiny-vit",
]


def features(count, dim, *, seed=0, shift=0.0):
    """Correlated features that are not centred, float32 [count, dim]."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) / math.sqrt(dim)
    return (mixed + rng.standard_normal(dim) * 3 + shift).astype(np.float32)


def statistic(kind, values, batch=16):
    found = KINDS[kind]()
    for indices in torch.arange(len(values)).split(batch):
        found.add(indices, torch.from_numpy(values)[indices])
    return found


def compute(name, ours, theirs=None):
    """The figures of one metric from given features, whatever network it names."""
    config = name if isinstance(name, dict) else None
    metric = build(METRICS, config) if config else next(iter(build_metrics([name]).values()))
    samples = {need: statistic(need.kind, ours) for need in metric.needs}
    reference = {need: statistic(need.kind, theirs) for need in metric.reference_needs}
    return metric.compute(samples, reference)


# ---- statistics ---------------------------------------------------------------------------------


def parts(kind, values, batch, world):
    """The statistic of `world` processes with interleaved shares, gathered as plain tensors."""
    whole = KINDS[kind]()
    for rank in range(world):
        own = KINDS[kind]()
        for indices in torch.arange(rank, len(values), world).flip(0).split(batch):
            own.add(indices, torch.from_numpy(values)[indices])
        state = own.state()
        assert all(type(tensor) is torch.Tensor for tensor in state.values())
        whole.merge(KINDS[kind].from_state(state))
    return whole


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 7, 50])
def test_statistics_depend_on_no_batch_order_or_process(batch, world):
    values = features(50, 6, shift=100)
    exact = values.astype(np.float64)
    moments = parts("moments", values, batch, world)
    assert moments.count == 50
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(exact.T), rtol=1e-9, atol=1e-12)
    rows = parts("rows", values, batch, world)
    assert rows.count == 50 and torch.equal(rows.features(), torch.from_numpy(values))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_split_sums_depend_on_no_batch_order_or_process(world, monkeypatch):
    monkeypatch.setattr("ahpa.evaluation.statistics.SPLIT", 20)
    values = features(50, 6)
    sums = parts("splits", values, 7, world)
    p = scipy.special.softmax(values.astype(np.float64), axis=1)
    assert sums.count == 50 and sorted(sums.splits) == [0, 1, 2]
    for split, (count, shares, negative_entropy) in sums.splits.items():
        own = p[20 * split : 20 * split + 20]
        assert count == len(own)
        np.testing.assert_allclose(shares, own.sum(0), rtol=1e-12)
        assert float(negative_entropy) == pytest.approx((own * np.log(own)).sum(), rel=1e-12)


def test_a_large_mean_costs_no_digits():
    """The naive sum of squares loses all digits of the covariance here."""
    values = np.random.default_rng(0).standard_normal((64, 3)) + 1e7
    moments = Moments()
    for indices in torch.arange(64).split(5):
        moments.add(indices, torch.from_numpy(values)[indices])
    np.testing.assert_allclose(moments.covariance, np.cov(values.T), rtol=1e-8)


def test_an_empty_share_changes_nothing():
    """A process without images, as when there are fewer images than processes."""
    for kind, kind_class in KINDS.items():
        whole = statistic(kind, features(5, 3))
        whole.merge(kind_class.from_state(kind_class().state()))
        assert whole.count == 5


def test_an_image_that_is_counted_twice_is_an_error():
    rows = Rows()
    rows.add(torch.tensor([0, 1]), torch.zeros(2, 3))
    rows.add(torch.tensor([1]), torch.zeros(1, 3))
    with pytest.raises(UserError, match="index 1 was counted twice"):
        rows.features()


# ---- the Frechet distance -----------------------------------------------------------------------


def frechet_of_numpy(ours, theirs):
    """tr (S1 S2)^(1/2) is the sum of the singular values of A B^T, with S1 = A^T A and S2 = B^T B:
    no matrix root at all, and exact with fewer samples than dimensions."""
    first, second = ours.astype(np.float64), theirs.astype(np.float64)
    a = (first - first.mean(0)) / math.sqrt(len(first) - 1)
    b = (second - second.mean(0)) / math.sqrt(len(second) - 1)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    difference = first.mean(0) - second.mean(0)
    return difference @ difference + (a**2).sum() + (b**2).sum() - 2 * root


@pytest.mark.parametrize("count", [8, 40, 400], ids=["8 of 40", "40 of 40", "400 of 40"])
@pytest.mark.parametrize("name", ["fid", "sfid", "fd:tiny-vit"])
def test_frechet_distance_is_that_of_numpy(name, count):
    ours, theirs = features(count, 40), features(count + 5, 40, seed=1)
    (value,) = compute(name, ours, theirs).values()
    assert value == pytest.approx(frechet_of_numpy(ours, theirs), rel=1e-6)


def test_frechet_distance_is_that_of_scipys_root():
    ours, theirs = features(300, 12), features(200, 12, seed=1)
    s1, s2 = (np.cov(x.astype(np.float64).T) for x in (ours, theirs))
    difference = ours.astype(np.float64).mean(0) - theirs.astype(np.float64).mean(0)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    wanted = difference @ difference + np.trace(s1 + s2 - 2 * root)
    assert compute("fid", ours, theirs)["fid"] == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_of_gaussians_in_closed_form():
    """Of diagonal covariances: |m1 - m2|^2 + sum (sigma1 - sigma2)^2, also rotated."""
    rng = np.random.default_rng(0)
    m1, m2 = rng.standard_normal((2, 9))
    d1, d2 = rng.uniform(0, 4, (2, 9))
    turn = scipy.stats.ortho_group.rvs(9, random_state=0)
    wanted = ((m1 - m2) ** 2).sum() + ((d1 - d2) ** 2).sum()
    pair = [
        Moments.of(torch.from_numpy(turn @ mean), torch.from_numpy(turn @ np.diag(s**2) @ turn.T))
        for mean, s in ((m1, d1), (m2, d2))
    ]
    assert frechet_distance(*pair) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("count", [10, 200])
def test_a_set_against_itself(count):
    x = features(count, 32)
    scale = float(np.cov(x.T).trace())
    assert abs(compute("fid", x, x)["fid"]) < 1e-6 * scale
    assert compute("precision-recall", x, x) == {"precision": 1.0, "recall": 1.0}
    assert compute("mind", x, x) == {"mind": 0.0}
    assert abs(compute("cmmd", x, x)["cmmd"]) < 1e-9


def test_few_images_are_told(caplog):
    compute("fid", features(10, 32), features(100, 32))
    assert "10 samples for 32 dimensions" in caplog.text
    assert "reference" not in caplog.text


def test_fdr6_is_the_mean_of_six_ratios():
    metric = build_metrics(["fdr6"])["fdr6"]
    sets = [(features(30, 7, seed=i), features(30, 7, seed=i + 10)) for i in range(6)]
    samples = {need: statistic("moments", x) for need, (x, _) in zip(metric.needs, sets)}
    reference = {need: statistic("moments", y) for need, (_, y) in zip(metric.needs, sets)}
    constants = [1.68, 56.87, 14.19, 0.04, 0.60, 5.60]
    ratios = [frechet_of_numpy(x, y) / c for (x, y), c in zip(sets, constants)]
    assert metric.compute(samples, reference)["fdr6"] == pytest.approx(np.mean(ratios), rel=1e-6)
    assert [constant for _, constant in FDR6.values()] == constants


# ---- the others ---------------------------------------------------------------------------------


def inception_score_of_numpy(logits, split):
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    scores = []
    for start in range(0, len(p), split):
        own = p[start : start + split]
        scores.append(np.exp((own * (np.log(own) - np.log(own.mean(0)))).sum(1).mean()))
    return np.mean(scores)


def test_inception_score_is_that_of_numpy(monkeypatch):
    monkeypatch.setattr("ahpa.evaluation.statistics.SPLIT", 20)
    logits = features(50, 30)
    wanted = inception_score_of_numpy(logits, 20)
    assert compute("is", logits)["is"] == pytest.approx(wanted, rel=1e-9)


def test_inception_score_of_one_class_and_of_all():
    """1 if every image looks alike, K if K classes are certain and equally frequent."""
    assert compute("is", np.ones((12, 4), np.float32))["is"] == pytest.approx(1.0, rel=1e-12)
    certain = 100 * np.eye(4, dtype=np.float32).repeat(3, 0)
    assert compute("is", certain)["is"] == pytest.approx(4.0, rel=1e-9)


def precision_recall_of_numpy(ours, theirs, k=3):
    """Plain loops over ADM's rule: the (k+1)-th smallest squared distance, itself included; <=."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)

    def radius(points):
        return [np.sort([((p - q) ** 2).sum() for q in points])[k] for p in points]

    def share(points, centres, reached):
        inside = [
            any(((p - c) ** 2).sum() <= r for c, r in zip(centres, reached, strict=True))
            for p in points
        ]
        return np.mean(inside)

    return share(ours, theirs, radius(theirs)), share(theirs, ours, radius(ours))


def test_precision_and_recall_are_those_of_loops(monkeypatch):
    monkeypatch.setattr("ahpa.evaluation.manifold.BLOCK", 7 * 50)  # several blocks
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((60, 5)).astype(np.float32)
    theirs = (0.6 * rng.standard_normal((50, 5)) + 0.5).astype(np.float32)
    found = compute("precision-recall", ours, theirs)
    wanted = precision_recall_of_numpy(ours, theirs)
    assert (found["precision"], found["recall"]) == pytest.approx(wanted, abs=1e-12)
    assert 0 < wanted[0] < wanted[1] < 1  # the samples are the wider set


def test_kid_is_that_of_torch_fidelity():
    """The same draws of the same subsets, so the same figure."""
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    ours, theirs = features(90, 20), features(70, 20, seed=1)
    options = dict(kid_subsets=5, kid_subset_size=40, rng_seed=2020, verbose=False)
    pair = [torch.from_numpy(x.astype(np.float64)) for x in (ours, theirs)]
    wanted = kid.kid_features_to_metric(*pair, **options)["kernel_inception_distance_mean"]
    found = compute(dict(type="kid", subsets=5, subset_size=40), ours, theirs)
    assert found["kid"] == pytest.approx(wanted, rel=1e-9)


def test_kid_of_small_sets_is_the_whole_estimate():
    """Of sets no larger than a subset every subset is the whole set: a written-out U-statistic."""
    ours, theirs = (features(9, 4, seed=s).astype(np.float64) for s in (0, 1))

    def k(x, y):
        return (x @ y / 4 + 1) ** 3

    total = -2 * np.mean([[k(x, y) for y in theirs] for x in ours])
    for group in (ours, theirs):
        pairs = [k(x, y) for i, x in enumerate(group) for j, y in enumerate(group) if i != j]
        total += np.mean(pairs)
    found = compute("kid:tiny-vit", ours.astype(np.float32), theirs.astype(np.float32))
    assert found["kid:tiny-vit"] == pytest.approx(total, rel=1e-6)


def test_cmmd_is_that_of_loops():
    ours, theirs = features(15, 6), features(20, 6, seed=1)
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (ours, theirs))
    x, y = x.astype(np.float64), y.astype(np.float64)

    def mean(first, second):
        return np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in second] for p in first])

    wanted = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert compute("cmmd", ours, theirs)["cmmd"] == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_mind_is_that_of_numpy():
    ours, theirs = features(40, 6), features(40, 6, seed=1)
    directions = unit_directions(6, 1000, 2020).numpy()
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1, rtol=1e-12)
    x, y = (np.sort(a.astype(np.float64) @ directions, axis=0) for a in (ours, theirs))
    wanted = 3 * 6 * ((x - y) ** 2).mean()
    assert compute("mind", ours, theirs)["mind"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(4, 6), (7, 3), (5, 5)])
def test_mind_of_sets_of_unequal_size(n, m):
    """Each set repeated to the least common multiple is the same distribution."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, 2)), rng.standard_normal((m, 2))
    common = math.lcm(n, m)
    longer = [np.sort(a.repeat(common // len(a), 0), axis=0) for a in (x, y)]
    wanted = ((longer[0] - longer[1]) ** 2).mean(0)
    found = squared_wasserstein(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_scores_of_text_and_image():
    cosines = np.array([[0.3], [-0.2], [0.1]], np.float32)
    assert compute("clipscore", cosines)["clipscore"] == pytest.approx(100 * 0.4 / 3, rel=1e-6)
    hessel = compute(dict(type="clipscore", scale=2.5), cosines)
    assert hessel["clipscore"] == pytest.approx(2.5 * 0.4 / 3, rel=1e-6)
    assert compute("pickscore", 20 * cosines)["pickscore"] == pytest.approx(20 * 0.2 / 3, rel=1e-6)


# ---- contracts and names ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_keeps_its_contract(name):
    check_metric(next(iter(build_metrics([name]).values())))


def test_all_registered_metrics_are_tried():
    tried = {name.split(":")[0] for name in NAMES}
    ours = {n for n in METRICS.names() if METRICS.get(n).__module__.startswith("ahpa.")}
    assert ours == tried | {"fdr6"}


class Backwards(METRICS.get("fid")):
    """A metric that declares the wrong direction."""

    def __init__(self):
        super().__init__()
        self.figures = {"fid": True}


def test_the_check_notices_a_wrong_direction():
    with pytest.raises(AssertionError, match="higher is declared as better"):
        check_metric(Backwards())


def test_a_figure_finds_its_metric():
    found = build_metrics(["fid", "precision", "recall", "fd:tiny-vit", "recall:tiny-vit"])
    assert list(found) == ["fid", "precision-recall", "fd:tiny-vit", "precision-recall:tiny-vit"]
    assert list(found["precision-recall:tiny-vit"].figures) == [
        "precision:tiny-vit",
        "recall:tiny-vit",
    ]
    assert found["fd:tiny-vit"].needs == (Need('{"type":"tiny-vit"}', "pooled", "moments"),)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fidd", "did you mean 'fid'"),
        ("precison", "did you mean 'precision'"),
        ("fd", "'fd:tiny-vit'"),
        ("fd:tiny-vt", "did you mean 'tiny-vit'"),
        ("kid:", "names no extractor"),
        ("fid:tiny-vit", "'fd:tiny-vit'"),
        ("is:dinov2-l", "is is defined by 'inception'"),
        ("clipscore:tiny-vit", "'score' is unknown"),
        (dict(type="kid", subset_size=1), "subset_size"),
        (dict(type="fd", extractor="tiny-vit", output="patch"), "'patch' is unknown"),
    ],
    ids=str,
)
def test_wrong_names(name, words):
    with pytest.raises(ConfigError) as caught:
        build_metrics([name])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("fid", 1, "at least 2 images"),
        ("precision-recall", 3, "more than 3 images"),
        ("kid", 1, "at least 2 images"),
    ],
)
def test_too_few_images(name, count, words):
    with pytest.raises(UserError, match=words):
        compute(name, features(count, 4), features(20, 4))


def test_an_empty_set_has_no_score():
    metric = build_metrics(["is"])["is"]
    with pytest.raises(UserError, match="at least one image"):
        metric.compute({metric.needs[0]: SplitSums()}, {})


def test_options_are_part_of_the_record():
    found = build_metrics([dict(type="kid", subsets=7), "mind", "clipscore", "is"])
    record = {name: metric.identity() for name, metric in found.items()}
    assert record["kid"] == {"subsets": 7, "subset_size": 1000, "seed": 2020}
    assert json.loads(json.dumps(record)) == record
