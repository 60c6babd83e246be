"""SRA: the averaged model at a cleaner time as the teacher, smooth L1, weight 0.2 (the paper's recipe).

On block 6 of SiT-L/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sra_sit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's figure for this size is not known here.
"""

_base_ = ["sra_sit-b.py"]
model = dict(
    backbone=dict(depth=24, hidden_size=1024, num_heads=16),
    priors=dict(ema=dict(block=16)),
    alignments=dict(main=dict(tap=6, projector=dict(hidden_dim=2048))),
)
