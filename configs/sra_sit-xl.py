"""SRA: the averaged model at a cleaner time as the teacher, smooth L1, weight 0.2 (the paper's recipe).

On block 8 of SiT-XL/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra_sit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, guided (1.8, t up to 0.7): 400 epochs FID 1.85, 800 epochs 1.58.
Paper: AHPA Table 4, row "+ SRA" (800 epochs): FID 1.58, sFID 4.65, IS 305.7, Precision 0.8, Recall 0.63.
Paper: AHPA Table G.20, row "+ SRA" (800 epochs): FID 1.58, sFID 4.65, IS 305.7, Precision 0.8, Recall 0.63.
Paper: AHPA Table 6, row "+ SRA": TS_iter_per_s 5.1, GFLOPs 197.6.
Paper: AHPA Table I.21, row "+ SRA": TS_iter_per_s 5.1, GFLOPs 197.57, latency_ms 30.9.
"""

_base_ = ["sra_sit-b.py"]
model = dict(
    backbone=dict(depth=28, hidden_size=1152, num_heads=16),
    priors=dict(ema=dict(block=20)),
    alignments=dict(main=dict(tap=8, projector=dict(hidden_dim=2304))),
)
