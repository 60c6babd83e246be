"""SRA's alignment, `_sra`: the averaged model at a cleaner time as the teacher, smooth L1, weight 0.2 (the paper's recipe).

The blocks and the head's width, twice the model's, are those of B; other sizes set theirs.
"""

_sra = dict(
    priors=dict(ema=dict(type="TeacherPrior", block=8, offset=0.2)),
    alignments=dict(
        main=dict(
            tap=3,
            source="ema",
            router=dict(type="StaticRouter", groups=dict(teacher=["teacher"])),
            projector=dict(type="MLPProjector", depth=2, hidden_dim=1536),
            criteria=dict(l1=dict(type="SmoothL1Loss", beta=0.05)),
            weight=0.2,
        )
    ),
)
