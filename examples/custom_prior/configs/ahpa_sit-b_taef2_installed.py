"""AHPA on SiT-B/2 over the levels of TAEF2's encoder, with TAEF2 as the latent tokenizer too.

For the installed package: the entry point `ahpa.plugins` brings the components, the config need not
say so. `ahpa::` are the configs that come with ahpa.

Command: python tools/train.py examples/custom_prior/configs/ahpa_sit-b_taef2_installed.py
    --data DIR --cfg-options model.tokenizer.encoder=PATH model.tokenizer.decoder=PATH
Hardware: one GPU of 80 GB suggested; time not measured. Paper: not a row of a table.
"""

_base_ = ["ahpa::ahpa_sit-b.py"]
_base_.model.tokenizer = dict(
    type="TAEF2",
    encoder="taef2_encoder.safetensors",
    decoder="taef2_decoder.safetensors",
)
_base_.model.priors = dict(vae=dict(type="TAEF2Taps"))
