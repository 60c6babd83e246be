"""A run as a folder to share: python tools/publish.py work_dirs/RUN FOLDER (see --help).

The folder holds the averaged backbone as safetensors, config.json and a model card with the protocol and the figures. It is
sampled from by path or, once uploaded, by hub id: python tools/sample.py OWNER/NAME --num 8.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout works without an install
from ahpa.registry import UserError


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, help="a work dir (its newest checkpoint), or a checkpoint")
    add("folder", type=Path, help="where it is written; must not exist")
    add("--figure", action="append", default=[], metavar="TEXT", help="a measured figure with its protocol, such as "
        "'FID-50K 25.5 (SDE, 250 steps, no guidance)'; may be repeated")  # fmt: skip
    add("--vae", metavar="ID_OR_PATH", help="the autoencoder that readers shall decode with; default the run's own")
    add("--license", metavar="SPDX", help="for the model card, such as apache-2.0; default none is stated")
    add("--weights", choices=("ema", "model"), default="ema", help="the averaged weights, or the raw ones")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    args = parse(arguments)
    try:
        from ahpa.interop.publish import publish

        notes = publish(args.run, args.folder, weights=args.weights, vae=args.vae, license=args.license,
                        figures=args.figure)  # fmt: skip
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"published: {args.folder}")
    for note in notes:
        print(f"note: {note}")
    print(f"sample from it: python tools/sample.py {args.folder} --num 8 --out samples.png")
    print(f"upload it: hf upload OWNER/NAME {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
