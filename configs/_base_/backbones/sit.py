"""SiT at 256 px on Stable Diffusion's latents, without a size: under the SiT backbones.

Linear path (t = 1 is noise), velocity prediction, uniform t, label dropout 0.1, EMA 0.9999: the
published SiT (METHODS: SiT paper and code).
"""

model = dict(
    resolution=256,
    tokenizer=dict(type="KLAutoencoder", source="stabilityai/sd-vae-ft-mse"),
    backbone=dict(type="SiT", patch_size=2, num_classes=1000),
    flow=dict(type="Flow", path=dict(type="LinearPath"), timesteps=dict(type="UniformTimesteps")),
    flow_loss=dict(type="FlowMatchingLoss"),
    conditioner=dict(type="ClassLabels", dropout=0.1),
    priors=dict(),
    alignments=dict(),
    ema=0.9999,
)
