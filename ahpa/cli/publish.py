"""Make a run a folder to share: ahpa publish work_dirs/RUN FOLDER

The folder holds the averaged backbone as safetensors, config.json, and a model card with the
protocol and the figures. It is sampled from by path or, once uploaded, by Hub id.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..registry.locations import command_line
from .common import make_parser, run_command


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "publish")
    add = parser.add_argument
    add("run", type=Path, help="a work dir (its newest checkpoint), or a checkpoint")
    add("folder", type=Path, help="where it is written; must not exist")
    add(
        "--figure",
        action="append",
        default=[],
        metavar="TEXT",
        help="a measured figure with its protocol, such as 'FID-50K 25.5 (SDE, 250 steps, no "
        "guidance)'; may be repeated",
    )
    add("--vae", metavar="ID_OR_PATH", help="autoencoder for readers; default the run's own")
    add("--license", metavar="SPDX", help="for the model card, such as apache-2.0; default none")
    add("--weights", choices=("ema", "model"), default="ema", help="averaged or trained weights")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake, 130 after Ctrl-C."""
    return run_command(run, arguments)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    from ..interop.publish import publish

    args = parse(arguments)
    notes = publish(
        args.run,
        args.folder,
        weights=args.weights,
        vae=args.vae,
        license=args.license,
        figures=args.figure,
    )
    print(f"published: {args.folder}")
    for note in notes:
        print(f"note: {note}")
    print(f"sample from it: {command_line('sample')} {args.folder} --num 8 --out samples.png")
    print(f"upload it: hf upload OWNER/NAME {args.folder}")
    return 0
