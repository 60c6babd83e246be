"""REPA's text-to-image recipe on COCO 2014: learning rate 1e-4, clipping at 1.0, 150K steps.

U-ViT's preparation of the images, AdamW without decay, batch 256, sample grids with guidance 2.0
(METHODS section 3).
"""

_base_ = ["../runtime.py"]
train_dataloader = dict(
    dataset=dict(
        type="CocoCaptions",
        images="data/coco/train2014",
        annotations="data/coco/annotations/captions_train2014.json",
    ),
    global_batch_size=256,
    num_workers=8,
)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    precision="bf16",
    clip_grad=1.0,
    accumulative_counts=1,
)
train_cfg = dict(max_iters=150_000, log_interval=100)
hooks = dict(samples=dict(cfg_scale=2.0))
