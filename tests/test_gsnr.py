"""The gradient signal-to-noise ratio: equal to a plain loop, refused where it is not defined."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.models import VIT, small_model

from ahpa.analysis import gsnr
from ahpa.analysis.runs import Run, Source, generator
from ahpa.data.shapes import ShapesDataset
from ahpa.registry import ConfigError, UserError
from ahpa.registry.contracts import TargetView

SIT = dict(type="SiT", depth=3, hidden_size=24, num_heads=2, patch_size=2, num_classes=10)
MMDIT = dict(type="MMDiT", depth=2, hidden_size=24, num_heads=2, patch_size=2, text_dim=20)
TEXT = dict(type="TextConditioner", encoder=dict(type="WordEncoder", width=20, length=6))
TAPS = {"vae": dict(type="VAETaps")}
LUT = dict(type="LUTRouter", bins=4)
MODELS = {
    "ahpa": dict(
        backbone=SIT, priors=TAPS, alignments=dict(main=dict(tap=2, source="vae", router=LUT))
    ),
    "mmdit": dict(
        backbone=MMDIT,
        conditioner=TEXT,
        priors={"vit": VIT},
        alignments=dict(main=dict(tap=1, source="vit", router=dict(type="StaticRouter", groups=1))),
    ),
    "views": dict(
        backbone=SIT,
        flow=dict(type="Flow", views=2),
        alignments=dict(pair=dict(type="ViewAlignment", tap=2, out_dim=8)),
    ),
    "layersync": dict(
        backbone=SIT,
        priors={"own": dict(type="BlockPrior", block=3)},
        alignments=dict(main=dict(tap=1, source="own", router=dict(type="StaticRouter", groups=1))),
    ),
}


def run_of(name, **changes):
    """A run in memory: a network with its weights moved, on drawn images."""
    net = small_model(**{**MODELS[name], **changes}) if name else small_model(**changes)
    net.parts.load()
    net.parts.check_scale = False
    net.eval()
    source = Source(name or "model", {}, {}, {}, {}, 0, 0, None)
    return Run(source, net, ShapesDataset(length=50, resolution=64), "untrained", {})


def looped(run, *, images, batch, bins, number, params):
    """[B, parameters] float64: the gradient of every image by itself, written out."""
    net = run.net
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:images].tolist()
    (name, alignment), *_ = net.alignments.items()
    chosen = gsnr.shared_parameters(net, alignment, params)
    net.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    rows = []
    for part, start in enumerate(range(0, images, batch)):
        items = [run.dataset[index] for index in order[start : start + batch]]
        item = torch.utils.data.default_collate(items)
        rng = generator(run.device, 0, number, part)
        low, high = number / bins, (number + 1) / bins
        view, features = gsnr.noised_batch(net, item, rng, low, high, run.progress)
        count, views = len(items), view.noised.views
        assert ((view.noised.t >= low) & (view.noised.t < high)).all()
        for image in range(count):
            own = [image + count * v for v in range(views)]
            cond = view.cond.value
            if isinstance(cond, torch.Tensor):
                cond = cond[own]
            else:
                cond = type(cond)(*(None if x is None else x[own] for x in cond))
            x = {stream: value[own] for stream, value in view.noised.x.items()}
            t = view.noised.t[own]
            out = net.backbone(x, t, cond, taps=net.taps)
            noised = replace(view.noised, x=x, t=t)
            single = TargetView(view.clean, noised, view.cond, out)
            target = {p: {k: f[own] for k, f in fs.items()} for p, fs in features.items()}
            for parameter in chosen.values():
                parameter.grad = None
            alignment(single, target, run.progress).total.backward()
            grads = [torch.zeros(()) if p.grad is None else p.grad for p in chosen.values()]
            full = [g.expand(p.shape) for g, p in zip(grads, chosen.values(), strict=True)]
            rows.append(torch.cat([g.flatten() for g in full]).double().numpy())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("name", "params", "method"),
    [
        ("ahpa", "block", "ghost norms"),
        ("ahpa", "blocks.1.attn", "ghost norms"),
        ("ahpa", "backbone", "one image at a time"),
        ("mmdit", "block", "ghost norms"),
        ("views", "block", "ghost norms"),
        ("layersync", "block", "ghost norms"),
    ],
)
def test_equal_to_a_plain_loop(name, params, method):
    run = run_of(name)
    options = dict(images=5, batch=3, bins=2, params=params)
    (curve,) = gsnr.measure(run, **options)
    assert curve.method == method
    for number, moments in enumerate(curve.moments):
        g = looped(run, number=number, **options)
        assert g.shape == (5, curve.parameters)
        mean = g.mean(0)
        variance = ((g - mean) ** 2).sum() / (5 - 1)
        assert moments.squared_mean == pytest.approx((mean**2).sum(), rel=1e-5)
        assert moments.gsnr == pytest.approx((mean**2).sum() / variance, rel=1e-5)


def test_the_memory_bound_changes_nothing(monkeypatch):
    run = run_of("ahpa")
    whole = gsnr.measure(run, images=4, batch=4, bins=1)[0].moments[0]
    monkeypatch.setattr(gsnr, "GRAM", 1)
    parts = gsnr.measure(run, images=4, batch=4, bins=1)[0].moments[0]
    assert parts.gsnr == pytest.approx(whole.gsnr, rel=1e-9)


@pytest.mark.parametrize(("vectors", "wide", "out"), [(1, 5, 7), (3, 40, 30), (50, 4, 3)])
def test_norms_of_a_linear_layer(vectors, wide, out):
    rng = np.random.default_rng(0)
    a, d = rng.normal(size=(4, vectors, wide)), rng.normal(size=(4, vectors, out))
    expected = [(d[i].T @ a[i]).ravel() @ (d[i].T @ a[i]).ravel() for i in range(4)]
    found = gsnr.weight_norms(torch.tensor(a), torch.tensor(d))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_common_direction_is_recovered():
    """g_i = mu + sigma n_i in D dimensions: G = |mu|^2 / (D sigma^2), unbiased after 1/B is taken
    off; B G is 1 on average without a common direction."""
    rng = np.random.default_rng(1)
    images, dim, sigma = 8, 400, 0.5
    unbiased, bare = [], []
    for mu, into in ((np.full(dim, 0.3), unbiased), (np.zeros(dim), bare)):
        for _ in range(200):
            g = mu + sigma * rng.normal(size=(images, dim))
            mean = g.mean(0)
            into.append(gsnr.Moments(images, float(mean @ mean), float((g**2).sum())).gsnr)
    assert np.mean(unbiased) - 1 / images == pytest.approx(0.3**2 / sigma**2, rel=0.02)
    assert np.mean(bare) * images == pytest.approx(1, rel=0.02)


def test_one_level_of_a_routed_target():
    """With levels the target is one level's alone, on its group's channels."""
    run = run_of("ahpa")
    curves = gsnr.measure(run, images=2, batch=2, bins=1, levels=True)
    router = run.net.alignments["main"].router
    names = [f"{group}/{level}" for group, own in router.groups.items() for level in own]
    assert [curve.target.level for curve in curves] == ["routed", *names]
    one = curves[-1].target.router
    t = torch.tensor([0.1, 0.9])
    features = {
        level: torch.randn(
            2, router.levels[level].channels, *[64 // router.levels[level].stride] * 2
        )
        for level in router.used_levels
    }
    target = one(features, t)
    _, level = names[-1].split("/", 1)
    start = router.channels[list(router.groups)[0]]
    grid = router.geometry.grid
    expected = F.interpolate(features[level], size=grid, mode="bilinear", align_corners=False)
    torch.testing.assert_close(target[..., start:].mT.unflatten(2, grid), expected)
    assert not target[..., :start].any()


DISPERSIVE = dict(
    backbone=SIT,
    alignments=dict(
        main=dict(type="Regularisation", tap=1, regulariser=dict(type="DispersiveLoss"))
    ),
)


def test_coupled_images_are_refused():
    with pytest.raises(UserError, match="'main' couples the images of a batch: its loss of 4"):
        gsnr.measure(run_of(None, **DISPERSIVE), images=4, bins=1)


def test_a_time_for_each_token_is_refused():
    own = {**MODELS["ahpa"], "flow": dict(type="TokenTimeFlow")}
    with pytest.raises(UserError, match="each token of an image its own time"):
        gsnr.measure(run_of(None, **own), images=4, bins=1)


def test_no_alignment_is_refused():
    with pytest.raises(UserError, match="has no alignment; name a run that has some by --heads"):
        gsnr.measure(run_of(None, backbone=SIT), images=4)


def test_unknown_parameters_are_refused():
    with pytest.raises(ConfigError, match=r"--params: the backbone has no 'blocks.7'.*blocks.1"):
        gsnr.measure(run_of("ahpa"), images=4, params="blocks.7")


def test_parameters_behind_the_tap_are_refused():
    with pytest.raises(UserError, match=r"no gradient .* blocks.2; it taps block\(s\) 2"):
        gsnr.measure(run_of("ahpa"), images=4, params="blocks.2")
