"""REPA on block 8 of SiT-XL/2 at 512 px; DINOv2 sees 448 px, a 32 x 32 grid.

Command: torchrun --nproc-per-node 8 tools/train.py configs/repa_sit-xl_512px.py --data IMAGENET/train --launcher
    pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table F.19, row "+ REPA" (100 epochs): FID 2.37, sFID 4.2, IS 253.7, Precision 0.83, Recall 0.56.
"""

_base_ = ["repa_sit-xl.py"]
model = dict(resolution=512)
train_dataloader = dict(dataset=dict(resolution=512))
