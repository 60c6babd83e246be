"""Self-Flow (arXiv:2603.06507) on SiT-B/2: block 4 aligned with block 8 of the averaged model.

Two times in each image; the teacher sees the cleaner one. The blocks are 0.3 and 0.7 of the depth,
rounded [inferred]; the recipe is SiT's without flips [inferred].

Command: python tools/train.py configs/selfflow_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (arXiv:2603.06507).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/selfflow.py", "_base_/recipes/sit_noflip.py"]
_base_.model.merge(_base_._selfflow)
_base_.model.alignments.main.tap = 4
_base_.model.priors.ema.block = 8
_base_.model.alignments.main.projector.hidden_dim = 1536
