"""SRA 2: the latent itself as the target, a five-layer MLP, smooth L1 (no code exists; widths inferred).

On block 8 of SiT-XL/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra2_sit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, without guidance: 1M FID 8.2, 4M 6.6; guided 800 epochs 1.52.
"""

_base_ = ["sra2_sit-b.py"]
model = dict(
    backbone=dict(depth=28, hidden_size=1152, num_heads=16),
    alignments=dict(main=dict(tap=8, projector=dict(hidden_dim=2304))),
)
