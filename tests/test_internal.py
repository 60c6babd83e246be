"""Targets from inside the training: the latent's patches, and a teacher at a cleaner time, written out once more."""

import pytest
import torch

from ahpa.engine.dryrun import synthetic_batch
from ahpa.registry import MODELS, PATHS, PRIORS, ConfigError, build
from ahpa.registry.contracts import Step

SIT = dict(type="SiT", depth=4, hidden_size=32, num_heads=2, num_classes=10)


def model(prior, level, *, tap=1, path="LinearPath", backbone=SIT, flow=None, flow_loss=None, **alignment):
    torch.manual_seed(0)
    model = build(MODELS, dict(
        type="AlignedDenoiser", resolution=64, tokenizer=dict(type="KLAutoencoder", source="bundled"), ema=0.9,
        backbone=backbone, flow=flow or dict(type="Flow", path=dict(type=path)), flow_loss=flow_loss, priors=dict(own=prior),
        alignments=dict(main=dict(tap=tap, source="own", router=dict(type="StaticRouter", groups={level: [level]}),
                                  projector=dict(type="MLPProjector", depth=2, hidden_dim=16),
                                  criteria=dict(l1=dict(type="SmoothL1Loss", beta=0.05)), weight=0.2, **alignment))))  # fmt: skip
    with torch.no_grad():
        for network in (model.backbone, model.ema):
            stream = torch.Generator().manual_seed(1)
            for p in network.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=stream))
        for p in model.ema.parameters():
            p.add_(0.01)
    return model


def step_of(model, seed=3):
    """The step as `loss` makes it, up to the targets."""
    step = model.begin({**synthetic_batch(model, batch=3), "noise_seed": seed})
    step.noisy = model.flow.sample(model.encode(step), step.generator)
    step.cond = model.conditioner(step)
    return step


def test_the_latent_is_the_tensor_that_is_diffused_in_patches():
    own = model(dict(type="LatentPrior"), "latent")
    step = step_of(own)
    z, found = step.noisy.data["image"], own.priors["own"](step)["latent"]
    assert found.shape == (3, 16, 4, 4)
    for row in range(4):
        for column in range(4):
            patch = z[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]  # [B, C, 2, 2]
            assert torch.equal(found[:, :, row, column], patch.permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize("path", ["LinearPath", "CosinePath"])
def test_the_teachers_target_written_out(path):
    own = model(dict(type="TeacherPrior", block=3, offset=0.2), "teacher", path=path)
    step = step_of(own)
    state = step.generator.get_state()
    found = own.priors["own"](step)["teacher"]
    u = torch.rand(3, generator=torch.Generator().set_state(state))
    t = (step.noisy.t - 0.2 * u).clamp(0, 1)
    assert (t <= step.noisy.t).all() and (step.noisy.t - t <= 0.2).all() and not torch.equal(t, step.noisy.t)
    angle, z, eps = t[:, None, None, None] * torch.pi / 2, step.noisy.data["image"], step.noisy.noise["image"]
    mixed = (
        torch.cos(angle) * z + torch.sin(angle) * eps
        if path == "CosinePath"
        else z + t[:, None, None, None] * (eps - z)
    )
    with torch.no_grad():
        h = own.ema.x_embedder(mixed) + own.ema.pos_embed
        c = own.ema.t_embedder(t) + own.ema.y_embedder(step.cond)  # the student's labels, already dropped
        for block in own.ema.blocks[:3]:
            h = block(h, c)
    torch.testing.assert_close(found.flatten(2).mT, h, rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_the_teacher_is_the_average_and_stops_at_its_block():
    own = model(dict(type="TeacherPrior", block=3), "teacher")
    counted = {"ema": [], "backbone": []}
    for name, network in (("ema", own.ema), ("backbone", own.backbone)):
        for number, block in enumerate(network.blocks, 1):
            block.register_forward_hook(lambda *_, n=number, name=name: counted[name].append(n))
    losses = own.loss(synthetic_batch(own))
    assert counted == {"ema": [1, 2, 3], "backbone": [1, 2, 3, 4]}
    before = {name: p.clone() for name, p in own.ema.named_parameters()}
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(p.grad is None for p in own.ema.parameters())
    assert all(torch.equal(before[name], p) for name, p in own.ema.named_parameters())
    assert own.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_the_gradient_of_the_alignment_reaches_the_student_up_to_its_tap_only():
    own = model(dict(type="TeacherPrior", block=3), "teacher", tap=2)
    own.loss(synthetic_batch(own))["loss_main_l1"].backward()
    reached = [block.mlp.fc1.weight.grad is not None for block in own.backbone.blocks]
    assert reached == [True, True, False, False] and own.alignments["main"].projector.mlp[0].weight.grad is not None


def test_offset_zero_is_the_students_time():
    own = model(dict(type="TeacherPrior", block=4, offset=0.0), "teacher")
    step = step_of(own)
    assert torch.equal(own.priors["own"].time(step.noisy.t, step.generator), step.noisy.t)


def test_the_draw_of_whole_steps_on_a_discrete_path():
    """SRA on DiT: k of 0 .. 199, all alike, and at least step 1; the path and the network see the same whole step."""
    prior = build(PRIORS, dict(type="TeacherPrior", block=1, offset=0.2, steps=1000, least=0.001))
    path = build(PATHS, dict(type="DiscretePath"))
    student = path.time(torch.full((40_000,), 700))
    index = path.index(prior.time(student, torch.Generator().manual_seed(0)))
    counts = torch.bincount(700 - index)
    assert len(counts) == 200 and counts.min() > 130 and counts.max() < 275  # 200 expected, sd 14
    early = path.index(prior.time(path.time(torch.arange(100)), torch.Generator().manual_seed(0)))
    assert early.min() == 1 and (early[1:] <= torch.arange(1, 100)).all()
    rounded = build(PRIORS, dict(type="TeacherPrior", block=1))  # without the options: 0 and 200 are half as often
    counts = torch.bincount(700 - path.index(rounded.time(student, torch.Generator().manual_seed(0))))
    assert len(counts) == 201 and counts[0] < 140 and counts[200] < 140 and counts[1:200].min() > 130


def test_the_teacher_on_discrete_steps_written_out():
    own = model(dict(type="TeacherPrior", block=3, steps=1000, least=0.001), "teacher", backbone=dict(SIT, type="DiT"),
                flow=dict(type="DiscreteFlow"), flow_loss=dict(type="HybridLoss"))  # fmt: skip
    step = step_of(own)
    state = step.generator.get_state()
    found = own.priors["own"](step)["teacher"]
    k = torch.randint(200, (3,), generator=torch.Generator().set_state(state))
    index = ((step.noisy.t * 1000).round().long() - k).clamp(1, 999)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[index].float()[
        :, None, None, None
    ]
    mixed = abar.sqrt() * step.noisy.data["image"] + (1 - abar).sqrt() * step.noisy.noise["image"]
    with torch.no_grad():
        h = own.ema.x_embedder(mixed) + own.ema.pos_embed
        c = own.ema.t_embedder(index.float()) + own.ema.y_embedder(step.cond)
        for block in own.ema.blocks[:3]:
            h = block(h, c)
    torch.testing.assert_close(found.flatten(2).mT, h, rtol=1e-5, atol=1e-5)


def test_stop_gives_the_same_tokens_as_the_whole_pass():
    own = model(dict(type="LatentPrior"), "latent")
    x, t, label = {"image": torch.randn(2, 4, 8, 8)}, torch.tensor([0.1, 0.9]), torch.tensor([1, 2])
    whole = own.backbone(x, t, label, taps=frozenset({1, 2}))
    part = own.backbone(x, t, label, taps=frozenset({1, 2}), stop=2)
    assert part.pred == {} and all(torch.equal(whole.taps[k].tokens, part.taps[k].tokens) for k in (1, 2))


@pytest.mark.parametrize("prior, word", [(dict(type="TeacherPrior", block=5), "1..4"), (dict(type="TeacherPrior", block=0), "1..4"),
    (dict(type="TeacherPrior", block=2, offset=2), "offset"), (dict(type="TeacherPrior", block=2, least=-1), "least"),
    (dict(type="TeacherPrior", block=2, steps=0.5), "steps"), (dict(type="TeacherPrior"), "block")], ids=str)  # fmt: skip
def test_mistakes(prior, word):
    with pytest.raises(ConfigError, match=word):
        model(prior, "teacher")


def test_without_a_backbone_there_is_nothing_to_take():
    with pytest.raises(ConfigError, match="needs a backbone"):
        build(PRIORS, dict(type="LatentPrior")).spec(None)
    assert isinstance(Step(batch={}).flow, type(None))
