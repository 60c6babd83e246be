"""REG on block 8 of SiT-XL/2 at 512 px; DINOv2 sees 448 px, a 32 x 32 grid: 1025 tokens with the class token.

Command: torchrun --nproc-per-node 8 tools/train.py configs/reg_sit-xl_512px.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["reg_sit-xl.py"]
model = dict(resolution=512)
train_dataloader = dict(dataset=dict(resolution=512))
