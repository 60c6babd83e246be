"""SARA on SiT-L/2: REPA at block 8 plus autocorrelation and adversarial terms.

The weights of its terms are a re-implementation's, unverified.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sara_sit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: no figure for this size.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/methods/sara.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._sara)
_base_.model.alignments.main.tap = 8
