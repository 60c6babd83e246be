"""`ahpa analyze`: formulas against written-out ones, hand-set policies, the command on a run."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import call, train
from test_gsnr import LUT, MODELS, SIT, run_of

from ahpa.analysis import cost_comparison, pca, router, target
from ahpa.registry import UserError

# ---- targets --------------------------------------------------------------------------------


def written_out(x):
    """The figures of vectors [N, C], by definition."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    best = unit.mean(0) / np.linalg.norm(unit.mean(0))  # of all constants, the one with the largest
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = values / values.sum()
    return dict(
        constant_cosine=(unit @ best).mean(),
        rms=np.sqrt((x**2).mean()),
        mean_share=(x.mean(0) ** 2).sum() / (x**2).sum(1).mean(),
        effective_rank=np.exp(-(p * np.log(p)).sum()),
        channels=x.shape[1],
    )


def test_shape_of_a_level():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12)) * np.arange(1, 13) + 3
    sums = target.Sums()
    for part in (x[:100], x[100:]):
        sums.add(torch.tensor(part))
    expected = written_out(x)
    found = sums.shape()._asdict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key
    for _ in range(20):  # no other constant does better
        other = rng.normal(size=12)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        assert (unit @ other / np.linalg.norm(other)).mean() <= found["constant_cosine"]


def test_a_constant_and_a_line():
    constant, line = target.Sums(), target.Sums()
    constant.add(torch.ones(50, 4) * 3)
    line.add(torch.linspace(-1, 1, 50)[:, None] * torch.tensor([1.0, 2.0, 0.0]))
    assert constant.shape() == (pytest.approx(1), pytest.approx(3), pytest.approx(1), 0, 4)
    assert line.shape().effective_rank == pytest.approx(1, abs=1e-4)
    assert line.shape().constant_cosine == pytest.approx(0, abs=1e-6)


def test_levels_and_groups_of_a_run():
    run = run_of("ahpa")
    found = target.measure(run, images=4, batch=3, points=2)
    alignment = run.net.alignments["main"]
    images = [run.dataset[i]["image"] for i in torch.randperm(50, generator=seeded(0))[:4].tolist()]
    levels = tuple(run.net.parts.priors["vae"].levels)
    assert [level for _, level in found.levels] == list(levels)
    encoded = run.net.parts.tokenizer.encode(torch.stack(images).float() / 255, levels).levels
    for level in levels:
        x = encoded[level].permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
        expected = written_out(x)
        shape = found.levels["vae", level]
        assert shape.constant_cosine == pytest.approx(expected["constant_cosine"], rel=1e-5)
        assert shape.rms == pytest.approx(expected["rms"], rel=1e-5)
    for number, t in enumerate((0.0, 1.0)):
        goal = alignment.router(encoded, torch.full((4,), t)).detach()
        goal = goal.flatten(0, 1).double().numpy()
        mid = alignment.router.channels["mid"]
        parts = {"target": goal, "mid": goal[:, :mid], "deep": goal[:, mid:]}
        for group, x in parts.items():
            shape = found.routed["main", group][number]
            expected = written_out(x)["constant_cosine"]
            assert shape.constant_cosine == pytest.approx(expected, rel=1e-5)
    notes = " ".join(target.notes_of(run, found))
    assert "a constant reaches cosine" in notes and "with the target of main" in notes
    steady = found._replace(routed={("main", "target"): found.routed["main", "target"][:1] * 2})
    assert "with the target of main, at every t." in " ".join(target.notes_of(run, steady))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ---- routers --------------------------------------------------------------------------------


def with_router(**router):
    alignments = dict(main=dict(tap=2, source="vae", router=router))
    return run_of(None, backbone=SIT, priors=MODELS["ahpa"]["priors"], alignments=alignments)


def test_a_hand_set_policy_is_recovered():
    run = with_router(**{**LUT, "bins": 2})
    lut = run.net.alignments["main"].router
    betas = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    alphas = torch.tensor([[0.7, 0.1, 0.1, 0.1, 0.25, 0.25, 0.25, 0.25]] * 2)
    with torch.no_grad():
        lut.beta_table.copy_(betas.log())
        lut.alpha_table.copy_(alphas.log())
    policy = router.measure(run, images=2, points=3)["main"]
    table = policy.table
    np.testing.assert_allclose(table["beta_mid"], [0.9, 0.2, 0.2], rtol=1e-5)
    np.testing.assert_allclose(table["beta_deep"], [0.1, 0.8, 0.8], rtol=1e-5)
    first, *_ = lut.groups["mid"]
    np.testing.assert_allclose(table[f"alpha_mid_{first}"], [0.7] * 3, rtol=1e-5)
    assert policy.content == {}
    even = router.evenness(table, lut)
    h = [-(p * np.log(p) + (1 - p) * np.log(1 - p)) for p in (0.9, 0.2, 0.2)]
    assert even["beta"] == pytest.approx(np.mean(h) / np.log(2), rel=1e-5)
    assert even["deep"] == pytest.approx(1, rel=1e-5)
    assert not any("warning" in note for note in router.notes_of(run, "main", policy))


def test_a_collapse_is_told():
    run = with_router(**{**LUT, "bins": 2})
    with torch.no_grad():
        run.net.alignments["main"].router.beta_table[:, 0] = 20.0
    policy = router.measure(run, images=2, points=3)["main"]
    notes = router.notes_of(run, "main", policy)
    assert "warning: model main: the betas have collapsed (evenness 0.000" in notes[0]
    assert sum("warning" in note for note in notes) == 1


def test_content_moves_a_content_router_only():
    run = with_router(type="ContentRouter", hidden_dim=16, depth=2)
    policy = router.measure(run, images=6, batch=4, points=5)["main"]
    alignment = run.net.alignments["main"]
    assert max(policy.content["beta_mid"]) > 1e-4
    assert len(policy.content["beta_mid"]) == router.CONTENT_TIMES
    assert set(policy.content) == {c for c in policy.table if c.startswith(("beta", "alpha"))}
    assert not alignment.training and int(alignment.router.batches_seen) == 0  # nothing changed


def test_no_router_is_told():
    with pytest.raises(UserError, match="has no router with more than one level"):
        router.measure(run_of("views"), images=2)


# ---- principal components -------------------------------------------------------------------


def skewed(count=400, width=9, seed=0):
    """Vectors with three skewed directions of different strength, in a rotated basis."""
    rng = np.random.default_rng(seed)
    base = rng.exponential(size=(count, width)) * np.array([9, 6, 4] + [0.3] * (width - 3))
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return torch.tensor(base @ rotation), torch.tensor(rotation)


def test_components_against_a_singular_value_decomposition():
    x, _ = skewed()
    found = pca.principal(x)
    centred = x.numpy() - x.numpy().mean(0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.explained, (values**2 / (values**2).sum())[:3], rtol=1e-9)
    for number in range(3):
        score = centred @ vectors[number]
        score = score * np.sign((score**3).sum())
        np.testing.assert_allclose(found.scores(x)[:, number], score, rtol=1e-6, atol=1e-8)


def test_signs_are_stable():
    """The same colours for shuffled vectors, a rotated or mirrored basis, and a little noise."""
    x, rotation = skewed()
    scores = pca.principal(x).scores(x)
    order = torch.randperm(len(x), generator=seeded(1))
    noisy = x + 0.02 * torch.randn(x.shape, generator=seeded(2))
    for other, expected in (
        (x[order], scores[order]),
        (x @ rotation, scores),
        (-(x @ rotation.flip(0)).flip(1) + 5, scores * 0 + pca.principal(-x).scores(-x)),
        (noisy, scores),
    ):
        again = pca.principal(other).scores(other)
        same = torch.cosine_similarity(again, expected, dim=0)
        assert (same > 0.999).all(), same
    symmetric = torch.cat([x - x.mean(0), x.mean(0) - x])  # no skewness to go by
    components = pca.principal(symmetric).components
    assert (components.gather(0, components.abs().argmax(0, keepdim=True)) > 0).all()


def test_colours_fill_the_scale():
    shown = pca.colours(torch.linspace(-3, 5, 1001)[:, None].double())
    assert shown.shape == (1001, 3) and shown.min() == 0 and shown.max() == 1
    assert shown[500, 0] == pytest.approx(0.5, abs=1e-6) and (shown[:, 1:] == 0.5).all()


def test_pictures_of_a_run():
    run = run_of("ahpa")
    found = pca.measure(run, images=2, batch=1, times=(0.3, 0.6))
    assert [item.label for item in found.blocks] == ["block 1", "block 2", "block 3"]
    assert [item.label for item in found.groups] == ["main\nmid", "main\ndeep", "main\ntarget"]
    assert [i.label for i in found.levels] == [
        f"vae\n{n}" for n in run.net.parts.priors["vae"].levels
    ]
    assert {len(item.maps) for item in found.blocks + found.groups} == {4}  # (image, time)
    router = run.net.alignments["main"].router
    item = found.groups[2]
    chosen = torch.randperm(50, generator=seeded(0))[:2].tolist()
    images = torch.stack([run.dataset[i]["image"] for i in chosen]).float() / 255
    encoded = run.net.parts.tokenizer.encode(images, router.used_levels).levels
    expected = router(encoded, torch.tensor([0.3, 0.3]))[1].mT.unflatten(1, (4, 4))
    torch.testing.assert_close(item.maps[2], expected.detach(), rtol=1e-4, atol=1e-4)


# ---- cost -----------------------------------------------------------------------------------


def test_costs_side_by_side():
    from ahpa.cli.analyze import find_source

    names = ("repa_sit-b", "sit-b")
    found = [cost_comparison.measure(find_source(n, demo=False), steps=0) for n in names]
    repa, plain = cost_comparison.rows_of(found, batch=4)
    assert (
        plain["backbone_parameters"]
        == repa["backbone_parameters"]
        == pytest.approx(130.3e6, rel=0.01)
    )
    assert repa["head_parameters"] == pytest.approx(7.35e6, rel=0.01)  # METHODS, section 12
    assert plain["head_parameters"] == 0 and plain["added_gmac"] == 0
    tokens, width, depth = 256, 768, 12
    attention = 2 * tokens**2 * width * depth / 1e9
    gap = plain["forward_gmac"] - plain["forward_gmac_without_attention"]
    assert gap == pytest.approx(attention, rel=1e-6)
    assert repa["added_gmac_without_attention"] > 20  # DINOv2-B
    assert repa["step_seconds"] == ""


def test_a_step_is_measured():
    config = dict(
        model=dict(
            resolution=64, tokenizer=dict(type="KLAutoencoder", source="bundled"), backbone=SIT
        ),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-3)),
    )
    step = cost_comparison.time_steps(config, batch=2, steps=1)
    assert 0 < step.seconds < 60 and 0 < step.peak_gib < 64 and step.external == 0


@pytest.mark.slow
def test_a_step_is_measured_in_a_process_of_its_own():
    config = dict(model={}, optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-3)))
    failed = cost_comparison.measured_step(config, batch=2, steps=1)
    assert failed.seconds is None and "model needs the option 'tokenizer'" in failed.reason
    assert cost_comparison.measured_step({}, batch=2, steps=1).reason == "it has no optimiser"


# ---- the command ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    own = ["checkpoints.interval=2", "checkpoints.keep=2", "hooks.policy.interval=1"]
    for name, config in (("lut", "ahpa_sit-b_router-lut"), ("vanilla", "sit-b")):
        more = own if name == "lut" else own[:2]
        train(folder / name, config=f"configs/{config}.py", iters=4, options=more)
    return folder


SMALL = {  # options that keep it fast
    "gsnr": ["--num", "4", "--bins", "2"],
    "router": ["--num", "4", "--points", "3"],
    "pca": ["--images", "3", "8", "--times", "0.5"],
    "cost": ["--steps", "0"],
    "target": ["--num", "4", "--points", "2"],
    "probe": ["--num", "24", "--bins", "1"],
}
FILES = {
    "router": ["router_lut_main"],
    "pca": ["pca_lut_levels", "pca_lut_groups", "pca_lut_blocks"],
    "probe": ["probe_lut"],
}


@pytest.mark.parametrize("kind", SMALL)
def test_every_diagnostic_writes_four_files(trained, kind):
    done = call("analyze", kind, trained / "lut", *SMALL[kind])
    assert done.returncode == 0, done.stderr
    out = trained / "lut" / "analysis"
    names = FILES.get(kind, [kind])
    found = {path.name for path in out.iterdir() if path.name.startswith(kind)}
    assert found == {f"{n}.{suffix}" for n in names for suffix in ("png", "svg", "csv", "json")}
    for name in names:
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 300 and len(picture.convert("RGB").getcolors(1 << 24)) > 50
        assert (out / f"{name}.svg").read_text().rstrip().endswith("</svg>")
        whole = json.loads((out / f"{name}.json").read_text())
        with open(out / f"{name}.csv") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(whole["rows"]) > 0
        assert list(rows[0]) == list(whole["rows"][0])
        record = whole["record"]
        assert record["command"][:3] == ["ahpa", "analyze", kind]
        if kind == "cost":
            assert record["runs"] == ["lut"]
            continue
        (run,) = record["runs"]
        averaged = kind in ("pca", "probe")
        assert run["run"] == "lut" and run["iteration"] == 4 and run["training_seed"] == 0
        assert run["weights"] == ("ema" if averaged else "model")
        assert len(run["checkpoint_sha256"]) == 64 and record["data"][0]["seed"] == 0


@pytest.mark.slow
def test_figures_do_not_depend_on_the_time_of_day(trained, tmp_path):
    for name in "ab":
        call("analyze", "gsnr", trained / "lut", *SMALL["gsnr"], "--out", tmp_path / name)
    for suffix in ("png", "svg", "csv"):
        first, second = ((tmp_path / n / f"gsnr.{suffix}").read_bytes() for n in "ab")
        assert first == second


def test_the_history_of_a_router(trained):
    """From checkpoints (2, 4) and from the hook's tables (1, 3); both say the same of step 4."""
    from ahpa.analysis.runs import open_run, run_source

    run = open_run(run_source(trained / "lut"), weights="model")
    policy = router.measure(run, images=2, points=101)["main"]
    assert list(policy.history) == [1, 2, 3, 4]
    written = router.written_tables(run, "main", policy.router)[4]
    assert written.keys() == policy.table.keys()
    for column, values in written.items():
        np.testing.assert_allclose(values, policy.table[column], rtol=1e-5, atol=1e-6)
    state = torch.load(trained / "lut/checkpoints/iter_000000004.pth", weights_only=True)["model"]
    for key, value in run.net.state_dict().items():
        assert torch.equal(value, state[key]), key  # the last weights are back in place


def test_heads_of_one_run_on_the_backbone_of_another(trained, tmp_path):
    from ahpa.analysis.runs import open_run, run_source

    ours, other = run_source(trained / "lut"), run_source(trained / "vanilla")
    run = open_run(other, weights="ema", heads=ours)
    for key, value in run.net.state_dict().items():
        name = key.removeprefix("backbone.")
        expected = ours.state[key] if key.startswith("alignments.") else other.average[name]
        assert torch.equal(value, expected), key
    out = ["--out", tmp_path]
    alone = call("analyze", "gsnr", trained / "vanilla", *SMALL["gsnr"], *out)
    assert alone.returncode == 2 and "vanilla has no alignment" in alone.stderr
    heads = ["--heads", trained / "lut"]
    done = call("analyze", "gsnr", trained / "vanilla", *SMALL["gsnr"], *heads, *out)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gsnr.json").read_text())["record"]["runs"][0]
    assert record["run"] == "vanilla" and record["heads"]["run"] == "lut"


def test_a_prior_is_swapped_in(trained, tmp_path):
    """The supervisor of Table B.10: another autoencoder of the same sizes changes the gradients."""
    inner = "dict(type='KLAutoencoder', source='bundled', precision='fp32')"
    same = f"vae=dict(type='VAETaps', autoencoder={inner})"
    norm = "vae=dict(type='SpatialNorm', prior=dict(type='VAETaps'))"
    found = {}
    for name, prior in (("own", []), ("same", ["--prior", same]), ("norm", ["--prior", norm])):
        where = [trained / "lut", *SMALL["gsnr"], "--out", tmp_path / name]
        done = call("analyze", "gsnr", *where, *prior)
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / name / "gsnr.json").read_text())["rows"]
        found[name] = [row["gsnr"] for row in rows]
    np.testing.assert_allclose(found["same"], found["own"], rtol=1e-3)
    assert not np.allclose(found["norm"], found["own"], rtol=0.1)
    other = ["--prior", "vae=dict(type='TimmEncoder', model='bundled', precision='fp32')"]
    done = call("analyze", "gsnr", trained / "lut", *SMALL["gsnr"], *other)
    assert done.returncode == 2 and "\n" not in done.stderr.strip()


def test_a_config_is_looked_into_before_training(tmp_path):
    done = call("analyze", "target", "irepa_sit-b", "--demo", *SMALL["target"], "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "target.json").read_text())["record"]["runs"][0]
    assert record["weights"] == "untrained" and record["checkpoint_sha256"] is None
    assert record["iteration"] == 0 and record["method"] == "irepa_sit-b"


MISTAKES = [
    (["gsnr", "nothing_like_this"], "there is no config nothing_like_this"),
    (["gsnr", "sit-b", "--num", "1"], "--num: must be an integer of at least 2, got 1"),
    (["gsnr", "sit-b", "--bins", "0"], "--bins: must be a positive integer, got 0"),
    (["probe", "sit-b", "--seed", "-1"], "--seed: must be a non-negative integer, got -1"),
    (["pca", "sit-b", "--times", "1.5"], "--times: must be a finite number in [0, 1], got 1.5"),
    (["target", "sit-b", "--data", ""], "--data: must not be empty"),
    (["gsnr", "sit-b", "--prior", "vae"], "--prior: must be NAME=CONFIG"),
    (["gsnr", "sit-b", "--prior", "a=A", "--prior", "a=B"], "--prior: 'a' is given twice"),
    (["target", "sit-b", "--demo"], "has no prior, so there is no target"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: "_".join(v)[:30])
def test_mistakes_are_one_line(arguments, message):
    done = call("analyze", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("kind", SMALL)
def test_help(kind):
    done = call("analyze", kind, "--help")
    assert done.returncode == 0 and "--out" in done.stdout
