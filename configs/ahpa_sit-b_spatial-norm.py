"""AHPA with iREPA's spatial normalisation (gamma 0.6) of each VAE level before the router.

Command: python tools/train.py configs/ahpa_sit-b_spatial-norm.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (no repository offers it).
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.priors.vae = dict(type="SpatialNorm", gamma=0.6, prior=dict(type="VAETaps"))
