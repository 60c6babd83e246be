"""REPA (arXiv:2410.06940) on SiT-B/2: block 4 aligned with DINOv2-B's patch tokens.

A three-layer MLP, cosine, weight 0.5: the method's published recipe.

Command: python tools/train.py configs/repa_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 24.4.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/repa.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._repa)
_base_.model.alignments.main.tap = 4
