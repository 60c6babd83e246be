"""HASTE (arXiv:2505.16792) on SiT-XL/2: REPA at block 8 and attention maps, stopped early.

Blocks 5 to 8 get the attention of DINOv2-B's blocks 9 to 12; both terms have weight 0.5 and stop
after 250,000 steps, as in the authors' code. The recipe is REPA's [inferred].

Command: torchrun --nproc-per-node 8 tools/train.py configs/haste_sit-xl.py --data IMAGENET/train
    --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: the method's own (arXiv:2505.16792), 50 epochs without guidance: FID 8.39. Train with
    --max-iters 250200.
Paper: the method's own, 100 epochs without guidance: FID 5.31. Train with --max-iters 500400.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/haste.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._haste)
_base_.model.alignments.main.tap = 8
