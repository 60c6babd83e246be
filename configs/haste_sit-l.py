"""HASTE (arXiv:2505.16792) on SiT-L/2: REPA at block 8 and attention maps, stopped early.

Blocks 5 to 8 get the attention of DINOv2-B's blocks 9 to 12; both terms have weight 0.5 and stop
after 250,000 steps. The authors' code gives the blocks for SiT-XL; that SiT-L has the same ones is
inferred, and so is REPA's recipe.

Command: torchrun --nproc-per-node 4 tools/train.py configs/haste_sit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (arXiv:2505.16792).
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/methods/haste.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._haste)
_base_.model.alignments.main.tap = 8
