"""DiT-L/2 with a second stream, DINOv2-B's class token (768 wide) alongside the image's tokens."""

_base_ = ["dit-l.py"]
model = dict(backbone=dict(type="ClassStreamDiT", class_width=768))
