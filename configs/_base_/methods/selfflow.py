"""Self-Flow (arXiv:2603.06507): two times in one image, and the averaged model at the cleaner one.

A quarter of the tokens has the time s, the others t. The teacher sees all tokens at min(t, s) with
the same noise; a two-layer head, cosine, weight 0.8. The config sets the blocks of student and
teacher, `alignments.main.tap` and `priors.ema.block`, 0.3 and 0.7 of the depth, and the head's
width, twice the model's. The published code is for inference only: that t and s are uniform and
that the quarter is exact are inferred.
"""

_selfflow = dict(
    flow=dict(type="TokenTimeFlow", ratio=0.25, mask="exact"),
    priors=dict(ema=dict(type="TeacherPrior", offset=0.0, token_times="min")),
    alignments=dict(
        main=dict(
            source="ema",
            router=dict(type="StaticRouter", groups=dict(teacher=["teacher"])),
            projector=dict(type="MLPProjector", depth=2),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=0.8,
        )
    ),
)
