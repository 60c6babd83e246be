"""AHPA: an MLP router over G3 | G4 of the tokenizer's encoder, a 3 x 3 convolution, cosine.

The config sets the block, `alignments.main.tap`.
"""

_ahpa = dict(
    tokenizer=dict(statistics="sd-imagenet"),
    priors=dict(vae=dict(type="VAETaps")),
    alignments=dict(
        main=dict(
            source="vae",
            router=dict(type="MLPRouter", groups="4/4", resize="bilinear", depth=4, hidden_dim=256),
            projector=dict(type="ConvProjector", layers=1, kernel=3),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=1.0,
        )
    ),
)
