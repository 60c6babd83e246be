"""Read published checkpoints, and write ours as such: ahpa import-weights --format repa IN OUT

An imported file is sampled from by `ahpa sample`. With --config, OUT is a work dir in which an
official run goes on: `ahpa train CONFIG --work-dir OUT --resume`. Nothing in a file is executed;
unknown keys are named and refused. --format diffusers reads and writes a pipeline folder (SiT and
DiT) that DiffusionPipeline.from_pretrained loads.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..registry.errors import UserError
from ..registry.locations import command_line, find_config
from .common import make_parser, run_command


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "import-weights")
    add = parser.add_argument
    add(
        "--format",
        required=True,
        help="sit, dit, repa, irepa, sra, sra-dit, reg, repa-t2i, diffusers",
    )
    add(
        "source",
        type=Path,
        metavar="IN",
        help="a published file (.pt, .pth, .safetensors) or folder; with --export one of ours",
    )
    add("target", type=Path, metavar="OUT", help="where the result is written")
    add("--export", action="store_true", help="write our checkpoint in the published layout")
    add(
        "--weights",
        choices=("ema", "model"),
        help="averaged or trained weights alone; default both, and ema for samples",
    )
    add("--vae", metavar="ID_OR_PATH", help="autoencoder for samples; default the layout's own")
    add("--num-heads", type=int, metavar="N", help="attention heads, for unpublished widths")
    add("--config", metavar="CONFIG", help="continue the run with this config; OUT is a work dir")
    add(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="changes --config; without it, model.tokenizer.* says how the latents were scaled",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake, 130 after Ctrl-C."""
    return run_command(run, arguments)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    args = parse(arguments)
    if args.config:
        return continue_run(args)
    refuse_unused(args)
    return export_weights(args) if args.export else import_weights(args)


def refuse_unused(args: argparse.Namespace) -> None:
    """Refuse options without an effect. Raises UserError."""
    folder = args.format == "diffusers"
    unused: list[tuple[str, Any]] = []
    if folder or args.export:
        unused += [("--num-heads", args.num_heads), ("--cfg-options", args.cfg_options)]
    if folder and not args.export:
        unused += [("--weights", args.weights)]
    if args.export and not folder:
        unused += [("--vae", args.vae)]
    for option, given in unused:
        if given is not None and given != []:
            what = "an export" if args.export else "an import"
            raise UserError(
                f"{option}: has no effect on {what} with --format {args.format}; leave it out."
            )


def continue_run(args: argparse.Namespace) -> int:
    """Make an official run's checkpoint the newest one of a work dir."""
    from ..engine import config as configs
    from ..engine.weights import with_autoencoder
    from ..interop.continued import import_run

    for option, given in (("--export", args.export), ("--weights", args.weights)):
        if given:
            raise UserError(f"--config: {option} has no effect beside it; leave one of them out.")
    if args.format == "diffusers":
        raise UserError("--config: only an official training program's checkpoint continues.")
    path = find_config(args.config)
    cfg = configs.load(path, args.cfg_options)
    if args.vae is not None:
        cfg["model"]["tokenizer"] = with_autoencoder(cfg["model"].get("tokenizer") or {}, args.vae)
    configs.check_config(cfg)
    done = import_run(
        args.source, args.target, layout=args.format, cfg=cfg, num_heads=args.num_heads
    )
    print(f"checkpoint: {done['checkpoint']} (iteration {done['iteration']})")
    for note in done["notes"]:
        print(f"note: {note}")
    go_on = f"{command_line('train')} {args.config} --work-dir {args.target} --resume"
    print(f"continue it: {go_on} (with --data and the options of this command)")
    return 0


def export_weights(args: argparse.Namespace) -> int:
    """Write one of our checkpoints in a published layout or as a diffusers folder."""
    from ..interop import pipeline_folder, published

    if args.format == "diffusers":
        usage = pipeline_folder.write_pipeline(
            args.source, args.target, weights=args.weights or "ema", vae=args.vae
        )
        print(f"pipeline folder: {args.target}\nload it: {usage}")
    else:
        done = published.export_weights(
            args.source, args.target, layout=args.format, weights=args.weights or "both"
        )
        print(f"{done['tensors']} tensors: {args.target}")
        for note in done["notes"]:
            print(f"note: {note}")
    return 0


def import_weights(args: argparse.Namespace) -> int:
    """Read a published checkpoint or a diffusers folder into a checkpoint of ours."""
    from ..interop import pipeline_folder, published

    if args.format == "diffusers":
        done = pipeline_folder.read_pipeline(args.source, args.target, vae=args.vae)
    else:
        done = published.import_weights(
            args.source,
            args.target,
            layout=args.format,
            weights=args.weights or "ema",
            vae=args.vae,
            normalisation=normalisation(args.cfg_options),
            num_heads=args.num_heads,
        )
    print(f"backbone: {done['backbone']}  resolution: {done['resolution']}")
    tokenizer = done["tokenizer"]
    print(f"autoencoder: {tokenizer['source']}, scaling by {published.scaling(tokenizer)}")
    if done["kept"]:
        print(f"kept for an export: {', '.join(done['kept'])}")
    if done["left_out"]:
        print(f"left out: {', '.join(done['left_out'])}")
    print(f"sample from it: {command_line('sample')} {args.target} --num 8 --out samples.png")
    return 0


def normalisation(options: Sequence[str]) -> dict[str, Any]:
    """Return the options of the autoencoder that "model.tokenizer.KEY=VALUE" set.

    Raises:
        UserError: If one sets something else.
    """
    from ..engine.config import set_option

    cfg: dict[str, Any] = {"model": {"tokenizer": {}}}
    for option in options:
        if not option.startswith("model.tokenizer."):
            raise UserError(
                f"--cfg-options: an import without --config takes model.tokenizer.* only, which "
                f"says how the latents were scaled; got {option!r}."
            )
        set_option(cfg, option)
    return dict(cfg["model"]["tokenizer"])
