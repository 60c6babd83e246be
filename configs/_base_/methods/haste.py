"""HASTE (arXiv:2505.16792): REPA and a distillation of attention maps, both of which stop early.

Blocks 5 to 8 get the attention of blocks 9 to 12 of DINOv2-B; weights 0.5 and 0.5 for 250,000
optimiser steps. The config sets REPA's block, `alignments.main.tap`. The bundled teacher of --demo
has four blocks, of which the last two are the target there.
"""

_haste = dict(
    priors=dict(
        dino=dict(
            type="TimmEncoder",
            model="vit_base_patch14_dinov2.lvd142m",
            attention=[9, 10, 11, 12],
        )
    ),
    alignments=dict(
        main=dict(
            source="dino",
            router=dict(type="StaticRouter", groups=dict(patch=["patch"])),
            projector=dict(type="MLPProjector", depth=3, hidden_dim=2048),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=dict(type="EarlyStop", value=0.5, until_step=250_000),
        ),
        attention=dict(
            type="AttentionAlignment",
            source="dino",
            blocks=[5, 6, 7, 8],
            levels=["attention9", "attention10", "attention11", "attention12"],
            criteria=dict(distillation=dict(type="AttentionDistillation")),
            weight=dict(type="EarlyStop", value=0.5, until_step=250_000),
        ),
    ),
)
demo = dict(
    model=dict(
        priors=dict(dino=dict(attention=[3, 4])),
        alignments=dict(attention=dict(blocks=[1, 2], levels=["attention3", "attention4"])),
    )
)
