"""SRA: the averaged model at a cleaner time as the teacher, smooth L1, weight 0.2 (the paper's).

Since July 2026 SRA's code has a cosine by default and calls smooth L1 legacy: `sra_cosine.py`.

The latents are sd-vae-ft-ema's; the head starts from Xavier's distribution, as in SRA's code. The
config sets the blocks of student and teacher, `alignments.main.tap` and `priors.ema.block`, and the
head's width, twice the model's.
"""

_sra = dict(
    tokenizer=dict(source="stabilityai/sd-vae-ft-ema"),
    priors=dict(ema=dict(type="TeacherPrior", offset=0.2)),
    alignments=dict(
        main=dict(
            source="ema",
            router=dict(type="StaticRouter", groups=dict(teacher=["teacher"])),
            projector=dict(type="MLPProjector", depth=2, init="xavier"),
            criteria=dict(l1=dict(type="SmoothL1Loss", beta=0.05)),
            weight=0.2,
        )
    ),
)
