"""Trains the bundled vision encoder, `ahpa/assets/tiny_vit`: a small vision transformer of timm, on the drawn set alone.

    python tools/train_encoder.py --out work_dirs/tiny_vit                            # 9 minutes of one CPU thread

Squares of each picture are hidden, up to half of them. From the class token a linear layer names the class (cross-entropy);
from each patch token another tells its 4 x 4 cells of the whole picture (squared error): their colour, the share of each
class's object in them and that of an object's inner part, all known from the drawing. So both kinds of tokens must see
what is there and where, and complete what is hidden. Each step draws its own pictures, a function of (seed, step). The
linear layers are thrown away; the patch tokens are standardised, the encoder is rounded to float16 and measured beside its
untrained self.

Shapes: images are float32 [B, 3, 64, 64] in [-1, 1]; tokens [B, N, 192] of N = 4 x 4 patches.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from ahpa.data.shapes import CLASSES, draw, shares  # noqa: E402

CONFIG = dict(architecture="vit_tiny_patch16_224", num_classes=0, model_args=dict(depth=4, mlp_ratio=2.0))
SIDE, PATCH, CELL = 64, 16, 4  # pixels: of a picture, of a token, of what is told about a token
CHANNELS = 3 + len(CLASSES) + 1  # of a cell: colour, share of each class's object, share of an inner part
BATCH, LR, WARMUP, BETAS, DECAY, CLIP = 128, 1e-3, 200, (0.9, 0.99), 0.05, 1.0
HIDDEN = 0.5  # of a picture's squares, at most
SEED_APART, HELD_OUT_SEED = 30_000, 31_000  # `ShapesDataset` and its users count from 0
NEIGHBOURS, PROBED, RIDGE = 10, 1000, 1e-2


def pictures(count, seed, step=0):
    """-> images [B, 3, 64, 64], labels [B], what cells hold [B, N, CHANNELS * 16]: a function of (seed, step)."""
    labels, streams = np.arange(count) % len(CLASSES), [(seed, step, i) for i in range(count)]
    drawn = [draw(k, np.random.default_rng(s), SIDE) for k, s in zip(labels, streams, strict=True)]
    parts = np.stack([shares(k, np.random.default_rng(s), SIDE) for k, s in zip(labels, streams, strict=True)])
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels, parts = torch.from_numpy(labels), torch.from_numpy(parts).permute(0, 3, 1, 2)  # parts [B, 2, 64, 64]
    object_ = F.one_hot(labels, len(CLASSES))[:, :, None, None] * parts[:, :1]  # [B, 10, 64, 64]
    cells = F.avg_pool2d(torch.cat([images, object_, parts[:, 1:]], 1), CELL)  # [B, CHANNELS, 16, 16]
    return images, labels, F.unfold(cells, PATCH // CELL, stride=PATCH // CELL).mT


def hide(images, random):
    """Greys squares of PATCH pixels; of each picture a share of its own, from 0 to HIDDEN."""
    grid = SIDE // PATCH
    share = HIDDEN * torch.rand(len(images), 1, 1, 1, generator=random)
    kept = (torch.rand(len(images), 1, grid, grid, generator=random) >= share).float()
    return images * F.interpolate(kept, scale_factor=PATCH)


def train(args, encoder):
    """`--steps` steps -> the minutes that they took."""
    heads = nn.ModuleDict(dict(name=nn.Linear(encoder.embed_dim, len(CLASSES)),
                               tell=nn.Linear(encoder.embed_dim, CHANNELS * (PATCH // CELL) ** 2)))  # fmt: skip
    weights = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=LR, betas=BETAS, weight_decay=DECAY)
    begin, shown = time.time(), {}
    for step in range(args.steps):
        rate = min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        optimiser.param_groups[0]["lr"] = LR * rate
        images, labels, cells = pictures(BATCH, SEED_APART + args.seed, step)
        random = torch.Generator().manual_seed(1_000_003 * args.seed + step)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = encoder.forward_features(hide(images, random)).float()  # [B, 1 + N, 192]
            names, told = heads["name"](tokens[:, 0]).float(), heads["tell"](tokens[:, 1:]).float()
        terms = dict(name=F.cross_entropy(names, labels), tell=CHANNELS * F.mse_loss(told, cells))
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimiser.step()
        optimiser.zero_grad()
        shown = {k: shown.get(k, v.item()) * 0.98 + 0.02 * v.item() for k, v in terms.items()}
        if (step + 1) % 100 == 0:
            minutes = (time.time() - begin) / 60
            print(f"step {step + 1} {minutes:.1f} min", *(f"{k} {v:.4f}" for k, v in shown.items()), flush=True)
    return (time.time() - begin) / 60


@torch.no_grad()
def standardise(encoder, images):
    """Gives each channel of the patch tokens mean 0 and std 1 over `images`, by a change of the last norm that a linear
    layer can undo. As trained, a constant reaches a cosine of 0.65 with them and one direction holds 0.4 of their variance:
    a target that asks for little."""
    patches = torch.cat([encoder.forward_features(part)[:, 1:] for part in images.split(100)])
    mean, std = patches.mean((0, 1)), patches.std((0, 1))
    encoder.norm.weight /= std
    encoder.norm.bias.copy_((encoder.norm.bias - mean) / std)


# ---- measuring ----


def neighbours(features, labels):
    """Accuracy of a vote of the nearest by cosine: the first half of the features [B, C] is asked, the second tested."""
    known, asked = F.normalize(features, dim=-1).chunk(2)
    nearest = (asked @ known.T).topk(NEIGHBOURS).indices
    votes = F.one_hot(labels[: len(known)][nearest]).sum(1)
    return (votes.argmax(1) == labels[len(known) :]).float().mean().item()


def explained(tokens, values):
    """R^2 of a ridge regression from tokens [B, N, C] to a number each [B, N], fitted on the first half of the pictures
    and tested on the second."""
    x, y = tokens.double(), values.double()
    known, asked = ((a.flatten(0, 1), b.flatten()) for a, b in zip(x.chunk(2), y.chunk(2), strict=True))
    mean, level = known[0].mean(0), known[1].mean()
    centred = known[0] - mean
    spread = centred.T @ centred
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype)
    weight = torch.linalg.solve(spread + ridge, centred.T @ (known[1] - level))
    rest = asked[1] - level - (asked[0] - mean) @ weight
    return (1 - rest.square().mean() / asked[1].var(correction=0)).item()


@torch.no_grad()
def measure(encoder, count=PROBED, seed=HELD_OUT_SEED):
    """What the tokens of pictures kept apart tell, by name; `constant_cosine` as in a training log."""
    images, labels, cells = pictures(count, seed)
    tokens = torch.cat([encoder.forward_features(part) for part in images.split(100)])
    object_ = cells.unflatten(-1, (CHANNELS, -1))[:, :, 3:-1].sum(2).mean(-1)  # share of a patch, [B, N]
    return dict(
        class_token_neighbours=neighbours(tokens[:, 0], labels),
        patch_mean_neighbours=neighbours(tokens[:, 1:].mean(1), labels),
        object_share_r2=explained(tokens[:, 1:], object_),
        constant_cosine=F.normalize(tokens[:, 1:], dim=-1).mean((0, 1)).norm().item(),
        constant_cosine_class=F.normalize(tokens[:, 0], dim=-1).mean(0).norm().item(),
    )


def new_encoder():
    return timm.create_model(CONFIG["architecture"], num_classes=0, img_size=SIDE, **CONFIG["model_args"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs" / "tiny_vit")
    for name, default in (("steps", 2500), ("threads", 1), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    encoder = new_encoder()
    found = dict(untrained=measure(encoder.eval()))
    found["minutes"] = train(args, encoder.train())
    standardise(encoder.eval(), pictures(PROBED, SEED_APART + args.seed, args.steps)[0])  # of a step that was not taken
    state = {name: value.detach().half() for name, value in encoder.state_dict().items()}
    encoder.load_state_dict(state)  # what is stored is what is measured
    found["trained"] = measure(encoder.eval())
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out / "model.safetensors", metadata=dict(format="pt"))
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (args.out / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
