"""AHPA with iREPA's spatial normalisation (gamma 0.6) of each VAE level before the router.

Command: python tools/train.py configs/ahpa_sit-b_spatial-norm.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (no repository offers it).
"""

_base_ = ["ahpa_sit-b.py"]
_base_.model.priors.vae = dict(type="SpatialNorm", gamma=0.6, prior=dict(type="VAETaps"))
