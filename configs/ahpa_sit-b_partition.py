"""AHPA over all 15 levels of the SD encoder, in four learned groups.

The groups start from the paper's G1 .. G4. The floor under the entropies keeps them from meeting at
the one level that is easiest to predict.

Command: python tools/train.py configs/ahpa_sit-b_partition.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested (before pooling, the levels of a batch of 256 are 21 GiB in
    bf16); time not measured (400K steps of batch 256).
Paper: not a row of a table (its Appendix J asks for a learned partition).
"""

_base_ = [
    "_base_/backbones/sit-b.py",
    "_base_/methods/ahpa_entropy-floor.py",
    "_base_/recipes/ahpa.py",
]
_base_.model.merge(_base_._ahpa)
_base_.model.alignments.main.tap = 3
_base_.model.priors.vae = dict(
    type="SpatialNorm",
    gamma=0.6,
    prior=dict(type="Pooled", prior=dict(type="VAETaps")),
)
_base_.model.alignments.main.router = dict(type="PartitionRouter", groups="G1+G2+G3+G4", start=2.0)
