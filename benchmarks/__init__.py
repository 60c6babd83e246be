"""Speed: run with `pytest benchmarks --benchmark-enable` (make bench)."""
