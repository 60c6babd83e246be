"""AHPA over the levels of TAEF2's encoder, with TAEF2 as the latent tokenizer too, on block 3 of SiT-B/2.

Command: python tools/train.py examples/custom_prior/configs/ahpa_sit-b_taef2.py --data DIR --cfg-options
    model.tokenizer.encoder=PATH model.tokenizer.decoder=PATH
Hardware: one GPU of 80 GB suggested; time not measured. Paper: not a row of a table.

With the package installed (`pip install examples/custom_prior`) its entry point registers the components, and the line
`custom_imports` is not needed; with the folder on PYTHONPATH only, it is what brings them in. Both may stand together.
"""

_base_ = ["../../../configs/ahpa_sit-b.py"]
custom_imports = dict(imports=["ahpa_taef2"])
_base_.model.tokenizer = dict(type="TAEF2", encoder="taef2_encoder.safetensors", decoder="taef2_decoder.safetensors")
_base_.model.priors = dict(vae=dict(type="TAEF2Taps"))
