"""SRA 2 on block 8 of SiT-XL/2 at 512 px.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra2_sit-xl_512px.py --data IMAGENET/train --launcher
    pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table F.19, row "+ SRA 2" (100 epochs): FID 2.45, sFID 4.28, IS 249.1, Precision 0.83, Recall 0.55.
"""

_base_ = ["sra2_sit-xl.py"]
model = dict(resolution=512)
train_dataloader = dict(dataset=dict(resolution=512))
