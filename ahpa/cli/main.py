"""The console command `ahpa`; `ahpa train ...` is the same as `python tools/train.py ...`."""

import importlib
import sys
from collections.abc import Sequence

from ..registry import nearest, signals

COMMANDS = {  # name -> (module, what it does)
    "train": ("train", "train a diffusion transformer from a config"),
    "sample": ("sample", "draw samples from a checkpoint, a run, a published folder or a Hub id"),
    "evaluate": ("evaluate", "compute FID and other metrics of a model or of given samples"),
    "reference": ("reference", "make a reference for metrics, in ADM's format, from pictures"),
    "compare": ("compare", "say whether one method is better, from runs over several seeds"),
    "compare-protocols": ("compare_protocols", "name what differs between two results' protocols"),
    "analyze": ("analyze", "look into runs: gsnr, router, pca, cost, target, probe"),
    "table": ("table", "run a table of the paper, and print our figures beside its own"),
    "report": ("report", "write curves, samples, verdicts and differences of runs as a page"),
    "publish": ("publish", "make a run a folder to share"),
    "import-weights": ("import_weights", "read published checkpoints, and write ours as such"),
    "latent-statistics": (
        "latent_statistics",
        "measure mean and deviation of an autoencoder's latents over a data set",
    ),
    "list": ("list_components", "list every registered component"),
    "configs": ("list_configs", "list the shipped configs, or print where they are"),
}


def usage() -> str:
    """Return the help text of the command itself."""
    lines = [f"  {name:18s}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: ahpa COMMAND ...", "", *lines, "", "ahpa COMMAND --help says more."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command and its arguments; by default those of the process.

    Returns:
        Exit code: 0 for success, 2 for a user's mistake.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = given
    if name == "--version":
        from .. import __version__

        print(f"ahpa {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    if name == "train":
        signals.install()  # before anything slow is imported
    module = importlib.import_module(f"ahpa.cli.{COMMANDS[name][0]}")
    return module.main(rest)


if __name__ == "__main__":
    sys.exit(main())
