"""Samples from a checkpoint: python tools/sample.py CHECKPOINT --num 64 --out samples.png (see --help).

Only the averaged backbone, the flow and the autoencoder are built; the checkpoint's config is data and not executed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout works without an install
from ahpa.registry import UserError


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", help="a checkpoint, a run's work dir (its newest valid one), a published folder or hub id")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--demo", action="store_true", help="the bundled autoencoder")
    source.add_argument("--vae", metavar="ID_OR_PATH", help="instead of the autoencoder that the run used")
    add("--num", type=int, default=64, help="how many images")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--classes", nargs="+", type=int, metavar="K", help="class numbers, used in turn; default all")
    wanted.add_argument("--prompts", nargs="+", metavar="TEXT", help="texts, used in turn; default those of the config")
    add("--sampler", help="euler, heun, sde; ddpm, ddim for DiT; default: the first that fits")
    add("--steps", type=int, default=250)
    add("--cfg-scale", type=float, default=1.0, help="guidance; 1 is none")
    add("--cfg-interval", nargs=2, type=float, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help="t of the guidance")
    add("--cfg-channels", type=int, metavar="N", help="guide the first N latent channels (DiT's code: 3); default all")
    add("--seed", type=int, default=0, help="sample i is a function of (seed, i)")
    add("--batch", type=int, default=64)
    add("--precision", default="fp32", help="fp32, bf16 or fp16")
    add("--weights", choices=("ema", "model"), default="ema")
    add("--config", help="import the custom components that this config names (trusted code)")
    add("--out", default="samples.png", help="a .png (one grid), an .npz (ADM's format) or a folder of PNGs")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    args = parse(arguments)
    try:
        from ahpa import cli

        return cli.sample(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
