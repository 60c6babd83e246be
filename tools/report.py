"""Write a report on runs: python tools/report.py ... is `ahpa report ...` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without an install
from ahpa.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
