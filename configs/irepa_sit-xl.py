"""iREPA: REPA with a 3 x 3 convolution, spatially normalised targets (gamma 0.6) and weight 1.

On block 8 of SiT-XL/2; published recipe: the method's own.

Command: torchrun --nproc-per-node 8 tools/train.py configs/irepa_sit-xl.py --data IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 7.52 (REPA there 7.76); 100K: 16.9.
"""

_base_ = ["irepa_sit-b.py"]
model = dict(
    backbone=dict(depth=28, hidden_size=1152, num_heads=16),
    alignments=dict(main=dict(tap=8)),
)
