"""SARA: REPA with autocorrelation and adversarial terms; the weights are a re-implementation's, unverified.

On block 8 of SiT-B/2; published recipe: the method's own.

Command: python tools/train.py configs/sara_sit-b.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: no figure for this size.
"""

_base_ = ["repa_sit-b.py"]
model = dict(
    alignments=dict(
        main=dict(
            tap=8,
            weight=1.0,
            criteria=dict(
                cosine=dict(weight=0.5),
                structure=dict(type="AutocorrelationLoss", reduction="mean", weight=0.5),
                adversarial=dict(type="AdversarialLoss", weight=0.05),
            ),
        )
    )
)
