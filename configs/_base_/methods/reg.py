"""REG: REPA on all 257 tokens, and DINOv2's class token diffused alongside, loss weight 0.03.

Needs a class-stream backbone, `backbones/*_class-stream.py`. The head starts from Xavier's
distribution, as in REG's code. The config sets the block, `alignments.main.tap`.
"""

_reg = dict(
    priors=dict(dino=dict(type="TimmEncoder", model="vit_base_patch14_dinov2.lvd142m")),
    streams=dict(cls=dict(source="dino", level="cls")),
    alignments=dict(
        main=dict(
            source="dino",
            router=dict(type="StaticRouter", groups=dict(patch=["patch"]), prefix=["cls"]),
            projector=dict(type="MLPProjector", depth=3, hidden_dim=2048, init="xavier"),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=0.5,
        )
    ),
    flow_loss=dict(weights=dict(cls=0.03)),
)
