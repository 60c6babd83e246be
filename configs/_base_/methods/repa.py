"""REPA (arXiv:2410.06940): DINOv2-B's patch tokens, a three-layer MLP, cosine, weight 0.5.

The head starts from Xavier's distribution, as in REPA's code for ImageNet; its text-to-image code
keeps torch's start. The config sets the block, `alignments.main.tap`.
"""

_repa = dict(
    priors=dict(dino=dict(type="TimmEncoder", model="vit_base_patch14_dinov2.lvd142m")),
    alignments=dict(
        main=dict(
            source="dino",
            router=dict(type="StaticRouter", groups=dict(patch=["patch"])),
            projector=dict(type="MLPProjector", depth=3, hidden_dim=2048, init="xavier"),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=0.5,
        )
    ),
)
