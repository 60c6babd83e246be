"""SiT-S/2: 12 blocks, 384 wide, 6 heads."""

_base_ = ["sit.py"]
model = dict(backbone=dict(depth=12, hidden_size=384, num_heads=6))
