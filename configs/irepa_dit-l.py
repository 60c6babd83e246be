"""iREPA on block 8 of DiT-L/2: REPA with a 3 x 3 convolution, spatially normalised targets and weight 1.

The recipe is the method's on SiT, over DiT's noise prediction and loss: blocks and weights are taken over [inferred].

Command: torchrun --nproc-per-node 4 tools/train.py configs/irepa_dit-l.py --data IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table, and no figure of the method on DiT is known here.
"""

_base_ = ["irepa_dit-b.py"]
model = dict(backbone=dict(depth=24, hidden_size=1024, num_heads=16), alignments=dict(main=dict(tap=8)))
