"""Print or run a table of the paper: python tools/table.py ... is `ahpa table ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without an install
from ahpa.cli.table import main

if __name__ == "__main__":
    sys.exit(main())
