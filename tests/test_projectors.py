"""Projectors against written-out loops and functional references, the papers' parameter counts, and
the contract."""

import pytest
import torch
import torch.nn.functional as F
from support.registered import shipped
from torch import nn

from ahpa.registry import PROJECTORS, ConfigError, build
from ahpa.registry.contracts import Projector, Tokens
from ahpa.testing.alignment import check_projector

B, N = 2, 9


def tokens(dim, prefix=0):
    values = torch.Generator().manual_seed(1)
    return Tokens(torch.randn(B, prefix + N, dim, generator=values), prefix, (3, 3))


DIM = {"IdentityProjector": 12}  # the target's width; 8 for every other


def make(name, *, dim=4, out_dim=5, **options):
    torch.manual_seed(0)
    return build(PROJECTORS, dict(type=name, **options), dim=dim, out_dim=out_dim)


@pytest.mark.parametrize("name", shipped(PROJECTORS))
def test_contract(name):
    check_projector(dict(type=name), dim=DIM.get(name, 8))


@pytest.mark.parametrize("name", shipped(PROJECTORS))
def test_every_projector_maps_shapes_and_trains(name):
    dim = DIM.get(name, 8)
    projector, given = make(name, dim=dim, out_dim=12), tokens(dim).tokens.requires_grad_()
    out = projector(Tokens(given, 0, (3, 3)))
    assert out.shape == (B, N, 12)
    out.square().sum().backward()
    assert given.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())


@pytest.mark.parametrize("name", shipped(PROJECTORS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    dim = DIM.get(name, 8)
    projector = make(name, dim=dim, out_dim=12)
    with torch.autocast("cpu", dtype=dtype):
        assert projector(tokens(dim)).isfinite().all()


def test_the_identity_has_no_head():
    given = tokens(5, prefix=1)
    projector = make("IdentityProjector", dim=5)
    assert projector(given) is given.tokens and not list(projector.parameters())
    with pytest.raises(ConfigError, match="width 4 .* width 5 without a head"):
        make("IdentityProjector", dim=4)


# millions of parameters for D = 768, 1024, 1152 (METHODS, section 12)
COUNTS = {
    "AHPA": (dict(type="ConvProjector"), 1024, (7.08, 9.44, 10.62)),
    "AHPA 1x1": (dict(type="ConvProjector", kernel=1), 1024, (0.79, 1.05, 1.18)),
    "REPA": (dict(type="MLPProjector"), 768, (7.35, 7.87, 8.13)),
    "iREPA": (dict(type="ConvProjector"), 768, (5.31, 7.08, 7.96)),
}


@pytest.mark.parametrize("method", COUNTS)
@pytest.mark.parametrize("size", [0, 1, 2], ids=["768", "1024", "1152"])
def test_parameter_counts_of_the_papers(method, size):
    cfg, out_dim, millions = COUNTS[method]
    dim = (768, 1024, 1152)[size]
    with torch.device("meta"):
        projector = build(PROJECTORS, cfg, dim=dim, out_dim=out_dim)
    count = sum(p.numel() for p in projector.parameters())
    assert count / 1e6 == pytest.approx(millions[size], abs=0.006)


def test_convolution_written_out():
    """A 3 x 3 convolution over the grid with zeros around it, token by token."""
    projector, given = make("ConvProjector"), tokens(4)
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
    projector = make("ConvProjector")
    values = torch.Generator().manual_seed(2)
    given = Tokens(torch.randn(B, 6, 4, generator=values), 0, (2, 3))
    rows = [given.tokens[:, 3 * row : 3 * row + 3] for row in range(2)]
    x = torch.stack(rows, 1).permute(0, 3, 1, 2)  # [B, D, 2, 3]
    wanted = F.conv2d(x, projector.out.weight, projector.out.bias, padding=1)
    torch.testing.assert_close(projector(given), wanted.permute(0, 2, 3, 1).reshape(B, 6, 5))


def test_conv_blocks_are_conv_norm_silu():
    """Table D.13's ConvBlock x n: n convolutions, GroupNorm and SiLU after all but the last."""
    projector, given = make("ConvProjector", layers=3, out_dim=64), tokens(4)
    state = projector.state_dict()
    x = given.tokens.mT.reshape(B, 4, 3, 3)
    for i in (0, 3):
        x = F.conv2d(x, state[f"blocks.{i}.weight"], state[f"blocks.{i}.bias"], padding=1)
        x = F.group_norm(x, 32, state[f"blocks.{i + 1}.weight"], state[f"blocks.{i + 1}.bias"])
        x = F.silu(x)
    x = F.conv2d(x, state["out.weight"], state["out.bias"], padding=1)
    torch.testing.assert_close(projector(given), x.flatten(2).mT)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_mlp_written_out(depth):
    projector, given = make("MLPProjector", depth=depth, hidden_dim=7), tokens(4)
    state, x = projector.state_dict(), given.tokens
    for i in range(depth):
        x = x @ state[f"mlp.{2 * i}.weight"].T + state[f"mlp.{2 * i}.bias"]
        x = x * torch.sigmoid(x) if i < depth - 1 else x
    torch.testing.assert_close(projector(given), x)


def test_linear_written_out():
    projector, given = make("LinearProjector"), tokens(4)
    wanted = given.tokens @ projector.linear.weight.T + projector.linear.bias
    torch.testing.assert_close(projector(given), wanted)


def test_inner_widths_of_an_mlp_one_by_one():
    """SRA 2's inferred widths [D, 2D, 2D, 2D, D, 16]: 7.10 M parameters for D = 768 (METHODS,
    section 8)."""
    head = make("MLPProjector", hidden_dims=[1536, 1536, 1536, 768], dim=768, out_dim=16)
    shapes = [tuple(layer.weight.shape) for layer in head.mlp[::2]]
    assert shapes == [(1536, 768), (1536, 1536), (1536, 1536), (768, 1536), (16, 768)]
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 2) == 7.10


def test_dupas_initialisation():
    """The first layer Kaiming (std sqrt(2 / inputs)), the others Xavier times the gain, zero bias;
    never zero weights."""
    gain = 0.25
    head = make("MLPProjector", dim=256, out_dim=256, hidden_dim=512, gain=gain)
    first, *others = head.mlp[::2]
    assert float(first.weight.detach().std()) == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    for layer in others:
        outputs, inputs = layer.weight.shape
        xavier = (2 / (inputs + outputs)) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(gain * xavier, rel=0.02)
    assert all((layer.bias == 0).all() for layer in (first, *others))


def linears(head):
    """The layers of a head that have a matrix of weights."""
    return [layer for layer in head.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]


def test_repas_head_starts_as_in_the_official_code():
    """Xavier uniform of the three layers: std .0267, .0221, .0267 (torch: .0208, .0128, .0128)."""
    head = make("MLPProjector", dim=768, out_dim=768, init="xavier")
    plain = make("MLPProjector", dim=768, out_dim=768)
    for heads, stds in ((head, (0.0267, 0.0221, 0.0267)), (plain, (0.0208, 0.0128, 0.0128))):
        found = [float(layer.weight.detach().std()) for layer in linears(heads)]
        assert found == pytest.approx(list(stds), abs=1e-4)
    for layer in linears(head):
        bound = (6 / sum(layer.weight.shape)) ** 0.5  # of U(-bound, bound)
        assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert (layer.bias == 0).all()
    given = Tokens(torch.randn(4, 9, 768, generator=torch.Generator().manual_seed(0)), 0, (3, 3))
    sizes = [float(part(given).detach().square().mean().sqrt()) for part in (head, plain)]
    assert sizes == pytest.approx([0.267, 0.055], rel=0.05)  # output rms for unit tokens


@pytest.mark.parametrize("name", ["LinearProjector", "MLPProjector", "ConvProjector"])
def test_every_head_with_weights_can_start_from_xavier(name):
    head = make(name, dim=64, out_dim=96, init="xavier")
    for layer in linears(head):
        outputs, inputs = layer.weight.flatten(1).shape
        bound = (6 / (inputs + outputs)) ** 0.5
        assert 0.98 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("name", ["LinearProjector", "MLPProjector", "ConvProjector"])
def test_the_default_start_is_torchs_to_the_bit(name):
    """No draw is added, so earlier runs start from the same weights."""
    head, state = make(name), torch.get_rng_state()
    again = make(name, init="torch")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    for layer in linears(again):
        layer.reset_parameters()
    for one, other in zip(head.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


MISTAKES = [
    (dict(type="MLPProjector", init="xavir"), "init: 'xavir' is unknown; did you mean 'xavier'"),
    (dict(type="LinearProjector", init=True), "init: True is unknown"),
    (dict(type="ConvProjector", init="zeros"), "init: 'zeros' is unknown"),
    (dict(type="MLPProjector", init="xavier", gain=0.5), "gain: .* excludes init='xavier'"),
    (dict(type="ConvProjector", kernel=2), "kernel: must be odd"),
    (dict(type="ConvProjector", kernel=0), "kernel: must be a positive integer"),
    (dict(type="ConvProjector", layers=2, hidden_dim=0), "hidden_dim: must be a positive integer"),
    (dict(type="ConvProjector", layers=2, norm_groups=-2), "norm_groups: must be a positive"),
    (dict(type="ConvProjector", layers=0), "layers"),
    (
        dict(type="ConvProjector", layers=2, hidden_dim=10, norm_groups=3),
        r"norm_groups: 3 does not divide the width 10; valid: \[1, 2, 5\]",
    ),
    (dict(type="MLPProjector", depth=0), "depth: must be a positive integer"),
    (dict(type="MLPProjector", hidden_dim=0), "hidden_dim: must be a positive integer"),
    (dict(type="MLPProjector", hidden_dims=[0]), "hidden_dims: must be a positive integer"),
    (dict(type="MLPProjector", hidden_dims=[True]), "hidden_dims: must be a positive integer"),
    (dict(type="MLPProjector", gain=0), "gain: must be a finite number above 0"),
]


@pytest.mark.parametrize(("cfg", "message"), MISTAKES, ids=str)
def test_mistakes(cfg, message):
    with pytest.raises(ConfigError, match=message):
        build(PROJECTORS, cfg, dim=4, out_dim=8)


def test_a_convolution_refuses_prefix_tokens_and_an_mlp_takes_them():
    with pytest.raises(ValueError, match="prefix"):
        make("ConvProjector")(tokens(4, prefix=1))
    assert make("MLPProjector", out_dim=8)(tokens(4, prefix=1)).shape == (B, 1 + N, 8)


# ---- the check ----


class Head(Projector):
    """A linear head; its subclasses break one thing each."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 12)

    def forward(self, tokens):
        return self.linear(tokens.tokens)


class Narrow(Head):
    def forward(self, tokens):
        return self.linear(tokens.tokens)[..., :8]


class Detached(Head):
    def forward(self, tokens):
        return self.linear(tokens.tokens.detach())


class Unused(Head):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class LosesThePrefix(Head):
    def forward(self, tokens):
        return self.linear(tokens.without_prefix().tokens)


class Overflows(Head):
    def forward(self, tokens):
        return super().forward(tokens) * 1e6


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Narrow, "became"),
        (Detached, "no gradient reaches the tokens"),
        (Unused, "spare"),
        (LosesThePrefix, "prefix token is lost"),
        (Overflows, "not finite"),
    ],
)
def test_the_check_finds_a_broken_projector(broken, message):
    check_projector(Head())
    with pytest.raises(AssertionError, match=message):
        check_projector(broken())
