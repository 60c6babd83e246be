"""SRA 2: the latent itself as the target, a five-layer MLP, smooth L1.

No code of it exists: the widths are inferred. The config sets the block, `alignments.main.tap`,
and the head's width, twice the model's.
"""

_sra2 = dict(
    priors=dict(latent=dict(type="LatentPrior")),
    alignments=dict(
        main=dict(
            source="latent",
            router=dict(type="StaticRouter", groups=dict(latent=["latent"])),
            projector=dict(type="MLPProjector", depth=5),
            criteria=dict(l1=dict(type="SmoothL1Loss", beta=0.05)),
            weight=1.0,
        )
    ),
)
