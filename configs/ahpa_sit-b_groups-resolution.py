"""AHPA with levels grouped by resolution (the paper's Appendix B).

On Stable Diffusion's encoder the groups are {7, 8} and {9 to 14}: the model of
`ahpa_sit-b_groups-2-6`, whose figure is its own. The figures that Tables B.10 and B.11 print for
this autoencoder are those of 4/4, `ahpa_sit-b`.

Command: python tools/train.py configs/ahpa_sit-b_groups-resolution.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router.groups = "resolution"
