"""SRA on SiT-L/2: block 6 aligned with block 16 of the averaged model at a cleaner time.

A two-layer MLP, smooth L1, weight 0.2, clipping at 1.0: the paper's recipe.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sra_sit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's figure for this size is not known here.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/methods/sra.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._sra)
_base_.model.alignments.main.tap = 6
_base_.model.priors.ema.block = 16
_base_.model.alignments.main.projector.hidden_dim = 2048
