"""This package's own tests: ahpa's conformance check of each kind, and each formula by hand."""

import csv
import math
from types import SimpleNamespace

import ahpa_new_method
import pytest
import torch
import torch.nn.functional as F

from ahpa.registry import (
    ALIGNMENTS,
    BACKBONES,
    CONDITIONERS,
    DATASETS,
    FLOWS,
    HOOKS,
    PAIR_LOSSES,
    PATHS,
    PRIORS,
    PROJECTORS,
    REGULARISERS,
    ROUTERS,
    SAMPLERS,
    SCHEDULES,
    ConfigError,
    UserError,
    build,
)
from ahpa.registry.contracts import Clean, LevelSpec, Losses, Progress, Tap, Tokens
from ahpa.registry.values import Term
from ahpa.testing import (
    check_alignment,
    check_backbone,
    check_conditioner,
    check_dataset,
    check_flow,
    check_pair_loss,
    check_path,
    check_prior,
    check_projector,
    check_regulariser,
    check_router,
    check_sampler,
    check_schedule,
    toy_geometry,
)

torch.set_num_threads(1)
TINY = dict(type="RotaryTransformer", depth=2, hidden_size=16, num_heads=2, num_classes=5)
ALIGNMENT = dict(
    type="AveragedTaps",
    blocks=[1, 3],
    source="prior",
    router=dict(type="StaticRouter", groups="4/4"),
    projector=dict(type="BottleneckProjector", rank=4),
    pair_loss=dict(type="HuberCosineLoss"),
    weight=dict(type="WarmUpHold", value=0.5, steps=4, start=0.5),
)


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- the conformance checks -----------------------------------------------------------------


@pytest.mark.parametrize("prior", [{}, dict(scales=[8, 16], orientations=3)], ids=["", "options"])
def test_prior_conforms(prior):
    check_prior(dict(type="GradientPyramid", **prior))


def test_prior_conforms_inside_a_wrapper_of_ahpa():
    check_prior(dict(type="SpatialNorm", prior=dict(type="GradientPyramid")))


def test_router_conforms():
    check_router(dict(type="BumpRouter"))
    check_router(dict(type="BumpRouter", width=2), levels=3)


def test_projector_conforms():
    check_projector(dict(type="BottleneckProjector", rank=3))


def test_losses_conform():
    check_pair_loss(dict(type="HuberCosineLoss"))
    check_pair_loss(dict(type="HuberCosineLoss", delta=1.5))
    check_regulariser(dict(type="VarianceFloor"))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_backbone_conforms(patch_size):
    check_backbone(TINY | dict(patch_size=patch_size))


@pytest.mark.parametrize("path", ["LinearPath", "CosinePath", "BentCosinePath"])
def test_sampler_conforms(path):
    check_sampler(dict(type="ab2"), path=dict(type=path))


@pytest.mark.parametrize("exponent", [0.5, 1, 3.0])
def test_path_conforms(exponent):
    check_path(dict(type="BentCosinePath", exponent=exponent))


@pytest.mark.parametrize("batch", [4, 5])
@pytest.mark.parametrize("options", [{}, dict(antithetic=True), dict(views=2)], ids=str)
def test_flow_conforms(options, batch):
    check_flow(dict(type="StratifiedFlow", **options), batch=batch)


def test_conditioner_conforms():
    check_conditioner(dict(type="PerClassDropout", dropout=0.3, overrides=[(1, 0.9), (2, 0)]))


def test_schedule_conforms():
    check_schedule(dict(type="WarmUpHold", value=0.5, steps=7, start=0.2))


@pytest.mark.parametrize("views", [1, 2])
def test_alignment_conforms(views):
    check_alignment(ALIGNMENT, views=views)
    check_alignment(ALIGNMENT | dict(router=dict(type="BumpRouter")), priors=maps(), views=views)


def maps():
    return {"prior": {f"level{index}": LevelSpec(8, 8) for index in range(5)}}


def test_dataset_conforms():
    check_dataset(dict(type="Plaids", length=6))


# ---- the formulas ---------------------------------------------------------------------------


def prior_of(**options):
    return build(PRIORS, dict(type="GradientPyramid", **options), geometry=toy_geometry())


def test_energies_of_a_ramp():
    """A grey ramp along x of slope 1/64: energies cos^2(pi k / K) / 64^2 inside, colours flat."""
    ramp = ((torch.arange(64) + 0.5) / 64).expand(1, 3, 64, 64)
    level = prior_of(scales=[4], orientations=4).from_clean(Clean({}, ramp), ["scale4"])["scale4"]
    inside = level[0, :, 5, 5]
    x = 5 * 4  # the first of the four columns under this feature
    torch.testing.assert_close(inside[:3], torch.full((3,), (x + 2) / 64))
    columns = (torch.arange(x, x + 4) + 0.5) / 64
    torch.testing.assert_close(inside[3:6], columns.std(correction=0).expand(3))
    wanted = [abs(math.cos(math.pi * k / 4)) / 64 for k in range(4)]
    torch.testing.assert_close(inside[6:], torch.tensor(wanted), atol=1e-6, rtol=1e-4)


def test_energies_sum_to_the_gradient():
    """Over K orientations they sum to K / 2 |g|^2."""
    image = normals(2, 3, 8, 8)
    energies = ahpa_new_method.prior.edge_energies(image, 5)
    luma = 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]
    x = (luma[:, 3, 4] - luma[:, 3, 2]) / 2
    y = (luma[:, 4, 3] - luma[:, 2, 3]) / 2
    torch.testing.assert_close(energies[:, :, 3, 3].sum(1), 2.5 * (x**2 + y**2))


def test_prior_needs_images():
    with pytest.raises(UserError, match="needs images"):
        prior_of().from_clean(Clean({}), ["scale8"])


def bump(**options):
    levels = maps()["prior"]
    return build(
        ROUTERS, dict(type="BumpRouter", **options), levels=levels, geometry=toy_geometry()
    )


def test_bump():
    """alpha_l ~ exp(-(l - c)^2 / 2 s^2); c(0) = (L - 1) / 4 and c(1) = 3 (L - 1) / 4."""
    router = bump(width=0.7)
    t = torch.tensor([0.0, 0.3, 1.0])
    centre = router.centre(t)
    torch.testing.assert_close(centre[[0, 2]], torch.tensor([1.0, 3.0]))
    intra, inter = router.weights(t, None)
    level = torch.arange(5)
    raw = torch.exp(-((level - centre[:, None]) ** 2) / (2 * 0.7**2))
    torch.testing.assert_close(intra["all"], raw / raw.sum(1, keepdim=True))
    assert torch.equal(inter, torch.ones(3, 1))


def test_bump_mixes_on_the_token_grid():
    """Finer maps are averaged, coarser ones interpolated; the sum is weighed."""
    router = bump()
    features = {name: normals(2, 8, 8, 8, seed=3) for name in router.used_levels}
    alphas = torch.zeros(2, 5)
    alphas[:, 2] = 1
    features["level2"] = normals(2, 8, 16, 16, seed=4)
    target = router.mix(features, {"all": alphas}, torch.ones(2, 1))
    pooled = F.avg_pool2d(features["level2"], 4)
    torch.testing.assert_close(target, pooled.flatten(2).transpose(1, 2))
    alphas = alphas.roll(1, 1)
    features["level3"] = normals(2, 8, 2, 2, seed=5)
    target = router.mix(features, {"all": alphas}, torch.ones(2, 1))
    corner = features["level3"][:, :, 0, 0]  # the first token's centre is outside the coarse ones
    torch.testing.assert_close(target[:, 0], corner)


def test_low_rank_projector():
    projector = build(PROJECTORS, dict(type="BottleneckProjector", rank=3), dim=5, out_dim=7)
    x = normals(2, 4, 5)
    z = x @ projector.down.weight.T
    gelu = z * (1 + torch.erf(z / math.sqrt(2))) / 2
    wanted = gelu @ projector.up.weight.T + projector.up.bias + z @ projector.skip.weight.T
    torch.testing.assert_close(projector(Tokens(x, 0, (2, 2))), wanted)
    assert sum(p.numel() for p in projector.parameters()) == 3 * (5 + 2 * 7) + 7


def test_huber_of_the_cosine():
    """Tokens of the distances 0.1 and 1 at delta 0.25: 0.1^2 / 0.5 and 1 - 0.125."""
    loss = build(PAIR_LOSSES, dict(type="HuberCosineLoss", delta=0.25), dim=2)
    near = math.acos(0.9)
    pred = torch.tensor([[[3 * math.cos(near), 3 * math.sin(near)], [0.0, 2.0]]])
    target = torch.tensor([[[5.0, 0.0], [1.0, 0.0]]])
    assert float(loss(pred, target)) == pytest.approx((0.02 + 0.875) / 2, abs=1e-5)
    weights = torch.tensor([[2.0, 0.0]])
    assert float(loss(pred, target, weights)) == pytest.approx(0.02, abs=1e-5)


def test_variance_floor():
    loss = build(REGULARISERS, dict(type="VarianceFloor", floor=1.5), dim=3)
    x = normals(2, 5, 3) * torch.tensor([0.1, 1.0, 9.0])
    grid = x[:, 1:].reshape(8, 3)  # the first token is a prefix token
    deviation = ((grid - grid.mean(0)).square().sum(0) / 7 + 1e-4).sqrt()
    wanted = (1.5 - deviation).clamp(min=0).mean()
    torch.testing.assert_close(loss(Tokens(x, 1, (2, 2))), wanted)
    assert not loss(Tokens(1000 * x, 1, (2, 2)))


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
def test_the_velocity_is_the_derivative(exponent):
    """dx/dt by autograd; the variance of unit data is kept; p = 1 is cos(pi t / 2)."""
    path = build(PATHS, dict(type="BentCosinePath", exponent=exponent))
    x0, eps = normals(6, 2).double(), normals(6, 2, seed=1).double()
    t = torch.linspace(0, 1, 6).double()
    _, velocity = path.mix(x0, eps, t)
    _, slope = torch.func.jvp(lambda t: path.mix(x0, eps, t)[0], (t,), (torch.ones_like(t),))
    torch.testing.assert_close(velocity, slope)
    alpha = path.mix(torch.ones(6).double(), torch.zeros(6).double(), t)[0]
    torch.testing.assert_close(alpha**2 + path.sigma(t) ** 2, torch.ones(6).double())
    if exponent == 1:
        torch.testing.assert_close(path.sigma(t), torch.sin(math.pi / 2 * t))


@pytest.mark.parametrize("antithetic", [False, True])
def test_times_cover_the_interval(antithetic):
    """One time in each of the parts of equal length; antithetic pairs sum to 1."""
    cfg = dict(type="StratifiedFlow", antithetic=antithetic)
    flow = build(FLOWS, cfg, geometry=toy_geometry())
    t = flow.times(8, rng(), torch.device("cpu"))
    first = t[:4] if antithetic else t
    parts = (first * len(first)).floor().long()
    assert sorted(parts.tolist()) == list(range(len(first)))
    if antithetic:
        torch.testing.assert_close(t[4:], 1 - t[:4])
    many = torch.stack([flow.times(8, rng(seed), torch.device("cpu")) for seed in range(2000)])
    assert (many.mean(0) - 0.5).abs().max() < 0.03  # each is uniform by itself
    assert (many.var(0) - 1 / 12).abs().max() < 0.01


def test_adams_bashforth_is_of_second_order():
    """dx/dt = -x x from x(1) = 1/2 gives x(0) = 1; halving the step quarters the error."""
    sampler = build(SAMPLERS, dict(type="ab2"))

    def error(steps):
        calls = []

        def model(x, t):
            calls.append(float(t))
            return {"image": -x["image"].square()}

        start = {"image": torch.full((1, 1), 0.5, dtype=torch.float64)}
        end = sampler.sample(model, start, steps=steps, path=None, noise=None)
        assert len(calls) == steps and calls[0] == 1
        assert calls[-1] == pytest.approx(1 / steps)
        return abs(float(end["image"]) - 1)

    assert error(40) / error(80) == pytest.approx(4, rel=0.1)


def test_two_steps_of_adams_bashforth():
    sampler = build(SAMPLERS, dict(type="ab2"))
    start = {"image": torch.ones(1)}
    end = sampler.sample(
        lambda x, t: {"image": t + x["image"]}, start, steps=2, path=None, noise=None
    )
    first = 1 - 0.5 * (1 + 1)  # x = 0 at t = 1/2
    second = first - 0.5 * (1.5 * (0.5 + first) - 0.5 * (1 + 1))
    assert float(end["image"]) == pytest.approx(second)


def test_each_class_has_its_own_dropout():
    cfg = dict(type="PerClassDropout", dropout=0.1, overrides=[[3, 0.6], [4, 0]])
    part = build(CONDITIONERS, cfg, geometry=toy_geometry())
    labels = torch.arange(5).repeat(4000)
    cond = part(Clean({}, labels=labels), rng())
    for label, chance in enumerate([0.1, 0.1, 0.1, 0.6, 0.0]):
        share = cond.dropped[labels == label].float().mean()
        assert float(share) == pytest.approx(chance, abs=0.025)
    assert cond.value[cond.dropped].eq(10).all()


def test_warm_up_pauses_at_spikes_and_holds():
    schedule = build(SCHEDULES, dict(type="WarmUpHold", value=2.0, steps=4, start=0.5))
    found = []
    values = [1.0, 1.0, 5.0, math.nan, 1.0, 1.0, 1.0]
    for iteration, value in enumerate(values):
        progress = Progress(iteration, 10)
        found.append(float(schedule(progress)))
        losses = Losses((Term("main/pair", torch.tensor(value)),))
        schedule.observe(losses, progress)
        schedule.observe(losses, progress)  # a second micro-batch of the same step
    assert found == [1.0, 1.25, 1.5, 1.5, 1.5, 1.75, 2.0]  # 5.0 and nan do not count


def alignment_of(**options):
    geometry = toy_geometry()
    return build(
        ALIGNMENTS,
        ALIGNMENT | dict(router=dict(type="BumpRouter")) | options,
        where="model.alignments.main",
        name="main",
        geometry=geometry,
        flow=build(FLOWS, dict(type="Flow"), geometry=geometry),
        priors=maps(),
    )


def test_taps_are_averaged_at_equal_size():
    """Ten times larger tokens of one block change nothing."""
    from ahpa.testing.alignment import toy_view

    alignment = alignment_of()
    flow = build(FLOWS, dict(type="Flow"), geometry=alignment.geometry)
    view = toy_view(alignment.geometry, alignment.taps, flow=flow)
    a, b = (view.out.taps[Tap(block)] for block in (1, 3))
    rms = [x / x.square().mean(-1, keepdim=True).sqrt() for x in (a, b)]
    mean = alignment.average(view).tokens
    torch.testing.assert_close(mean, (rms[0] + rms[1]) / 2, atol=1e-4, rtol=1e-4)
    view.out.taps[Tap(3)] = 10 * b
    torch.testing.assert_close(alignment.average(view).tokens, mean, atol=1e-4, rtol=1e-4)


def backbone_of(**options):
    return build(BACKBONES, TINY | options, input_size=8, in_channels=4)


def test_rotary_logits_depend_on_offsets_alone():
    """Equal queries and keys at all places: the logits are a function of (dy, dx)."""
    cos, sin = ahpa_new_method.backbone.rotary_table((4, 4), 8, 100.0)
    q = ahpa_new_method.backbone.rotate(normals(8).expand(1, 1, 16, 8), cos, sin)
    k = ahpa_new_method.backbone.rotate(normals(8, seed=1).expand(1, 1, 16, 8), cos, sin)
    logits = (q @ k.transpose(-1, -2)).reshape(4, 4, 4, 4)
    torch.testing.assert_close(logits[0, 0, 1, 2], logits[2, 1, 3, 3])
    torch.testing.assert_close(logits[3, 2, 1, 0], logits[2, 3, 0, 1])
    assert (logits[0, 0, 1, 2] - logits[0, 0, 2, 1]).abs() > 1e-3
    torch.testing.assert_close(q.norm(dim=-1), normals(8).norm().expand(1, 1, 16))


def test_the_attention_tap_is_what_the_block_attends_with():
    """softmax of the tapped logits, by hand, gives the block's output."""
    model = backbone_of().eval()
    for seed, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * normals(*parameter.shape, seed=seed)
    x = {"image": normals(2, 4, 8, 8)}
    t, label = torch.tensor([0.2, 0.8]), torch.tensor([1, 5])
    taps = frozenset({Tap(1), Tap(2), Tap(2, "attention")})
    out = model(x, t, label, taps=taps)
    block, h = model.blocks[1], out.taps[Tap(1)]
    cond = model.time(t[:, None]) + model.label(label)[:, None]
    parts = block.modulation(F.silu(cond)).chunk(6, -1)

    def rms(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    a = rms(h) * (1 + parts[0]) + parts[1]
    v = (a @ block.qkv.weight[32:].T).unflatten(-1, (2, 8)).transpose(1, 2)
    mixed = (out.taps[Tap(2, "attention")].softmax(-1) @ v).transpose(1, 2).flatten(2)
    h = h + parts[2] * (mixed @ block.out.weight.T)
    value, gate = ((rms(h) * (1 + parts[3]) + parts[4]) @ block.enter.weight.T).chunk(2, -1)
    h = h + parts[5] * ((value * F.silu(gate)) @ block.leave.weight.T)
    torch.testing.assert_close(out.taps[Tap(2)], h, atol=1e-5, rtol=1e-4)


def test_a_new_backbone_predicts_zero():
    x = {"image": normals(2, 4, 8, 8)}
    assert not backbone_of()(x, torch.rand(2), torch.tensor([0, 1])).pred["image"].any()


def test_pictures_are_a_function_of_the_key():
    data = build(DATASETS, dict(type="Plaids", length=8), resolution=32)
    other = build(DATASETS, dict(type="Plaids", length=8, seed=1), resolution=32)
    assert [data[index]["label"] for index in range(5)] == [0, 1, 2, 3, 0]
    assert not torch.equal(data[1, 0]["image"], data[1, 1]["image"])
    assert not torch.equal(data[1]["image"], other[1]["image"])
    assert data.sample_id(6) == "plaid 6"


def test_a_gradient_is_linear():
    """All second differences vanish, and a rings picture's do not."""
    for kind, bent in (("gradient", False), ("rings", True)):
        picture = ahpa_new_method.data.draw(kind, 16, rng())
        assert picture.min() >= 0 and picture.max() <= 1
        bends = [picture.diff(n=2, dim=1), picture.diff(n=2, dim=2)]
        assert (max(float(x.abs().max()) for x in bends) > 1e-3) == bent


# ---- the hook -------------------------------------------------------------------------------


class Runner(SimpleNamespace):
    """What the hook uses of ahpa's runner."""


def small_runner(work_dir):
    from ahpa.engine.assembly import build_model

    torch.manual_seed(0)
    model = dict(
        resolution=32,
        tokenizer=dict(type="KLAutoencoder", source="bundled"),
        backbone=TINY,
        flow=dict(type="StratifiedFlow"),
    )
    net = build_model(model)
    net.parts.load()
    dataset = build(DATASETS, dict(type="Plaids", length=4), resolution=32)
    loader = SimpleNamespace(dataset=dataset)
    return Runner(
        net=net, parts=net.parts, train_dataloader=loader, work_dir=work_dir, rank=0, iter=0
    )


def test_the_hook_writes_a_table_and_resumes(tmp_path):
    runner = small_runner(tmp_path)
    hook = build(HOOKS, dict(type="TokenNorms", interval=2, decay=0.5))
    path = tmp_path / "token_norms.csv"
    state = torch.get_rng_state()
    for runner.iter in range(2):
        assert not path.exists()  # due after the second iteration
        hook.after_train_iter(runner, runner.iter)
    resumed = build(HOOKS, dict(type="TokenNorms", interval=2, decay=0.5))
    resumed.load_state_dict(hook.state_dict())
    means = {block: float(norms.mean()) for block, norms in hook.measure(runner).items()}
    with torch.no_grad():
        for parameter in runner.net.backbone.parameters():
            parameter.mul_(2)
    grown = {block: float(norms.mean()) for block, norms in hook.measure(runner).items()}
    runner.iter = 3
    hook.after_train_iter(runner, 3)
    first = path.read_text()
    rows = list(csv.DictReader(first.splitlines()))
    assert [(row["iteration"], row["block"]) for row in rows] == [
        ("2", "1"), ("2", "2"), ("4", "1"), ("4", "2"),
    ]  # fmt: skip
    for row, block in zip(rows[2:], (1, 2), strict=True):
        assert float(row["mean"]) == pytest.approx(grown[block], rel=1e-5)
        wanted = (means[block] + grown[block]) / 2
        assert float(row["running_mean"]) == pytest.approx(wanted, rel=1e-5)
    resumed.after_train_iter(runner, 3)
    assert path.read_text() == first
    assert torch.equal(state, torch.get_rng_state())
    assert runner.net.backbone.training


# ---- mistakes -------------------------------------------------------------------------------

GEOMETRY = dict(geometry=toy_geometry())
SIZES = dict(input_size=8, in_channels=4)


@pytest.mark.parametrize(
    ("registry", "cfg", "derived", "message"),
    [
        (PRIORS, dict(type="GradientPyramid", scales=[4, 6]), GEOMETRY, "multiples of 4.* got 6"),
        (PRIORS, dict(type="GradientPyramid", scales=[8, 4]), GEOMETRY, "must grow"),
        (PRIORS, dict(type="GradientPyramid", orientations=1), GEOMETRY, "at least 2, got 1"),
        (PRIORS, dict(type="GradientPyramid", scale=[8]), GEOMETRY, "did you mean 'scales'"),
        (BACKBONES, TINY | dict(hidden_size=20), SIZES, "multiple of .* 8, got 20"),
        (BACKBONES, TINY | dict(patch_size=3), SIZES, "must divide the latent's side 8, got 3"),
        (BACKBONES, TINY | dict(input_size=8), SIZES, "'input_size' follows from the other"),
        (PATHS, dict(type="BentCosinePath", exponent=0), {}, "above 0, got 0"),
        (FLOWS, dict(type="StratifiedFlow", path=dict(type="DiscretePath")), GEOMETRY, "velocity"),
        (CONDITIONERS, dict(type="PerClassDropout", overrides=[(10, 0.5)]), GEOMETRY, "0..9"),
        (CONDITIONERS, dict(type="PerClassDropout", overrides=3), GEOMETRY, "must be pairs.* 3"),
        (SCHEDULES, dict(type="WarmUpHold", spike=0.5), {}, "at least 1, got 0.5"),
        (PAIR_LOSSES, dict(type="HuberCosineLoss", delta=-1), dict(dim=4), "got -1"),
        (HOOKS, dict(type="TokenNorms", intervall=5), {}, "did you mean 'interval'"),
    ],
)  # fmt: skip
def test_wrong_options(registry, cfg, derived, message):
    with pytest.raises(ConfigError, match=message):
        build(registry, cfg, where="here", **derived)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(blocks=[1, 9]), "blocks: 9 is not a block"),
        (dict(blocks=[]), "blocks: must be a list of different blocks"),
        (dict(source="priro"), "no prior is called 'priro'; did you mean 'prior'"),
        (dict(router=dict(type="BumpRooter")), r"main\.router\.type.*did you mean 'BumpRouter'"),
        (dict(weight=-1), r"model\.alignments\.main\.weight\.value: .*at least 0, got -1"),
    ],
)
def test_wrong_alignments(options, message):
    with pytest.raises(ConfigError, match=message):
        alignment_of(**options)
