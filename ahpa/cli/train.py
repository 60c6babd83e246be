"""Train a diffusion transformer from a config: ahpa train CONFIG [--demo] ...

CONFIG is a path, or the name of a shipped config such as ahpa_sit-b_router-lut.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine import config as configs
from ..engine import lock
from ..engine.distributed import LAUNCHERS
from ..engine.dryrun import dry_run
from ..engine.plain import to_plain
from ..engine.run_log import start_logging
from ..engine.weights import with_autoencoder
from ..registry import signals
from ..registry.contracts import Dataset
from ..registry.errors import printable
from ..registry.locations import find_config
from . import demo
from .common import make_parser, mistakes_in_one_line, refuse_empty

if TYPE_CHECKING:
    from ..engine.runner import AlignmentRunner
    from ..engine.trainer import Trainer

logger = logging.getLogger("ahpa")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "train")
    add = parser.add_argument
    add("config", help="a config file, a shipped config's name, or the config.json of a run")
    add("--demo", action="store_true", help="small model, drawn images, bundled autoencoder")
    add("--data", metavar="DIR", help="class folders or a zip of them, or COCO's folder")
    add("--vae", metavar="ID_OR_PATH", help="autoencoder: a diffusers folder, a file, a Hub id")
    add("--work-dir", help="where everything is written; default work_dirs/<config's name>")
    add("--max-iters", type=int, metavar="N", help="optimiser steps")
    add("--resume", action="store_true", help="continue from the newest valid checkpoint")
    add(
        "--accept-changed-data",
        action="store_true",
        help="with --resume: go on although the data set is not the checkpoint's",
    )
    add("--dry-run", action="store_true", help="one step on synthetic data; print sizes and cost")
    add("--seed", type=int, metavar="N", help="default 0, or the config's")
    add(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="such as compile=True model.alignments.main.tap=4",
    )
    add(
        "--launcher",
        choices=LAUNCHERS,
        default="none",
        help="pytorch: started by torchrun",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake ends the process with exit code 2."""
    try:
        with mistakes_in_one_line():
            prepare(arguments).train()
    finally:
        signals.restore()
        lock.release_all()
    return 0


def prepare(arguments: Sequence[str] | None = None) -> "Trainer":
    """Read the command line, check the config and build everything: what is left is to train.

    Raises:
        UserError: For a user's mistake.
        SystemExit: After --dry-run (code 0), as after --help; and after a signal that came before
            there was anything to save.
    """
    signals.install()
    args = parse(arguments)
    start_logging()
    end_if_asked(args)
    cfg = training_config(args)
    if args.dry_run:
        print_dry_run(cfg)
        sys.exit(0)
    runner = make_runner(
        cfg,
        resume=args.resume,
        fit_classes=bool(args.data),
        accept_changed_data=args.accept_changed_data,
    )
    return runner.trainer


def end_if_asked(args: argparse.Namespace) -> None:
    """End the process if a signal came while it started: there is nothing to save.

    One of several processes goes on to the first step, where all of them stop together.
    """
    asked = signals.asked()
    if asked and args.launcher == "none":
        logger.info("%s before the first step: nothing was changed.", asked)
        sys.exit(0)


def training_config(args: argparse.Namespace) -> dict[str, Any]:
    """Return the checked config that the command line asks for.

    Raises:
        ConfigError: For a mistake, before data or weights are touched.
    """
    refuse_empty(config=args.config, data=args.data, vae=args.vae, work_dir=args.work_dir)
    path = find_config(args.config)
    cfg = configs.load(path)
    configs.check_keys(cfg)
    if args.data is not None:
        cfg["train_dataloader"]["dataset"] = data_set(cfg, args.data)
    if args.demo:
        demo.make_small(cfg, keep_data=args.data is not None)
    if args.vae is not None:
        own = cfg["model"].get("tokenizer") or {}
        cfg["model"]["tokenizer"] = with_autoencoder(own, args.vae)
    if args.max_iters is not None:
        cfg["train_cfg"]["max_iters"] = args.max_iters
    if args.seed is not None:
        cfg["randomness"] = {**(cfg.get("randomness") or {}), "seed": args.seed}
    for option in args.cfg_options:
        configs.set_option(cfg, option)
    configs.import_custom_modules(cfg.get("custom_imports"), path)
    configs.check_keys(cfg)
    cfg["launcher"] = args.launcher
    cfg.setdefault("method", Path(path).stem)  # a run's config.json has it already
    name = Path(path).stem + ("_demo" if args.demo else "")
    cfg["work_dir"] = args.work_dir or cfg.get("work_dir") or f"work_dirs/{name}"
    configs.check_config(cfg)
    return cfg


def data_set(cfg: dict[str, Any], root: str) -> dict[str, Any]:
    """Return the data set of --data: COCO if the config has captions, else class folders."""
    own = cfg["train_dataloader"]["dataset"]
    if own.get("type") == "CocoCaptions":
        return {
            **own,
            "images": f"{root}/train2014",
            "annotations": f"{root}/annotations/captions_train2014.json",
        }
    return {"type": "ImageFolder", "root": root, "flip": own.get("flip", False)}


def make_runner(
    cfg: dict[str, Any], *, resume: bool, fit_classes: bool, accept_changed_data: bool = False
) -> "AlignmentRunner":
    """Build the run and log its size, data and device.

    Args:
        cfg: A checked config.
        resume: Continue from the newest valid checkpoint.
        fit_classes: Set the number of classes to the data set's.
        accept_changed_data: Resume although the data set is not the checkpoint's.
    """
    from ..analysis.cost import cost_report
    from ..engine.runner import AlignmentRunner

    runner = AlignmentRunner.from_config(
        cfg, resume=resume, fit_classes=fit_classes, accept_changed_data=accept_changed_data
    )
    logger.info("ahpa: %s", cost_report(runner.net, short=True))
    logger.info("data: %s", describe(runner.trainer.dataset))
    for note in runner.trainer.dataset.notes:
        logger.info("note: %s", printable(note))
    device, world = runner.trainer.optimiser.device, runner.processes.world
    logger.info("work dir: %s  device: %s  processes: %d", cfg["work_dir"], device, world)
    return runner


def describe(dataset: Dataset) -> str:
    """Describe a data set in a few words."""
    count = f"{len(dataset)} images"
    if dataset.classes is None:
        return count
    named = ", ".join(printable(name) for name in dataset.classes[:10])
    shown = named + (", ..." if len(dataset.classes) > 10 else "")
    return f"{count}, {len(dataset.classes)} classes ({shown})"


def print_dry_run(cfg: dict[str, Any]) -> None:
    """Compute one step on synthetic images; print terms, sizes, cost and the resolved config."""
    from mmengine.config import Config

    from ..analysis.cost import cost_report

    done = dry_run(cfg)
    values = done.losses.scalars().items()
    print("terms of the step: " + "  ".join(f"{name} {float(value):.4g}" for name, value in values))
    print(cost_report(done.model))
    print(
        f"one step of batch 2 on synthetic data: {done.seconds:.2f} s, "
        f"peak memory {done.peak_memory_gib:.2f} GiB"
    )
    print("resolved config:")
    print(Config(to_plain(cfg)).pretty_text)
