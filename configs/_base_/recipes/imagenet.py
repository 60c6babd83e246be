"""ImageNet, AdamW without decay, bf16, batch 256, 400K steps: under the class-conditional recipes.

A recipe over it sets the learning rate and the clipping. The data set's resolution is the model's.
"""

_base_ = ["../runtime.py"]
train_dataloader = dict(
    dataset=dict(type="ImageFolder", root="data/imagenet/train", flip=False),
    global_batch_size=256,
    num_workers=8,
)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    precision="bf16",
    accumulative_counts=1,
)
train_cfg = dict(max_iters=400_000, log_interval=100)
