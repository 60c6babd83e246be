"""Train from a config: python tools/train.py ... is `ahpa train ...` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without an install
from ahpa.registry import signals

if __name__ == "__main__":
    signals.install()  # before anything slow is imported
    from ahpa.cli.common import mistakes_in_one_line
    from ahpa.cli.train import prepare

    with mistakes_in_one_line():
        prepare().train()
