"""SRA with dual-timestep scheduling and attention separation (DTS-AS, arXiv:2607.02508).

A random quarter of the tokens and the others have a time each and attend only to themselves; the
averaged model has the same groups, each at a cleaner time. A two-layer head, cosine, weight 0.5.
The config sets the blocks of student and teacher, `alignments.main.tap` and `priors.ema.block`, and
the head's width, twice the model's.
"""

_dtsas = dict(
    tokenizer=dict(source="stabilityai/sd-vae-ft-ema"),
    flow=dict(type="TokenGroupFlow", shares=[0.25, 0.75], separate=True),
    priors=dict(ema=dict(type="TeacherPrior", offset=0.2, token_times="groups")),
    alignments=dict(
        main=dict(
            source="ema",
            router=dict(type="StaticRouter", groups=dict(teacher=["teacher"])),
            projector=dict(type="MLPProjector", depth=2),
            criteria=dict(cosine=dict(type="CosineLoss")),
            weight=0.5,
        )
    ),
)
