"""AHPA and SRA 2 at once on SiT-B/2.

Two alignments of one model, each with its own block, prior and weight.

Command: python tools/train.py configs/ahpa-sra2_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table (no repository offers it).
"""

_base_ = [
    "_base_/backbones/sit-b.py",
    "_base_/methods/sra2.py",
    "_base_/methods/ahpa.py",
    "_base_/recipes/ahpa.py",
]
_base_.model.merge(_base_._sra2)
_base_.model.tokenizer.statistics = "sd-imagenet"
_base_.model.alignments.main.tap = 2
_base_.model.alignments.main.projector.hidden_dim = 1536
_base_.model.priors.vae = _base_._ahpa.priors.vae
_base_.model.alignments.ahpa = dict(
    _base_._ahpa.alignments.main,
    tap=3,
    router=dict(type="MLPRouter", groups="4/4"),
)
