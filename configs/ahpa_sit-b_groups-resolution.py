"""AHPA with levels grouped by resolution (the paper's Appendix B).

Command: python tools/train.py configs/ahpa_sit-b_groups-resolution.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["ahpa_sit-b.py"]
_base_.model.alignments.main.router.groups = "resolution"
