"""A method of fourteen outside components on a backbone of its own, with SiT's recipe.

The mean of blocks 2, 4 and 6 of a rotary transformer is pulled to the colours and edges of the
image; a Gaussian bump over the scales, whose centre moves with t, makes the target.

Command: ahpa train examples/new_method/configs/new-method_rotary-b.py
Hardware: one GPU of 80 GB suggested; time not measured. Paper: none, an example.
"""

_base_ = ["ahpa::_base_/backbones/sit.py", "ahpa::_base_/recipes/sit.py"]

_base_.model.backbone = dict(
    type="RotaryTransformer",
    depth=12,
    hidden_size=768,
    num_heads=12,
    patch_size=2,
    num_classes=1000,
)
_base_.model.flow = dict(
    type="StratifiedFlow",
    path=dict(type="BentCosinePath", exponent=1.5),
    antithetic=True,
)
_base_.model.conditioner = dict(type="PerClassDropout", dropout=0.1, overrides=[(0, 0.2)])
_base_.model.priors = dict(
    edges=dict(
        type="SpatialNorm",
        gamma=1.0,
        prior=dict(type="GradientPyramid", scales=[4, 8, 16, 32], orientations=6),
    ),
)
_base_.model.alignments = dict(
    main=dict(
        type="AveragedTaps",
        blocks=[2, 4, 6],
        source="edges",
        router=dict(type="BumpRouter", width=0.8),
        projector=dict(type="BottleneckProjector", rank=64),
        pair_loss=dict(type="HuberCosineLoss", delta=0.25),
        weight=dict(type="WarmUpHold", value=0.5, steps=2000, start=0.1),
    ),
    spread=dict(
        type="Regularisation",
        tap=6,
        regulariser=dict(type="VarianceFloor", floor=1.0),
        weight=0.1,
    ),
)
_base_.train_dataloader.dataset = dict(type="Plaids", length=1_000_000)
hooks = dict(
    samples=dict(sampler="ab2", steps=50),
    norms=dict(type="TokenNorms", interval=1000),
)

# What --demo makes small, beside what it knows of ahpa's own components. The blocks follow the
# depth, and the data set stays.
demo = dict(
    model=dict(
        backbone=dict(depth=6, hidden_size=128, num_heads=4, num_classes=10),
        alignments=dict(main=dict(weight=dict(steps=100))),
    ),
    train_dataloader=dict(dataset=dict(type="Plaids", length=4096)),
    hooks=dict(norms=dict(interval=100)),
)
