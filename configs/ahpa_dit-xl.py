"""AHPA on block 7 of DiT-XL/2.

Command: torchrun --nproc-per-node 8 tools/train.py configs/ahpa_dit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["ahpa_dit-b.py"]
model = dict(backbone=dict(depth=28, hidden_size=1152, num_heads=16), alignments=dict(main=dict(tap=7)))
