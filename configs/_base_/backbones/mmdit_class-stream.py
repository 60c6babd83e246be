"""MMDiT with a second stream, DINOv2-B's class token (768 wide) prepended to the image's tokens."""

_base_ = ["mmdit.py"]
model = dict(backbone=dict(type="ClassStreamMMDiT", class_width=768))
