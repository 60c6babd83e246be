"""The commands: `ahpa train`, `ahpa sample`, ... and the same as `python tools/train.py`, ..."""
