"""SRA as in its code for DiT: the teacher's step is lower by an integer of 0 .. 199, at least 1."""

_base_ = ["sra.py"]
_sra = dict(priors=dict(ema=dict(steps=1000, least=0.001)))
