"""Trains a diffusion transformer from a config: python tools/train.py CONFIG [--demo] ... (see --help)."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout works without an install
from ahpa.registry import UserError


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", help="a file of configs/, or the config.json of a run")
    add("--demo", action="store_true", help="small backbone, drawn images, bundled autoencoder; the method stays")
    add("--data", metavar="DIR", help="class folders or a zip of them, or COCO's folder for captions")
    add("--vae", metavar="ID_OR_PATH", help="autoencoder: a diffusers folder, a single file, a hub id, or 'bundled'")
    add("--work-dir", help="where everything is written; default work_dirs/<config's name>")
    add("--max-iters", type=int, metavar="N", help="optimiser steps")
    add("--resume", action="store_true", help="go on from the newest valid checkpoint of the work dir")
    add("--dry-run", action="store_true", help="build everything, run one step on synthetic data, print sizes and cost")
    add("--seed", type=int, metavar="N", help="default 0, or the config's")
    add("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="such as compile=True")
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="pytorch: started by torchrun")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    args = parse(arguments)
    try:
        from ahpa import cli

        cfg = cli.training_config(args)
        return cli.dry_run(cfg) if args.dry_run else cli.train(cfg, resume=args.resume, fit_classes=bool(args.data))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    from ahpa.engine import signals

    signals.install()
    sys.exit(main())
