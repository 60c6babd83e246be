"""SARA's alignment, `_sara`: REPA's at block 8 with an autocorrelation and an adversarial term.

The weights are a re-implementation's, unverified.
"""

_base_ = ["repa.py"]
_sara = _base_._repa
_sara.alignments.main.tap = 8
_sara.alignments.main.weight = 1.0
_sara.alignments.main.criteria = dict(
    cosine=dict(type="CosineLoss", weight=0.5),
    structure=dict(type="AutocorrelationLoss", reduction="mean", weight=0.5),
    adversarial=dict(type="AdversarialLoss", weight=0.05),
)
