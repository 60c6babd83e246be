"""Shared parts of the benchmarks: one thread, a real model at a stated size, features computed once.

    pytest benchmarks --benchmark-enable            (or: make bench)

Ratios compare cases of one run on one machine; each speed figure has an accuracy check in the same test.
"""

import pytest
import torch

SMALL = dict(type="SiT", depth=12, hidden_size=384, num_heads=6, patch_size=2, num_classes=1000)  # S/2


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


def denoiser(**changes):
    """SiT-S/2 at 256 px with the bundled autoencoder; AHPA on block 3 unless `alignments` says otherwise."""
    from ahpa.registry import MODELS, build

    alignment = dict(tap=3, source="vae", router=dict(type="MLPRouter", groups="4/4"))
    cfg = dict(type="AlignedDenoiser", tokenizer=dict(type="KLAutoencoder", source="bundled"), backbone=dict(SMALL),
               priors=dict(vae=dict(type="VAETaps")), alignments=dict(main=alignment))  # fmt: skip
    torch.manual_seed(0)
    return build(MODELS, {**cfg, **changes})


def given_batch(model, batch=4, channels=512):
    """Latents and the eight levels of AHPA's groups given, at Stable Diffusion's sizes [B, 512, 64 or 32, ...]."""
    values = torch.Generator().manual_seed(0)
    latent = dict(mean=torch.randn(batch, 4, 32, 32, generator=values), std=torch.full((batch, 4, 32, 32), 0.1))
    features = {}
    for alignment in model.alignments.values():
        spec = model.priors[alignment.source].spec(model.backbone)
        features[alignment.source] = {
            level: torch.randn(batch, spec[level].channels, 256 // spec[level].stride, 256 // spec[level].stride,
                               generator=values)
            for level in alignment.levels
        }  # fmt: skip
    label = torch.randint(0, 1000, (batch,), generator=values)
    return dict(latent=latent, features=features, label=label, noise_seed=1)
