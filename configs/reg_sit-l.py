"""REG: REPA, and DINOv2's class token diffused beside the image; all 257 tokens aligned, class loss weight 0.03.

On block 8 of SiT-L/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 4 tools/train.py configs/reg_sit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 4.6.
"""

_base_ = ["reg_sit-b.py"]
model = dict(
    backbone=dict(depth=24, hidden_size=1024, num_heads=16),
    alignments=dict(main=dict(tap=8)),
)
