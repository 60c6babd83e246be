"""SiT-XL/2 blocks as a condition encoder of 8 blocks and a velocity decoder: DDT's split."""

_base_ = ["sit-xl.py"]
model = dict(backbone=dict(type="DDT", encoder_depth=8))
