"""Make a reference for metrics, in ADM's format, from a folder or a zip of pictures:
ahpa reference DIR --out REF.npz [--resolution 256] [--num 10000]

The file holds mean and covariance of Inception's features over all pictures (mu, sigma, mu_s,
sigma_s) and some of the pictures (arr_0), for precision and recall. With --images-only it holds the
pictures alone, which needs no weights and serves metrics with other extractors.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..registry.errors import UserError
from ..registry.validation import integer, positive_int
from .common import make_parser, run_command


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "reference")
    add = parser.add_argument
    add("images", metavar="DIR", help="a folder or a zip of pictures, an .npz or a .npy")
    add("--out", type=Path, required=True, metavar="REF.npz", help="the file to write")
    add(
        "--resolution",
        type=int,
        metavar="PX",
        help="crop pictures to squares of this side, as ADM does; default: as they are",
    )
    add("--num", type=int, default=10_000, metavar="N", help="pictures in arr_0 (default 10000)")
    add("--seed", type=int, default=0, metavar="N", help="which pictures (default 0)")
    add("--batch", type=int, default=32, metavar="B", help="pictures at once (default 32)")
    add("--weights", metavar="FILE", help="Inception's weights; default: AHPA_WEIGHTS or the cache")
    add("--images-only", action="store_true", help="write the pictures alone, without Inception")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake, 130 after Ctrl-C."""
    return run_command(run, arguments)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    args = parse(arguments)
    positive_int("--num", args.num)
    positive_int("--batch", args.batch)
    integer("--seed", args.seed)
    if args.resolution is not None:
        positive_int("--resolution", args.resolution)
    if args.out.suffix != ".npz":
        raise UserError(f"--out: must be an .npz file, got {str(args.out)!r}.")
    if args.out.exists():
        raise UserError(f"--out: {args.out} exists already; choose another name, or remove it.")
    if args.images_only and args.weights:
        raise UserError("--weights: has no meaning with --images-only; leave one of them out.")

    import torch

    from ..evaluation.extractors import build_extractor, file_sha256
    from ..evaluation.images import open_images
    from ..evaluation.make_reference import INCEPTION, make_reference

    images = open_images(args.images, resolution=args.resolution)
    extractor = None if args.images_only else {**INCEPTION}
    if args.weights:
        extractor = {**INCEPTION, "weights": args.weights}
    if extractor is not None:
        try:
            build_extractor(extractor).load()
        except UserError as error:
            raise UserError(
                f"{error} Metrics with other networks need none of it: --images-only writes the "
                "pictures alone."
            ) from error
    make_reference(
        images,
        args.out,
        device="cuda" if torch.cuda.is_available() else "cpu",
        batch=args.batch,
        kept=args.num,
        seed=args.seed,
        extractor=extractor,
    )
    height, width = images.size
    print(f"{len(images)} images of {width} x {height} px, {min(args.num, len(images))} kept")
    print(f"reference: {args.out}")
    print(f"sha256: {file_sha256(args.out)}")
    return 0
