"""DiT on ImageNet at 256 px with Stable Diffusion's latents: the brick under every DiT config.

1000 steps with linear betas 1e-4 .. 0.02, noise prediction with a learned variance (mean square + lambda L_vlb), AdamW
1e-4 without decay or clipping, EMA 0.9999, label dropout 0.1, batch 256, 400K steps, horizontal flips, sd-vae-ft-ema;
grids by 50 respaced steps with guidance on the first 3 latent channels: the published DiT recipe (METHODS: DiT's code).
"""

_base_ = ["sit_imagenet.py"]
model = dict(
    tokenizer=dict(source="stabilityai/sd-vae-ft-ema"),
    backbone=dict(type="DiT"),
    flow=dict(_delete_=True, type="DiscreteFlow", path=dict(type="DiscretePath", steps=1000)),
    flow_loss=dict(type="HybridLoss"),
)
train_dataloader = dict(dataset=dict(flip=True))
hooks = dict(samples=dict(cfg_channels=3))
