"""REPA (arXiv:2410.06940) on SiT-L/2: block 8 aligned with DINOv2-B's patch tokens.

A three-layer MLP, cosine, weight 0.5: the method's published recipe.

Command: torchrun --nproc-per-node 4 tools/train.py configs/repa_sit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 9.7.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/methods/repa.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._repa)
_base_.model.alignments.main.tap = 8
