"""Measure mean and standard deviation of an autoencoder's raw latents over a data set:
ahpa latent-statistics --vae ID_OR_PATH --data DIR [--out FILE.py]

What it prints belongs in a config as model.tokenizer's mean and std. The file of --out is a base
config: after `_base_ = [..., "FILE.py"]` write `_base_.model.merge(_base_._latents)`.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..registry.errors import UserError
from ..registry.validation import positive_int
from .common import make_parser, report_mistake


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "latent-statistics")
    add = parser.add_argument
    add("--vae", required=True, metavar="ID_OR_PATH", help="a diffusers folder, a file, a Hub id")
    add("--data", metavar="DIR", help="class folders or a zip of them; default the drawn images")
    add("--resolution", type=int, default=256, metavar="PX", help="side of the images")
    add("--num", type=int, default=10_000, metavar="N", help="images, drawn without repeats")
    add("--batch", type=int, default=16, metavar="B", help="images at once")
    add("--seed", type=int, default=0, metavar="N", help="which images")
    add("--out", type=Path, metavar="FILE.py", help="write a config that sets them")
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
    positive_int("--num", args.num)
    positive_int("--batch", args.batch)
    positive_int("--resolution", args.resolution)
    if args.out is not None and args.out.suffix != ".py":
        raise UserError(f"--out: must be a .py file, got {str(args.out)!r}.")

    import torch

    from ..analysis.latents import latent_moments, rounded
    from ..registry import DATASETS, TOKENIZERS, build
    from ..registry.contracts import Dataset, Tokenizer
    from ..registry.files import write_file

    kind = {"type": "ImageFolder", "root": args.data} if args.data else {"type": "ShapesDataset"}
    dataset: Dataset = build(DATASETS, kind, where="--data", resolution=args.resolution)
    source = {"type": "KLAutoencoder", "source": args.vae}
    tokenizer: Tokenizer = build(TOKENIZERS, {**source, "scale": 1.0, "shift": 0.0})
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
    print(f"{found.images} images of {len(dataset)}, {args.resolution} px, {args.vae}")
    print(f"mean {rounded(found.mean)}\nstd  {rounded(found.std)}")
    if args.out is not None:
        about = f"{args.vae}, {found.images} images of {args.data or 'the drawn set'}"
        write_file(args.out, found.config(f"{about}, {args.resolution} px").encode())
        print(f"config: {args.out}")
    return 0
