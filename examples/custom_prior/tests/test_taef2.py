"""This package's own tests: ahpa's conformance checks, and pictures that come back. Weights: AHPA_TAEF2 or ../shared."""

import io
import os
import zipfile
from pathlib import Path

import ahpa_taef2  # noqa: F401
import numpy as np
import pytest
import torch
from PIL import Image

from ahpa.registry import AUTOENCODERS, UserError, build
from ahpa.testing import check_autoencoder, check_prior

SHARED = Path(__file__).resolve().parents[4] / "shared"
WEIGHTS = Path(os.environ.get("AHPA_TAEF2", SHARED / "weights"))
if not (WEIGHTS / "taef2_encoder.safetensors").exists():
    pytest.skip(f"TAEF2's weights are not in {WEIGHTS}; set AHPA_TAEF2", allow_module_level=True)
TAEF2 = dict(
    type="TAEF2",
    encoder=str(WEIGHTS / "taef2_encoder.safetensors"),
    decoder=str(WEIGHTS / "taef2_decoder.safetensors"),
)


def test_conformance():
    check_autoencoder(TAEF2)
    check_prior(dict(type="TAEF2Taps"), tokenizer=TAEF2)
    check_prior(dict(type="TAEF2Taps", encoder=TAEF2["encoder"]))


def test_real_pictures_come_back():
    path = SHARED / "data" / "imagenet256-sample.zip"
    if not path.exists():
        pytest.skip("no real pictures")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".jpg")][::100]
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    vae = build(AUTOENCODERS, TAEF2)
    encoded = vae.encode(images)
    error = (vae.decode(encoded.mean) - images).square().mean()
    assert float(-10 * torch.log10(error)) > 26.0  # 27.3 dB over the whole sample
    assert encoded.mean.shape == (10, 32, 32, 32) and 0.8 < float(encoded.mean.std()) < 1.2


def test_missing_weights_are_told():
    with pytest.raises(UserError, match="no encoder at 'nowhere'"):
        build(AUTOENCODERS, dict(type="TAEF2", encoder="nowhere")).load()
