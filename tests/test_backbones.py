"""What every transformer of the registry must do: a new backbone is tested here without a new line of test code."""

import pytest
import torch
from support.backbones import SMALL, moved, small_inputs

from ahpa.registry import BACKBONES
from ahpa.testing import check_backbone

QK = dict(qk_norm=True)


def test_none_is_left_out():
    BACKBONES.import_from_location()
    own = {name for name, part in BACKBONES.module_dict.items() if part.__module__.startswith("ahpa.")}
    assert own == set(SMALL)


@pytest.mark.parametrize("changes", [{}, QK, dict(patch_size=4)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_contract(name, changes):
    check_backbone({**SMALL[name], **changes})


def summed(out):
    """A number that every output and a tap take part in."""
    parts = [*out.pred.values(), *(tap.tokens.float() for tap in out.taps.values())]
    return sum(part.square().mean() for part in parts)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_changes_nothing(name):
    grads = []
    for flag in (False, True):
        model = moved(name, gradient_checkpointing=flag).train()
        summed(model(*small_inputs(model), taps=frozenset({2}))).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_autocast_is_close_finite_and_trains(name, dtype):
    model = moved(name, gradient_checkpointing=True, **QK).train()
    given = small_inputs(model)
    full = {key: value.detach() for key, value in model(*given).pred.items()}
    with torch.autocast("cpu", dtype=dtype):
        out = model(*given, taps=frozenset({2}))
    for key, value in out.pred.items():
        assert value.dtype == torch.float32
        assert float((value.detach() - full[key]).norm() / full[key].norm()) < 0.05
    assert out.taps[2].tokens.isfinite().all()
    summed(out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_a_teacher_stops_at_its_block(name):
    model = moved(name)
    whole = model(*small_inputs(model), taps=frozenset({2}))
    with torch.no_grad():
        for p in model.blocks[2].parameters():
            p.fill_(torch.nan)
        stopped = model(*small_inputs(model), taps=frozenset({2}), stop=2)
    assert not stopped.pred and torch.equal(stopped.taps[2].tokens, whole.taps[2].tokens)


@pytest.mark.parametrize("name", SMALL)
def test_a_tap_that_is_not_there(name):
    model = moved(name)
    with pytest.raises(ValueError, match=r"1\.\.3"):
        model(*small_inputs(model), taps=frozenset({4}))


@pytest.mark.parametrize("shape", [(2, 4, 4, 16), (2, 4, 16, 16), (2, 3, 8, 8)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_a_latent_of_another_shape(name, shape):
    """4 x 16 has as many tokens as 8 x 8: it would pass through, with the positions of another grid."""
    model = moved(name)
    x, t, cond = small_inputs(model)
    with pytest.raises(ValueError, match=r"\[B, 4, 8, 8\], got \[2, "):
        model({**x, "image": torch.zeros(shape)}, t, cond)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_blocks_compile_without_breaks(name):
    model = moved(name)
    eager = model(*small_inputs(model)).pred["image"]
    for block in model.blocks:
        block.compile(dynamic=False, fullgraph=True)
    torch.testing.assert_close(model(*small_inputs(model)).pred["image"], eager, rtol=1e-4, atol=1e-5)
