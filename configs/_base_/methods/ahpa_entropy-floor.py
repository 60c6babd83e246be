"""AHPA with a floor under the router's entropies, half of the largest, against its collapse."""

_base_ = ["ahpa.py"]
_ahpa = dict(alignments=dict(main=dict(entropy_floor=0.5, entropy_weight=1.0)))
