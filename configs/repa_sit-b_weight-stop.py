"""REPA on SiT-B/2 whose alignment stops after 100,000 steps, where HASTE ends its own.

In steps, whatever the length of the run: 100,000 for B, 250,000 for L and XL. HASTE itself aligns
attention maps too: see `haste_sit-b`.

Command: python tools/train.py configs/repa_sit-b_weight-stop.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/repa.py", "_base_/recipes/repa.py"]
_base_.model.merge(_base_._repa)
_base_.model.alignments.main.tap = 4
_base_.model.alignments.main.weight = dict(type="EarlyStop", value=0.5, until_step=100_000)
