"""REG: REPA, and DINOv2's class token diffused beside the image; all 257 tokens aligned, class loss weight 0.03.

On block 4 of SiT-B/2; published recipe: the method's own.

Command: python tools/train.py configs/reg_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 15.2, sFID 6.69, IS 94.6.
"""

_base_ = ["sit-b.py", "_base_/reg.py"]
model = _base_._reg
model.backbone = dict(type="ClassStreamSiT", class_width=768)
optim_wrapper = dict(clip_grad=1.0)
