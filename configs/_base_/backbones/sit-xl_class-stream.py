"""SiT-XL/2 with a second stream, DINOv2-B's class token (768 wide) alongside the image's tokens."""

_base_ = ["sit-xl.py"]
model = dict(backbone=dict(type="ClassStreamSiT", class_width=768))
