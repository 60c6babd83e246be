"""What differs between two protocols: python tools/compare_protocols.py is `ahpa compare-protocols`
(see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without an install
from ahpa.cli.compare_protocols import main

if __name__ == "__main__":
    sys.exit(main())
