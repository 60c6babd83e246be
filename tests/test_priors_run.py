"""Priors through the whole engine: what the teacher sees, which weights a target's gradient
reaches, stored latents, and frozen networks that stay outside the trained model."""

import pytest
import torch
from support.models import BUNDLED, compute, small_model

from ahpa.engine.config import check_config
from ahpa.engine.dryrun import synthetic_batch
from ahpa.registry import ConfigError

SIT = dict(type="SiT", depth=4, hidden_size=32, num_heads=2, num_classes=10)
TEACHER = dict(type="TeacherPrior", block=3)
ON_STEPS = dict(
    backbone={**SIT, "type": "DiT"},
    flow=dict(type="DiscreteFlow"),
    flow_loss=dict(type="HybridLoss"),
)


def model(prior, level, *, tap=1, **changes):
    aligned = dict(
        tap=tap,
        source="own",
        router=dict(type="StaticRouter", groups=dict(own=[level])),
        projector=dict(type="MLPProjector", depth=2, hidden_dim=16),
        criteria=dict(l1=dict(type="SmoothL1Loss", beta=0.05)),
        weight=0.2,
    )
    cfg = dict(backbone=SIT, priors=dict(own=prior), alignments=dict(main=aligned))
    own = small_model(**{**cfg, **changes})
    with torch.no_grad():
        stream = torch.Generator().manual_seed(1)
        for p in own.parts.ema.backbone.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=stream))
    return own


# ---- the teacher: the averaged backbone -------------------------------------------------------


def test_the_latent_is_the_tensor_that_is_diffused():
    own = model(dict(type="LatentPrior"), "latent")
    seen = compute(own, synthetic_batch(own, batch=3))
    z, found = seen.view.noised.data["image"], seen.features["own"]["latent"]
    patches = z.unflatten(3, (4, 2)).unflatten(2, (4, 2))  # [B, C, h, p, w, q]
    assert torch.equal(found, patches.permute(0, 3, 5, 1, 2, 4).reshape(3, 16, 4, 4))


def test_the_teachers_target_written_out():
    """Drawn from the step's own stream after posterior, time, noise and label dropout."""
    own = model({**TEACHER, "offset": 0.2}, "teacher")
    batch = synthetic_batch(own, batch=3)
    seen = compute(own, batch, seed=3)
    noised, ema = seen.view.noised, own.parts.ema.backbone
    rng = torch.Generator().manual_seed(3)
    own.parts.encode(batch, rng)
    own.flow.sample(seen.view.clean.streams, rng)
    own.parts.conditioner(seen.view.clean, rng)
    u = torch.rand(3, generator=rng)
    t = (noised.t - 0.2 * u).clamp(0, 1)
    assert not torch.equal(t, noised.t)
    z, eps = noised.data["image"], noised.noise["image"]
    mixed = z + t[:, None, None, None] * (eps - z)
    with torch.no_grad():
        h = ema.x_embedder(mixed) + ema.pos_embed
        c = ema.t_embedder(t) + ema.y_embedder(seen.view.cond.value)  # the student's own labels
        for block in ema.blocks[:3]:
            h, _ = block(h, c)
    found = seen.features["own"]["teacher"]
    torch.testing.assert_close(found.flatten(2).mT, h, rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_the_teacher_on_discrete_steps_written_out():
    own = model({**TEACHER, "steps": 1000, "least": 0.001}, "teacher", **ON_STEPS)
    batch = synthetic_batch(own, batch=3)
    seen = compute(own, batch, seed=3)
    noised, ema = seen.view.noised, own.parts.ema.backbone
    rng = torch.Generator().manual_seed(3)
    own.parts.encode(batch, rng)
    own.flow.sample(seen.view.clean.streams, rng)
    own.parts.conditioner(seen.view.clean, rng)
    k = torch.randint(200, (3,), generator=rng)
    index = ((noised.t * 1000).round().long() - k).clamp(1, 999)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)[index].float()[:, None, None, None]
    mixed = abar.sqrt() * noised.data["image"] + (1 - abar).sqrt() * noised.noise["image"]
    with torch.no_grad():
        h = ema.x_embedder(mixed) + ema.pos_embed
        c = ema.t_embedder(index.float()) + ema.y_embedder(seen.view.cond.value)
        for block in ema.blocks[:3]:
            h, _ = block(h, c)
    found = seen.features["own"]["teacher"]
    torch.testing.assert_close(found.flatten(2).mT, h, rtol=1e-5, atol=1e-5)


def test_the_teacher_is_the_average_and_stops_at_its_block():
    own = model(TEACHER, "teacher")
    ema = own.parts.ema.backbone
    counted = {"ema": [], "backbone": []}
    for name, network in (("ema", ema), ("backbone", own.backbone)):
        for number, block in enumerate(network.blocks, 1):
            hook = lambda *_, n=number, name=name: counted[name].append(n)  # noqa: E731
            block.register_forward_hook(hook)
    seen = compute(own, synthetic_batch(own))
    assert counted == {"ema": [1, 2, 3], "backbone": [1, 2, 3, 4]}
    before = {name: p.clone() for name, p in ema.named_parameters()}
    seen.losses.total.backward()
    assert all(p.grad is None and not p.requires_grad for p in ema.parameters())
    assert all(torch.equal(before[name], p) for name, p in ema.named_parameters())
    assert own.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_the_gradient_of_the_alignment_reaches_the_student_up_to_its_tap_only():
    own = model(TEACHER, "teacher", tap=2)
    compute(own, synthetic_batch(own)).weighted()["main/l1"].backward()
    reached = [block.mlp.fc1.weight.grad is not None for block in own.backbone.blocks]
    assert reached == [True, True, False, False]
    assert own.alignments["main"].projector.mlp[0].weight.grad is not None


def test_a_later_block_of_the_student_is_a_target_without_gradient():
    own = model(dict(type="BlockPrior", block=4), "block", tap=2)
    compute(own, synthetic_batch(own)).weighted()["main/l1"].backward()
    reached = [block.mlp.fc1.weight.grad is not None for block in own.backbone.blocks]
    assert reached == [True, True, False, False]


@pytest.mark.parametrize(
    ("prior", "word"),
    [
        (dict(type="TeacherPrior", block=5), r"1\.\.4"),
        (dict(type="TeacherPrior", block=0), r"1\.\.4"),
        (dict(type="TeacherPrior", block=2, offset=2), "offset"),
        (dict(type="TeacherPrior", block=2, least=-1), "least"),
        (dict(type="TeacherPrior", block=2, steps=0.5), "steps"),
        (dict(type="TeacherPrior"), "block"),
    ],
    ids=str,
)
def test_mistakes_name_the_prior(prior, word):
    with pytest.raises(ConfigError, match=f"model.priors.own.*{word}"):
        model(prior, "teacher")


def test_a_student_without_an_alignment_computes_no_prior():
    own = model(TEACHER, "teacher", alignments={})
    seen = compute(own, synthetic_batch(own))
    assert own.parts.wanted == {"own": ()} and seen.features == {}


# ---- encoder levels ---------------------------------------------------------------------------

TAPS = dict(type="VAETaps")
LEVEL = "down1.res0"


def count_blocks(tokenizer):
    """Names of the encoder's parts in the order in which they run."""
    tokenizer.load()
    ran = []
    for name, part in tokenizer.network.encoder.named_modules():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


def test_latent_and_levels_come_from_one_pass_of_the_encoder():
    own = model(TAPS, LEVEL)
    ran = count_blocks(own.parts.tokenizer)
    seen = compute(own, synthetic_batch(own))
    assert ran.count("conv_in") == ran.count("conv_out") == 1
    assert set(seen.view.clean.levels) == {LEVEL}
    assert torch.equal(seen.features["own"][LEVEL], seen.view.clean.levels[LEVEL])


def test_stored_latents_run_the_encoder_only_as_deep_as_the_levels():
    own = model(TAPS, LEVEL)
    batch = synthetic_batch(own)
    wanted = compute(own, batch).features["own"][LEVEL]
    ran = count_blocks(own.parts.tokenizer)
    mean, std = torch.randn(2, 4, 8, 8), torch.full((2, 4, 8, 8), 0.5)
    seen = compute(own, {**batch, "latent": dict(mean=mean, std=std)}, seed=6)
    assert torch.equal(seen.features["own"][LEVEL], wanted)
    assert "down_blocks.1.resnets.0" in ran
    assert not any("down_blocks.1.resnets.1" in name or "mid" in name for name in ran)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(seen.view.clean.streams["image"], mean + std * noise)


def test_stored_latents_need_no_images_where_no_prior_looks_at_them():
    own = model(dict(type="LatentPrior"), "latent")
    batch = synthetic_batch(own)
    batch["latent"] = dict(mean=torch.randn(2, 4, 8, 8), std=torch.zeros(2, 4, 8, 8))
    del batch["image"]
    seen = compute(own, batch)
    assert torch.equal(seen.view.clean.streams["image"], batch["latent"]["mean"])
    assert seen.view.clean.images is None and seen.losses.total.isfinite()


@pytest.mark.parametrize("autoencoder", [None, {**BUNDLED, "precision": "fp32"}], ids=str)
def test_frozen_networks_are_outside_of_the_model_and_move_with_its_parts(autoencoder):
    own = model({**TAPS, "autoencoder": autoencoder}, LEVEL)
    names = set(own.state_dict())
    own.parts.load()
    own.train()
    frozen = [p for part in own.parts.modules().values() for p in part.parameters()]
    assert len(frozen) > 50 and not any(p.requires_grad for p in frozen)
    assert not any(part.training for part in own.parts.modules().values())
    assert set(own.state_dict()) == names == {name for name, _ in own.named_parameters()}
    trained = {id(p) for p in own.parameters()}
    assert not any(id(p) in trained for p in frozen)
    own.parts.to(torch.device("meta"))
    assert all(p.is_meta for part in own.parts.modules().values() for p in part.parameters())
    assert all(p.is_meta for p in own.parts.ema.backbone.parameters())
    assert not any(p.is_meta for p in own.parameters())


def test_a_config_is_checked_without_reading_any_weights():
    """On the meta device: neither the tokenizer nor a prior's own autoencoder is loaded."""
    section = dict(
        resolution=64,
        tokenizer=BUNDLED,
        backbone=SIT,
        priors=dict(own={**TAPS, "autoencoder": BUNDLED}),
        alignments=dict(main=dict(tap=1, source="own", router=dict(type="MLPRouter"))),
    )
    cfg = dict(
        model=section,
        train_dataloader=dict(dataset=dict(type="ShapesDataset"), global_batch_size=2),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-4)),
        train_cfg=dict(max_iters=1),
    )
    own = check_config(cfg)
    assert all(p.is_meta for p in own.parameters())
    assert own.parts.tokenizer.network is None
    assert own.parts.priors["own"].autoencoder.network is None
