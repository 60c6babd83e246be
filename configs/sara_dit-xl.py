"""SARA on DiT-XL/2: REPA at block 8 plus autocorrelation and adversarial terms.

The weights of its terms are a re-implementation's, unverified. The method's settings on SiT are
kept [inferred]; noise prediction and loss are DiT's.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sara_dit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["_base_/backbones/dit-xl.py", "_base_/methods/sara.py", "_base_/recipes/dit_repa.py"]
_base_.model.merge(_base_._sara)
_base_.model.alignments.main.tap = 8
