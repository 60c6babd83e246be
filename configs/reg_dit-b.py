"""REG on block 4 of DiT-B/2: REPA, and DINOv2's class token diffused beside the image by the same steps.

The recipe is the method's on SiT, over DiT's noise prediction and loss: blocks and weights are taken over [inferred].
The class token's noise is predicted, without a variance: plain mean square of weight 0.03.

Command: python tools/train.py configs/reg_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["dit-b.py", "_base_/reg.py"]
model = _base_._reg
model.backbone = dict(type="ClassStreamDiT", class_width=768)
optim_wrapper = dict(clip_grad=1.0)
