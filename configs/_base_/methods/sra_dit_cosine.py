"""SRA's cosine on DiT, with the teacher's steps of its DiT code."""

_base_ = ["sra_cosine.py"]
_sra = dict(priors=dict(ema=dict(steps=1000, least=0.001)))
