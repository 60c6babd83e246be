"""The bundled autoencoder: its files, Stable Diffusion's topology, and how well it reconstructs
images it never saw."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from ahpa.data import shapes

FOLDER = Path(shapes.__file__).parents[1] / "assets" / "tiny_vae"
SHARED = Path(__file__).resolve().parents[2] / "shared"
# Measured figures are in the model card; these floors lie 1 dB (agreement: 5 points) below.
PSNR = dict(shapes=26.5, cifar=25.6, imagenet=24.0)
AGREEMENT = 0.71
# Module, channels and side at 64 px, in the order in which an image passes the encoder.
TAPS = [
    ("conv_in", 24, 64),
    *[
        (f"down_blocks.0.{name}", 24, side)
        for name, side in (("resnets.0", 64), ("resnets.1", 64), ("downsamplers.0", 32))
    ],
    *[
        (f"down_blocks.1.{name}", 48, side)
        for name, side in (("resnets.0", 32), ("resnets.1", 32), ("downsamplers.0", 16))
    ],
    *[
        (f"down_blocks.2.{name}", 96, side)
        for name, side in (("resnets.0", 16), ("resnets.1", 16), ("downsamplers.0", 8))
    ],
    *[(f"down_blocks.3.{name}", 96, 8) for name in ("resnets.0", "resnets.1")],
    *[(f"mid_block.{name}", 96, 8) for name in ("resnets.0", "attentions.0", "resnets.1")],
]


def _read(dtype):
    return AutoencoderKL.from_pretrained(FOLDER, torch_dtype=dtype, low_cpu_mem_usage=False)


@pytest.fixture(scope="module")
def vae():
    return _read(torch.float32).eval()


@torch.no_grad()
def _reconstruct(vae, images):
    """[B, 3, H, W] in [-1, 1] -> the same, from the posterior's mode."""
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images.split(10)]
    return torch.cat(parts).clamp(-1, 1)


def _psnr(a, b):
    return (10 * torch.log10(4 / (a - b).pow(2).flatten(1).mean(1))).mean().item()


def _to_float(images):
    """uint8 [H, W, 3] each -> [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _shapes(count, seed):
    streams = [np.random.default_rng((seed, i)) for i in range(count)]
    return _to_float([shapes.draw(i % 10, stream, 64) for i, stream in enumerate(streams)])


def _real(name, every, least):
    """The held-out images of an archive: each `every`-th in the order of names, of which about
    `least` are kept, at even distances."""
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"{name} is not in ../shared/data; the test needs real images")
    with zipfile.ZipFile(path) as file:
        names = sorted(n for n in file.namelist() if n.endswith(".jpg"))[every - 1 :: every]
        names = names[:: max(1, len(names) // least)]
        opened = [Image.open(io.BytesIO(file.read(name))).convert("RGB") for name in names]
        return _to_float([np.asarray(image) for image in opened])


def _cifar(least):
    images = _real("cifar10-train.zip", 100, least)
    return images, F.interpolate(images, scale_factor=2, mode="bicubic").clamp(-1, 1)


def test_files_are_small_and_tell_no_secrets():
    assert (FOLDER / "diffusion_pytorch_model.safetensors").stat().st_size <= 10e6
    assert (FOLDER / "README.md").exists()
    config = json.loads((FOLDER / "config.json").read_text())
    assert not any(isinstance(value, str) and value.startswith("/") for value in config.values())


def test_weights_are_finite_float16():
    parameters = list(_read(torch.float16).parameters())
    assert all(p.dtype == torch.float16 and p.isfinite().all() for p in parameters)


def test_encoder_has_the_fifteen_taps(vae):
    seen = []
    modules = dict(vae.encoder.named_modules())
    hooks = []
    for name, _, _ in TAPS:
        hook = lambda _, __, out, name=name: seen.append((name, *out.shape[1:]))  # noqa: E731
        hooks.append(modules[name].register_forward_hook(hook))
    with torch.no_grad():
        latent = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    for hook in hooks:
        hook.remove()
    assert len(TAPS) == 15
    assert seen == [(name, channels, side, side) for name, channels, side in TAPS]
    assert latent.mean.shape == (1, 4, 8, 8)


def test_latent_is_standardised(vae):
    with torch.no_grad():
        raw = vae.encode(_shapes(100, seed=77)).latent_dist.mode()  # [100, 4, 8, 8]
    z = raw * vae.config.scaling_factor
    assert 0.7 < z.std() < 1.3
    assert (z.mean((0, 2, 3)).abs() < 0.6).all()


def test_reconstructs_drawn_shapes(vae):
    images = _shapes(200, seed=424_242)
    assert _psnr(images, _reconstruct(vae, images)) > PSNR["shapes"]


@pytest.mark.slow
def test_reconstructs_imagenet(vae):
    images = _real("imagenet256-sample.zip", 20, 50)
    assert images.shape == (50, 3, 256, 256)
    assert _psnr(images, _reconstruct(vae, images)) > PSNR["imagenet"]


def test_reconstructs_cifar(vae):
    _, doubled = _cifar(100)
    assert _psnr(doubled, _reconstruct(vae, doubled)) > PSNR["cifar"]


@pytest.mark.slow
def test_keeps_what_cifar_images_show(vae):
    """A network that no loss saw names the same class before and after: a better gate than PSNR."""
    from safetensors.torch import load_file

    path = SHARED / "weights" / "cifar10_resnet56.safetensors"
    if not path.exists():
        pytest.skip("cifar10_resnet56.safetensors, a classifier, is not in ../shared/weights")
    images, doubled = _cifar(500)
    weights = {name: value.float() for name, value in load_file(path).items()}
    again = F.avg_pool2d(_reconstruct(vae, doubled), 2)
    same = _classify(weights, images) == _classify(weights, again)
    assert same.float().mean() > AGREEMENT


@torch.no_grad()
def _classify(w, x):
    """The CIFAR-10 ResNet-56 (three stages of nine blocks, parameter-free shortcuts).

    x [B, 3, 32, 32] in [-1, 1] -> class [B]
    """
    statistics = ("running_mean", "running_var", "weight", "bias")

    def conv(x, conv, norm, stride=1):
        x = F.conv2d(x, w[f"{conv}.weight"], stride=stride, padding=1)
        return F.batch_norm(x, *(w[f"{norm}.{part}"] for part in statistics))

    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    x = F.relu(conv((x / 2 + 0.5 - mean) / std, "conv1", "bn1"))
    for stage in (1, 2, 3):
        for block in range(9):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            h = F.relu(conv(x, f"{name}.conv1", f"{name}.bn1", stride))
            h = conv(h, f"{name}.conv2", f"{name}.bn2")
            extra = (h.shape[1] - x.shape[1]) // 2
            x = F.relu(h + F.pad(x[..., ::stride, ::stride], (0, 0, 0, 0, extra, extra)))
    return F.linear(x.mean((2, 3)), w["linear.weight"], w["linear.bias"]).argmax(1)
