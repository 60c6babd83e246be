"""Static alignment: AHPA's prior, projector and loss with a uniform, constant mean of levels.

The config sets the block, `alignments.main.tap`, and the levels, `alignments.main.router.groups`.
"""

_static = dict(
    tokenizer=dict(statistics="sd-imagenet"),
    priors=dict(vae=dict(type="VAETaps")),
    alignments=dict(
        main=dict(
            source="vae",
            router=dict(type="StaticRouter"),
            projector=dict(type="ConvProjector", layers=1, kernel=3),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=1.0,
        )
    ),
)
