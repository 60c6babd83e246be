"""G3 and G4 weighed by the linear heuristic: beta_deep = t.

Command: python tools/train.py configs/ahpa_sit-b_router-linear.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table D.15, row "G3uG4 Heuristic (Linear)": IS 50.2, FID 28.6, Precision 0.59.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.alignments.main.router = dict(type="LinearRouter", groups="4/4")
