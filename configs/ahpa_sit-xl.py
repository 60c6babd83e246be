"""AHPA on block 7 of SiT-XL/2.

Command: torchrun --nproc-per-node 8 tools/train.py configs/ahpa_sit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-XL/2 ahpa 400000": FID 8.1, sFID 4.9, IS 112.0, Precision 0.71, Recall 0.62.
"""

_base_ = ["ahpa_sit-b.py"]
model = dict(backbone=dict(depth=28, hidden_size=1152, num_heads=16), alignments=dict(main=dict(tap=7)))
