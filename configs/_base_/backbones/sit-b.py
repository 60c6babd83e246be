"""SiT-B/2: 12 blocks, 768 wide, 12 heads."""

_base_ = ["sit.py"]
model = dict(backbone=dict(depth=12, hidden_size=768, num_heads=12))
