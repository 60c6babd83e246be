"""Conformance checks for components, for a third party's own tests: each raises AssertionError that says what is wrong.

    from ahpa.testing import check_prior
    def test_my_prior(): check_prior(dict(type='MyPrior', weights=...), resolution=64)

Each takes a config dict (its type must be registered) or a built object, and tries what ahpa relies on: shapes, dtypes,
declared sizes, gradients, determinism, state dicts, autocast.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .registry import AUTOENCODERS, BACKBONES, LOSSES, PRIORS, ROUTERS, build
from .registry.contracts import Features, LevelSpec, Step, Tokens

__all__ = ["check_autoencoder", "check_backbone", "check_loss", "check_prior", "check_router"]


def _random(*shape, seed=0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _check_finite(name, value):
    assert value.isfinite().all(), f"{name} has values that are not finite"


def _check_features(features: Features, spec: Mapping[str, LevelSpec], wanted, batch: int, resolution: int) -> None:
    for level in wanted:
        assert level in features, f"forward left out the requested level {level!r}; it gave {list(features)}"
        value, (channels, stride) = features[level], spec[level]
        side = resolution // stride if stride else None
        expected = (batch, channels, side, side) if stride else (batch, channels)
        assert tuple(value.shape) == expected, f"level {level!r}: {tuple(value.shape)}, declared {expected}"
        assert not value.requires_grad, f"level {level!r} carries a gradient; a prior is frozen (torch.no_grad)"
        _check_finite(f"level {level!r}", value)
    order = [level for level in features if level in wanted]
    assert order == [level for level in spec if level in wanted], f"levels come as {order}: not in the order of spec"


def check_prior(prior, *, resolution: int = 64, batch: int = 2, tokenizer=None, backbone=None) -> None:
    """A prior declares its levels without running, gives them in that shape and order, and stays out of training.

    tokenizer, backbone: configs or objects that `bind` gets (the bundled autoencoder is used when none is given).
    """
    prior = build(PRIORS, prior)
    tokenizer = build(AUTOENCODERS, tokenizer or dict(type="KLAutoencoder", source="bundled"))
    prior.bind(tokenizer=tokenizer, backbone=backbone)
    spec = prior.spec(backbone)
    assert spec and all(len(level) == 2 for level in spec.values()), "spec: {level: LevelSpec(channels, stride)}"
    assert not list(prior.parameters()), "a prior has no parameters of its own: hold networks with HoldsFrozen.hold"
    assert not prior.state_dict(), "a prior must not put anything into checkpoints"
    images = torch.rand(batch, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    results = []
    for wanted in (list(spec), list(spec)[:1], list(spec)[-2:]):
        prior.request(wanted)
        step = Step(batch={"label": torch.zeros(batch, dtype=torch.long)}, images=images)
        step.encoded = tokenizer.encode(images, getattr(prior, "shared_levels", ()))
        features = prior(step)
        _check_features(features, spec, wanted, batch, resolution)
        results.append(features)
    last = list(spec)[-1]
    assert torch.allclose(results[0][last].float(), results[2][last].float(), atol=1e-3), (
        f"level {last!r} changes with what else is requested"
    )


def check_router(router, *, channels: int = 8, levels: int = 15, grid=(4, 4), batch: int = 3) -> None:
    """A router's weights are of the declared shape, alphas sum to one, the target has `out_dim` channels, gradients
    reach every trainable parameter, and half precision stays finite."""
    spec = {f"level{i}": LevelSpec(channels, 8) for i in range(levels)}
    router = build(ROUTERS, router, spec=spec, grid=grid, content_dim=6)
    features = {name: _random(batch, channels, 8, 8, seed=i) for i, name in enumerate(spec)}
    t, content = torch.linspace(0, 1, batch), _random(batch, grid[0] * grid[1], 6, seed=99)
    intra, inter = router.weights(t, content)
    assert tuple(inter.shape) == (batch, len(router.groups)), f"inter is {tuple(inter.shape)}, expected [B, G]"
    for group, names in router.groups.items():
        assert tuple(intra[group].shape) == (batch, len(names)), f"intra[{group!r}] is not [B, L]"
        assert torch.allclose(intra[group].sum(-1), torch.ones(batch), atol=1e-5), f"intra[{group!r}]: sum is not 1"
    missing = [name for name in router.used_levels if name not in spec]
    assert not missing, f"used_levels names levels that the spec lacks: {missing}"
    target = router({name: features[name] for name in router.used_levels}, t, content)
    assert tuple(target.shape) == (batch, grid[0] * grid[1], router.out_dim), f"target is {tuple(target.shape)}"
    trained = [p for p in router.parameters() if p.requires_grad]
    if trained:
        (target * _random(*target.shape, seed=5)).sum().backward()
        bare = [name for name, p in router.named_parameters() if p.requires_grad and p.grad is None]
        assert not bare, f"no gradient reaches {bare}"
    _check_half(router, lambda: router(features, t, content))


def _check_half(module, run):
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            value = run()
        for name, part in value.items() if isinstance(value, Mapping) else (("output", value),):
            _check_finite(f"{type(module).__name__} under {dtype}: {name}", part)


def check_backbone(backbone, *, input_size: int = 8, in_channels: int = 4, batch: int = 2) -> None:
    """A backbone predicts each stream in its shape (the image with `out_channels` if it says so), gives the tapped blocks
    as declared without changing its prediction, trains, and round-trips its state dict."""
    backbone = build(BACKBONES, backbone, input_size=input_size, in_channels=in_channels)
    with torch.no_grad():  # leave the zeros that transformers start with
        for i, p in enumerate(backbone.parameters()):
            p.add_(0.02 * _random(*p.shape, seed=i))
    x = {name: _random(batch, *shape) for name, shape in backbone.streams.items()}
    t, label = torch.linspace(0.2, 0.8, batch), backbone.blank_cond(batch, "cpu")
    backbone.eval()
    bare = backbone(x, t, label)
    for name, part in x.items():
        channels = getattr(backbone, "out_channels", in_channels) if name == "image" else part.shape[1]
        wanted = (batch, channels, *part.shape[2:])
        assert tuple(bare.pred[name].shape) == wanted, f"pred[{name!r}] is not {wanted}"
    assert not bare.taps, "taps were returned that nobody asked for"
    asked = frozenset({1, backbone.depth})
    tapped = backbone(x, t, label, taps=asked)
    assert set(tapped.taps) == asked, f"asked for taps {sorted(asked)}, got {sorted(tapped.taps)}"
    assert torch.equal(tapped.pred["image"], bare.pred["image"]), "tapping changes the prediction"
    expected = (batch, backbone.prefix + backbone.grid[0] * backbone.grid[1], backbone.hidden_size)
    for number, tokens in tapped.taps.items():
        assert isinstance(tokens, Tokens) and tuple(tokens.tokens.shape) == expected, f"tap {number}: not {expected}"
    sum(part.square().mean() for part in tapped.pred.values()).backward()
    bare_names = [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not bare_names, f"no gradient reaches {bare_names}"
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.load_state_dict(state)
    _check_half(backbone, lambda: backbone(x, t, label).pred)


def check_loss(loss, *, dim: int = 16, batch: int = 2, tokens: int = 9) -> None:
    """A pair loss is a finite float32 scalar (or a dict of them), differentiable in `pred`, least at pred = target
    among a few tries (a critic's own objective apart), and finite for zeros, tiny vectors and half precision."""
    loss = build(LOSSES, loss, dim=dim)
    target = _random(batch, tokens, dim, seed=1)

    def value(pred, against=target, own=True):
        out = loss(pred, against)
        parts = out if isinstance(out, Mapping) else {"": out}
        for part in parts.values():
            assert part.ndim == 0 and part.dtype == torch.float32, "a pair loss is a float32 scalar"
        return sum(part for name, part in parts.items() if own or name not in loss.unweighted)

    same, other = value(target.clone(), own=False), value(_random(batch, tokens, dim, seed=2), own=False)
    assert float(same) <= float(other), f"pred = target gives {float(same):.4g}, an unrelated pred {float(other):.4g}"
    for scale in (1.0, 1e-12, 0.0):
        pred = nn.Parameter(scale * _random(batch, tokens, dim, seed=3))
        result = value(pred)
        _check_finite(f"the loss of vectors of scale {scale:g}", result)
        result.backward()
        _check_finite(f"the gradient at vectors of scale {scale:g}", pred.grad)
    _check_half(loss, lambda: value(_random(batch, tokens, dim, seed=4).half(), target.half()))


def check_autoencoder(autoencoder, *, resolution: int = 64, batch: int = 2) -> None:
    """An autoencoder declares its sizes without weights, encodes to [B, C, H/s, W/s], decodes into [0, 1]."""
    autoencoder = build(AUTOENCODERS, autoencoder)
    images = torch.rand(batch, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    wanted = list(autoencoder.levels)[-2:]
    encoded = autoencoder.encode(images, wanted)
    side = resolution // autoencoder.downsample
    expected = (batch, autoencoder.latent_channels, side, side)
    assert tuple(encoded.mean.shape) == expected == tuple(encoded.std.shape), f"latents are not {expected}"
    _check_features(encoded.taps, autoencoder.levels, wanted, batch, resolution)
    decoded = autoencoder.decode(encoded.mean)
    assert tuple(decoded.shape) == tuple(images.shape), f"decode gave {tuple(decoded.shape)}"
    assert decoded.min() >= 0 and decoded.max() <= 1, "decoded images must lie in [0, 1]"
    assert not list(autoencoder.parameters()) and not autoencoder.state_dict(), "hold the network with HoldsFrozen.hold"
