"""SRA on block 8 of SiT-XL/2 at 512 px (64 x 64 latents, 1024 tokens).

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra_sit-xl_512px.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400 epochs: FID 2.07. Train with --max-iters 2001600, sample with --sampler
    sde --steps 250 --cfg-scale 1.8 --cfg-interval 0 0.7.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/sra.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._sra)
_base_.model.alignments.main.tap = 8
_base_.model.priors.ema.block = 20
_base_.model.alignments.main.projector.hidden_dim = 2304
_base_.model.resolution = 512
