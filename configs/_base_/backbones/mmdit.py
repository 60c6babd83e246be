"""MMDiT for text to image at 256 px on Stable Diffusion's latents, with CLIP's text.

REPA's setting (METHODS section 3): 24 blocks of 768 wide in 24 heads, CLIP ViT-L/14's last hidden
states (77 x 768), the timestep alone as modulation, text dropout 0.1; linear path, velocity
prediction, uniform t, EMA 0.9999. All weights keep torch's start, as in REPA's text-to-image code.
"""

model = dict(
    resolution=256,
    tokenizer=dict(type="KLAutoencoder", source="stabilityai/sd-vae-ft-mse"),
    backbone=dict(
        type="MMDiT",
        depth=24,
        hidden_size=768,
        num_heads=24,
        patch_size=2,
        text_dim=768,
        pooled_dim=None,
        adaln_zero=False,
    ),
    flow=dict(type="Flow", path=dict(type="LinearPath"), timesteps=dict(type="UniformTimesteps")),
    flow_loss=dict(type="FlowMatchingLoss"),
    conditioner=dict(
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
    priors=dict(),
    alignments=dict(),
    ema=0.9999,
)
