"""Look into runs: ahpa analyze {gsnr,router,pca,cost,target,probe} RUN... [options]

  gsnr    gradient signal-to-noise ratio of the alignment over t
  router  a router's policy over t, over training and over content
  pca     levels, groups and blocks on images, as colours
  cost    parameters, multiply-accumulates, measured time and memory, side by side
  target  how constant, how large and of what rank each level and group is
  probe   which block resembles which teacher, and what is left to learn from it

A RUN is a work dir, a checkpoint, a published folder, or a config (the network before training).
Each writes PNG, SVG, CSV and JSON. `ahpa analyze gsnr --help` lists the options of one.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry.errors import ConfigError, UserError
from ..registry.validation import integer, number
from .common import make_parser, refuse_empty, run_command

if TYPE_CHECKING:
    from ..analysis.results import Finding
    from ..analysis.runs import Run, Source

KINDS = {  # diagnostic -> (what it does, images, images at once, weights)
    "gsnr": ("gradient signal-to-noise ratio of the alignment over t", 64, 16, "model"),
    "router": ("a router's policy over t, over training and over content", 64, 32, "model"),
    "pca": ("levels, groups and blocks on images, as colours", 6, 6, "ema"),
    "cost": ("parameters, multiply-accumulates, measured time and memory", 0, 0, "model"),
    "target": ("how constant, how large and of what rank the targets are", 256, 32, "model"),
    "probe": ("which block resembles which teacher, what is left to learn", 512, 64, "ema"),
}


def add_common(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add the options that all diagnostics with images share."""
    _, num, batch, weights = KINDS[kind]
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a work dir, checkpoint, published folder, config")
    add("--out", type=Path, metavar="DIR", help="default: the first run's folder, analysis/")
    add("--demo", action="store_true", help="shrink configs (not runs) as ahpa train --demo does")
    add("--config", help="import the custom components that this config names (trusted code)")
    if kind == "cost":
        return
    add("--data", metavar="DIR", help="class folders or a zip of them; default the run's data")
    add("--num", type=int, default=num, metavar="N", help=f"images; default {num}")
    add("--batch", type=int, default=batch, metavar="B", help="images at once")
    add("--seed", type=int, default=0, metavar="N", help="which images, times and noise")
    add(
        "--weights",
        choices=("ema", "model"),
        default=weights,
        help=f"averaged or trained weights of the backbone; default {weights}",
    )
    add(
        "--prior",
        action="append",
        default=[],
        metavar="NAME=CONFIG",
        help="add a prior or replace the run's, such as \"teacher=dict(type='TimmEncoder')\"",
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "analyze")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="DIAGNOSTIC")
    own: dict[str, argparse.ArgumentParser] = {}
    for kind, (text, *_) in KINDS.items():
        own[kind] = kinds.add_parser(kind, help=text, description=f"{text[0].upper()}{text[1:]}.")
        add_common(own[kind], kind)
    for kind in ("gsnr", "target"):
        own[kind].add_argument(
            "--heads",
            metavar="RUN",
            help="use this run's alignments (router, projector, priors) on the backbones of RUN...",
        )
    own["target"].add_argument(
        "--points", type=int, default=6, metavar="N", help="times in [0, 1]; default 6"
    )
    own["router"].add_argument(
        "--points", type=int, default=101, metavar="N", help="times in [0, 1]; default 101"
    )
    add = own["probe"].add_argument
    add("--bins", type=int, default=4, metavar="N", help="equal bins of t; default 4")
    add("--blocks", type=int, nargs="+", metavar="K", help="blocks, from 1; default all")
    add(
        "--layers",
        nargs="+",
        default=[],
        metavar="LEVEL",
        help="levels that the layer gap compares; default up to four of each prior",
    )
    add = own["pca"].add_argument
    add("--images", type=int, nargs="+", metavar="N", help="these images, by their numbers")
    add(
        "--times",
        type=float,
        nargs="+",
        default=[0.2, 0.5, 0.8],
        metavar="T",
        help="times of groups and blocks; default 0.2 0.5 0.8",
    )
    add = own["cost"].add_argument
    add("--batch", type=int, default=4, metavar="B", help="images of a measured step; default 4")
    add("--steps", type=int, default=5, metavar="N", help="measured steps; 0: none; default 5")
    add = own["gsnr"].add_argument
    add("--bins", type=int, default=10, metavar="N", help="equal bins of t; default 10")
    add(
        "--params",
        default="block",
        metavar="NAME",
        help="block: the aligned block (default); backbone; or a name such as blocks.2.attn",
    )
    add("--levels", action="store_true", help="each level of a routed target by itself as well")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake, 130 after Ctrl-C."""
    return run_command(run, arguments)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    args = parse(arguments)
    check_options(args)
    if args.config:
        from ..engine import config as configs

        configs.load(args.config)
    sources = [find_source(name, demo=args.demo) for name in args.runs]
    folder = args.out or default_folder(args.runs[0])
    findings, record = DIAGNOSTICS[args.kind](args, sources)
    command = ["ahpa", "analyze", *(sys.argv[1:] if arguments is None else arguments)]
    return write(findings, {"command": command, **record}, folder)


def check_options(args: argparse.Namespace) -> None:
    """Check what can be checked before anything is read. Raises UserError naming the option."""
    refuse_empty(config=args.config)
    for name in args.runs:
        if not name.strip():
            raise UserError("RUN: must not be empty.")
    given = vars(args)
    least = {"num": 2, "batch": 1, "bins": 1, "points": 2, "steps": 0}
    for name, value in least.items():
        if isinstance(given.get(name), int):
            integer(f"--{name}", given[name], least=value)
    for time in given.get("times") or ():
        number("--times", time, least=0, most=1)
    for image in given.get("images") or ():
        integer("--images", image)
    if "seed" in given:
        integer("--seed", args.seed)
        refuse_empty(data=args.data)
        parsed_priors(args.prior)


def parsed_priors(options: Sequence[str]) -> dict[str, Any]:
    """Return {name: config} of --prior. Raises ConfigError."""
    from ..analysis.runs import parse_prior

    found: dict[str, Any] = {}
    for option in options:
        name, config = parse_prior(option)
        if name in found:
            raise ConfigError(f"--prior: {name!r} is given twice.")
        found[name] = config
    return found


def find_source(name: str, *, demo: bool) -> "Source":
    """Find a run, or a config, which stands for the network before training.

    Args:
        name: A work dir, checkpoint, published folder, Hub id, config file or its name.
        demo: Whether to shrink a config.

    Raises:
        UserError: If there is neither.
    """
    from ..analysis.runs import config_source, run_source
    from ..engine import config as configs
    from ..engine.config_file import SUFFIXES
    from ..registry.locations import find_config
    from .demo import make_small

    path = Path(name).expanduser()
    if path.is_dir() or path.suffix == ".pth":
        return run_source(name)
    try:
        file = find_config(name)
    except UserError:
        if "/" in name and path.suffix not in SUFFIXES:
            return run_source(name)
        raise
    cfg = configs.load(file)
    configs.check_keys(cfg)
    if demo:
        make_small(cfg)
    configs.check_keys(cfg)
    return config_source(file, cfg)


def default_folder(name: str) -> Path:
    """Return the folder of results: in the run's work dir, else here."""
    path = Path(name).expanduser()
    if path.suffix == ".pth":
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        return path / "analysis"
    return path / "analysis" if path.is_dir() else Path("analysis") / path.stem


def write(findings: Sequence["Finding"], record: Mapping[str, Any], folder: Path) -> int:
    """Write what was found, print the notes and where the files are."""
    import torch

    from ..analysis.provenance import here

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = {**record, **here(device)}
    for finding in findings:
        paths = finding.write(folder, whole)
        for note in finding.notes:
            print(note)
        print(f"{paths[0]} (and .svg, .csv, .json)")
    return 0


# ---- the diagnostics ------------------------------------------------------------------------


def opened(args: argparse.Namespace, source: "Source", **options: Any) -> "Run":
    """Open a run as the command line asks for it."""
    from ..analysis.runs import open_run

    return open_run(
        source,
        weights=args.weights,
        data=args.data,
        priors=parsed_priors(args.prior),
        **options,
    )


def common_record(args: argparse.Namespace, runs: Sequence["Run"]) -> dict[str, Any]:
    """Return the record of runs and images."""
    from ..analysis.runs import describe_data

    return {
        "runs": [dict(run.record) for run in runs],
        "data": [describe_data(run.dataset, args.num, args.seed) for run in runs],
        "seed": args.seed,
    }


def heads_of(args: argparse.Namespace) -> "Source | None":
    """Return the run of --heads, if there is one."""
    return None if args.heads is None else find_source(args.heads, demo=args.demo)


def gsnr(args: argparse.Namespace, sources: Sequence["Source"]) -> "Found":
    """Measure the gradient signal-to-noise ratio."""
    from ..analysis import gsnr

    heads = heads_of(args)
    measured = []
    for source in sources:
        own = opened(args, source, heads=heads)
        curves = gsnr.measure(
            own,
            images=args.num,
            batch=args.batch,
            bins=args.bins,
            seed=args.seed,
            params=args.params,
            levels=args.levels,
        )
        measured.append((own, curves))
    record = common_record(args, [own for own, _ in measured])
    return [gsnr.finding(measured, args.params)], record


def target(args: argparse.Namespace, sources: Sequence["Source"]) -> "Found":
    """Measure how constant the targets are."""
    from ..analysis import target

    heads = heads_of(args)
    measured = []
    for source in sources:
        own = opened(args, source, heads=heads)
        options = dict(images=args.num, batch=args.batch, points=args.points, seed=args.seed)
        measured.append((own, target.measure(own, **options)))
    return [target.finding(measured)], common_record(args, [own for own, _ in measured])


def router(args: argparse.Namespace, sources: Sequence["Source"]) -> "Found":
    """Tabulate the routers' policies."""
    from ..analysis import router

    findings: list[Finding] = []
    runs = []
    for source in sources:
        own = opened(args, source)
        options = dict(images=args.num, batch=args.batch, points=args.points, seed=args.seed)
        findings += router.findings(own, router.measure(own, **options))
        runs.append(own)
    return findings, common_record(args, runs)


def pca(args: argparse.Namespace, sources: Sequence["Source"]) -> "Found":
    """Show levels, groups and blocks as colours."""
    from ..analysis import pca

    findings: list[Finding] = []
    runs = []
    options = dict(images=args.num, batch=args.batch, seed=args.seed)
    for source in sources:
        own = opened(args, source)
        found = pca.measure(own, times=args.times, chosen=args.images, **options)
        findings += pca.findings(own, found)
        runs.append(own)
    record = {**common_record(args, runs), "chosen_images": args.images, "times": args.times}
    return findings, record


def cost(args: argparse.Namespace, sources: Sequence["Source"]) -> "Found":
    """Count and measure costs."""
    from ..analysis import cost_comparison

    options = dict(batch=args.batch, steps=args.steps)
    costs = [cost_comparison.measure(source, **options) for source in sources]
    names = {"runs": [source.name for source in sources], "steps": args.steps}
    return [cost_comparison.finding(costs, args.batch)], names


def probe(args: argparse.Namespace, sources: Sequence["Source"]) -> "Found":
    """Compare blocks with teachers."""
    from ..analysis import probe

    findings: list[Finding] = []
    runs = []
    for source in sources:
        own = opened(args, source, drop_alignments=True)
        found = probe.measure(
            own,
            images=args.num,
            batch=args.batch,
            bins=args.bins,
            seed=args.seed,
            blocks=args.blocks,
            layers=args.layers,
        )
        findings.append(probe.finding(own, found))
        runs.append(own)
    return findings, common_record(args, runs)


Found = tuple[list["Finding"], dict[str, Any]]
DIAGNOSTICS: dict[str, Callable[[argparse.Namespace, Sequence["Source"]], Found]] = {
    "gsnr": gsnr,
    "router": router,
    "pca": pca,
    "cost": cost,
    "target": target,
    "probe": probe,
}

if __name__ == "__main__":
    sys.exit(main())
