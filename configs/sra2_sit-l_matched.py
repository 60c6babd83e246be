"""SRA 2 on SiT-L/2 with AHPA's optimiser (lr 2e-4, clip 2.0), for comparisons under one recipe.

Command: torchrun --nproc-per-node 4 tools/train.py configs/sra2_sit-l_matched.py --data
    IMAGENET/train --launcher pytorch
Hardware: 4 GPUs of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: AHPA Table 3, row "SiT-L/2 sra2 400000": FID 16.2, sFID 5.11, IS 77.4, Precision 0.65, Recall
    0.62.
"""

_base_ = ["_base_/backbones/sit-l.py", "_base_/methods/sra2.py", "_base_/recipes/ahpa.py"]
_base_.model.merge(_base_._sra2)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 8
_base_.model.alignments.main.projector.hidden_dim = 2048
