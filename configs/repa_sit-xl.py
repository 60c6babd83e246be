"""REPA (arXiv:2410.06940): DINOv2-B patch tokens, a three-layer MLP, cosine, weight 0.5.

On block 8 of SiT-XL/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 8 tools/train.py configs/repa_sit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 7.9; 4M: 5.9; guided (1.8 on [0, 0.7]) 800 epochs: 1.42.
"""

_base_ = ["repa_sit-b.py"]
model = dict(
    backbone=dict(depth=28, hidden_size=1152, num_heads=16),
    alignments=dict(main=dict(tap=8)),
)
