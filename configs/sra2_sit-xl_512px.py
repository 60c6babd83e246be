"""SRA 2 on block 8 of SiT-XL/2 at 512 px.

Command: torchrun --nproc-per-node 8 tools/train.py configs/sra2_sit-xl_512px.py --data
    IMAGENET/train --launcher pytorch
Hardware: 8 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["_base_/backbones/sit-xl.py", "_base_/methods/sra2.py", "_base_/recipes/sit_noflip.py"]
_base_.model.merge(_base_._sra2)
_base_.model.alignments.main.tap = 8
_base_.model.alignments.main.projector.hidden_dim = 2304
_base_.model.resolution = 512
