"""SRA 2's alignment, `_sra2`: the latent itself as the target, a five-layer MLP, smooth L1.

No code of it exists: the widths are inferred. The block and the head's width, twice the model's, are those of B; other
sizes set theirs.
"""

_sra2 = dict(
    priors=dict(latent=dict(type="LatentPrior")),
    alignments=dict(
        main=dict(
            tap=2,
            source="latent",
            router=dict(type="StaticRouter", groups=dict(latent=["latent"])),
            projector=dict(type="MLPProjector", depth=5, hidden_dim=1536),
            criteria=dict(l1=dict(type="SmoothL1Loss", beta=0.05)),
            weight=1.0,
        )
    ),
)
