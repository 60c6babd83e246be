"""Three static alignments with group G4, each a third of the weight.

Command: python tools/train.py configs/static-g4_sit-b_block-3-4-8.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 1, row "block Multi {3,4,8}": FID 32.9, IS 47.2.
"""

_base_ = ["_base_/backbones/sit-b.py", "_base_/methods/static.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._static)
_base_.model.alignments.main.router.groups = "G4"
_main = _base_.model.alignments.pop("main")
_base_.model.alignments = {f"block{tap}": dict(_main, tap=tap, weight=1 / 3) for tap in (3, 4, 8)}
