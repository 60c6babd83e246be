"""Train the bundled vision encoder, `ahpa/assets/tiny_vit`: a small vision transformer of timm, on
the synthetic shapes alone.

    python tools/train_encoder.py --out work_dirs/tiny_vit      # 9 minutes of one CPU thread

Squares of each picture are hidden, up to half of them. From the class token a linear layer predicts
the class (cross-entropy); from each patch token another predicts its 4 x 4 cells of the whole
picture (squared error): their colour, the share of each class's object in them and that of an
object's inner part, all known from the drawing. So both kinds of tokens have to see what is there
and where, and to complete what is hidden. Each step draws its own pictures, a function of
(seed, step). The linear layers are discarded; the patch tokens are standardised; the encoder is
rounded to float16 and measured beside its untrained self.

Shapes: images are float32 [B, 3, 64, 64] in [-1, 1]; tokens [B, N, 192] of N = 4 x 4 patches.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from ahpa.data.shapes import CLASSES, draw, shares  # noqa: E402

CONFIG: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 0,
    "model_args": {"depth": 4, "mlp_ratio": 2.0},
}
SIDE = 64  # pixels of a picture
PATCH = 16  # pixels of a token
CELL = 4  # pixels of what is predicted about a token
CHANNELS = 3 + len(CLASSES) + 1  # of a cell: colour, share of each class, share of an inner part
BATCH = 128
LR = 1e-3
WARMUP = 200  # steps
BETAS = (0.9, 0.99)
DECAY = 0.05
CLIP = 1.0
HIDDEN = 0.5  # of a picture's squares, at most
SEED_APART = 30_000  # `ShapesDataset` and its users count from 0
HELD_OUT_SEED = 31_000
NEIGHBOURS = 10
PROBED = 1000  # pictures that are measured
RIDGE = 1e-2


def pictures(count: int, seed: int, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw pictures, a function of (seed, step).

    Returns:
        Images [B, 3, 64, 64], labels [B], and what their cells hold [B, N, CHANNELS * 16].
    """
    kinds = np.arange(count) % len(CLASSES)
    streams = [(seed, step, i) for i in range(count)]
    drawn = []
    parts = []
    for kind, stream in zip(kinds, streams, strict=True):
        drawn.append(draw(int(kind), np.random.default_rng(stream), SIDE))
        parts.append(shares(int(kind), np.random.default_rng(stream), SIDE))
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(kinds)
    share = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2)  # [B, 2, 64, 64]
    objects = F.one_hot(labels, len(CLASSES))[:, :, None, None] * share[:, :1]  # [B, 10, 64, 64]
    channels = torch.cat([images, objects, share[:, 1:]], 1)
    cells = F.avg_pool2d(channels, CELL)  # [B, CHANNELS, 16, 16]
    return images, labels, F.unfold(cells, PATCH // CELL, stride=PATCH // CELL).mT


def hide(images: Tensor, rng: torch.Generator) -> Tensor:
    """Grey out squares of PATCH pixels: of each picture its own share, from 0 to HIDDEN."""
    grid = SIDE // PATCH
    share = HIDDEN * torch.rand(len(images), 1, 1, 1, generator=rng)
    kept = (torch.rand(len(images), 1, grid, grid, generator=rng) >= share).float()
    return images * F.interpolate(kept, scale_factor=PATCH)


def train(args: argparse.Namespace, encoder: Any) -> float:
    """Train for `args.steps` steps. Returns the minutes that they took."""
    per_patch = CHANNELS * (PATCH // CELL) ** 2
    name = nn.Linear(encoder.embed_dim, len(CLASSES))
    tell = nn.Linear(encoder.embed_dim, per_patch)
    weights = [*encoder.parameters(), *name.parameters(), *tell.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=LR, betas=BETAS, weight_decay=DECAY)
    began = time.time()
    shown: dict[str, float] = {}
    for step in range(args.steps):
        warmup = min(1, (step + 1) / WARMUP)
        cosine = 0.5 * (1 + math.cos(math.pi * step / args.steps))
        optimiser.param_groups[0]["lr"] = LR * (warmup * cosine)
        images, labels, cells = pictures(BATCH, SEED_APART + args.seed, step)
        rng = torch.Generator().manual_seed(1_000_003 * args.seed + step)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = encoder.forward_features(hide(images, rng)).float()  # [B, 1 + N, 192]
            named = name(tokens[:, 0]).float()
            told = tell(tokens[:, 1:]).float()
        terms = {
            "name": F.cross_entropy(named, labels),
            "tell": CHANNELS * F.mse_loss(told, cells),
        }
        (terms["name"] + terms["tell"]).backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimiser.step()
        optimiser.zero_grad()
        for key, value in terms.items():
            shown[key] = shown.get(key, value.item()) * 0.98 + 0.02 * value.item()
        if (step + 1) % 100 == 0:
            minutes = (time.time() - began) / 60
            figures = " ".join(f"{key} {value:.4f}" for key, value in shown.items())
            print(f"step {step + 1} {minutes:.1f} min {figures}", flush=True)
    return (time.time() - began) / 60


@torch.no_grad()
def standardise(encoder: Any, images: Tensor) -> None:
    """Give each channel of the patch tokens mean 0 and std 1 over `images`.

    The last norm is changed in a way that a linear layer can undo. As trained, a constant reaches a
    cosine of 0.65 with the tokens and one direction holds 0.4 of their variance: such a target asks
    for little.
    """
    patches = torch.cat([encoder.forward_features(part)[:, 1:] for part in images.split(100)])
    mean = patches.mean((0, 1))
    std = patches.std((0, 1))
    encoder.norm.weight /= std
    encoder.norm.bias.copy_((encoder.norm.bias - mean) / std)


# ---- measuring ------------------------------------------------------------------------------


def neighbours(features: Tensor, labels: Tensor) -> float:
    """Return the accuracy of a vote of the nearest by cosine.

    The first half of the features [B, C] is asked, the second half is tested.
    """
    known, asked = F.normalize(features, dim=-1).chunk(2)
    nearest = (asked @ known.T).topk(NEIGHBOURS).indices
    votes = F.one_hot(labels[: len(known)][nearest]).sum(1)
    return (votes.argmax(1) == labels[len(known) :]).float().mean().item()


def explained(tokens: Tensor, values: Tensor) -> float:
    """Return R^2 of a ridge regression from tokens [B, N, C] to a number each [B, N].

    It is fitted on the first half of the pictures and tested on the second.
    """
    x_known, x_asked = (part.flatten(0, 1) for part in tokens.double().chunk(2))
    y_known, y_asked = (part.flatten() for part in values.double().chunk(2))
    mean = x_known.mean(0)
    level = y_known.mean()
    centred = x_known - mean
    spread = centred.T @ centred
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype)
    weight = torch.linalg.solve(spread + ridge, centred.T @ (y_known - level))
    rest = y_asked - level - (x_asked - mean) @ weight
    return (1 - rest.square().mean() / y_asked.var(correction=0)).item()


@torch.no_grad()
def measure(encoder: Any, count: int = PROBED, seed: int = HELD_OUT_SEED) -> dict[str, float]:
    """Measure what the tokens of held-out pictures tell; `constant_cosine` as in a training log."""
    images, labels, cells = pictures(count, seed)
    tokens = torch.cat([encoder.forward_features(part) for part in images.split(100)])
    cls = tokens[:, 0]
    patches = tokens[:, 1:]
    share = cells.unflatten(-1, (CHANNELS, -1))[:, :, 3:-1].sum(2).mean(-1)  # of a patch, [B, N]
    return {
        "class_token_neighbours": neighbours(cls, labels),
        "patch_mean_neighbours": neighbours(patches.mean(1), labels),
        "object_share_r2": explained(patches, share),
        "constant_cosine": F.normalize(patches, dim=-1).mean((0, 1)).norm().item(),
        "constant_cosine_class": F.normalize(cls, dim=-1).mean(0).norm().item(),
    }


def new_encoder() -> Any:
    """Return the untrained encoder."""
    return timm.create_model(
        CONFIG["architecture"], num_classes=0, img_size=SIDE, **CONFIG["model_args"]
    )


def main() -> None:
    """Train, measure and write the encoder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs" / "tiny_vit")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    encoder = new_encoder()
    untrained = measure(encoder.eval())
    minutes = train(args, encoder.train())
    # Standardised over the pictures of a step that was not taken.
    standardise(encoder.eval(), pictures(PROBED, SEED_APART + args.seed, args.steps)[0])
    state = {name: value.detach().half() for name, value in encoder.state_dict().items()}
    encoder.load_state_dict(state)  # what is stored is what is measured
    found = {"untrained": untrained, "minutes": minutes, "trained": measure(encoder.eval())}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (args.out / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
