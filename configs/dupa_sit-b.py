"""DUPA on SiT-B/2 blocks: a condition encoder of 8 blocks and a velocity decoder, two noisings of each image aligned at s.

Its code could not be read: the projector's widths and gain are inferred. A step costs twice that of SiT at the same batch.

Command: python tools/train.py configs/dupa_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: no figure for this size.
"""

_base_ = ["sit-b.py"]
model = dict(
    backbone=dict(type="DDT", encoder_depth=8),
    flow=dict(views=2),
    alignments=dict(
        views=dict(
            type="ViewAlignment",
            tap=8,
            out_dim=768,
            projector=dict(type="MLPProjector", depth=3, hidden_dim=2048, gain=0.5),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=0.5,
        )
    ),
)
