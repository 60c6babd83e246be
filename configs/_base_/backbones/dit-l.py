"""DiT-L/2: 24 blocks, 1024 wide, 16 heads."""

_base_ = ["dit.py"]
model = dict(backbone=dict(depth=24, hidden_size=1024, num_heads=16))
