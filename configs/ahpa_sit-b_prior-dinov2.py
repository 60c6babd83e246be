"""AHPA's router over the last four blocks of DINOv2-B, two and two, instead of the VAE's levels.

With the entropy floor: without it the router of the demo is at one block of each group within 20
steps.

Command: python tools/train.py configs/ahpa_sit-b_prior-dinov2.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (no repository offers it).
"""

_base_ = [
    "_base_/backbones/sit-b.py",
    "_base_/methods/ahpa_entropy-floor.py",
    "_base_/recipes/ahpa.py",
]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.priors = dict(
    dino=dict(type="TimmEncoder", model="vit_base_patch14_dinov2.lvd142m", inner=True),
)
_base_.model.alignments.main.merge(dict(source="dino", router=dict(groups="2/2")))
