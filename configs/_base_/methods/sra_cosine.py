"""SRA as its code trains by default since July 2026: a cosine, at a constant weight of 0.5.

The cosine is taken over tokens, as in that code; `over="channels"` compares each token instead.
"""

_base_ = ["sra.py"]
_sra = dict(
    alignments=dict(
        main=dict(
            criteria=dict(_delete_=True, cosine=dict(type="CosineLoss", over="tokens")),
            weight=0.5,
        )
    )
)
