"""DiT-B/2 blocks as a condition encoder of 8 blocks and a decoder: DDT's split."""

_base_ = ["dit-b.py"]
model = dict(backbone=dict(type="DDTDiT", encoder_depth=8))
