"""DUPA on DiT-L/2 blocks: an encoder of 8 blocks and a decoder, two noisings of each image aligned at s.

The recipe is the method's on SiT, over DiT's noise prediction and loss: blocks and weights are taken over [inferred].
Its code could not be read: the projector's widths and gain are inferred. A step draws two steps for each image.

Command: torchrun --nproc-per-node 4 tools/train.py configs/dupa_dit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["dupa_dit-b.py"]
model = dict(backbone=dict(depth=24, hidden_size=1024, num_heads=16))
