"""SRA as in its code for DiT: the teacher's step is lower by an integer of 0 .. 199, at least 1.

Smooth L1 has the weight 0.04, the code's 0.4 * 0.1 up to epoch 149 (at 512 px: 99); the 80 epochs
of 400K steps do not reach its decay. With smooth L1, DiT-XL is reported to diverge (issue 7 of
SRA's repository): `sra_dit_cosine.py` has a cosine.
"""

_base_ = ["sra.py"]
_sra = dict(
    priors=dict(ema=dict(steps=1000, least=0.001)),
    alignments=dict(main=dict(weight=0.04)),
)
