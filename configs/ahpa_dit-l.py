"""AHPA on block 6 of DiT-L/2.

Command: torchrun --nproc-per-node 4 tools/train.py configs/ahpa_dit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["ahpa_dit-b.py"]
model = dict(backbone=dict(depth=24, hidden_size=1024, num_heads=16), alignments=dict(main=dict(tap=6)))
