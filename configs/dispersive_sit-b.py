"""Dispersive Loss (arXiv:2506.09027) on SiT-B/2: samples repel each other in block 3.

Weight 0.5, tau 0.5, pools of 16, a quarter of the depth: the setting of the authors' JAX code. The
recipe is SiT's [inferred].

Command: python tools/train.py configs/dispersive_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own (arXiv:2506.09027), 80 epochs, ODE: FID 32.35 (SiT there 36.49).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/dispersive.py", "_base_/recipes/sit.py"]
_base_.model.merge(_base_._dispersive)
_base_.model.alignments.main.tap = 3
