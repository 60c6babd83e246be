"""SARA: REPA with autocorrelation and adversarial terms; the weights are a re-implementation's, unverified.

On block 8 of SiT-L/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sara_sit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: no figure for this size.
"""

_base_ = ["sara_sit-b.py"]
model = dict(
    backbone=dict(depth=24, hidden_size=1024, num_heads=16),
    alignments=dict(main=dict(tap=8)),
)
