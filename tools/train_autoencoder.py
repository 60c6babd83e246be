"""Train the bundled autoencoder, `ahpa/assets/tiny_vae`: Stable Diffusion's `AutoencoderKL`
topology, made narrow.

    python tools/train_autoencoder.py --minutes 60 --out work_dirs/tiny_vae      # one CPU thread

There are three kinds of images: the synthetic shapes (no file needed), CIFAR-10 doubled to 64 px,
and crops of an ImageNet sample. A reconstruction is judged by L1 at three scales, L1 of the image
gradients and of the colour, and a feature distance (LPIPS-like, on a CIFAR-10 ResNet-44) that keeps
what an image shows, which pixel losses alone do not. At the end the EMA weights get a standardised
latent, are rounded to float16 and measured on held-out images: PSNR, and how often another network
(ResNet-56) sees the same class before and after. `--minutes 0 --resume` only measures and writes.

Shapes: images are float32 [B, 3, H, W] in [-1, 1]; latents [B, 4, H/8, W/8].
"""

import argparse
import copy
import io
import json
import math
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from ahpa.data.shapes import CLASSES, draw  # noqa: E402
from ahpa.registry.weight_files import read_state_dict  # noqa: E402

TOPOLOGY: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "block_out_channels": (24, 48, 96, 96),
    "norm_num_groups": 8,
    "sample_size": 64,
}
SIZE = 64  # pixels of a usual crop
WIDE = 128  # pixels of the wide crops that every WIDE_EVERY-th step takes
WIDE_EVERY = 8
WIDE_COUNT = 3
SHAPES = 4  # images a batch, of each kind
CIFAR = 3
IMAGENET = 3
LR = 1e-3
WARMUP = 300  # steps
BETAS = (0.9, 0.99)
CLIP = 1.0
EMA = 0.999
KL_WEIGHT = 2.5e-4  # of the mean over latent elements; 1e-6 an element if summed over 64 px's 256
GRADIENT_WEIGHT = 0.5
FEATURE_WEIGHT = 0.5
COLOUR_WEIGHT = 1.0
HELD_OUT_SEED = 20_000
SAVE_SECONDS = 240

Random = np.random.Generator


# ---- data -----------------------------------------------------------------------------------


def read_images(path: Path, size: int) -> tuple[Tensor, Tensor]:
    """Read a zip of JPEGs.

    Returns:
        uint8 [n, 3, size, size] in the order of the names, and the numbers of their folders [n].
    """
    with zipfile.ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        folders = sorted({name.split("/")[0] for name in names})
        images = np.empty((len(names), size, size, 3), np.uint8)
        for i, name in enumerate(names):
            images[i] = np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB"))
    labels = torch.tensor([folders.index(name.split("/")[0]) for name in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2), labels


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def double(images: Tensor) -> Tensor:
    """Enlarge CIFAR's 32 px to 64 px; `F.avg_pool2d(., 2)` goes back."""
    return F.interpolate(images, scale_factor=2, mode="bicubic").clamp(-1, 1)


def drawings(items: Sequence[tuple[int, Random]]) -> Tensor:
    """Draw a picture [3, 64, 64] for each (label, random stream)."""
    drawn = np.stack([draw(label, rng, SIZE) for label, rng in items])
    return to_float(torch.from_numpy(drawn).permute(0, 3, 1, 2))


def random_crop(image: Tensor, size: int, rng: Random) -> Tensor:
    """Crop a square of uint8 [3, H, W], half the time at native scale, else of a random side.

    Returns:
        [1, 3, size, size].
    """
    width = image.shape[-1]
    side = size if rng.random() < 0.5 else int(rng.integers(size, width + 1))
    top, left = rng.integers(0, width - side + 1, 2)
    crop = to_float(image[None, :, top : top + side, left : left + side])
    if side == size:
        return crop
    return F.interpolate(crop, (size, size), mode="bilinear", antialias=True)


def pick(images: Tensor, count: int, rng: Random) -> Tensor:
    """Pick images at random, with replacement."""
    return images[torch.from_numpy(rng.integers(0, len(images), count))]


def make_batch(data: dict[str, Tensor], rng: Random, step: int) -> Tensor:
    """Make the step's images, a function of the step's own random stream.

    Returns:
        [10, 3, 64, 64] or [3, 3, 128, 128].
    """
    if step % WIDE_EVERY == 0:
        chosen = pick(data["imagenet"], WIDE_COUNT, rng)
        return torch.cat([random_crop(image, WIDE, rng) for image in chosen])
    labels = rng.integers(0, len(CLASSES), SHAPES)
    drawn = drawings([(int(label), rng) for label in labels])
    chosen = pick(data["imagenet"], IMAGENET, rng)
    crops = [random_crop(image, SIZE, rng) for image in chosen]
    small = double(to_float(pick(data["cifar"], CIFAR, rng)))
    batch = torch.cat([drawn, small, *crops])
    flipped = torch.from_numpy(rng.random((len(batch), 1, 1, 1)) < 0.5)
    return torch.where(flipped, batch.flip(-1), batch)


# ---- the CIFAR-10 ResNets: one gives the feature loss, another one measures -----------------


class ResNet:
    """He et al.'s CIFAR ResNet (arXiv:1512.03385, section 4.2), parameter-free shortcuts; frozen.

    Args:
        path: Its weight file.
    """

    def __init__(self, path: Path) -> None:
        state = read_state_dict(path, "the CIFAR ResNet")
        self.weights = {name: value.float() for name, value in state.items()}
        blocks = [name.split(".")[1] for name in self.weights if name.startswith("layer1.")]
        self.depth = 1 + max(int(number) for number in blocks)  # blocks a stage

    def conv(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        """Apply a convolution and its norm."""
        x = F.conv2d(x, self.weights[f"{conv}.weight"], stride=stride, padding=1)
        mean = self.weights[f"{norm}.running_mean"]
        var = self.weights[f"{norm}.running_var"]
        scale = self.weights[f"{norm}.weight"]
        return F.batch_norm(x, mean, var, scale, self.weights[f"{norm}.bias"])

    def block(self, x: Tensor, name: str, stride: int) -> Tensor:
        """Apply a residual block."""
        h = F.relu(self.conv(x, f"{name}.conv1", f"{name}.bn1", stride))
        h = self.conv(h, f"{name}.conv2", f"{name}.bn2")
        extra = (h.shape[1] - x.shape[1]) // 2
        return F.relu(h + F.pad(x[..., ::stride, ::stride], (0, 0, 0, 0, extra, extra)))

    def __call__(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run it on images [B, 3, 32, 32] in [-1, 1].

        Returns:
            The features of the stem and the three stages, and the logits [B, 10].
        """
        mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
        std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
        features = [F.relu(self.conv((x / 2 + 0.5 - mean) / std, "conv1", "bn1"))]
        for stage in (1, 2, 3):
            x = features[-1]
            for i in range(self.depth):
                x = self.block(x, f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1)
            features.append(x)
        pooled = x.mean((2, 3))
        return features, F.linear(
            pooled, self.weights["linear.weight"], self.weights["linear.bias"]
        )


# ---- training -------------------------------------------------------------------------------


def feature_distance(teacher: ResNet, fake: Tensor, real: Tensor) -> Tensor:
    """Return the squared distance of unit-length features at each place, summed over stages
    (LPIPS, arXiv:1801.03924, eq. 1)."""
    with torch.no_grad():
        target, _ = teacher(F.avg_pool2d(real, 2))
    features, _ = teacher(F.avg_pool2d(fake, 2))
    total = torch.zeros(())
    for ours, theirs in zip(features, target, strict=True):
        difference = F.normalize(ours.float(), dim=1) - F.normalize(theirs.float(), dim=1)
        total = total + difference.pow(2).sum(1).mean()
    return total


def losses(model: Any, teacher: ResNet | None, real: Tensor) -> dict[str, Tensor]:
    """Return the terms to be summed, by name."""
    posterior = model.encode(real).latent_dist
    fake = model.decode(posterior.sample()).sample.float()
    error = fake - real
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    pyramid = sum(F.avg_pool2d(error, k).abs().mean() for k in (2, 4))
    out = {"l1": error.abs().mean() + 0.5 * pyramid, "edges": GRADIENT_WEIGHT * edges}
    # Without a term of its own, colour comes last: the greys win first.
    chroma = error - error.mean(1, keepdim=True)
    out["colour"] = COLOUR_WEIGHT * sum(F.avg_pool2d(chroma, k).abs().mean() for k in (1, 4, 8))
    mean = posterior.mean.float()
    logvar = posterior.logvar.float()
    out["kl"] = KL_WEIGHT * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    if teacher is not None:
        out["features"] = FEATURE_WEIGHT * feature_distance(teacher, fake, real)
    return out


def train(
    args: argparse.Namespace,
    model: Any,
    ema: Any,
    data: dict[str, Tensor],
    teacher: ResNet | None,
) -> tuple[int, float]:
    """Train until `--steps` or `--minutes` are used up. Returns the (steps, minutes) in all."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=1e-3)
    parts = {"model": model, "ema": ema, "optimiser": optimiser}
    state = args.out / "state.pt"
    step = 0
    spent = 0.0
    shown: dict[str, float] = {}
    if args.resume and state.exists():
        saved = torch.load(state, weights_only=True)
        step = saved["step"]
        spent = saved["spent"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    began = time.time() - spent
    saved_at = time.time()
    while (done := max(step / args.steps, spent / max(60 * args.minutes, 1e-9))) < 1:
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
        optimiser.param_groups[0]["lr"] = LR * min(1, (step + 1) / WARMUP) * cosine
        torch.manual_seed(args.seed * 1_000_003 + step)
        real = make_batch(data, np.random.default_rng((args.seed, step)), step)
        with torch.autocast("cpu", torch.bfloat16):
            terms = losses(model, teacher, real)
        sum(terms.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        spent = time.time() - began
        keep = min(EMA, (1 + step) / (10 + step))
        current = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(list(ema.parameters()), current, 1 - keep)
        for name, value in terms.items():
            shown[name] = shown.get(name, value.item()) * 0.98 + 0.02 * value.item()
        if step % 50 == 0:
            figures = " ".join(f"{name} {value:.4f}" for name, value in shown.items())
            print(f"step {step} {spent / 60:.1f} min {figures}", flush=True)
        is_last = spent >= 60 * args.minutes or step == args.steps
        if is_last or time.time() - saved_at > SAVE_SECONDS:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "step": step, "spent": spent}, f"{state}.new")
            Path(f"{state}.new").replace(state)  # a broken write leaves the last one
            saved_at = time.time()
    return step, spent / 60


# ---- measuring ------------------------------------------------------------------------------


def encode(model: Any, sets: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the posterior's modes of each kind, and a table [4, elements] with equal parts of all
    kinds' latents."""
    modes = {
        kind: torch.cat([model.encode(x).latent_dist.mode() for x in images.split(10)])
        for kind, images in sets.items()
    }
    parts = [z.transpose(0, 1).flatten(1)[:, :32_000] for z in modes.values()]
    return modes, torch.cat(parts, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the mean over images of each image's own PSNR in dB, at a range of 2."""
    return (10 * torch.log10(4 / (a - b).pow(2).flatten(1).mean(1))).mean().item()


def standardise(model: Any, z: Tensor) -> None:
    """Give each latent channel mean 0 and std 1 over the latents `z` [4, elements].

    The two 1x1 convolutions beside the latent are changed, which alters no reconstruction; then the
    weights are rounded to float16.
    """
    mean = z.mean(1)
    std = z.std(1)
    into = model.quant_conv  # [8, 8, 1, 1]: means, then log variances
    back = model.post_quant_conv  # [4, 4, 1, 1]
    back.bias += back.weight[..., 0, 0] @ mean
    back.weight *= std.view(1, -1, 1, 1)
    into.weight[:4] /= std.view(-1, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.bias[4:] -= 2 * std.log()
    model.half().float()


def agreement(judge: ResNet, cifar: Tensor, again: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure how often `judge` sees the same class in reconstruction and original, and the bound
    that doubling alone sets."""
    original = judge(cifar)[1].argmax(1)
    doubled = judge(F.avg_pool2d(double(cifar), 2))[1].argmax(1)
    rebuilt = judge(F.avg_pool2d(again, 2))[1].argmax(1)
    pairs = {
        "agreement": (rebuilt, original),
        "agreement_of_doubling": (doubled, original),
        "accuracy": (rebuilt, labels),
        "accuracy_of_originals": (original, labels),
    }
    return {name: (a == b).float().mean().item() for name, (a, b) in pairs.items()}


@torch.no_grad()
def finish(
    model: Any,
    images: dict[str, Tensor],
    labels: Tensor,
    judge: ResNet | None,
    folder: Path,
) -> dict[str, Any]:
    """Standardise the latent, measure what will be stored, and store it. Returns the figures."""
    streams = [np.random.default_rng((HELD_OUT_SEED, i)) for i in range(500)]
    sets = {
        "shapes": drawings([(i % 10, stream) for i, stream in enumerate(streams)]),
        "cifar": double(to_float(images["cifar"])),
        "imagenet": to_float(images["imagenet"]),
    }
    standardise(model, encode(model, sets)[1])
    latents, z = encode(model, sets)
    found: dict[str, Any] = {
        "latent_mean": z.mean(1).tolist(),
        "latent_std": z.std(1).tolist(),
        "scaling_factor": 1 / z.std().item(),
    }
    for kind, x in sets.items():
        parts = [model.decode(part).sample.clamp(-1, 1) for part in latents[kind].split(10)]
        again = torch.cat(parts)
        found[f"psnr_{kind}"] = psnr(x, again)
        found[f"latent_std_{kind}"] = latents[kind].std().item()
        if kind == "cifar" and judge is not None:
            found |= agreement(judge, to_float(images["cifar"]), again, labels)
    model.register_to_config(scaling_factor=round(found["scaling_factor"], 5))
    model.half().save_pretrained(folder)
    return found


def main() -> None:
    """Train, measure and write the autoencoder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    shared = ROOT.parent / "shared"
    parser.add_argument(
        "--data", type=Path, default=shared / "data", help="folder with the two zips"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs" / "tiny_vae")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    data, held, labels = {}, {}, {}
    for kind, name, size, every in (
        ("cifar", "cifar10-train", 32, 100),
        ("imagenet", "imagenet256-sample", 256, 20),
    ):
        images, folders = read_images(args.data / f"{name}.zip", size)
        apart = torch.arange(len(images)) % every == every - 1  # each `every`-th is held out
        data[kind] = images[~apart]
        held[kind] = images[apart]
        labels[kind] = folders[apart]
    networks: list[ResNet | None] = []
    for depth in (44, 56):
        path = args.data.parent / "weights" / f"cifar10_resnet{depth}.safetensors"
        networks.append(ResNet(path) if path.exists() else None)
    teacher, judge = networks
    model: Any = AutoencoderKL(**TOPOLOGY)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    step, minutes = train(args, model, ema, data, teacher)
    figures = finish(ema, held, labels["cifar"], judge, args.out)
    found = {"steps": step, "minutes": minutes, **figures}
    (args.out / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
