"""REPA on SiT-B/2 whose alignment stops at half of the run, as HASTE ends its own early.

HASTE also aligns attention maps, which is not here, and where it stops is not known here: half is a guess [inferred].

Command: python tools/train.py configs/repa_sit-b_weight-stop.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["repa_sit-b.py"]
_base_.model.alignments.main.weight = dict(type="EarlyStop", value=0.5, until=0.5)
