"""How large the field's known mistakes are, each measured beside what ahpa does.

    python benchmarks/wrong_numbers.py                # all of them, a few seconds on one CPU thread
    python benchmarks/wrong_numbers.py heun-guidance  # one of them

The figures stand in docs/wrong_numbers.md, and tests/test_field_regressions.py compares that page
with this script. Where a network is needed it is the bundled autoencoder or the bundled vision
encoder, on the synthetic shapes; where a sampler is judged, the data are Gaussian, so that the
exact velocity is known. Nothing is downloaded and nothing is trained.

Shapes: B batch, N tokens, C channels.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ahpa.backbones.layers import FREQUENCIES, sincos_2d, time_sinusoid
from ahpa.conditioning.labels import ClassLabels
from ahpa.data.shapes import ShapesDataset
from ahpa.flow.paths import LinearPath
from ahpa.losses.pairwise import CosineLoss, SmoothL1Loss, unit
from ahpa.priors.internal import standardised
from ahpa.priors.vision import TimmEncoder
from ahpa.registry import BACKBONES, build
from ahpa.registry.contracts import Clean, Streams
from ahpa.sampling.guidance import ClassifierFreeGuidance
from ahpa.sampling.samplers import EulerMaruyamaSampler, EulerSampler, HeunSampler
from ahpa.testing.common import toy_geometry
from ahpa.tokenizers.autoencoder_kl import KLAutoencoder
from ahpa.tokenizers.statistics import PUBLISHED

SD_FACTOR, SDXL_FACTOR = 0.18215, 0.13025
IMAGES = 32
MEAN, STD, SPREAD = (
    1.0,
    0.5,
    1.0,
)  # of the Gaussian data: a class's mean and deviation; of all means
Velocity = Callable[[Tensor, Tensor], Tensor]


# ---- what several measurements share --------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    """Return a generator with a seed."""
    return torch.Generator().manual_seed(seed)


def rms(x: Tensor) -> float:
    """Return the root mean square."""
    return float(x.double().square().mean().sqrt())


def psnr(image: Tensor, reference: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [0, 1]."""
    return -20 * math.log10(rms(image - reference))


@cache
def images() -> Tensor:
    """Return synthetic images [B, 3, 64, 64] in [0, 1]."""
    dataset = ShapesDataset(resolution=64)
    return torch.stack([dataset[i]["image"] for i in range(IMAGES)]).float() / 255


@cache
def autoencoder() -> KLAutoencoder:
    """Return the bundled autoencoder with its own factor."""
    return KLAutoencoder(source="bundled")


@cache
def latents() -> Tensor:
    """Return the posterior's mean of the images [B, 4, 8, 8], in the diffusion's scale."""
    mean = autoencoder().encode(images()).mean
    assert mean is not None
    return mean


@cache
def encoder() -> TimmEncoder:
    """Return the bundled vision encoder in float32."""
    return TimmEncoder(geometry=toy_geometry(), model="bundled", precision="fp32")


def tokens_of(x: Tensor) -> Tensor:
    """Return the encoder's patch tokens [B, N, C] of images in [0, 1]."""
    return encoder().from_clean(Clean({}, x), ["patch"])["patch"].flatten(2).mT


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Return the mean cosine of two sets of tokens [B, N, C]."""
    return float(F.cosine_similarity(a, b, dim=-1).mean())


def gaussian_velocity(x: Tensor, t: Tensor, mean: Tensor | float, deviation: float) -> Tensor:
    """Return E[eps - z | x_t = x] on the linear path for data N(mean, deviation^2)."""
    spread = (1 - t) ** 2 * deviation**2 + t**2
    from_mean = x - (1 - t) * mean
    noise = t * from_mean / spread
    data = mean + (1 - t) * deviation**2 * from_mean / spread
    return noise - data


def predict(x: Streams, t: Tensor, labels: Tensor) -> Streams:
    """Return the exact velocity: of the class for label 1, of all classes for the null label 0."""
    x_t, times = x["image"], t.view(-1, 1, 1, 1)
    of_class = gaussian_velocity(x_t, times, MEAN, STD)
    of_all = gaussian_velocity(x_t, times, 0.0, math.hypot(STD, SPREAD))
    return {"image": torch.where(labels.view(-1, 1, 1, 1) == 1, of_class, of_all)}


def start(count: int = 64) -> Tensor:
    """Return noise [count, 4, 8, 8]."""
    return torch.randn(count, 4, 8, 8, generator=generator())


def guided(scale: float, **options: object) -> Callable[[Streams, Tensor], Streams]:
    """Return the guided exact model."""
    rule = ClassifierFreeGuidance(scale=scale, **options)  # type: ignore[arg-type]
    count = len(start())
    return rule.guide(predict, torch.ones(count), torch.zeros(count))


def heun(
    corrector: Callable[[float, float, Tensor], Tensor], steps: int, first: Velocity
) -> Tensor:
    """Integrate by Heun's method with a corrector of one's own.

    Args:
        corrector: (t, following t, predicted state) -> velocity of the second call.
        steps: Number of steps.
        first: Velocity of the first call.
    """
    x, grid = start(), torch.linspace(1, 0, steps + 1).tolist()
    for t, following in zip(grid[:-1], grid[1:], strict=True):
        v = first(x, torch.tensor(t))
        ahead = x + (following - t) * v
        if following > 0:
            w = corrector(t, following, ahead)
            ahead = x + (following - t) * (v + w) / 2
        x = ahead
    return x


# ---- losses and targets ---------------------------------------------------------------------


def fp16_normalise() -> dict[str, float]:
    """Half-precision vectors that are zero, or longer than half precision can hold, normalised."""
    zero = torch.zeros(1, 768, dtype=torch.float16, requires_grad=True)
    long = torch.full((1, 768), 3e3, dtype=torch.float16)
    value = F.normalize(zero, dim=-1)
    value.sum().backward()
    assert zero.grad is not None
    return {
        "zero vector: share of the values that is NaN": float(value.isnan().float().mean()),
        "zero vector: share of the gradient that is not finite": float(
            (~zero.grad.isfinite()).float().mean()
        ),
        "vector of norm 83,000: its length afterwards": float(F.normalize(long, dim=-1).norm()),
        "the same in float32": float(unit(long.float(), -1, 1e-4).norm()),
    }


def cosine_over_tokens() -> dict[str, float]:
    """The loss of a prediction that is the same vector at every token of an image."""
    target = tokens_of(images())
    constant = target.mean(1, keepdim=True).expand_as(target).contiguous()
    width = target.shape[-1]
    losses = {over: CosineLoss(dim=width, over=over) for over in ("channels", "tokens")}
    return {f"loss over {over}": float(loss(constant, target)) for over, loss in losses.items()}


def smooth_l1_norm() -> dict[str, float]:
    """Losses of the same relative error after the features have grown tenfold."""
    target = tokens_of(images())
    pred = target + 0.5 * torch.randn(target.shape, generator=generator())
    width = target.shape[-1]
    smooth, cosine = SmoothL1Loss(dim=width), CosineLoss(dim=width)
    return {
        "smooth L1, factor": float(smooth(10 * pred, 10 * target) / smooth(pred, target)),
        "cosine, factor": float(cosine(10 * pred, 10 * target) / cosine(pred, target)),
    }


def unscaled_latent() -> dict[str, float]:
    """Smooth L1 of a zero prediction against the latent, SRA 2's target, at several scales."""
    target = latents().flatten(1)[:, None]  # of deviation 1
    loss = SmoothL1Loss(dim=target.shape[-1])

    def of(latent: Tensor) -> float:
        return float(loss(torch.zeros_like(latent), latent))

    return {
        "deviation 1": of(target),
        "deviation 1 / 0.18215, its factor forgotten": of(target / SD_FACTOR),
        "deviation 100": of(100 * target),
        "deviation 100 with standardise=True": of(standardised(100 * target)),
    }


def teacher_input() -> dict[str, float]:
    """Cosine of the teacher's tokens with those of its own normalisation."""
    x, prior = images(), encoder()
    prior.load()
    right = tokens_of(x)
    imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    wrong = {"[0, 1]": x, "ImageNet's mean and std": (x - imagenet[0]) / imagenet[1]}
    with torch.no_grad():
        return {
            f"given {name}": mean_cosine(prior.tokens(prior.network, given)[0], right)
            for name, given in wrong.items()
        }


def transposed_target() -> dict[str, float]:
    """Cosine of target tokens with those of the transposed grid."""
    right = tokens_of(images())
    side = math.isqrt(right.shape[1])
    turned = right.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
    return {"cosine": mean_cosine(right, turned)}


def flipped_features() -> dict[str, float]:
    """A flipped image with the teacher's features, or the latent, of the unflipped one."""
    x = images()
    flipped = x.flip(-1)
    encoded = autoencoder().encode(flipped).mean
    assert encoded is not None
    turned = latents().flip(-1)
    return {
        "cosine of the features of image and mirror image": mean_cosine(
            tokens_of(x), tokens_of(flipped)
        ),
        "flipped latent against the latent of the mirror image, relative error": rms(
            turned - encoded
        )
        / rms(encoded),
        "PSNR of its decoded image, dB": psnr(autoencoder().decode(turned), flipped),
        "PSNR of the mirror image's own latent, dB": psnr(autoencoder().decode(encoded), flipped),
    }


def independent_dropout() -> dict[str, float]:
    """Student and teacher that drop labels each for itself."""
    labels = torch.zeros(100_000, dtype=torch.long)
    conditioner = ClassLabels(geometry=toy_geometry(), dropout=0.1)
    rng = generator()
    drawn = [conditioner(Clean({}, labels=labels), rng).value for _ in range(2)]
    return {"share of samples with another condition": float((drawn[0] != drawn[1]).float().mean())}


# ---- latents --------------------------------------------------------------------------------


def posterior_mean() -> dict[str, float]:
    """The posterior's mean in place of a sample: what is missing near t = 0."""
    encoded = autoencoder().encode(images())
    assert encoded.mean is not None and encoded.std is not None
    sample = encoded.sample(generator())
    return {
        "posterior's deviation, relative to the latents'": rms(encoded.std)
        / float(encoded.mean.std()),
        "t at which the added noise is as large": rms(encoded.std) / (1 + rms(encoded.std)),
        "two draws of one image, relative difference": rms(sample - encoded.sample(generator(1)))
        / rms(sample),
    }


def latent_scale() -> dict[str, float]:
    """0.18215 alone, where the source standardises by channel, on Stable Diffusion's statistics."""
    statistics = PUBLISHED["sd-imagenet"]
    deviations = SD_FACTOR * torch.tensor(statistics.std)
    variance = float(deviations.square().mean())
    return {
        "variance": variance,
        "signal-to-noise ratio, factor": variance,
        "largest mean of a channel": SD_FACTOR * max(map(abs, statistics.mean)),
        "t = 0.5 has the ratio that t has otherwise, t": 1 / (1 + math.sqrt(variance)),
    }


def sdxl_factor() -> dict[str, float]:
    """0.18215 in place of the 0.13025 of SDXL's autoencoder."""
    ratio = SD_FACTOR / SDXL_FACTOR
    return {
        "latents, factor": ratio,
        "signal-to-noise ratio, factor": ratio**2,
    }


def one_sided_statistics() -> dict[str, float]:
    """Statistics of Stable Diffusion's size that are applied in encoding or in decoding alone."""
    vae, standardising = autoencoder(), KLAutoencoder(source="bundled", statistics="sd-imagenet")
    encoded = standardising.encode(images()).mean
    assert encoded is not None
    return {
        "PSNR of both, dB": psnr(standardising.decode(encoded), images()),
        "PSNR of decoding alone, dB": psnr(standardising.decode(latents()), images()),
        "PSNR of encoding alone, dB": psnr(vae.decode(encoded), images()),
    }


def uint8_truncation() -> dict[str, float]:
    """Decoded images cut to whole levels in place of rounded, or not clamped."""
    exact = autoencoder().decode(latents()) * 255
    raw = torch.linspace(-0.05, 1.05, 1101) * 255  # a decoder's output before it is clamped
    wrapped = torch.from_numpy(raw.numpy().astype(np.int64).astype(np.uint8)).float()
    return {
        "mean of the truncated levels, off by": float((exact.floor() - exact).mean()),
        "mean of the rounded levels, off by": float((exact.round() - exact).mean()),
        "share of values with another level": float(
            (exact.floor() != exact.round()).float().mean()
        ),
        "largest error without a clamp, levels": float((wrapped - raw).abs().max()),
    }


# ---- times, positions and samplers ----------------------------------------------------------


def guidance_channels() -> dict[str, float]:
    """Guidance of 1.5 on the first 3 of 4 channels."""
    noise, path = start(), LinearPath()

    def sampled(scale: float, channels: int | None) -> Tensor:
        model = guided(scale, channels=channels)
        streams = {"image": noise}
        draw = EulerSampler().sample(model, streams, steps=50, path=path, noise=lambda like: like)
        return draw["image"]

    plain, three, four = sampled(1.0, None), sampled(1.5, 3), sampled(1.5, None)
    return {
        "guidance's shift of the fourth channel, of all four": rms((three - plain)[:, 3])
        / rms((four - plain)[:, 3]),
        "relative error of guidance's whole shift": rms(three - four) / rms(four - plain),
    }


def heun_guidance() -> dict[str, float]:
    """Heun's corrector guided by the predictor's time, 1.8 on [0, 0.7]."""
    interval = (0.0, 0.7)
    inside, outside = guided(1.8), guided(1.0)

    def at(x: Tensor, t: Tensor, guiding: float) -> Tensor:
        model = inside if interval[0] <= guiding <= interval[1] else outside
        return model({"image": x}, t)["image"]

    found = {}
    for steps in (10, 25, 50):
        own = {"image": start()}
        model = guided(1.8, interval=interval)
        draw = HeunSampler().sample(
            model, own, steps=steps, path=LinearPath(), noise=lambda like: like
        )
        wrong = heun(
            lambda t, following, x: at(x, torch.tensor(following), t),
            steps,
            lambda x, t: at(x, t, float(t)),
        )
        plain = heun(
            lambda t, following, x: at(x, torch.tensor(following), 1.0),
            steps,
            lambda x, t: at(x, t, 1.0),
        )
        found[f"share of guidance's shift, {steps} steps"] = rms(wrong - draw["image"]) / rms(
            draw["image"] - plain
        )
    return found


def heun_corrector() -> dict[str, float]:
    """Heun's corrector asked at the predictor's time: error against the exact solution."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return gaussian_velocity(x, t, 0.0, STD)

    exact = start() * STD  # x_1 = eps leads to STD eps
    right = heun(lambda t, following, x: velocity(x, torch.tensor(following)), 25, velocity)
    wrong = heun(lambda t, following, x: velocity(x, torch.tensor(t)), 25, velocity)
    return {
        "relative error at its own time": rms(right - exact) / rms(exact),
        "relative error at the predictor's": rms(wrong - exact) / rms(exact),
    }


def reversed_time() -> dict[str, float]:
    """A model of t = 1 data, asked as if t = 1 were noise: error of its samples."""

    def theirs(x: Tensor, s: Tensor) -> Tensor:  # s = 1 is data, the velocity is z - eps
        return -gaussian_velocity(x, 1 - s, MEAN, STD)

    kinds: dict[str, Velocity] = {
        "time and sign mirrored": lambda x, t: -theirs(x, 1 - t),
        "sign alone": lambda x, t: -theirs(x, t),
        "time alone": lambda x, t: theirs(x, 1 - t),
        "neither": lambda x, t: theirs(x, t),
    }
    exact = MEAN + STD * start()
    found = {}
    for name, velocity in kinds.items():

        def model(x: Streams, t: Tensor, velocity: Velocity = velocity) -> Streams:
            return {"image": velocity(x["image"], t)}

        draw = EulerSampler().sample(
            model, {"image": start()}, steps=250, path=LinearPath(), noise=lambda like: like
        )
        found[f"{name}, relative error"] = rms(draw["image"] - exact) / rms(exact)
    return found


def sde_drift() -> dict[str, float]:
    """The reverse SDE without the score's part of the drift: deviation of its samples."""

    def model(x: Streams, t: Tensor) -> Streams:
        return {"image": gaussian_velocity(x["image"], t, 0.0, STD)}

    class WithoutDrift(LinearPath):
        def score(self, x: Tensor, pred: Tensor, t: Tensor) -> Tensor:
            return torch.zeros_like(x)

    found = {"of the data": STD}
    for name, path in (("with it", LinearPath()), ("without it", WithoutDrift())):
        rng = generator(1)

        def noise(like: Streams, rng: torch.Generator = rng) -> Streams:
            return {key: torch.randn(x.shape, generator=rng) for key, x in like.items()}

        draw = EulerMaruyamaSampler().sample(
            model, {"image": start(256)}, steps=250, path=path, noise=noise
        )
        found[name] = rms(draw["image"])
    return found


def time_frequencies() -> dict[str, float]:
    """Frequencies 10000^(-i/127) in place of 10000^(-i/128), and t times 1000 for SiT."""
    half = FREQUENCIES // 2

    def other(t: Tensor) -> Tensor:
        rate = torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1))
        angle = t[:, None] * rate
        return torch.cat([angle.cos(), angle.sin()], -1)

    def error(a: Tensor, b: Tensor) -> float:
        return rms(a - b) / rms(a)

    t = torch.linspace(0, 1, 1000)
    steps = torch.arange(1000.0)
    return {
        "/127 at DiT's steps, relative error": error(time_sinusoid(steps), other(steps)),
        "/127 at SiT's t, relative error": error(time_sinusoid(t), other(t)),
        "1000 t for SiT, relative error": error(time_sinusoid(t), time_sinusoid(1000 * t)),
    }


def transposed_positions() -> dict[str, float]:
    """The table of positions with rows and columns exchanged, in a network of random weights."""
    torch.manual_seed(0)
    options = dict(type="SiT", depth=4, hidden_size=64, num_heads=4, num_classes=10)
    network = build(BACKBONES, options, input_size=8, in_channels=4).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x, t, labels = latents(), torch.full((IMAGES,), 0.5), torch.zeros(IMAGES, dtype=torch.long)
        right = network({"image": x}, t, labels).pred["image"]
        table = sincos_2d(64, (4, 4)).unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
        network.pos_embed = table
        wrong = network({"image": x}, t, labels).pred["image"]
    return {"relative change of the prediction": rms(wrong - right) / rms(right)}


# ---- training -------------------------------------------------------------------------------


def ema_per_micro_batch() -> dict[str, float]:
    """An average that is updated after each of 4 micro-batches, decay 0.9999."""

    def half_life(updates: int) -> float:
        return math.log(0.5) / math.log(0.9999) / updates

    return {"half-life, steps": half_life(1), "after each of 4, steps": half_life(4)}


def ema_in_bf16() -> dict[str, float]:
    """An average kept in bfloat16 while 1,000 steps of 1e-4 move the weights."""
    start_weights = 0.02 * torch.randn(10_000, generator=generator())
    averages = {dtype: start_weights.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    first = {dtype: average.clone() for dtype, average in averages.items()}
    weights = start_weights.clone()
    for _ in range(1000):
        weights += 1e-4
        for dtype, average in averages.items():
            average.lerp_(weights.to(dtype), 1e-4)
    moved = {dtype: (averages[dtype] - first[dtype]).float() for dtype in averages}
    exact = float(moved[torch.float32].mean())
    return {
        "mean movement in float32": exact,
        "share of it in bfloat16": float(moved[torch.bfloat16].mean()) / exact,
        "share of the weights that moved in bfloat16": float(
            (moved[torch.bfloat16] != 0).float().mean()
        ),
    }


def accumulation() -> dict[str, float]:
    """A loss that is not divided by its 4 micro-batches."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64)
    parts = torch.randn(4, 16, 64, generator=generator()).unbind()

    def gradient(share: float) -> float:
        layer.zero_grad()
        for part in parts:
            (share * (layer(part) - part).square().mean()).backward()
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    right, wrong = gradient(1 / 4), gradient(1.0)
    return {"gradient's norm, factor": wrong / right}


def clip_scaled() -> dict[str, float]:
    """Clipping at 1 before the scaler's factor of 65,536 is taken out; the true norm is 0.5."""
    gradient = torch.full((100,), 0.05)  # norm 0.5: below the limit, so unchanged if done right
    scaled = gradient * 65_536
    scaled *= min(1.0, 1.0 / float(scaled.norm()))
    return {"norm of what is applied": float((scaled / 65_536).norm())}


EFFECTS: dict[str, Callable[[], dict[str, float]]] = {
    "fp16-normalise": fp16_normalise,
    "cosine-over-tokens": cosine_over_tokens,
    "smooth-l1-norm": smooth_l1_norm,
    "unscaled-latent": unscaled_latent,
    "teacher-input": teacher_input,
    "transposed-target": transposed_target,
    "flipped-features": flipped_features,
    "independent-dropout": independent_dropout,
    "posterior-mean": posterior_mean,
    "latent-scale": latent_scale,
    "sdxl-factor": sdxl_factor,
    "one-sided-statistics": one_sided_statistics,
    "uint8-truncation": uint8_truncation,
    "guidance-channels": guidance_channels,
    "heun-guidance": heun_guidance,
    "heun-corrector": heun_corrector,
    "reversed-time": reversed_time,
    "sde-drift": sde_drift,
    "time-frequencies": time_frequencies,
    "transposed-positions": transposed_positions,
    "ema-per-micro-batch": ema_per_micro_batch,
    "ema-in-bf16": ema_in_bf16,
    "accumulation": accumulation,
    "clip-scaled": clip_scaled,
}


def main() -> None:
    """Print the effects that the command line names, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EFFECTS))
    names = parser.parse_args().names or list(EFFECTS)
    for name in names:
        if name not in EFFECTS:
            parser.error(f"there is no {name!r}; choose from {', '.join(EFFECTS)}")
    torch.set_num_threads(1)
    for name in names:
        print(f"{name}: {(EFFECTS[name].__doc__ or '').splitlines()[0]}")
        for what, value in EFFECTS[name]().items():
            print(f"    {what}: {value:.3g}")


if __name__ == "__main__":
    main()
