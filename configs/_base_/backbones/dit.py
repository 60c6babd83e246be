"""DiT at 256 px on Stable Diffusion's latents, without a size: under the DiT backbones.

1000 steps with linear betas 1e-4 .. 0.02, noise prediction with a learned variance (mean square +
lambda L_vlb), label dropout 0.1, EMA 0.9999: the published DiT (METHODS: DiT's code).
"""

model = dict(
    resolution=256,
    tokenizer=dict(type="KLAutoencoder", source="stabilityai/sd-vae-ft-ema"),
    backbone=dict(type="DiT", patch_size=2, num_classes=1000),
    flow=dict(type="DiscreteFlow", path=dict(type="DiscretePath", steps=1000)),
    flow_loss=dict(type="HybridLoss"),
    conditioner=dict(type="ClassLabels", dropout=0.1),
    priors=dict(),
    alignments=dict(),
    ema=0.9999,
)
