"""REG, `_reg`: REPA's alignment of all 257 tokens, and DINOv2's class token diffused beside the image, loss weight 0.03.

The backbone must have the second stream: ClassStreamSiT, ClassStreamDiT or ClassStreamMMDiT.
"""

_base_ = ["repa.py"]
_reg = _base_._repa
_reg.alignments.main.router.prefix = ["cls"]
_reg.streams = dict(cls=dict(source="dino", level="cls"))
_reg.flow_loss = dict(weights=dict(cls=0.03))
