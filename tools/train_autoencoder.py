"""Trains the bundled autoencoder, `ahpa/assets/tiny_vae`: Stable Diffusion's `AutoencoderKL` topology, made narrow.

    python tools/train_autoencoder.py --minutes 60 --out work_dirs/tiny_vae          # one CPU thread

Three kinds of images: the drawn shapes (no file needed), CIFAR-10 doubled to 64 px, crops of an ImageNet sample. A
reconstruction is judged by L1 at three scales, L1 of the image gradients and of the colour, and a feature distance
(LPIPS-like, on a CIFAR-10 ResNet-44) that keeps what an image shows, which pixel losses alone do not. At the end the
EMA weights get a standardised latent, are rounded to float16 and measured on images kept apart: PSNR, and how often
another network (ResNet-56) sees the same class before and after. `--minutes 0 --resume` only measures and writes.

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
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from ahpa.data.shapes import CLASSES, draw  # noqa: E402

TOPOLOGY = dict(
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
    latent_channels=4, block_out_channels=(24, 48, 96, 96), norm_num_groups=8, sample_size=64)  # fmt: skip
SIZE, WIDE = 64, 128  # pixels of a usual crop, and of the wide crops that every WIDE_EVERY-th step takes
WIDE_EVERY, WIDE_COUNT = 8, 3
SHAPES, CIFAR, IMAGENET = 4, 3, 3  # images a batch
LR, WARMUP, BETAS, CLIP, EMA = 1e-3, 300, (0.9, 0.99), 1.0, 0.999
KL_WEIGHT = 2.5e-4  # of the mean over latent elements; summed over a 64 px image's 256 of them: 1e-6 an element
GRADIENT_WEIGHT, FEATURE_WEIGHT, COLOUR_WEIGHT = 0.5, 0.5, 1.0
HELD_OUT_SEED, SAVE_SECONDS = 20_000, 240

# ---- data ----


def read_images(path, size):
    """A zip of JPEGs -> uint8 [n, 3, size, size], in the order of the names, and their folder's number [n]."""
    with zipfile.ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        folders = sorted({name.split("/")[0] for name in names})
        images = np.empty((len(names), size, size, 3), np.uint8)
        for i, name in enumerate(names):
            images[i] = Image.open(io.BytesIO(file.read(name))).convert("RGB")
    labels = torch.tensor([folders.index(name.split("/")[0]) for name in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2), labels


def to_float(images):
    return images.float() / 127.5 - 1


def double(images):
    """CIFAR's 32 px to 64 px; `F.avg_pool2d(., 2)` goes back."""
    return F.interpolate(images, scale_factor=2, mode="bicubic").clamp(-1, 1)


def drawings(items):
    """Pairs (label, random stream) -> [B, 3, 64, 64]."""
    return to_float(torch.from_numpy(np.stack([draw(label, rng, SIZE) for label, rng in items])).permute(0, 3, 1, 2))


def random_crop(image, size, rng):
    """A square of uint8 [3, H, W], half the time at native scale, else of a random side -> [1, 3, size, size]."""
    side = size if rng.random() < 0.5 else int(rng.integers(size, image.shape[-1] + 1))
    top, left = rng.integers(0, image.shape[-1] - side + 1, 2)
    crop = to_float(image[None, :, top : top + side, left : left + side])
    return crop if side == size else F.interpolate(crop, (size, size), mode="bilinear", antialias=True)


def make_batch(data, rng, step):
    """The step's images, a function of the step's own random stream: [10, 3, 64, 64] or [3, 3, 128, 128]."""
    pick = lambda kind, n: data[kind][torch.from_numpy(rng.integers(0, len(data[kind]), n))]  # noqa: E731
    if step % WIDE_EVERY == 0:
        return torch.cat([random_crop(image, WIDE, rng) for image in pick("imagenet", WIDE_COUNT)])
    drawn = drawings([(int(label), rng) for label in rng.integers(0, len(CLASSES), SHAPES)])
    crops = [random_crop(image, SIZE, rng) for image in pick("imagenet", IMAGENET)]
    batch = torch.cat([drawn, double(to_float(pick("cifar", CIFAR))), *crops])
    return torch.where(torch.from_numpy(rng.random((len(batch), 1, 1, 1)) < 0.5), batch.flip(-1), batch)


# ---- the CIFAR-10 ResNets: one gives the feature loss, another one measures ----


class ResNet:
    """He et al.'s CIFAR ResNet (arXiv:1512.03385, section 4.2) with parameter-free shortcuts; frozen."""

    def __init__(self, path):
        self.w = {k: v.float() for k, v in load_file(path).items()}
        self.depth = 1 + max(int(k.split(".")[1]) for k in self.w if k.startswith("layer1."))

    def conv(self, x, conv, norm, stride=1):
        w, n = self.w, norm + "."
        x = F.conv2d(x, w[conv + ".weight"], stride=stride, padding=1)
        return F.batch_norm(x, w[n + "running_mean"], w[n + "running_var"], w[n + "weight"], w[n + "bias"])

    def block(self, x, name, stride):
        h = F.relu(self.conv(x, name + ".conv1", name + ".bn1", stride))
        h = self.conv(h, name + ".conv2", name + ".bn2")
        extra = (h.shape[1] - x.shape[1]) // 2
        return F.relu(h + F.pad(x[..., ::stride, ::stride], (0, 0, 0, 0, extra, extra)))

    def __call__(self, x):
        """Images [B, 3, 32, 32] in [-1, 1] -> (features of the stem and the three stages, logits [B, 10])."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        features = [F.relu(self.conv((x / 2 + 0.5 - mean) / std, "conv1", "bn1"))]
        for stage in (1, 2, 3):
            x = features[-1]
            for i in range(self.depth):
                x = self.block(x, f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1)
            features.append(x)
        return features, F.linear(x.mean((2, 3)), self.w["linear.weight"], self.w["linear.bias"])


# ---- training ----


def feature_distance(teacher, fake, real):
    """Squared distance of features of unit length at each place (LPIPS, arXiv:1801.03924, eq. 1), over stages."""
    with torch.no_grad():
        target, _ = teacher(F.avg_pool2d(real, 2))
    features, _ = teacher(F.avg_pool2d(fake, 2))
    unit = lambda f: F.normalize(f.float(), dim=1)  # noqa: E731
    return sum((unit(f) - unit(t)).pow(2).sum(1).mean() for f, t in zip(features, target, strict=True))


def losses(model, teacher, real):
    """The terms to be summed, by name."""
    posterior = model.encode(real).latent_dist
    fake = model.decode(posterior.sample()).sample.float()
    error = fake - real
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    pyramid = sum(F.avg_pool2d(error, k).abs().mean() for k in (2, 4))
    out = dict(l1=error.abs().mean() + 0.5 * pyramid, edges=GRADIENT_WEIGHT * edges)
    chroma = error - error.mean(1, keepdim=True)  # without a term of its own, colour comes last: the greys win first
    out["colour"] = COLOUR_WEIGHT * sum(F.avg_pool2d(chroma, k).abs().mean() for k in (1, 4, 8))
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    out["kl"] = KL_WEIGHT * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    if teacher is not None:
        out["features"] = FEATURE_WEIGHT * feature_distance(teacher, fake, real)
    return out


def train(args, model, ema, data, teacher):
    """Runs until `--steps` or `--minutes` are used up, whichever is first; returns the (steps, minutes) in all."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=1e-3)
    parts, state = dict(model=model, ema=ema, optimiser=optimiser), args.out / "state.pt"
    step, spent, shown = 0, 0.0, {}
    if args.resume and state.exists():
        saved = torch.load(state)
        step, spent = saved["step"], saved["spent"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    begin, saved_at = time.time() - spent, time.time()
    while (done := max(step / args.steps, spent / max(60 * args.minutes, 1e-9))) < 1:
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
        optimiser.param_groups[0]["lr"] = LR * min(1, (step + 1) / WARMUP) * cosine
        torch.manual_seed(args.seed * 1_000_003 + step)
        real = make_batch(data, np.random.default_rng((args.seed, step)), step)
        with torch.autocast("cpu", torch.bfloat16):
            terms = losses(model, teacher, real)
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad()
        step, spent = step + 1, time.time() - begin
        keep = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in model.parameters()], 1 - keep)
        shown = {k: shown.get(k, v.item()) * 0.98 + 0.02 * v.item() for k, v in terms.items()}
        if step % 50 == 0:
            print(f"step {step} {spent / 60:.1f} min", *(f"{k} {v:.4f}" for k, v in shown.items()), flush=True)
        if time.time() - saved_at > SAVE_SECONDS or spent >= 60 * args.minutes or step == args.steps:
            torch.save({k: v.state_dict() for k, v in parts.items()} | dict(step=step, spent=spent), f"{state}.new")
            saved_at = Path(f"{state}.new").replace(state).stat().st_mtime  # a broken write leaves the last one
    return step, spent / 60


# ---- measuring ----


def encode(model, sets):
    """-> the posterior's modes by kind, and equal parts of all kinds' latents as one table [4, elements]."""
    modes = {k: torch.cat([model.encode(x).latent_dist.mode() for x in v.split(10)]) for k, v in sets.items()}
    return modes, torch.cat([z.transpose(0, 1).flatten(1)[:, :32_000] for z in modes.values()], 1)


def psnr(a, b):
    """Mean over images of each image's own PSNR in dB, at a range of 2."""
    return (10 * torch.log10(4 / (a - b).pow(2).flatten(1).mean(1))).mean().item()


def standardise(model, z):
    """Gives each latent channel mean 0 and std 1 over the latents `z` [4, elements], by a change of the two 1x1
    convolutions beside the latent that alters no reconstruction; then rounds to float16."""
    mean, std = z.mean(1), z.std(1)
    into, back = model.quant_conv, model.post_quant_conv  # [8, 8, 1, 1]: means, then log variances; [4, 4, 1, 1]
    back.bias += back.weight[..., 0, 0] @ mean
    back.weight *= std.view(1, -1, 1, 1)
    into.weight[:4] /= std.view(-1, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.bias[4:] -= 2 * std.log()
    model.half().float()


def agreement(judge, cifar, again, labels):
    """How often `judge` sees the same class in reconstruction and original, and the bound that doubling alone sets."""
    seen = [judge(x)[1].argmax(1) for x in (cifar, F.avg_pool2d(double(cifar), 2), F.avg_pool2d(again, 2))]
    pairs = dict(agreement=(seen[2], seen[0]), agreement_of_doubling=(seen[1], seen[0]),
                 accuracy=(seen[2], labels), accuracy_of_originals=(seen[0], labels))  # fmt: skip
    return {name: (a == b).float().mean().item() for name, (a, b) in pairs.items()}


@torch.no_grad()
def finish(model, images, labels, judge, folder):
    """Standardises the latent, measures what will be stored, and stores it -> the figures by name."""
    drawn = drawings([(i % 10, np.random.default_rng((HELD_OUT_SEED, i))) for i in range(500)])
    sets = dict(shapes=drawn, cifar=double(to_float(images["cifar"])), imagenet=to_float(images["imagenet"]))
    standardise(model, encode(model, sets)[1])
    latents, z = encode(model, sets)
    found = dict(latent_mean=z.mean(1).tolist(), latent_std=z.std(1).tolist(), scaling_factor=1 / z.std().item())
    for kind, x in sets.items():
        again = torch.cat([model.decode(part).sample.clamp(-1, 1) for part in latents[kind].split(10)])
        found[f"psnr_{kind}"], found[f"latent_std_{kind}"] = psnr(x, again), latents[kind].std().item()
        if kind == "cifar" and judge is not None:
            found |= agreement(judge, to_float(images["cifar"]), again, labels)
    model.register_to_config(scaling_factor=round(found["scaling_factor"], 5))
    model.half().save_pretrained(folder)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with the two zips")
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs" / "tiny_vae")
    for name, default in (("minutes", 60.0), ("steps", 10**9), ("threads", 1), ("seed", 0)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    data, held, labels = {}, {}, {}
    for kind, name, size, every in (("cifar", "cifar10-train", 32, 100), ("imagenet", "imagenet256-sample", 256, 20)):
        images, folders = read_images(args.data / f"{name}.zip", size)
        apart = torch.arange(len(images)) % every == every - 1  # each `every`-th image is held out
        data[kind], held[kind], labels[kind] = images[~apart], images[apart], folders[apart]
    teacher, judge = (ResNet(path) if path.exists() else None for path in
                      (args.data.parent / "weights" / f"cifar10_resnet{n}.safetensors" for n in (44, 56)))  # fmt: skip
    model = AutoencoderKL(**TOPOLOGY)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    step, minutes = train(args, model, ema, data, teacher)
    found = dict(steps=step, minutes=minutes, **finish(ema, held, labels["cifar"], judge, args.out))
    (args.out / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
