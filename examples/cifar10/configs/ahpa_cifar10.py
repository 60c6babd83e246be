"""AHPA with a lookup table of t as router, on the SiT of sit_cifar10.py.

The target is made of the last eight levels of TAEF2's encoder, in two groups of four, at block 2 of
6 (block 3 of 12 in SiT-B).

Command: python tools/train.py examples/cifar10/configs/ahpa_cifar10.py
Hardware: one CPU core; see docs/cifar10.md. Paper: not a row of a table.
"""

_base_ = ["sit_cifar10.py"]
_base_.model.priors = dict(vae=dict(type="TAEF2Taps"))
_base_.model.alignments = dict(
    main=dict(
        tap=2,
        source="vae",
        router=dict(type="LUTRouter", groups="4/4", bins=10),
        projector=dict(type="ConvProjector", layers=1, kernel=3),
        criteria=dict(cosine=dict(type="CosineLoss")),
        weight=1.0,
    )
)
