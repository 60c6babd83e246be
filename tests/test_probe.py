"""The figures of `ahpa analyze probe`, against the formulas written out."""

import numpy as np
import pytest
import torch
from support.models import VIT
from test_gsnr import SIT, run_of

from ahpa.analysis import probe
from ahpa.registry import ConfigError, UserError


def features(count=24, first=6, second=9, seed=0):
    """Two sets of features that share a part."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(count, 3))
    x = np.hstack([shared, rng.normal(size=(count, first - 3))]) + 0.5
    y = np.hstack([2 * shared, rng.normal(size=(count, second - 3))]) @ rng.normal(
        size=(second, second)
    )
    return torch.tensor(x), torch.tensor(y)


def test_linear_cka():
    x, y = features()
    a, b = (m.numpy() - m.numpy().mean(0) for m in (x, y))
    fro = np.linalg.norm
    expected = fro(b.T @ a) ** 2 / (fro(a.T @ a) * fro(b.T @ b))
    assert probe.linear_cka(x, y) == pytest.approx(expected, rel=1e-10)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert probe.linear_cka(x, 3 * x @ torch.tensor(rotation) + 1) == pytest.approx(1, rel=1e-10)


def hsic(k, m):
    """The unbiased estimate as its definition: means over distinct indices."""
    n = len(k)
    index = range(n)
    pairs = [(i, j) for i in index for j in index if i != j]
    one = np.mean([k[i, j] * m[i, j] for i, j in pairs])
    triples = [k[i, j] * m[i, q] for i, j in pairs for q in index if q not in (i, j)]
    fours = [
        k[i, j] * m[q, r] for i, j in pairs for q, r in pairs if q not in (i, j) and r not in (i, j)
    ]
    return one + np.mean(fours) - 2 * np.mean(triples)


def test_unbiased_hsic_is_the_mean_over_distinct_indices():
    rng = np.random.default_rng(0)
    k, m = (a @ a.T for a in (rng.normal(size=(8, 3)), rng.normal(size=(8, 4))))
    found = probe.unbiased_hsic(torch.tensor(k), torch.tensor(m))
    assert float(found) == pytest.approx(hsic(k, m), rel=1e-10)


def test_cknna():
    x, y = features(count=12)
    near, kernels = [], []
    for m in (x.numpy(), y.numpy()):
        unit = m / np.linalg.norm(m, axis=1, keepdims=True)
        kernel = unit @ unit.T
        mask = np.zeros_like(kernel)
        for i in range(12):
            others = [j for j in range(12) if j != i]
            for j in sorted(others, key=lambda j: -kernel[i, j])[:4]:
                mask[i, j] = 1
        near.append(mask)
        kernels.append(kernel)
    both = near[0] * near[1]

    def masked(mask, first, second):  # the estimate with the transposes where they matter
        k, m = mask * first, mask * second
        n = 12
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        total = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2))
        return (total - 2 * (k @ m).sum() / (n - 2)) / (n * (n - 3))

    k, m = kernels
    own = masked(near[0], k, k) * masked(near[1], m, m)
    expected = masked(both, k, m) / np.sqrt(own)
    assert probe.cknna(x, y, 4) == pytest.approx(expected, rel=1e-9)
    assert probe.cknna(x, x, 4) == pytest.approx(1, rel=1e-9)
    with pytest.raises(UserError, match="--num: CKNNA needs more than 12 images, got 12"):
        probe.cknna(x, y, 12)


@pytest.mark.parametrize(("grid", "radius"), [((4, 4), None), ((3, 5), 2.0)])
def test_local_versus_distant_similarity(grid, radius):
    x = torch.randn(2, 7, *grid, generator=torch.Generator().manual_seed(0))
    limit = max(grid) / 2 if radius is None else radius
    cells = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    totals = []
    for image in x.double().numpy():
        near, far = [], []
        for a in cells:
            for b in cells:
                u, v = image[:, a[0], a[1]], image[:, b[0], b[1]]
                cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                distance = abs(a[0] - b[0]) + abs(a[1] - b[1])
                if 0 < distance < limit:
                    near.append(cosine)
                if distance >= limit:
                    far.append(cosine)
        totals.append(np.mean(near) - np.mean(far))
    assert probe.local_distant(x, radius) == pytest.approx(np.mean(totals), rel=1e-6)


def halves(count):
    train = torch.zeros(count, dtype=torch.bool)
    train[::2] = True
    return train


def by_hand(x, y, penalty=probe.PENALTY):
    """The minimum of |Y - X W|^2 + p s |W|^2 for centred X and Y, by an augmented system."""
    xm, ym = x.mean(0), y.mean(0)
    a, b = x - xm, y - ym
    strength = penalty * (a**2).sum(0).mean()
    tall = np.vstack([a, np.sqrt(strength) * np.eye(a.shape[1])])
    goal = np.vstack([b, np.zeros((a.shape[1], b.shape[1]))])
    w = np.linalg.lstsq(tall, goal, rcond=None)[0]
    return lambda z: (z - xm) @ w + ym


def test_a_readout_and_its_r2():
    x, y = features(count=60)
    train = halves(60)
    a, b, keep = x.numpy(), y.numpy(), train.numpy()
    predict = by_hand(a[keep], b[keep])
    np.testing.assert_allclose(probe.ridge(x[train], y[train])(x).numpy(), predict(a), rtol=1e-8)
    rest = b[~keep]
    left = ((rest - predict(a[~keep])) ** 2).sum()
    expected = 1 - left / ((rest - rest.mean(0)) ** 2).sum()
    assert probe.explained(x, y, train) == pytest.approx(expected, rel=1e-8)
    assert probe.explained(x, x @ torch.randn(6, 4).double() + 2, train) > 0.999


def test_a_linear_probe():
    x, _ = features(count=90)
    labels = torch.arange(90) % 3 * 4  # labels need not be 0, 1, 2
    x[:, 0] += labels
    train = torch.rand(90, generator=torch.Generator().manual_seed(0)) < 0.5
    a, keep = x.numpy(), train.numpy()
    scaled = (a - a[keep].mean(0)) / a[keep].std(0, ddof=1)
    onehot = np.eye(3)[labels.numpy() // 4]
    guess = by_hand(scaled[keep], onehot[keep])(scaled[~keep]).argmax(1) * 4
    expected = (guess == labels.numpy()[~keep]).mean()
    assert probe.accuracy(x, labels, train) == pytest.approx(expected)
    assert 0.5 < expected < 1
    noise = torch.randn(90, 6, generator=torch.Generator().manual_seed(1))
    assert probe.accuracy(noise, labels, train) < 0.6


def test_increments_and_the_layer_gap():
    """A second layer that adds a part of its own to the first: a student that holds the first layer
    alone has all of that part left to learn."""
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(400, 4, generator=rng).double()
    news = torch.randn(400, 4, generator=rng).double()
    second = first @ torch.randn(4, 4, generator=rng).double() + news
    train = halves(400)
    (whole, _), (added, energy) = probe.increments([first, second], train)
    keep = train.numpy()
    before = by_hand(first.numpy()[keep], second.numpy()[keep])(first.numpy())
    np.testing.assert_allclose(added.numpy(), second.numpy() - before, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(whole.numpy(), (first - first[train].mean(0)).numpy(), atol=1e-12)
    mean = second[train].mean(0)
    assert energy == pytest.approx(float((second[~train] - mean).square().sum(1).mean()))

    read = by_hand(first.numpy()[keep], added.numpy()[keep])(first.numpy())
    left = ((added.numpy() - read)[~keep] ** 2).sum(1).mean()
    own = (added.numpy()[~keep] ** 2).sum(1).mean()
    gap = probe.layer_gap(first, added, energy, train)
    assert gap == pytest.approx(left / max(own, 0.1 * energy), rel=1e-7)
    assert gap > 0.9
    assert probe.layer_gap(torch.cat([first, news], 1), added, energy, train) < 0.01
    assert probe.layer_gap(first, whole, energy, train) < 0.01


def test_a_layer_that_adds_nothing_does_not_win():
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(200, 4, generator=rng).double()
    same = first + 0.01 * torch.randn(200, 4, generator=rng)
    (_, _), (added, energy) = probe.increments([first, same], halves(200))
    assert probe.layer_gap(first, added, energy, halves(200)) < 0.01  # without the floor about 1


TEACHERS = {"vae": dict(type="VAETaps"), "vit": VIT}


def test_an_untrained_backbone_is_probed():
    run = run_of(None, backbone=SIT, priors=TEACHERS)
    found = probe.measure(run, images=24, batch=10, bins=2, blocks=[1, 3])
    names = [f"vae {level}" for level in run.net.parts.priors["vae"].levels]
    names += ["vit patch", "vit cls"]
    assert list(found.teachers) == names
    assert set(found.pairs) == {(n, b, t) for n in (0, 1) for b in (1, 3) for t in names}
    for (_, _, name), pair in found.pairs.items():
        compared = name in ("vit patch", "vae down0.res1", "vae mid.res1")
        assert np.isfinite(pair[:3]).all() and (not compared or np.isfinite(pair.gap))
        assert -1 <= pair.cknna <= 1.01 and 0 <= pair.cka <= 1.0001
    assert found.between["vit cls", "vit cls"] == pytest.approx(1)
    images = [run.dataset[i] for i in torch.randperm(50, generator=seeded(0))[:24].tolist()]
    pooled = torch.stack([i["image"] for i in images]).float() / 255
    levels = run.net.parts.tokenizer.encode(pooled, ("conv_in", "mid.res1")).levels
    a, b = (levels[name].double().mean((2, 3)) for name in ("conv_in", "mid.res1"))
    expected = probe.cknna(a, b)
    assert found.between["vae conv_in", "vae mid.res1"] == pytest.approx(expected, rel=1e-5)
    notes = probe.notes_of(run, found)
    assert any(
        "layer gap of vae" in note and "most is left to learn from" in note for note in notes
    )
    few = {key: pair._replace(r2=-0.1) for key, pair in found.pairs.items()}
    enough = {key: pair._replace(r2=0.1) for key, pair in found.pairs.items()}
    assert "Raise --num" in probe.notes_of(run, found._replace(pairs=few))[-1]
    assert "Raise --num" not in probe.notes_of(run, found._replace(pairs=enough))[-1]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_mistakes():
    run = run_of(None, backbone=SIT, priors=TEACHERS)
    with pytest.raises(UserError, match="more than 20 images are needed, got 20"):
        probe.measure(run, images=20)
    with pytest.raises(ConfigError, match="--blocks: block 4 does not exist; blocks are 1..3"):
        probe.measure(run, images=24, blocks=[4])
    with pytest.raises(UserError, match="has no prior to compare with; add one"):
        probe.measure(run_of(None, backbone=SIT), images=24)
    with pytest.raises(ConfigError, match="--layers: vit has no map 'cls'"):
        probe.chosen_layers(run.net.parts.priors["vit"], ["cls"], "vit")
