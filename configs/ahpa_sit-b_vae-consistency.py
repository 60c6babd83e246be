"""AHPA with the encoder that OpenAI's consistency decoder belongs to (SD's; see METHODS notes in docs).

Command: python tools/train.py configs/ahpa_sit-b_vae-consistency.py --data IMAGENET/train
Hardware: one GPU of 80 GB suggested; time not measured (400K steps of batch 256).
Paper: not a row of a table.
"""

_base_ = ["ahpa_sit-b.py"]
_base_.model.tokenizer = dict(type="KLAutoencoder", source="stabilityai/sd-vae-ft-ema")
