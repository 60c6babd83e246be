"""SRA 2: the latent itself as the target, a five-layer MLP, smooth L1 (no code exists; widths inferred).

On block 8 of SiT-L/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sra2_sit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 14.3.
"""

_base_ = ["sra2_sit-b.py"]
model = dict(
    backbone=dict(depth=24, hidden_size=1024, num_heads=16),
    alignments=dict(main=dict(tap=8, projector=dict(hidden_dim=2048))),
)
