"""SiT on ImageNet at 256 px with Stable Diffusion's latents: the brick under every class-conditional config.

Linear path, t = 1 is noise, velocity prediction, uniform t, AdamW 1e-4 without decay or clipping, EMA 0.9999,
label dropout 0.1, batch 256, 400K steps: the published SiT recipe (METHODS: SiT paper and code).
"""

model = dict(
    type="AlignedDenoiser",
    resolution=256,
    tokenizer=dict(type="KLAutoencoder", source="stabilityai/sd-vae-ft-mse"),
    backbone=dict(type="SiT", depth=12, hidden_size=768, num_heads=12, patch_size=2, num_classes=1000),
    flow=dict(type="Flow", path=dict(type="LinearPath"), timesteps=dict(type="UniformTimesteps")),
    flow_loss=dict(type="FlowMatchingLoss"),
    conditioner=dict(type="ClassLabels", dropout=0.1),
    priors=dict(),
    alignments=dict(),
    ema=0.9999,
)
train_dataloader = dict(
    dataset=dict(type="ImageFolder", root="data/imagenet/train", resolution=256, flip=False),
    global_batch_size=256,
    num_workers=8,
)
optim_wrapper = dict(
    type="AlignmentOptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    precision="bf16",
    clip_grad=None,
    accumulative_counts=1,
)
train_cfg = dict(max_iters=400_000, log_interval=100)
hooks = dict(
    progress=dict(type="Progress"),
    samples=dict(type="SampleGrids", interval=10_000),
    policy=dict(type="RoutingPolicy", interval=10_000),
    checkpoints=dict(type="Checkpoints", interval=10_000, keep=3),
)
visualizer = dict(type="RunVisualizer")
randomness = dict(seed=0)
compile = False
default_scope = "ahpa"
