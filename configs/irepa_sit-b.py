"""iREPA on SiT-B/2: REPA at block 4 with a 3 x 3 convolution and spatially normalised targets.

Gamma 0.6, weight 1: the method's published recipe.

Command: python tools/train.py configs/irepa_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 21.40 (REPA there 22.75).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/irepa.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._irepa)
_base_.model.alignments.main.tap = 4
