"""SARA (arXiv:2503.08253): REPA with an autocorrelation and an adversarial term.

Not the video method of that name (arXiv:2605.07800). The weights are a re-implementation's,
unverified. The config sets the block, `alignments.main.tap`.
"""

_sara = dict(
    priors=dict(dino=dict(type="TimmEncoder", model="vit_base_patch14_dinov2.lvd142m")),
    alignments=dict(
        main=dict(
            source="dino",
            router=dict(type="StaticRouter", groups=dict(patch=["patch"])),
            projector=dict(type="MLPProjector", depth=3, hidden_dim=2048),
            criteria=dict(
                cosine=dict(type="CosineLoss", weight=0.5),
                structure=dict(type="AutocorrelationLoss", reduction="mean", weight=0.5),
                adversarial=dict(type="AdversarialLoss", weight=0.05),
            ),
            weight=1.0,
        )
    ),
)
