"""DiT as a backbone: embedded steps, learned variance, the published layout, parameter counts."""

import numpy as np
import pytest
import torch
from support.backbones import moved

from ahpa.backbones.layers import time_sinusoid
from ahpa.registry import BACKBONES, ConfigError, build
from ahpa.testing.backbones import check_backbone

TINY = dict(type="DiT", depth=2, hidden_size=48, num_heads=4, num_classes=10)
SIZES = dict(input_size=8, in_channels=4)


def tiny(**changes):
    return moved(TINY, **changes)


@pytest.mark.parametrize(
    "changes", [{}, dict(learn_sigma=False), dict(qk_norm=True), dict(patch_size=4)], ids=str
)
def test_contract(changes):
    check_backbone({**TINY, **changes})


def test_whole_steps_are_embedded_exactly():
    """Step i of 1000 has the time t = i / 1000, in float32."""
    index = torch.arange(1000)
    assert torch.equal(tiny().time_input(index.float() / 1000), index.float())


def test_the_sinusoid_of_the_steps_written_out():
    model, seen = tiny(), []
    model.t_embedder.mlp[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, label = {"image": torch.zeros(3, 4, 8, 8)}, torch.zeros(3, dtype=torch.long)
    model(x, torch.tensor([0.0, 0.037, 0.999]), label)
    steps = np.array([0, 37, 999])[:, None] * 10000.0 ** (-np.arange(128) / 128)
    wanted = np.concatenate([np.cos(steps), np.sin(steps)], 1)
    np.testing.assert_allclose(seen[0].numpy(), wanted, atol=1e-3)  # float32 angles up to 999
    assert torch.equal(seen[0], time_sinusoid(torch.tensor([0, 37, 999])))


def test_times_per_token_are_rounded_to_steps():
    t = torch.rand(2, 16)
    assert torch.equal(tiny().time_input(t), (t * 1000).round())


def test_sit_embeds_the_raw_time():
    t = torch.rand(5)
    assert build(BACKBONES, {**TINY, "type": "SiT"}, **SIZES).time_input(t) is t


def test_a_small_scale_is_not_rounded():
    t = torch.rand(5)
    assert torch.equal(tiny(time_scale=0.5).time_input(t), t * 0.5)


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ConfigError, match="time_scale"):
        tiny(time_scale=0)


def test_the_output_is_the_prediction_and_then_the_variance():
    """Each of a patch's p*p*2C outputs is put in its place, the first C channels before the others;
    shown by a bias that counts."""
    model = tiny()
    with torch.no_grad():
        model.final_layer.linear.weight.zero_()
        model.final_layer.linear.bias.copy_(torch.arange(32.0))
    x, label = {"image": torch.zeros(1, 4, 8, 8)}, torch.zeros(1, dtype=torch.long)
    out = model(x, torch.zeros(1), label).pred["image"]
    assert out.shape == (1, 8, 8, 8)
    for row in range(8):
        for column in range(8):
            first = ((row % 2) * 2 + column % 2) * 8
            assert out[0, :, row, column].tolist() == [first + c for c in range(8)]


def test_keys_and_shapes_of_the_published_layout():
    block = {
        "attn.qkv": (144, 48),
        "attn.proj": (48, 48),
        "mlp.fc1": (192, 48),
        "mlp.fc2": (48, 192),
        "adaLN_modulation.1": (288, 48),
    }
    weights = {f"blocks.{i}.{name}": shape for i in range(3) for name, shape in block.items()}
    weights |= {
        "x_embedder.proj": (48, 4, 2, 2),
        "t_embedder.mlp.0": (48, 256),
        "t_embedder.mlp.2": (48, 48),
        "final_layer.linear": (32, 48),
        "final_layer.adaLN_modulation.1": (96, 48),
    }
    wanted = {f"{name}.weight": shape for name, shape in weights.items()}
    wanted |= {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    wanted["y_embedder.embedding_table.weight"] = (11, 48)
    model = tiny(depth=3)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == wanted
    assert model.pos_embed.shape == (1, 16, 48)  # in the published file, computed here


def test_the_parameters_of_the_paper():
    """675.13 M of DiT-XL/2: SiT's 674.82 M, 16 more outputs of 1152 weights and a bias, and the
    positions, which the paper counts."""
    cfg = dict(type="DiT", depth=28, hidden_size=1152, num_heads=16)
    with torch.device("meta"):
        model = build(BACKBONES, cfg, input_size=32, in_channels=4)
    d, own = 1152, sum(p.numel() for p in model.parameters())
    block = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
    block += 6 * d * d + 6 * d
    ends = (16 * d + d) + (256 * d + d + d * d + d) + 1001 * d + (2 * d * d + 2 * d)
    ends += 32 * d + 32
    assert own == 28 * block + ends == 674_834_720
    assert (own + 256 * d) / 1e6 == pytest.approx(675.13, abs=0.005)
