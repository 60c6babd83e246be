"""LayerSync (arXiv:2510.12581): a block is pulled towards a later block of the same forward pass.

No teacher and no projector; cosine, weight 0.2; the target carries no gradient. The config sets the
two blocks, `alignments.main.tap` and `priors.later.block`.
"""

_layersync = dict(
    priors=dict(later=dict(type="BlockPrior")),
    alignments=dict(
        main=dict(
            source="later",
            router=dict(type="StaticRouter", groups=dict(block=["block"])),
            projector=dict(type="IdentityProjector"),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=0.2,
        )
    ),
)
