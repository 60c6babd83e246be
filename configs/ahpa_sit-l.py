"""AHPA on SiT-L/2: block 6 aligned with G3 | G4 of the SD encoder, weighed by an MLP router.

Learning rate 2e-4 and clipping at 2.0 as in the authors' README.

Command: torchrun --nproc-per-node 4 tools/train.py configs/ahpa_sit-l.py --data IMAGENET/train
    --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-L/2 ahpa 400000": FID 10.5, sFID 4.97, IS 92.1, Precision 0.69, Recall
    0.62.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/methods/ahpa.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 6
