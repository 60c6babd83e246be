"""Dispersive Loss on SiT-B/2 as in the authors' PyTorch port: the last block, pools of 32.

Weight 0.25 and tau 1, where the JAX code has block 3, pools of 16, weight 0.5 and tau 0.5.

Command: python tools/train.py configs/dispersive_sit-b_port-pytorch.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (arXiv:2506.09027).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/dispersive.py", "_base_/recipes/sit.py"]
_base_.model.merge(_base_._dispersive)
_base_.model.alignments.main.tap = 12
_base_.model.alignments.main.regulariser = dict(type="DispersiveLoss", tau=1.0, pool=32)
_base_.model.alignments.main.weight = 0.25
