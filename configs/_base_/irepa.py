"""iREPA's alignment, `_irepa`: REPA's with a 3 x 3 convolution, spatially normalised targets (gamma 0.6) and weight 1."""

_base_ = ["repa.py"]
_irepa = _base_._repa
_irepa.priors.dino = dict(type="SpatialNorm", gamma=0.6, prior=_irepa.priors.dino)
_irepa.alignments.main.projector = dict(type="ConvProjector", layers=1, kernel=3)
_irepa.alignments.main.weight = 1.0
