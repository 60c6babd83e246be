"""Targets from inside the training: the latent's patches, a teacher at a cleaner time, and a later
block of the student, written out once more."""

import dataclasses

import pytest
import torch
from torch import nn

from ahpa.registry import BACKBONES, PATHS, PRIORS, ConfigError, build
from ahpa.registry.contracts import Clean, Condition, Noised, Tap, TargetView
from ahpa.testing.common import random_tensor, toy_geometry
from ahpa.testing.priors import ToyBackbone, ToyPath, check_prior

GEOMETRY = toy_geometry()  # latents 4 x 8 x 8, a 4 x 4 token grid of width 32, 4 blocks
SIZES = dict(depth=4, hidden_size=32, num_heads=2, num_classes=10)
LABELS = torch.tensor([3, 10, 0])


def prior_of(**cfg):
    return build(PRIORS, cfg, geometry=GEOMETRY)


def moved(model, seed=1):
    """Move every parameter away from where training starts: many are zero there."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=stream))
    return model


def view_of(backbone, ema, *, path=None, t=(0.9, 0.3, 0.05), taps=frozenset(), seed=3):
    """A step up to the targets, on random latents."""
    path = path or ToyPath()
    t = torch.tensor(t)
    latent = random_tensor(3, 4, 8, 8, seed=1)
    noise = random_tensor(3, 4, 8, 8, seed=2)
    x, target = path.mix(latent, noise, t if t.ndim == 1 else t.mean(1))
    streams = {"image": latent}
    noised = Noised({"image": x}, t, {"image": target}, streams, {"image": noise}, path)
    out = backbone(noised.x, noised.sample_t, LABELS, taps=taps)
    rng = torch.Generator().manual_seed(seed)
    return TargetView(Clean(streams), noised, Condition(LABELS), out, rng=rng, ema=ema)


@pytest.fixture(scope="module")
def toys():
    """A student and its average, which differ."""
    return ToyBackbone(GEOMETRY), moved(ToyBackbone(GEOMETRY)).requires_grad_(False)


def test_contract():
    check_prior(dict(type="LatentPrior"))
    check_prior(dict(type="TeacherPrior", block=3))
    check_prior(dict(type="TeacherPrior", block=1, steps=1000, least=0.001))
    check_prior(dict(type="BlockPrior", block=4))


# ---- the latent -----------------------------------------------------------------------------


def test_the_latent_is_the_diffused_tensor_in_patches(toys):
    prior = prior_of(type="LatentPrior")
    view = view_of(*toys)
    found = prior(view, ["latent"])["latent"]
    z = view.noised.data["image"]
    assert tuple(prior.levels["latent"]) == (16, 16, False) and found.shape == (3, 16, 4, 4)
    for row in range(4):
        for column in range(4):
            patch = z[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]  # [B, C, 2, 2]
            assert torch.equal(found[:, :, row, column], patch.permute(0, 2, 3, 1).flatten(1))


def clean_of(latent):
    return Clean({"image": latent})


def test_a_standardised_latent_does_not_depend_on_the_autoencoders_scale():
    """Each sample by its own mean and standard deviation, written out; the loss of 60 is gone."""
    latent = random_tensor(3, 4, 8, 8, seed=1)
    prior, plain = (prior_of(type="LatentPrior", standardise=own) for own in (True, False))
    found = prior.from_clean(clean_of(60 * latent - 7), ["latent"])["latent"]
    for sample, own in zip(found, latent):
        z = (own - own.mean()) / own.var(correction=0).sqrt()
        wanted = plain.from_clean(clean_of(z[None]), ["latent"])["latent"][0]
        torch.testing.assert_close(sample, wanted, rtol=1e-4, atol=1e-5)
    blank = torch.zeros_like(found)
    losses = [
        float(nn.functional.smooth_l1_loss(blank, target, beta=0.05))
        for target in (plain.from_clean(clean_of(60 * latent - 7), ["latent"])["latent"], found)
    ]
    assert losses[0] > 30 and 0.5 < losses[1] < 1
    assert prior.from_clean(clean_of(torch.zeros(1, 4, 8, 8)), ["latent"])["latent"].eq(0).all()
    with pytest.raises(ConfigError, match="standardise: must be True or False, got 'yes'"):
        prior_of(type="LatentPrior", standardise="yes")


@pytest.mark.parametrize(
    ("scale", "standardise", "told"),
    [(1.0, False, None), (5.0, False, "is 5"), (0.1, False, "is 0.1"), (5.0, True, None)],
)
def test_a_latent_far_from_unit_scale_is_told_once(scale, standardise, told, caplog):
    prior = prior_of(type="LatentPrior", standardise=standardise)
    for seed in (1, 2):
        latent = random_tensor(3, 4, 8, 8, seed=seed)
        unit = latent / latent.square().mean().sqrt()
        prior.from_clean(clean_of(scale * unit), ["latent"])
    messages = [record.getMessage() for record in caplog.records]
    if told is None:
        assert messages == []
    else:
        (message,) = messages
        assert f"root mean square {told}, " in message and "`standardise=True`" in message


# ---- the teacher ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LinearPath", "CosinePath"])
def test_the_teachers_target_written_out(kind):
    torch.manual_seed(0)
    backbone = build(BACKBONES, dict(type="SiT", **SIZES), input_size=8, in_channels=4)
    ema = moved(backbone).eval().requires_grad_(False)
    view = view_of(backbone, ema, path=build(PATHS, dict(type=kind)))
    state = view.rng.get_state()
    found = prior_of(type="TeacherPrior", block=3, offset=0.2)(view, ["teacher"])["teacher"]

    u = torch.rand(3, generator=torch.Generator().set_state(state))
    t = (view.noised.t - 0.2 * u).clamp(0, 1)
    assert (t <= view.noised.t).all() and (view.noised.t - t <= 0.2).all()
    z, eps = view.noised.data["image"], view.noised.noise["image"]
    share = t[:, None, None, None]
    if kind == "CosinePath":
        angle = share * torch.pi / 2
        mixed = torch.cos(angle) * z + torch.sin(angle) * eps
    else:
        mixed = z + share * (eps - z)
    with torch.no_grad():
        h = ema.x_embedder(mixed) + ema.pos_embed
        c = ema.t_embedder(t) + ema.y_embedder(LABELS)  # the student's labels, already dropped
        for block in ema.blocks[:3]:
            h, _ = block(h, c)
    torch.testing.assert_close(found.flatten(2).mT, h, rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_the_teacher_on_discrete_steps_written_out():
    torch.manual_seed(0)
    backbone = build(BACKBONES, dict(type="DiT", **SIZES), input_size=8, in_channels=4)
    ema = moved(backbone).eval().requires_grad_(False)
    path = build(PATHS, dict(type="DiscretePath"))
    view = view_of(backbone, ema, path=path, t=(0.9, 0.3, 0.05))
    state = view.rng.get_state()
    prior = prior_of(type="TeacherPrior", block=3, steps=1000, least=0.001)
    found = prior(view, ["teacher"])["teacher"]

    k = torch.randint(200, (3,), generator=torch.Generator().set_state(state))
    index = ((view.noised.t * 1000).round().long() - k).clamp(1, 999)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)[index].float()[:, None, None, None]
    z, eps = view.noised.data["image"], view.noised.noise["image"]
    mixed = abar.sqrt() * z + (1 - abar).sqrt() * eps
    with torch.no_grad():
        h = ema.x_embedder(mixed) + ema.pos_embed
        c = ema.t_embedder(index.float()) + ema.y_embedder(LABELS)
        for block in ema.blocks[:3]:
            h, _ = block(h, c)
    torch.testing.assert_close(found.flatten(2).mT, h, rtol=1e-5, atol=1e-5)


def test_the_teacher_is_the_average_and_stops_at_its_block(toys):
    counted = {"student": [], "ema": []}
    hooks = []
    for name, network in zip(counted, toys, strict=True):
        for number, block in enumerate(network.blocks, 1):
            hook = lambda *_, n=number, name=name: counted[name].append(n)  # noqa: E731
            hooks.append(block.register_forward_hook(hook))
    prior_of(type="TeacherPrior", block=3)(view_of(*toys), ["teacher"])
    for hook in hooks:
        hook.remove()
    assert counted == {"student": [1, 2, 3, 4], "ema": [1, 2, 3]}


def test_offset_zero_is_the_students_time():
    prior = prior_of(type="TeacherPrior", block=4, offset=0.0)
    t = torch.tensor([0.2, 0.9])
    assert torch.equal(prior.time(t, torch.Generator()), t)


def test_the_draw_of_whole_steps_on_a_discrete_path():
    """SRA on DiT: k uniform over 0 .. 199, at least step 1; path and network see the same step."""
    prior = prior_of(type="TeacherPrior", block=1, offset=0.2, steps=1000, least=0.001)
    path = build(PATHS, dict(type="DiscretePath"))
    student = path.time(torch.full((40_000,), 700))
    index = path.index(prior.time(student, torch.Generator().manual_seed(0)))
    counts = torch.bincount(700 - index)
    assert len(counts) == 200 and counts.min() > 130 and counts.max() < 275  # 200 expected, sd 14
    early = path.index(prior.time(path.time(torch.arange(100)), torch.Generator().manual_seed(0)))
    assert early.min() == 1 and (early[1:] <= torch.arange(1, 100)).all()


def test_without_steps_the_first_and_last_are_half_as_often():
    prior = prior_of(type="TeacherPrior", block=1)
    path = build(PATHS, dict(type="DiscretePath"))
    student = path.time(torch.full((40_000,), 700))
    index = path.index(prior.time(student, torch.Generator().manual_seed(0)))
    counts = torch.bincount(700 - index)
    assert len(counts) == 201 and counts[0] < 140 and counts[200] < 140
    assert counts[1:200].min() > 130


@pytest.mark.parametrize(
    ("token_times", "wanted"), [("min", [0.1, 0.3, 0.5]), ("mean", [0.3, 0.6, 0.5])]
)
def test_times_of_tokens_become_one_of_the_sample(toys, token_times, wanted):
    """Self-Flow: two times t and s in an image; the teacher sees all of it at min(t, s)."""
    pairs = [(0.1, 0.5), (0.9, 0.3), (0.5, 0.5)]
    t = [[pair[n % 2] for n in range(16)] for pair in pairs]
    view = view_of(*toys, t=t)
    prior = prior_of(type="TeacherPrior", block=2, offset=0, token_times=token_times)
    state = view.rng.get_state()
    found = prior(view, ["teacher"])["teacher"]
    time = prior.time(view.noised.t, torch.Generator().set_state(state))
    torch.testing.assert_close(time, torch.tensor(wanted))
    x = view.noised.at(torch.tensor(wanted), prior.geometry.grid)
    by_hand = toys[1](x, torch.tensor(wanted), LABELS, frozenset({Tap(2)})).tokens(2).as_map()
    torch.testing.assert_close(found, by_hand)


def test_times_of_tokens_draw_as_much_as_times_of_samples():
    prior = prior_of(type="TeacherPrior", block=2)
    streams = [torch.Generator().manual_seed(0) for _ in range(2)]
    a = prior.time(torch.full((3,), 0.7), streams[0])
    b = prior.time(torch.full((3, 16), 0.7), streams[1])
    assert torch.equal(a, b) and torch.equal(streams[0].get_state(), streams[1].get_state())


def test_a_model_without_an_average_is_refused(toys):
    view = dataclasses.replace(view_of(*toys), ema=None)
    with pytest.raises(ConfigError, match="keeps no averaged backbone"):
        prior_of(type="TeacherPrior", block=2)(view, ["teacher"])


def test_the_probe_runs_the_teachers_blocks_alone(toys):
    student = toys[0]
    prior = prior_of(type="TeacherPrior", block=2)
    out = prior.probe(student)()
    assert out.pred == {} and not any(p.is_meta for p in student.parameters())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(block=5), r"block: 5 is not a block of the backbone; blocks are 1\.\.4"),
        (dict(block=0), r"1\.\.4"),
        (dict(block="3"), r"1\.\.4"),
        (dict(block=2, offset=2), "offset"),
        (dict(block=2, least=-1), "least"),
        (dict(block=2, steps=0.5), "steps: must be a non-negative integer, got 0.5"),
        (dict(block=2, token_times="max"), "token_times: 'max' is unknown"),
        (dict(), "needs the option 'block'"),
    ],
    ids=str,
)
def test_mistakes_in_a_teacher(options, word):
    with pytest.raises(ConfigError, match=word):
        prior_of(type="TeacherPrior", **options)


# ---- a later block --------------------------------------------------------------------------


def test_a_later_block_of_the_same_pass(toys):
    student = toys[0]
    prior = prior_of(type="BlockPrior", block=3)
    assert prior.taps == {Tap(3)} and tuple(prior.levels["block"]) == (32, 16, False)
    view = view_of(*toys, taps=prior.taps)
    found = prior(view, ["block"])["block"]
    tokens = view.out.taps[Tap(3)]  # [B, N, D]
    assert tokens.requires_grad and not found.requires_grad
    assert torch.equal(found.flatten(2).mT, tokens)
    h = student.enter(nn.functional.unfold(view.noised.x["image"], 2, stride=2).mT)
    h = h + view.noised.t.view(-1, 1, 1)
    for layer in student.blocks[:3]:
        h = h + torch.tanh(layer(h))
    torch.testing.assert_close(tokens, h)


def test_prefix_tokens_are_left_out(toys):
    view = view_of(*toys, taps=frozenset({Tap(1)}))
    tokens = view.out.taps[Tap(1)]
    wide = torch.cat([tokens[:, :2], tokens], 1)
    out = view.out._replace(taps={Tap(1): wide}, prefix=2)
    found = prior_of(type="BlockPrior", block=1)(dataclasses.replace(view, out=out), ["block"])
    assert torch.equal(found["block"].flatten(2).mT, tokens)


@pytest.mark.parametrize("block", [0, 5, "3", 2.0])
def test_mistakes_in_a_block(block):
    with pytest.raises(ConfigError, match=r"block: .* is not a block of the backbone"):
        prior_of(type="BlockPrior", block=block)
