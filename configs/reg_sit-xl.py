"""REG: REPA, and DINOv2's class token diffused beside the image; all 257 tokens aligned, class loss weight 0.03.

On block 8 of SiT-XL/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 8 tools/train.py configs/reg_sit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, without guidance: 400K FID 3.4, 4M 1.8; guided (2.3, t up to 0.85) 800 epochs: 1.36.
Paper: AHPA Table 4, row "+ REG" (800 epochs): FID 1.36, sFID 4.25, IS 299.4, Precision 0.77, Recall 0.66.
Paper: AHPA Table G.20, row "+ REG" (800 epochs): FID 1.36, sFID 4.25, IS 299.4, Precision 0.77, Recall 0.66.
"""

_base_ = ["reg_sit-b.py"]
model = dict(
    backbone=dict(depth=28, hidden_size=1152, num_heads=16),
    alignments=dict(main=dict(tap=8)),
)
