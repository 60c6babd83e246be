"""The same as ahpa_sit-b_taef2_installed.py, but the config itself names the package to import.

Nothing has to be installed: it is enough that Python finds `ahpa_taef2`, as with
PYTHONPATH=examples/custom_prior. It works with the installed package too.

Command: PYTHONPATH=examples/custom_prior python tools/train.py
    examples/custom_prior/configs/ahpa_sit-b_taef2.py --data DIR
    --cfg-options model.tokenizer.encoder=PATH model.tokenizer.decoder=PATH
Hardware: one GPU of 80 GB suggested; time not measured. Paper: not a row of a table.
"""

_base_ = ["ahpa_sit-b_taef2_installed.py"]
custom_imports = dict(imports=["ahpa_taef2"])
