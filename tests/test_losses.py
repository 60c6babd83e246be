"""Pair losses, projectors, schedules and the flow loss against written-out loops and functional references."""

import math

import pytest
import torch
import torch.nn.functional as F

from ahpa.losses.schedules import build_weight
from ahpa.registry import FLOW_LOSSES, LOSSES, PROJECTORS, SCHEDULES, ConfigError, build
from ahpa.registry.contracts import Denoised, Noisy, Step, Tokens
from ahpa.testing import check_loss

B, N, C = 2, 9, 6


def pair():
    values = torch.Generator().manual_seed(0)
    return torch.randn(B, N, C, generator=values), torch.randn(B, N, C, generator=values)


def by_hand(name, pred, target, beta=0.05):
    total, count = 0.0, 0
    for b in range(B):
        for n in range(N):
            p, t = pred[b, n].tolist(), target[b, n].tolist()
            if name == "CosineLoss":
                dot = sum(x * y for x, y in zip(p, t, strict=True))
                lengths = math.sqrt(sum(x * x for x in p)) * math.sqrt(sum(y * y for y in t))
                total, count = total + 1 - dot / lengths, count + 1
                continue
            for x, y in zip(p, t, strict=True):
                d = abs(x - y)
                smooth = d * d / (2 * beta) if d < beta else d - beta / 2
                total += {"L1Loss": d, "MSELoss": d * d, "SmoothL1Loss": smooth}[name]
                count += 1
    return total / count


@pytest.mark.parametrize("name", LOSSES.names())
def test_contract_of_every_registered_loss(name):
    check_loss(dict(type=name))


@pytest.mark.parametrize("name", ["CosineLoss", "L1Loss", "MSELoss", "SmoothL1Loss"])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_written_out(name, scale):
    pred, target = (scale * x for x in pair())
    loss = build(LOSSES, dict(type=name), dim=C)
    assert float(loss(pred, target)) == pytest.approx(by_hand(name, pred, target), rel=1e-4)


def test_cosine_over_tokens_as_in_sras_code():
    pred, target = pair()
    loss = build(LOSSES, dict(type="CosineLoss", over=1), dim=C)
    wanted = 1 - F.cosine_similarity(pred, target, dim=1).mean()
    torch.testing.assert_close(loss(pred, target), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tiny_half_precision_vectors_are_finite(dtype):
    """Where REPA's loss is NaN: F.normalize of a tiny fp16 vector."""
    loss = build(LOSSES, dict(type="CosineLoss"), dim=C)
    for scale in (1e-7, 0.0):
        pred = (scale * pair()[0]).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            value = loss(pred, pair()[1].to(dtype))
        value.backward()
        assert value.dtype == torch.float32 and value.isfinite() and pred.grad.isfinite().all()


@pytest.mark.parametrize("name", ["CosineLoss", "L1Loss", "MSELoss", "SmoothL1Loss"])
def test_autocast_is_off_within_a_loss(name, monkeypatch):
    loss, inside = build(LOSSES, dict(type=name), dim=C), []
    compare = loss.compare
    monkeypatch.setattr(loss, "compare", lambda p, t: inside.append(torch.is_autocast_enabled("cpu")) or compare(p, t))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(*pair())
    assert inside == [False]


def test_losses_on_the_meta_device():
    x = torch.empty(B, N, C, device="meta")
    for name in LOSSES.names():
        with torch.device("meta"):
            out = build(LOSSES, dict(type=name), dim=C)(x, x)
        assert all(value.shape == () for value in (out.values() if isinstance(out, dict) else [out]))


def test_mistakes():
    loss = build(LOSSES, dict(type="L1Loss"), dim=C)
    with pytest.raises(ValueError, match=r"\(2, 9, 6\).*\(2, 8, 6\)"):
        loss(pair()[0], pair()[1][:, 1:])
    for cfg in (dict(type="SmoothL1Loss", beta=0), dict(type="CosineLoss", over=0)):
        with pytest.raises(ConfigError):
            build(LOSSES, cfg, dim=C)


# ---- projectors ----


def tokens(dim, prefix=0):
    values = torch.Generator().manual_seed(1)
    return Tokens(torch.randn(B, prefix + N, dim, generator=values), prefix, (3, 3))


@pytest.mark.parametrize("name", PROJECTORS.names())
def test_every_projector_maps_shapes_and_trains(name):
    torch.manual_seed(0)
    projector = build(PROJECTORS, dict(type=name), dim=8, out_dim=12)
    out = projector(tokens(8))
    assert out.shape == (B, N, 12)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert projector(tokens(8)).isfinite().all()


# millions of parameters from D = 768, 1024, 1152 (METHODS, section 12)
@pytest.mark.parametrize(
    "cfg, out_dim, counts",
    [(dict(type="ConvProjector"), 1024, (7.08, 9.44, 10.62)), (dict(type="ConvProjector", kernel=1), 1024, (0.79, 1.05, 1.18)),
     (dict(type="MLPProjector"), 768, (7.35, 7.87, 8.13)), (dict(type="ConvProjector"), 768, (5.31, 7.08, 7.96))],
    ids=["AHPA", "AHPA 1x1", "REPA", "iREPA"])  # fmt: skip
def test_parameter_counts_of_the_papers(cfg, out_dim, counts):
    for dim, wanted in zip((768, 1024, 1152), counts, strict=True):
        with torch.device("meta"):
            projector = build(PROJECTORS, cfg, dim=dim, out_dim=out_dim)
        assert sum(p.numel() for p in projector.parameters()) / 1e6 == pytest.approx(wanted, abs=0.006)


def test_convolution_written_out():
    """A 3 x 3 convolution over the grid with zeros around it, token by token."""
    projector, given = build(PROJECTORS, dict(type="ConvProjector"), dim=4, out_dim=5), tokens(4)
    weight, bias = projector.out.weight, projector.out.bias
    out = projector(given)
    for n in range(N):
        row, column = divmod(n, 3)
        wanted = bias.expand(B, 5).clone()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if 0 <= row + dy < 3 and 0 <= column + dx < 3:
                    neighbour = given.tokens[:, (row + dy) * 3 + column + dx]
                    wanted = wanted + neighbour @ weight[:, :, dy + 1, dx + 1].T
        torch.testing.assert_close(out[:, n], wanted)


def test_a_convolution_keeps_the_rows_of_a_grid_that_is_not_square():
    projector = build(PROJECTORS, dict(type="ConvProjector"), dim=4, out_dim=5)
    given = Tokens(torch.randn(B, 6, 4, generator=torch.Generator().manual_seed(2)), 0, (2, 3))
    x = torch.stack([given.tokens[:, 3 * row : 3 * row + 3] for row in range(2)], 1).permute(0, 3, 1, 2)  # [B, D, 2, 3]
    wanted = F.conv2d(x, projector.out.weight, projector.out.bias, padding=1)
    torch.testing.assert_close(projector(given), wanted.permute(0, 2, 3, 1).reshape(B, 6, 5))


def test_conv_blocks_are_conv_norm_silu():
    """Table D.13's ConvBlock x n: n convolutions, GroupNorm and SiLU after all but the last."""
    projector, given = build(PROJECTORS, dict(type="ConvProjector", layers=3), dim=4, out_dim=64), tokens(4)
    state = projector.state_dict()
    x = given.tokens.mT.reshape(B, 4, 3, 3)
    for i in (0, 3):
        x = F.conv2d(x, state[f"blocks.{i}.weight"], state[f"blocks.{i}.bias"], padding=1)
        x = F.silu(F.group_norm(x, 32, state[f"blocks.{i + 1}.weight"], state[f"blocks.{i + 1}.bias"]))
    x = F.conv2d(x, state["out.weight"], state["out.bias"], padding=1)
    torch.testing.assert_close(projector(given), x.flatten(2).mT)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_mlp_written_out(depth):
    projector, given = (
        build(PROJECTORS, dict(type="MLPProjector", depth=depth, hidden_dim=7), dim=4, out_dim=5),
        tokens(4),
    )
    state, x = projector.state_dict(), given.tokens
    for i in range(depth):
        x = x @ state[f"mlp.{2 * i}.weight"].T + state[f"mlp.{2 * i}.bias"]
        x = x * torch.sigmoid(x) if i < depth - 1 else x
    torch.testing.assert_close(projector(given), x)


@pytest.mark.parametrize(
    "cfg, message",
    [(dict(kernel=2), "odd"), (dict(layers=2, hidden_dim=0), "at least 1"), (dict(layers=2, norm_groups=-2), "at least 1"), (dict(layers=0), "layers"), (dict(layers=2, hidden_dim=10, norm_groups=3), "divide")], ids=str)  # fmt: skip
def test_projector_mistakes(cfg, message):
    with pytest.raises(ConfigError, match=message):
        build(PROJECTORS, dict(type="ConvProjector", **cfg), dim=4, out_dim=8)


def test_a_convolution_refuses_prefix_tokens_and_an_mlp_takes_them():
    with pytest.raises(ValueError, match="prefix"):
        build(PROJECTORS, dict(type="ConvProjector"), dim=4, out_dim=8)(tokens(4, prefix=1))
    assert build(PROJECTORS, dict(type="MLPProjector"), dim=4, out_dim=8)(tokens(4, prefix=1)).shape == (B, 1 + N, 8)


# ---- schedules and the flow loss ----

SHAPES = {
    "Constant": (dict(value=0.3), lambda p: 0.3),
    "LinearSchedule": (
        dict(start=1.0, end=0.2, begin=0.2, until=0.6),
        lambda p: 1 - 0.8 * min(max((p - 0.2) / 0.4, 0), 1),
    ),
    "CosineSchedule": (dict(start=0.0, end=1.0), lambda p: (1 - math.cos(math.pi * p)) / 2),
    "StepSchedule": (dict(values={0: 1.0, 0.5: 0.1}), lambda p: 1.0 if p < 0.5 else 0.1),
    "EarlyStop": (dict(value=0.5, until=0.6), lambda p: 0.5 if p < 0.6 else 0.0),
    # SRA's code by epochs, with an epoch of 10 steps: 0.2 up to epoch 149, then 2 * 0.1^((epoch - 149) / 1000 + 1)
    "DecadeDecay": (
        dict(value=0.2, begin=1490, decade=10_000),
        lambda p: 0.2 if 1000 * p < 149 else 2 * 0.1 ** ((1000 * p - 149) / 1000 + 1),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_schedules(name):
    options, wanted = SHAPES[name]
    weight = build_weight(dict(type=name, **options))
    for percent in range(0, 101, 5):
        step = Step(batch={}, progress=percent / 100, iteration=percent * 100)
        assert weight(step) == pytest.approx(wanted(percent / 100), abs=1e-9)


@pytest.mark.parametrize(
    "cfg", [-1, math.nan, dict(type="Constant", value=True), dict(type="Constant", value=-1), dict(type="LinearSchedule", start=1, end=0, begin=0.8, until=0.2),
            dict(type="StepSchedule", values={0.5: 1}), dict(type="EarlyStop", value=1, until=2),
            dict(type="DecadeDecay", value=1, begin=0, decade=0)], ids=str)  # fmt: skip
def test_schedule_mistakes(cfg):
    with pytest.raises(ValueError):
        build_weight(cfg)


def test_flow_loss_written_out():
    pred, target = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    cls, cls_target = torch.randn(3, 5), torch.randn(3, 5)
    noisy = Noisy(x={}, t=None, target={"image": target, "cls": cls_target}, data={}, noise={})
    step = Step(batch={}, noisy=noisy, out=Denoised({"image": pred, "cls": cls}, {}))
    out = build(FLOW_LOSSES, dict(type="FlowMatchingLoss", weights=dict(cls=0.03)))(step)
    assert set(out) == {"loss_flow", "loss_flow_cls"}
    assert float(out["loss_flow"]) == pytest.approx(
        sum((pred - target).flatten().tolist()[i] ** 2 for i in range(48)) / 48
    )
    assert float(out["loss_flow_cls"]) == pytest.approx(0.03 * float((cls - cls_target).square().mean()))


def test_flow_loss_in_half_precision_and_its_mistakes():
    """A squared error of 640,000 is beyond fp16; a target of another shape must not be broadcast."""
    pred = torch.full((2, 4, 2, 2), 400.0, dtype=torch.float16)

    def loss(target):
        noisy = Noisy(x={}, t=None, target={"image": target}, data={}, noise={})
        return build(FLOW_LOSSES, dict(type="FlowMatchingLoss"))(
            Step(batch={}, noisy=noisy, out=Denoised({"image": pred}, {}))
        )

    assert float(loss(-pred)["loss_flow"]) == 640000.0
    with pytest.raises(ValueError, match=r"\(2, 4, 2, 2\).*\(2, 1, 2, 2\)"):
        loss(pred[:, :1])


def test_inner_widths_of_an_mlp_one_by_one():
    """SRA 2's inferred widths [D, 2D, 2D, 2D, D, 16]: 7.10 M parameters for D = 768 (METHODS section 8)."""
    head = build(PROJECTORS, dict(type="MLPProjector", hidden_dims=[1536, 1536, 1536, 768]), dim=768, out_dim=16)
    assert [tuple(layer.weight.shape) for layer in head.mlp[::2]] == [
        (1536, 768), (1536, 1536), (1536, 1536), (768, 1536), (16, 768)]  # fmt: skip
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 2) == 7.10
    with pytest.raises(ConfigError, match="hidden_dims"):
        build(PROJECTORS, dict(type="MLPProjector", hidden_dims=[0]), dim=768, out_dim=16)
