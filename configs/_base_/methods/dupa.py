"""DUPA: two noisings of each image, aligned with each other at the end of the condition encoder.

Needs a decoupled backbone, `backbones/*_decoupled.py`. The config sets the block,
`alignments.views.tap`. Its code could not be read: the projector's widths and gain are inferred.
"""

_dupa = dict(
    flow=dict(views=2),
    alignments=dict(
        views=dict(
            type="ViewAlignment",
            out_dim=768,
            projector=dict(type="MLPProjector", depth=3, hidden_dim=2048, gain=0.5),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=0.5,
        )
    ),
)
