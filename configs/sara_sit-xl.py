"""SARA: REPA with autocorrelation and adversarial terms; the weights are a re-implementation's, unverified.

On block 8 of SiT-XL/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sara_sit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's (abstract): FID 1.36 guided.
"""

_base_ = ["sara_sit-b.py"]
model = dict(
    backbone=dict(depth=28, hidden_size=1152, num_heads=16),
    alignments=dict(main=dict(tap=8)),
)
