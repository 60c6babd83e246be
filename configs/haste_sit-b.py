"""HASTE (arXiv:2505.16792) on SiT-B/2: REPA at block 8 and attention maps, stopped early.

Blocks 5 to 8 get the attention of DINOv2-B's blocks 9 to 12; both terms have weight 0.5 and stop
after 100,000 steps. The authors' code gives the blocks for SiT-XL; that SiT-B has the same ones is
inferred, and so is REPA's recipe.

Command: python tools/train.py configs/haste_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: RARE's comparison, table 2, 400K steps without guidance (SDE of 250 steps, 50K samples): FID
    18.99.
Paper: RARE's comparison, table 2, 400K steps: FID 5.00. Sample with --sampler sde --steps 250
    --cfg-scale 1.65 --cfg-interval 0 0.72.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/haste.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._haste)
_base_.model.alignments.main.tap = 8
_base_.model.alignments.main.weight.until_step = 100_000
_base_.model.alignments.attention.weight.until_step = 100_000
