"""iREPA: REPA with a 3 x 3 convolution, spatially normalised targets (gamma 0.6) and weight 1.

The config sets the block, `alignments.main.tap`.
"""

_irepa = dict(
    tokenizer=dict(statistics="sd-imagenet"),
    priors=dict(
        dino=dict(
            type="SpatialNorm",
            gamma=0.6,
            prior=dict(type="TimmEncoder", model="vit_base_patch14_dinov2.lvd142m"),
        )
    ),
    alignments=dict(
        main=dict(
            source="dino",
            router=dict(type="StaticRouter", groups=dict(patch=["patch"])),
            projector=dict(type="ConvProjector", layers=1, kernel=3),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=1.0,
        )
    ),
)
