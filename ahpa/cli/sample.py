"""Draw samples: ahpa sample CHECKPOINT --num 64 --out samples.png

Only the averaged backbone, the flow and the autoencoder are built; the config that comes with the
weights names registered components, and nothing in it is executed.
"""

import argparse
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine import config as configs
from ..engine.inference import load_generator
from ..engine.pictures import save_grid, save_pngs
from ..evaluation.images import LABELS, write_npz
from ..registry import SAMPLERS, UserError, check
from ..registry.precision import DTYPES
from ..registry.validation import integer, positive_int
from ..sampling.generator import Generator
from ..sampling.guidance import ClassifierFreeGuidance
from .common import make_parser, refuse_empty, report_mistake

MOST_COLUMNS = 16  # samples of one class that make a row of a grid


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "sample")
    add = parser.add_argument
    add("checkpoint", help="a checkpoint, a run's work dir, a published folder or a Hub id")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--demo", action="store_true", help="the bundled autoencoder")
    source.add_argument("--vae", metavar="ID_OR_PATH", help="replaces the run's autoencoder")
    add("--num", type=int, default=64, help="how many images")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument(
        "--classes", nargs="+", metavar="K", help="class numbers or names, used in turn"
    )
    wanted.add_argument("--prompts", nargs="+", metavar="TEXT", help="texts, used in turn")
    add("--sampler", help="such as euler, sde, ddpm (see ahpa list samplers); default the flow's")
    add("--steps", type=int, default=250, help="no effect with dopri5, which chooses its own")
    add("--cfg-scale", type=float, default=1.0, help="guidance scale; 1 disables it")
    add(
        "--cfg-interval",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="range of t in which guidance applies",
    )
    add("--cfg-channels", type=int, metavar="N", help="guide the first N latent channels only")
    add(
        "--cls-cfg-scale",
        type=float,
        metavar="W",
        help="guidance scale of REG's class token; 0: none; default --cfg-scale",
    )
    add("--seed", type=int, default=0, help="sample i is a function of (seed, i)")
    add("--batch", type=int, default=64)
    add("--precision", default="fp32", choices=tuple(DTYPES))
    add("--weights", choices=("ema", "model"), default="ema")
    add("--config", help="import the custom components that this config names (trusted code)")
    add("--out", default="samples.png", help="a .png (a grid), an .npz (ADM's format) or a folder")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake."""
    try:
        return run(arguments)
    except (UserError, BrokenPipeError) as error:
        return report_mistake(error)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    args = parse(arguments)
    check_options(args)
    out = Path(args.out)
    if args.config:
        configs.load(args.config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = "bundled" if args.demo else args.vae
    generator = load_generator(args.checkpoint, vae=vae, device=device, weights=args.weights)
    generator.check(args.sampler, args.cfg_channels, args.cls_cfg_scale)
    wanted = wanted_conditions(args, generator)
    images = generator.batches(
        wanted,
        sampler=args.sampler,
        steps=args.steps,
        cfg_scale=args.cfg_scale,
        cfg_interval=tuple(args.cfg_interval),
        cfg_channels=args.cfg_channels,
        cls_cfg_scale=args.cls_cfg_scale,
        seed=args.seed,
        batch=args.batch,
        precision=args.precision,
        progress=True,
    )
    write_samples(images, wanted, out, classes=generator.classes)
    print(f"{args.num} samples: {out}")
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Check what can be checked before weights are read. Raises UserError that names the option."""
    refuse_empty(
        checkpoint=args.checkpoint,
        vae=args.vae,
        sampler=args.sampler,
        config=args.config,
        out=args.out,
    )
    for name, value in (("num", args.num), ("steps", args.steps), ("batch", args.batch)):
        positive_int(f"--{name}", value)
    integer("--seed", args.seed)
    suffix = Path(args.out).suffix
    if suffix not in ("", ".png", ".npz"):
        raise UserError(f"--out: must end in .png or .npz, or be a folder; got {args.out!r}.")
    if args.sampler is not None:
        check(SAMPLERS, {"type": args.sampler}, where="--sampler")
    ClassifierFreeGuidance(
        scale=args.cfg_scale,
        interval=args.cfg_interval,
        channels=args.cfg_channels,
        cls_scale=args.cls_cfg_scale,
    )


def wanted_conditions(args: argparse.Namespace, generator: Generator) -> list[Any]:
    """List the class or prompt of each sample: the requested ones in turn, then grouped.

    Raises:
        UserError: For classes if the model takes prompts, and the other way round, and for a class
            of an unknown name.
    """
    takes = generator.conditioner.takes
    for option, given in (("classes", args.classes), ("prompts", args.prompts)):
        if given and option != takes:
            raise UserError(
                f"--{option}: this checkpoint takes {takes}; give --{takes}, or neither."
            )
    named = generator.conditions(args.classes) if args.classes else None
    kinds = named or args.prompts or generator.conditioner.all()
    used = [kinds[i % len(kinds)] for i in range(args.num)]
    return sorted(used, key=kinds.index) if takes == "prompts" else sorted(used)


def write_samples(
    images: Iterable[Tensor],
    wanted: Sequence[Any],
    out: Path,
    *,
    classes: Sequence[str] | None = None,
) -> None:
    """Write batches of uint8 [b, 3, H, W] as a grid (.png), an archive (.npz) or a folder.

    Args:
        images: The batches.
        wanted: Class or prompt of each sample; prompts are numbered, and their list is written too.
        out: A path that ends in .png or .npz, or a folder.
        classes: Names of the classes, for captions; None if they have none.
    """
    kinds = list(dict.fromkeys(wanted))
    prompts = kinds if isinstance(kinds[0], str) else None
    labels = [kinds.index(prompt) for prompt in wanted] if prompts else list(wanted)
    if out.suffix == ".npz":
        save_npz(images, labels, out, prompts=prompts)
    elif out.suffix == ".png":
        columns, row_per_kind = grid_columns(len(labels), len(kinds), bool(prompts))
        titles = prompts
        if classes is not None and not prompts:  # a model may have more labels than names
            titles = [classes[k] if k < len(classes) else str(k) for k in kinds]
        captions = titles if row_per_kind else None
        save_grid(torch.cat(list(images)), out, columns=columns, captions=captions)
    else:
        save_pngs(images, labels, out, prompts=prompts)


def save_npz(
    batches: Iterable[Tensor],
    labels: Sequence[int],
    path: Path,
    *,
    prompts: Sequence[str] | None = None,
) -> None:
    """Write the ADM evaluator's archive: arr_0 uint8 [n, H, W, 3] and arr_1, int64 labels [n].

    Args:
        batches: uint8 [b, 3, H, W] each; they are written one after another.
        labels: Class of each image, or the number of its prompt.
        path: The .npz file.
        prompts: The prompts that `labels` number; a third array of that name.
    """
    pending = iter(batches)
    first = next(pending)
    arrays = {LABELS: np.asarray(labels, np.int64)}
    if prompts is not None:
        arrays["prompts"] = np.asarray(prompts)
    height, width = first.shape[-2:]
    whole = itertools.chain([first], pending)
    write_npz(path, whole, count=len(labels), size=(height, width), arrays=arrays)


def grid_columns(samples: int, kinds: int, prompts: bool) -> tuple[int, bool]:
    """Choose the columns of a grid -> (columns, whether each row shows one class or prompt)."""
    per_kind = samples // kinds if samples % kinds == 0 else 0
    if 2 <= per_kind <= MOST_COLUMNS or (prompts and per_kind == 1):
        return per_kind, True
    return max(1, round(math.sqrt(samples))), False
