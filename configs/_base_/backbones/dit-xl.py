"""DiT-XL/2: 28 blocks, 1152 wide, 16 heads."""

_base_ = ["dit.py"]
model = dict(backbone=dict(depth=28, hidden_size=1152, num_heads=16))
