"""AHPA on block 6 of SiT-L/2.

Command: torchrun --nproc-per-node 4 tools/train.py configs/ahpa_sit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-L/2 ahpa 400000": FID 10.5, sFID 4.97, IS 92.1, Precision 0.69, Recall 0.62.
"""

_base_ = ["ahpa_sit-b.py"]
model = dict(backbone=dict(depth=24, hidden_size=1024, num_heads=16), alignments=dict(main=dict(tap=6)))
