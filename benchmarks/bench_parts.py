"""VAE taps against diffusers' own encoder, the routers, the samplers."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ahpa.data.shapes import ShapesDataset
from ahpa.registry import PRIORS, ROUTERS, SAMPLERS, TOKENIZERS, build
from ahpa.registry.contracts import Clean, LevelSpec, Streams
from ahpa.testing.common import toy_geometry

from .conftest import bare_denoiser, report_ratio

TINY_VAE = Path(__file__).resolve().parents[1] / "ahpa" / "assets" / "tiny_vae"
ROUTER_NAMES = (
    "MLPRouter",
    "LUTRouter",
    "AttentionRouter",
    "ContentRouter",
    "PartitionRouter",
    "StaticRouter",
)


@pytest.fixture(scope="module")
def images() -> Tensor:
    data = ShapesDataset(resolution=256, length=4)
    return torch.stack([data[i]["image"] for i in range(4)]).float() / 255


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ratio_of_taps_to_the_whole_encoder_in_fp32(
    benchmark: Any, images: Tensor, precision: str
) -> None:
    """Stable Diffusion's topology at the bundled width, 256 px: taps up to level 10 stop before the
    middle block."""
    from diffusers import AutoencoderKL

    vae = build(TOKENIZERS, {"type": "KLAutoencoder", "source": "bundled", "precision": precision})
    vae.load()
    own = AutoencoderKL.from_pretrained(str(TINY_VAE), torch_dtype=torch.float32).eval()
    levels = list(vae.levels)[7:11]
    times: dict[str, list[float]] = {"whole": [], "taps": []}
    with torch.no_grad():
        for _ in range(6):
            began = time.process_time()
            wanted = own.encode(2 * images - 1).latent_dist.mean
            times["whole"].append(time.process_time() - began)
            began = time.process_time()
            taps = vae.encode(images, levels, latent=False).levels
            times["taps"].append(time.process_time() - began)
    mean = vae.encode(images).mean / float(own.config.scaling_factor)
    cosine = F.cosine_similarity(mean.flatten(1), wanted.flatten(1)).min()
    assert cosine > 0.995
    assert list(taps) == levels
    report_ratio(benchmark, times, "whole", "taps")


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_router(benchmark: Any, name: str) -> None:
    """Eight levels [4, 512, 64 or 32, ...] to a target [4, 256, 1024], with its backward."""
    levels = {f"l{i}": LevelSpec(512, 4 if i < 2 else 8) for i in range(8)}
    geometry = toy_geometry(resolution=256, width=768)
    router = build(ROUTERS, {"type": name, "groups": "4/4"}, levels=levels, geometry=geometry)
    sides = {level: 256 // spec.stride for level, spec in levels.items()}
    features = {level: torch.randn(4, 512, side, side) for level, side in sides.items()}
    t = torch.rand(4)
    content = torch.randn(4, 256, 768)

    def step() -> Tensor:
        target = router(features, t, content)
        if target.requires_grad:
            target.sum().backward()
        return target

    assert benchmark(step).shape == (4, 256, 1024)


@pytest.mark.parametrize("name", ["euler", "heun", "sde"])
def test_sampler_overhead(benchmark: Any, name: str) -> None:
    """25 steps of a model that costs nothing: what the sampler itself takes."""
    path = bare_denoiser().flow.path
    start = {"image": torch.randn(4, 4, 32, 32)}
    sampler = build(SAMPLERS, {"type": name})

    def noise(x: Streams) -> Streams:
        return {stream: torch.randn_like(value) for stream, value in x.items()}

    def sample() -> Streams:
        return sampler.sample(lambda x, t: x, start, steps=25, path=path, noise=noise)

    assert benchmark(sample)["image"].isfinite().all()


def test_prior_shares_the_tokenizers_pass(benchmark: Any, images: Tensor) -> None:
    """One pass for latents and taps: the prior itself then costs nothing."""
    vae = build(TOKENIZERS, {"type": "KLAutoencoder", "source": "bundled"})
    geometry = toy_geometry(resolution=256, tokenizer_levels=vae.levels)
    prior = build(PRIORS, {"type": "VAETaps"}, geometry=geometry)
    wanted = list(vae.levels)[7:]
    encoded = vae.encode(images, prior.tokenizer_levels(wanted))
    clean = Clean({"image": encoded.sample()}, images=images, levels=encoded.levels)
    assert len(benchmark(prior.from_clean, clean, wanted)) == 8
