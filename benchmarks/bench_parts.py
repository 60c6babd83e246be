"""VAE taps against diffusers' own encoder, the routers, the samplers."""

import time

import pytest
import torch

from ahpa.data.shapes import ShapesDataset
from ahpa.registry import AUTOENCODERS, PRIORS, ROUTERS, SAMPLERS, build
from ahpa.registry.contracts import LevelSpec, Step

from .bench_step import ratios
from .conftest import denoiser


@pytest.fixture(scope="module")
def images():
    data = ShapesDataset(resolution=256, length=4)
    return torch.stack([data[i]["image"] for i in range(4)]).float() / 255


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ratio_of_taps_to_the_whole_encoder_in_fp32(benchmark, images, precision):
    """Stable Diffusion's topology at the bundled width, 256 px: taps up to level 10 stop before the middle block."""
    from diffusers import AutoencoderKL

    vae = build(AUTOENCODERS, dict(type="KLAutoencoder", source="bundled", precision=precision))
    vae.load()
    own = AutoencoderKL.from_pretrained("ahpa/assets/tiny_vae", torch_dtype=torch.float32).eval()
    levels = list(vae.levels)[7:11]
    times = {"whole": [], "taps": []}
    with torch.no_grad():
        for _ in range(6):
            began = time.process_time()
            wanted = own.encode(2 * images - 1).latent_dist.mean
            times["whole"].append(time.process_time() - began)
            began = time.process_time()
            taps = vae.encode(images, levels, latent=False).taps
            times["taps"].append(time.process_time() - began)
    mean = vae.encode(images).mean / float(own.config.scaling_factor)
    cosine = torch.nn.functional.cosine_similarity(mean.flatten(1), wanted.flatten(1)).min()
    assert cosine > 0.995 and list(taps) == levels
    ratios(benchmark, times, "whole", "taps")


@pytest.mark.parametrize("name", ["MLPRouter", "LUTRouter", "AttentionRouter", "ContentRouter",
                                  "PartitionRouter", "StaticRouter"])  # fmt: skip
def test_router(benchmark, name):
    """Eight levels [4, 512, 64 or 32, ...] to a target [4, 256, 1024], with its backward."""
    spec = {f"l{i}": LevelSpec(512, 4 if i < 2 else 8) for i in range(8)}
    router = build(ROUTERS, dict(type=name, groups="4/4"), spec=spec, grid=(16, 16), content_dim=768)
    sides = {level: 256 // s.stride for level, s in spec.items()}
    features = {level: torch.randn(4, 512, side, side) for level, side in sides.items()}
    t, content = torch.rand(4), torch.randn(4, 256, 768)

    def step():
        target = router(features, t, content)
        if target.requires_grad:
            target.sum().backward()
        return target

    assert benchmark(step).shape == (4, 256, 1024)


@pytest.mark.parametrize("name", ["euler", "heun", "sde"])
def test_sampler_overhead(benchmark, name):
    """25 steps of a model that costs nothing: what the sampler itself takes."""
    path = denoiser(alignments={}, priors={}).flow.path
    start = {"image": torch.randn(4, 4, 32, 32)}
    draw = SAMPLERS.get(name)
    noise = lambda x: {k: torch.randn_like(v) for k, v in x.items()}  # noqa: E731
    out = benchmark(lambda: draw(lambda x, t: x, start, steps=25, path=path, noise=noise))
    assert out["image"].isfinite().all()


def test_prior_shares_the_tokenizers_pass(benchmark, images):
    """One pass for latents and taps: the prior itself then costs nothing."""
    vae = build(AUTOENCODERS, dict(type="KLAutoencoder", source="bundled"))
    prior = build(PRIORS, dict(type="VAETaps"))
    prior.bind(tokenizer=vae, backbone=None)
    prior.request(list(vae.levels)[7:])
    step = Step(batch={}, images=images, encoded=vae.encode(images, prior.shared_levels))
    assert len(benchmark(prior, step)) == 8
