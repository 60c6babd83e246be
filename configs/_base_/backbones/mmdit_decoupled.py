"""MMDiT blocks as a condition encoder of 8 joint blocks and a decoder: DDT's split [inferred]."""

_base_ = ["mmdit.py"]
model = dict(backbone=dict(type="DDTMMDiT", encoder_depth=8))
