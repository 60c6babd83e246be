"""SARA on SiT-XL/2: REPA at block 8 plus autocorrelation and adversarial terms.

The weights of its terms are a re-implementation's, unverified.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sara_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's abstract has FID 1.36, of a length and guidance that are not known here.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/sara.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._sara)
_base_.model.alignments.main.tap = 8
