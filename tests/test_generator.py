"""Samples from parts: a function of the seed and the sample's number, with guidance, conversions
and samplers by name."""

import pytest
import torch
import torch.nn.functional as F
from support.registered import shipped
from torch import nn

from ahpa.registry import FLOWS, GUIDANCES, SAMPLERS, ConfigError, UserError, build
from ahpa.registry.contracts import (
    Backbone,
    BackboneOutput,
    Conditioner,
    Encoded,
    Sampler,
    Tokenizer,
)
from ahpa.sampling.generator import Generator, SampleNoise
from ahpa.sampling.progress import SamplingBar
from ahpa.testing.common import toy_geometry


class Pixels(Tokenizer):
    """Latents [4, 8, 8] <-> images of 16 px."""

    latent_channels, downsample, levels = 4, 2, {}

    def encode(self, images, levels=(), *, latent=True):
        return Encoded(None, None, {})

    def decode(self, latent):
        return F.interpolate(latent[:, :3], scale_factor=2).sigmoid()


class Toy(Backbone):
    """pred = sin(2 x + t + class) per channel, with an optional variance behind it."""

    depth, hidden_size, grid = 1, 8, (4, 4)

    def __init__(self, streams=None, variance=False):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.streams = {"image": (4, 8, 8), **(streams or {})}
        self.out_channels = 8 if variance else 4
        self.num_classes = 10
        self.calls = []

    @property
    def blocks(self):
        return []

    def blank_cond(self, count, device):
        return torch.zeros(count, dtype=torch.long)

    def forward(self, x, t, cond, taps=frozenset(), stop=None):
        self.calls.append(len(t))
        pred = {}
        for name, value in x.items():
            shift = (t + cond).reshape(-1, *[1] * (value.ndim - 1))
            pred[name] = torch.sin(self.scale * value + shift)
        if self.out_channels == 8:
            pred["image"] = torch.cat([pred["image"], 0.1 * pred["image"]], 1)
        return BackboneOutput(pred, {}, 0, self.grid)


class Numbers(Conditioner):
    """Class numbers, of which 10 is the null class."""

    def forward(self, clean, rng):
        raise NotImplementedError

    def null(self, count, device):
        return torch.full((count,), 10, device=device)

    def all(self):
        return list(range(10))

    def encode(self, wanted, device):
        return torch.tensor(list(wanted), device=device)

    def example(self, count, rng):
        return {}


def generator(streams=None, variance=False, **flow):
    geometry = toy_geometry(streams=streams)
    flow = build(FLOWS, {"type": "Flow", **flow}, geometry=geometry)
    backbone = Toy(streams, variance)
    conditioner = Numbers(geometry=geometry)
    return Generator(tokenizer=Pixels(), backbone=backbone, flow=flow, conditioner=conditioner)


DISCRETE = dict(type="DiscreteFlow")
FITTING = {"velocity": ["dopri5", "euler", "heun", "sde"], "noise": ["ddim", "ddpm"]}


def test_images_and_their_latents():
    parts = generator(streams={"cls": (5,)})
    images = parts.sample([1, 2, 3], steps=4, batch=2)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.uint8
    latents = parts.latents([1, 2, 3], steps=4)
    assert {name: tuple(x.shape) for name, x in latents.items()} == {
        "image": (3, 4, 8, 8),
        "cls": (3, 5),
    }
    decoded = F.interpolate(latents["image"][:, :3], scale_factor=2).sigmoid()
    assert torch.equal(images, (decoded * 255).round().to(torch.uint8))
    assert torch.equal(parts.decode(latents["image"]), images)
    assert not latents["image"].requires_grad


def test_pixels_are_rounded_to_the_nearest_of_256():
    parts = generator()
    values = torch.tensor([-9.0, 0.4, 0.6, 254.4, 254.6, 300.0]) / 255
    parts.tokenizer.decode = lambda latent: values.expand(len(latent), 3, 1, 6)
    images = parts.sample([0], steps=1)
    assert images.dtype == torch.uint8
    assert images[0, 0, 0].tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize("sampler", shipped(SAMPLERS))
def test_a_sample_is_a_function_of_seed_and_number(sampler):
    flow = DISCRETE if sampler in FITTING["noise"] else {}
    parts = generator(**flow)
    options = dict(steps=3, sampler=sampler, seed=4)
    if SAMPLERS.get(sampler).adaptive:  # its steps are chosen for the batch
        options["sampler"] = dict(type=sampler, rtol=1e-5)
    all_at_once = parts.sample([1, 2, 3, 4], **options)
    one_by_one = parts.sample([1, 2, 3, 4], batch=1, **options)
    part = parts.sample([3, 4], first=2, **options)
    assert (all_at_once.int() - one_by_one.int()).abs().max() <= 1
    assert (all_at_once[2:].int() - part.int()).abs().max() <= 1
    other = parts.sample([1, 2, 3, 4], steps=3, sampler=sampler, seed=5)
    assert not torch.equal(all_at_once, other)


def test_the_noise_of_a_sample_written_out():
    """Stream i is seeded with seed * a + i * b + 1 modulo 2^63; every stream goes on by itself."""
    noise = SampleNoise(7, [0, 3])
    for row, index in enumerate((0, 3)):
        seed = (7 * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 1) % 2**63
        stream = torch.Generator().manual_seed(seed)
        noise = SampleNoise(7, [0, 3])
        for shape in ((4, 8, 8), (5,)):
            wanted = torch.randn(shape, generator=stream)
            assert torch.equal(noise.draw(shape, torch.device("cpu"))[row], wanted)


@pytest.mark.parametrize("sampler", ["euler", "sde"])
def test_latents_from_given_noise(sampler):
    parts = generator()
    options = dict(steps=4, sampler=sampler, seed=3)
    start = parts.start_noise(2, seed=3)
    wanted = parts.latents([1, 2], **options)["image"]
    assert torch.equal(parts.latents([1, 2], noise=start, **options)["image"], wanted)
    zeros = {"image": torch.zeros(2, 4, 8, 8)}
    moved = parts.latents([1, 2], noise=zeros, **options)["image"]
    assert not torch.equal(moved, wanted)
    if sampler == "euler":  # constant noise is an ODE by hand
        x = torch.zeros(2, 4, 8, 8)
        for t in (1.0, 0.75, 0.5, 0.25):
            x = x - 0.25 * torch.sin(2 * x + torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1) + t)
        torch.testing.assert_close(moved, x)
    for wrong in ({"image": torch.zeros(1, 4, 8, 8)}, {"cls": torch.zeros(2, 4, 8, 8)}):
        with pytest.raises(ValueError, match="noise: must have the shapes"):
            parts.latents([1, 2], noise=wrong, steps=2)


def test_guidance_is_applied_and_only_in_its_interval():
    parts = generator()
    none = parts.sample([1, 2], steps=4)
    assert parts.backbone.calls == [2] * 4
    assert not torch.equal(none, parts.sample([1, 2], steps=4, cfg_scale=5.0))
    assert parts.backbone.calls[4:] == [4] * 4
    outside = parts.sample([1, 2], steps=4, cfg_scale=5.0, cfg_interval=(0.9, 0.95))
    assert torch.equal(none, outside)


@pytest.mark.parametrize("sampler", FITTING["noise"])
def test_guided_channels_and_a_learned_variance(sampler):
    parts = generator(variance=True, **DISCRETE)
    options = dict(sampler=sampler, steps=5, cfg_scale=4.0)
    images = {c: parts.sample([1, 2], cfg_channels=c, **options) for c in (None, 1, 4)}
    assert torch.equal(images[None], images[4])
    assert not torch.equal(images[None], images[1])


def test_the_default_sampler_is_the_flows():
    for flow, name in (({}, "euler"), (DISCRETE, "ddpm")):
        parts = generator(**flow)
        named = parts.sample([1, 2], sampler=name, steps=3)
        assert torch.equal(parts.sample([1, 2], steps=3), named)


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_the_flow_converts_what_the_network_predicts(prediction):
    parts = generator(prediction=prediction)
    latents = parts.latents([1], steps=3)["image"]
    x = parts.start_noise(1)["image"]
    for t in (1.0, 2 / 3, 1 / 3):
        pred = torch.sin(2 * x + 1 + t)
        if prediction == "data":
            v = (x - pred) / max(t, 0.05)
        else:
            v = (pred - x) / max(1 - t, 0.05)
        x = x - v / 3
    torch.testing.assert_close(latents, x, rtol=1e-4, atol=1e-4)


# ---- samplers and guidance by name, config or object --------------------------------------------


class Jump(Sampler):
    """One step of any length, as a plugin would add it."""

    needs = "velocity"

    def __init__(self, *, length: float = 1.0) -> None:
        self.length = length

    def sample(self, model, x, *, steps, path, noise):
        v = model(x, torch.ones(()))
        return {name: x[name] - self.length * v[name] for name in x}


@pytest.fixture
def jump():
    SAMPLERS.register_module(name="jump", module=Jump)
    yield
    SAMPLERS.module_dict.pop("jump")


def test_an_outside_sampler_by_name_config_and_object(jump):
    parts = generator()
    first = parts.latents([1], sampler="jump")["image"]
    again = parts.latents([1], sampler=Jump())["image"]
    half = parts.latents([1], sampler=dict(type="jump", length=0.5))["image"]
    start = parts.start_noise(1)["image"]
    assert torch.equal(first, again)
    torch.testing.assert_close(half, (start + first) / 2)


def test_a_sampler_that_does_not_fit_is_refused_and_the_fitting_ones_are_named(jump):
    with pytest.raises(
        UserError, match="'ddpm' does not fit.*Valid: dopri5, euler, heun, jump, sde"
    ):
        generator().sample([1], sampler="ddpm")
    with pytest.raises(UserError, match="'euler' does not fit the DiscreteFlow.*ddim, ddpm"):
        generator(**DISCRETE).sample([1], sampler=dict(type="euler"))
    with pytest.raises(UserError, match="'Jump' does not fit the DiscreteFlow"):
        generator(**DISCRETE).sample([1], sampler=Jump())
    with pytest.raises(ConfigError, match="did you mean 'euler'"):
        generator().sample([1], sampler="eular")


@pytest.mark.parametrize("sampler", ["euler", "sde"])
def test_images_from_given_noise_in_any_batches(sampler):
    """Given noise is that of `start_noise` or anyone's; each sample keeps its own."""
    parts = generator(streams={"cls": (5,)})
    options = dict(sampler=sampler, steps=3, seed=4)
    wanted = parts.sample([1, 2, 3], **options)
    noise = parts.start_noise(3, seed=4)
    assert torch.equal(parts.sample([1, 2, 3], noise=noise, batch=2, **options), wanted)
    own = {name: -x.double() for name, x in noise.items()}  # from another program
    images = parts.sample([1, 2, 3], noise=own, batch=2, **options)
    assert not torch.equal(images, wanted)
    latents = parts.latents([1, 2, 3], noise=own, **options)
    assert torch.equal(parts.decode(latents["image"]), images)
    with pytest.raises(ValueError, match="noise: 'image' is for 3 samples, not 2"):
        parts.sample([1, 2], noise=noise, **options)
    with pytest.raises(ValueError, match="noise: must have the shapes"):
        parts.sample([1, 2, 3], noise={"image": noise["image"]}, **options)


def test_the_scale_of_the_class_stream():
    parts = generator(streams={"cls": (5,)})
    options = dict(steps=3, cfg_scale=2.0)
    ends = {w: parts.latents([1, 2], cls_cfg_scale=w, **options) for w in (None, 2.0, 0, 1, 3.0)}
    for name in ("image", "cls"):
        assert torch.equal(ends[None][name], ends[2.0][name])
        assert torch.equal(ends[0][name], ends[1][name])
    assert not torch.equal(ends[3.0]["cls"], ends[2.0]["cls"])
    assert torch.equal(ends[3.0]["image"], ends[2.0]["image"])  # this toy's streams do not mix
    images = parts.sample([1, 2], cls_cfg_scale=3.0, **options)
    assert torch.equal(images, parts.decode(ends[3.0]["image"]))


def test_another_guidance():
    parts = generator()
    guidance = dict(type="classifier-free", scale=5.0)
    wanted = parts.latents([1, 2], steps=3, cfg_scale=5.0)["image"]
    assert torch.equal(parts.latents([1, 2], steps=3, guidance=guidance)["image"], wanted)
    built = build(GUIDANCES, guidance)
    assert torch.equal(parts.latents([1, 2], steps=3, guidance=built)["image"], wanted)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(precision="bf8"), "bf16"),
        (dict(steps=0), "steps"),
        (dict(cfg_scale=-1), "cfg_scale"),
        (dict(cfg_interval=(1, 0)), "cfg_interval"),
        (dict(cfg_scale=2.0, cfg_channels=9), "cfg_channels: 9"),
        (dict(cfg_scale=2.0, cls_cfg_scale=2.3), "no stream beside the image"),
        (dict(cls_cfg_scale=2.3), "no effect with cfg_scale=1"),
    ],
    ids=str,
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        generator().sample([1], **{"steps": 2, **options})


def test_half_precision_changes_the_network_only():
    full = generator().latents([1], steps=2)["image"]
    half = generator().latents([1], steps=2, precision="bf16")["image"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(full, half, rtol=0.1, atol=0.1)


# ---- progress -----------------------------------------------------------------------------------


def test_the_bar_is_hidden_without_a_terminal(capsys):
    generator().sample([1, 2], steps=2, progress=True)
    assert capsys.readouterr().err == ""


def test_the_bar_follows_the_time_of_the_calls():
    """Each call at t has done 1 - t of its batch."""
    seen = []
    with SamplingBar(6, shown=False) as bar:
        bar.bar.disable = False
        bar.bar.update = lambda step: (
            seen.append(bar.bar.n + step) or setattr(bar.bar, "n", bar.bar.n + step)
        )
        for begin in (0, 4):
            model = bar.watch(lambda x, t: x, min(4, 6 - begin))
            for t in (1.0, 0.5):
                model({}, torch.tensor(t))
            bar.finish(min(begin + 4, 6))
        bar.bar.disable = True
    assert seen == [0, 2, 4, 4, 5, 6]
