"""AHPA on block 7 of SiT-XL/2 at 512 px (64 x 64 latents, 1024 tokens, 32 x 32 targets).

Command: torchrun --nproc-per-node 8 tools/train.py configs/ahpa_sit-xl_512px.py --data IMAGENET/train --launcher
    pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table F.19, row "+ AHPA" (100 epochs): FID 2.28, sFID 4.16, IS 261.4, Precision 0.84, Recall 0.56.
"""

_base_ = ["ahpa_sit-xl.py"]
model = dict(resolution=512)
train_dataloader = dict(dataset=dict(resolution=512))
