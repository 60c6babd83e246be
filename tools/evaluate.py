"""Evaluate samples: python tools/evaluate.py ... is `ahpa evaluate ...` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without an install
from ahpa.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
