"""REPA (arXiv:2410.06940): DINOv2-B patch tokens, a three-layer MLP, cosine, weight 0.5.

On block 8 of SiT-L/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 4 tools/train.py configs/repa_sit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 9.7.
"""

_base_ = ["repa_sit-b.py"]
model = dict(
    backbone=dict(depth=24, hidden_size=1024, num_heads=16),
    alignments=dict(main=dict(tap=8)),
)
