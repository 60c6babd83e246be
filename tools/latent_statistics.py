"""Measure latents: python tools/latent_statistics.py ... is `ahpa latent-statistics ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without an install
from ahpa.cli.latent_statistics import main

if __name__ == "__main__":
    sys.exit(main())
