"""Measure mean and standard deviation of an autoencoder's raw latents over a data set:
ahpa latent-statistics --vae ID_OR_PATH --data DIR [--out FILE.py]
ahpa latent-statistics --config CONFIG [--data DIR] [--cfg-options KEY=VALUE ...]

What it prints belongs in a config as model.tokenizer's mean and std. The file of --out is a base
config: after `_base_ = [..., "FILE.py"]` write `_base_.model.merge(_base_._latents)`.
With --config it takes autoencoder, data set and resolution from a config of yours, so that those of
other packages can be measured too.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..registry.errors import UserError
from ..registry.validation import positive_int
from .common import make_parser, refuse_empty, run_command

if TYPE_CHECKING:
    from ..registry.contracts import Dataset

RESOLUTION = 256  # pixels, without --config


class Measured(NamedTuple):
    """What is measured.

    Attributes:
        tokenizer: Options of the autoencoder.
        dataset: The images.
        resolution: Their side in pixels.
        name: Name of the autoencoder, for what is printed.
        data: Name of the data set, for what is written.
        raw: Whether its latents come without normalisation.
    """

    tokenizer: dict[str, Any]
    dataset: "Dataset"
    resolution: int
    name: str
    data: str
    raw: bool


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "latent-statistics")
    add = parser.add_argument
    add("--vae", metavar="ID_OR_PATH", help="a diffusers folder, a file, a Hub id")
    add("--config", metavar="CONFIG", help="measure the autoencoder and data of a config instead")
    add("--data", metavar="DIR", help="class folders or a zip of them; default the drawn images")
    add("--resolution", type=int, metavar="PX", help=f"side of the images; default {RESOLUTION}")
    add("--num", type=int, default=10_000, metavar="N", help="images, drawn without repeats")
    add("--batch", type=int, default=16, metavar="B", help="images at once")
    add("--seed", type=int, default=0, metavar="N", help="which images")
    add("--out", type=Path, metavar="FILE.py", help="write a config that sets them")
    add(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="changes of --config, such as model.tokenizer.source=PATH",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake, 130 after Ctrl-C."""
    return run_command(run, arguments)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    args = parse(arguments)
    check(args)

    import torch

    from ..analysis.latents import latent_moments, rounded
    from ..registry import TOKENIZERS, build
    from ..registry.contracts import Tokenizer
    from ..registry.files import write_file

    measured = measured_by_options(args) if args.config is None else measured_by_config(args)
    if args.out is not None and not measured.raw:
        raise UserError(
            f"--out: writes mean and std of a KLAutoencoder, and this is {measured.name}, which "
            "takes other options; leave out --out and set the printed values by hand."
        )
    dataset = measured.dataset
    tokenizer: Tokenizer = build(TOKENIZERS, measured.tokenizer, where="model.tokenizer")
    tokenizer.load()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer.to(device)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
    chosen = order[: args.num].tolist()

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, len(chosen), args.batch):
            images = [dataset[index]["image"] for index in chosen[start : start + args.batch]]
            yield torch.stack(images).to(device).float() / 255

    found = latent_moments(tokenizer, batches(), len(chosen))
    print(f"{found.images} images of {len(dataset)}, {measured.resolution} px, {measured.name}")
    print(f"mean {rounded(found.mean)}\nstd  {rounded(found.std)}")
    if not measured.raw:
        print(
            "These are the latents as model.tokenizer gives them: they are standardised if each "
            "mean is 0 and each std 1. For raw ones switch its normalisation off by --cfg-options."
        )
    if args.out is not None:
        about = f"{measured.name}, {found.images} images of {measured.data}"
        write_file(args.out, found.config(f"{about}, {measured.resolution} px").encode())
        print(f"config: {args.out}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Check the command line. Raises UserError for a mistake."""
    refuse_empty(vae=args.vae, config=args.config, data=args.data)
    positive_int("--num", args.num)
    positive_int("--batch", args.batch)
    if args.out is not None and args.out.suffix != ".py":
        raise UserError(f"--out: must be a .py file, got {str(args.out)!r}.")
    if args.config is None:
        if args.vae is None:
            raise UserError("give --vae (an autoencoder), or --config (a config that has one).")
        if args.cfg_options:
            raise UserError("--cfg-options: needs --config, the config that they change.")
        if args.resolution is not None:
            positive_int("--resolution", args.resolution)
    elif args.resolution is not None:
        raise UserError(
            "--resolution: is the config's; with --config give --cfg-options model.resolution="
            f"{args.resolution}."
        )


def measured_by_options(args: argparse.Namespace) -> Measured:
    """Return what --vae, --data and --resolution name."""
    from ..registry import DATASETS, build

    resolution = args.resolution or RESOLUTION
    kind = {"type": "ImageFolder", "root": args.data} if args.data else {"type": "ShapesDataset"}
    dataset = build(DATASETS, kind, where="--data", resolution=resolution)
    tokenizer = raw_latents({"type": "KLAutoencoder", "source": args.vae})
    return Measured(
        tokenizer, dataset, resolution, args.vae, args.data or "the drawn set", raw=True
    )


def measured_by_config(args: argparse.Namespace) -> Measured:
    """Return the autoencoder and the data set of a config, which is read as by `ahpa train`."""
    from ..engine.runner import build_dataset
    from . import train

    options = {"--data": args.data, "--vae": args.vae}
    given = [text for name, value in options.items() if value for text in (name, value)]
    if args.cfg_options:
        given += ["--cfg-options", *args.cfg_options]
    cfg = train.training_config(train.parse([args.config, *given]))
    tokenizer = dict(cfg["model"]["tokenizer"])
    kind = tokenizer["type"]
    raw = kind == "KLAutoencoder"
    name = f"{kind} of {args.config}"
    data = args.data or f"{args.config}'s data set"
    resolution = cfg["model"].get("resolution", RESOLUTION)
    tokenizer = raw_latents(tokenizer) if raw else tokenizer
    return Measured(tokenizer, build_dataset(cfg), resolution, name, data, raw)


def raw_latents(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a KLAutoencoder without its normalisation."""
    plain = dict.fromkeys(("statistics", "mean", "std"))
    return {**tokenizer, **plain, "scale": 1.0, "shift": 0.0}
