"""SiT of 6 blocks, 192 wide, on CIFAR-10 at 32 px: 4 x 4 latents of TAEF2, one token each.

Small enough for one CPU core. TAEF2 is the tokenizer of examples/custom_prior.

Command: python tools/train.py examples/cifar10/configs/sit_cifar10.py
Hardware: one CPU core; see docs/cifar10.md. Paper: not a row of a table.
"""

_base_ = ["ahpa::sit-b_matched.py"]
_base_.model.resolution = 32
_base_.model.tokenizer = dict(
    type="TAEF2",
    encoder="weights/taef2_encoder.safetensors",
    decoder="weights/taef2_decoder.safetensors",
    precision="bf16",
)
_base_.model.backbone = dict(
    type="SiT", depth=6, hidden_size=192, num_heads=6, patch_size=1, num_classes=10
)
_base_.model.ema = 0.99
_base_.train_dataloader = dict(
    dataset=dict(type="ImageFolder", root="cifar10-train.zip", flip=True),
    global_batch_size=32,
    num_workers=0,
)
_base_.optim_wrapper.optimizer.lr = 1e-3
_base_.train_cfg = dict(max_iters=400, log_interval=20)
_base_.checkpoints = dict(interval=200, keep=3)
_base_.hooks = dict(
    samples=dict(type="SampleGrids", interval=200, rows=10, columns=8, steps=25),
    policy=dict(type="RoutingPolicy", interval=200),
)
