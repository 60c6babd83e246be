"""AHPA (MLP router over G3 | G4 of the SD encoder) on block 3 of DiT-B/2, with the recipe of ahpa_sit-b.py.

Command: python tools/train.py configs/ahpa_dit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["dit-b.py", "_base_/ahpa.py"]
model = _base_._ahpa
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=2.0)
