"""Self-Flow (arXiv:2603.06507) on SiT-XL/2: block 8 aligned with block 20 of the averaged model.

Two times in each image; the teacher sees the cleaner one. The blocks are 0.3 and 0.7 of the depth,
rounded [inferred]; the recipe is SiT's without flips [inferred].

Command: torchrun --nproc-per-node 8 tools/train.py configs/selfflow_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (arXiv:2603.06507).
"""

_base_ = [
    "_base_/backbones/sit-xl.py",
    "_base_/methods/selfflow.py",
    "_base_/recipes/sit_noflip.py",
]
_base_.model.merge(_base_._selfflow)
_base_.model.alignments.main.tap = 8
_base_.model.priors.ema.block = 20
_base_.model.alignments.main.projector.hidden_dim = 2304
