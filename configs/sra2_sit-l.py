"""SRA 2 on SiT-L/2: block 8 aligned with the latent itself.

A five-layer MLP, smooth L1; no code exists, the widths are inferred.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sra2_sit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own, 400K steps without guidance: FID 14.3.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/methods/sra2.py", "_base_/recipes/sit_noflip.py"]
_base_.model.merge(_base_._sra2)
_base_.model.alignments.main.tap = 8
_base_.model.alignments.main.projector.hidden_dim = 2048
