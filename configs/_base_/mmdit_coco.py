"""MMDiT on COCO 2014 at 256 px with Stable Diffusion's latents and CLIP's text: the brick under the text configs.

REPA's text-to-image setting (METHODS section 3): 24 blocks of 768 wide in 24 heads, CLIP ViT-L/14's last hidden states
(77 x 768), the timestep alone as modulation, U-ViT's preparation of the images, text dropout 0.1; linear path, AdamW
1e-4, clipping at 1.0, EMA 0.9999, batch 256, 150K steps.
"""

_base_ = ["sit_imagenet.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        type="MMDiT",
        depth=24,
        hidden_size=768,
        num_heads=24,
        patch_size=2,
        text_dim=768,
        pooled_dim=None,
    ),
    conditioner=dict(
        _delete_=True,
        type="TextConditioner",
        encoder=dict(type="CLIPTextEncoder", model="ViT-L-14", pretrained="openai"),
        dropout=0.1,
        prompts=[
            "a red bus that is driving down a street",
            "a plate of food with broccoli and rice",
            "two giraffes standing next to a tree",
            "a man riding a wave on top of a surfboard",
            "a kitchen with a white stove and wooden cabinets",
            "a cat lying on a bed beside a laptop",
            "a group of people flying kites on a beach",
            "a train on the tracks near a station",
        ],
    ),
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="CocoCaptions",
        images="data/coco/train2014",
        annotations="data/coco/annotations/captions_train2014.json",
        resolution=256,
    )
)
optim_wrapper = dict(clip_grad=1.0)
train_cfg = dict(max_iters=150_000)
hooks = dict(samples=dict(cfg_scale=2.0))
