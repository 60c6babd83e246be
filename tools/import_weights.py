"""Published checkpoints into ours, and back: python tools/import_weights.py --format repa IN OUT [--export] (see --help).

An imported file is sampled from by tools/sample.py. Nothing in a file is executed; unknown keys are named and refused.
--format diffusers reads and writes a pipeline folder (SiT and DiT) that DiffusionPipeline.from_pretrained loads.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout works without an install
from ahpa.registry import UserError


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--format", required=True, help="sit, dit, repa, irepa, sra, reg, repa-t2i or diffusers")
    add("source", type=Path, metavar="IN", help="a published file (.pt, .pth, .safetensors) or folder; with --export a "
        "checkpoint or run of ours")  # fmt: skip
    add("target", type=Path, metavar="OUT", help="where the result is written")
    add("--export", action="store_true", help="the other way: our checkpoint's backbone in the published layout")
    add("--weights", choices=("ema", "model"), default="ema", help="which weights, where a file has both")
    add("--vae", metavar="ID_OR_PATH", help="the autoencoder that samples are decoded with; default the layout's own")
    add("--num-heads", type=int, metavar="N", help="attention heads, for widths that are not published ones")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    args = parse(arguments)
    try:
        from ahpa.interop import pipeline_folder, published

        if args.export and args.format == "diffusers":
            usage = pipeline_folder.write_pipeline(args.source, args.target, weights=args.weights, vae=args.vae)
            print(f"pipeline folder: {args.target}\nload it: {usage}")
            return 0
        if args.export:
            count = published.export_weights(args.source, args.target, layout=args.format, weights=args.weights)
            print(f"{count} tensors: {args.target}")
            return 0
        if args.format == "diffusers":
            done = pipeline_folder.read_pipeline(args.source, args.target, vae=args.vae)
        else:
            done = published.import_weights(args.source, args.target, layout=args.format, weights=args.weights,
                                            vae=args.vae, num_heads=args.num_heads)  # fmt: skip
        print(f"backbone: {done['backbone']}  resolution: {done['resolution']}")
        if done["left_out"]:
            print(f"left out: {', '.join(done['left_out'])}")
        print(f"sample from it: python tools/sample.py {args.target} --num 8 --out samples.png")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
