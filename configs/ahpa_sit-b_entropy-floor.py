"""AHPA with a floor under the router's entropies, half of the largest, against its collapse onto the easiest levels.

Command: python tools/train.py configs/ahpa_sit-b_entropy-floor.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["ahpa_sit-b.py"]
_base_.model.alignments.main.entropy_floor = 0.5
_base_.model.alignments.main.entropy_weight = 1.0
