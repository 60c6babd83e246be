"""Compare methods over runs: python tools/compare.py ... is `ahpa compare ...` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without an install
from ahpa.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
