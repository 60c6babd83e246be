"""iREPA on SiT-XL/2: REPA at block 8 with a 3 x 3 convolution and spatially normalised targets.

Gamma 0.6, weight 1: the method's published recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/irepa_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 7.52 (REPA there 7.76).
Paper: the method's own, 100K steps without guidance: FID 16.9 (REPA there 19.3). Train with
    --max-iters 100000.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/irepa.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._irepa)
_base_.model.alignments.main.tap = 8
