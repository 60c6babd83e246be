"""The tokenizer against diffusers' own encoder and decoder; sources of every kind; scales that must not be forgotten."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from ahpa.priors.autoencoder import from_ldm
from ahpa.priors.sources import BUNDLED
from ahpa.registry import AUTOENCODERS, PRIORS, ConfigError, UserError, build
from ahpa.registry.contracts import Step
from ahpa.testing import check_autoencoder, check_prior

NAMES = ["conv_in", "down0.res0", "down0.res1", "down0.down", "down1.res0", "down1.res1", "down1.down", "down2.res0", "down2.res1", "down2.down", "down3.res0", "down3.res1", "mid.res0", "mid.attn", "mid.res1"]  # fmt: skip
MODULES = ["conv_in", "down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0", "down_blocks.1.resnets.1", "down_blocks.1.downsamplers.0", "down_blocks.2.resnets.0", "down_blocks.2.resnets.1", "down_blocks.2.downsamplers.0", "down_blocks.3.resnets.0", "down_blocks.3.resnets.1", "mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]  # fmt: skip


def tokenizer(**options):
    return build(AUTOENCODERS, dict(type="KLAutoencoder", **{"source": "bundled", **options}))


@pytest.fixture(scope="module")
def own():
    return AutoencoderKL.from_pretrained(BUNDLED, torch_dtype=torch.float32, low_cpu_mem_usage=False).eval()


@pytest.fixture(scope="module")
def images(shared):
    """Three real pictures [3, 3, 128, 128] in [0, 1]."""
    with zipfile.ZipFile(shared / "data" / "imagenet256-sample.zip") as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".jpg")][:3]
        pictures = [Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((128, 128)) for name in names]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255


def test_contracts():
    check_autoencoder(dict(type="KLAutoencoder", source="bundled"))
    check_prior(dict(type="VAETaps"))
    check_prior(dict(type="VAETaps", autoencoder=dict(type="KLAutoencoder", source="bundled"), precision="fp32"))


def test_levels_and_latent_are_those_of_diffusers(own, images):
    seen, hooks, modules = {}, [], dict(own.encoder.named_modules())
    for name, module in zip(NAMES, MODULES, strict=True):
        hooks.append(modules[module].register_forward_hook(lambda m, i, out, name=name: seen.update({name: out})))
    with torch.no_grad():
        posterior = own.encode(2 * images - 1).latent_dist
    for hook in hooks:
        hook.remove()
    encoded = tokenizer(scale=1.0).encode(images, NAMES)
    assert list(encoded.taps) == NAMES
    for name in NAMES:
        torch.testing.assert_close(encoded.taps[name], seen[name], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(encoded.mean, posterior.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(encoded.std, posterior.std, rtol=1e-3, atol=1e-3)


def test_sampling_uses_the_generator_and_the_posterior(images):
    encoded = tokenizer().encode(images)
    a, b = (encoded.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    noise = torch.randn(encoded.mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(a, b) and torch.equal(a, encoded.mean + encoded.std * noise)


@pytest.mark.parametrize(
    "options, offset, factor",
    [(dict(scale=0.18215), 0, 0.18215), (dict(scale=0.13, shift=0.4), 0.4, 0.13), (dict(shift=-1.0), -1.0, 1.00005),
     (dict(mean=[0.1, 0.2, 0.3, 0.4], std=[1.0, 2.0, 4.0, 0.5]), [0.1, 0.2, 0.3, 0.4], [1.0, 0.5, 0.25, 2.0])],
    ids=["scale", "scale+shift", "shift", "per channel"])  # fmt: skip
def test_normalisation_is_applied_and_undone(own, images, options, offset, factor):
    """The bundled factor is 1.00005, which would hide a forgotten one: these do not."""
    vae = tokenizer(**options)
    raw = tokenizer(scale=1.0).encode(images)
    encoded = vae.encode(images)
    view = lambda x: torch.as_tensor(x, dtype=torch.float32).view(1, -1, 1, 1)  # noqa: E731
    torch.testing.assert_close(encoded.mean, (raw.mean - view(offset)) * view(factor), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoded.std, raw.std * view(factor), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        wanted = (own.decode(raw.mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(vae.decode(encoded.mean), wanted, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    "options, message",
    [(dict(scale=1.0, mean=[0.0] * 4), "not both"), (dict(mean=[0.0] * 3), "3 numbers for 4"), (dict(std=[0.0] * 4), "std"),
     (dict(scale=0), "scale"), (dict(precision="int8"), "bf16"), (dict(sorce="bundled"), "source")], ids=str)  # fmt: skip
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer(**options)


@pytest.mark.parametrize("deepest", ["conv_in", "down2.res1", "down3.res0", "mid.attn"])
def test_computes_only_as_deep_as_needed(images, deepest):
    vae = tokenizer()
    vae.load()
    ran, modules = [], dict(vae.held["vae"].encoder.named_modules())
    for name, module in zip(NAMES, MODULES, strict=True):
        modules[module].register_forward_hook(lambda *_, name=name: ran.append(name))
    encoded = vae.encode(images, [deepest], latent=False)
    assert ran == NAMES[: NAMES.index(deepest) + 1] and list(encoded.taps) == [deepest] and encoded.mean is None


def test_bf16_is_close(images):
    exact, fast = tokenizer().encode(images, NAMES), tokenizer(precision="bf16").encode(images, NAMES)
    for name in NAMES:
        assert torch.cosine_similarity(exact.taps[name].flatten(1), fast.taps[name].float().flatten(1)).min() > 0.999
    assert fast.mean.dtype == torch.float32


def test_training_autocast_does_not_reach_it(images):
    vae = tokenizer()
    plain = vae.encode(images).mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vae.encode(images).mean, plain)


def test_frozen_and_outside_of_state_and_parameters(images):
    vae = tokenizer()
    holder = torch.nn.Module()
    holder.vae = vae
    encoded = vae.encode(images.requires_grad_(), ["mid.res1"])
    assert not encoded.mean.requires_grad and not encoded.taps["mid.res1"].requires_grad
    assert not holder.state_dict() and not list(holder.parameters())
    holder.to("meta")
    assert all(p.is_meta for p in vae.held["vae"].parameters()), "the held network must move along"


# ---- sources ----


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny AutoencoderKL of SD's topology with random weights, as a folder and as two kinds of single files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    width = (32, 32, 64, 64)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=width,
        layers_per_block=2, latent_channels=4, scaling_factor=0.18215).eval()  # fmt: skip
    model.save_pretrained(folder / "plain")
    model.save_pretrained(folder / "pipeline" / "vae")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "single.safetensors")
    ldm = to_ldm(state)
    assert set(ldm) != set(state) and {from_ldm(name, 4) for name in ldm} == set(state)
    save_file(ldm, folder / "ldm.safetensors")
    torch.save({"state_dict": {f"first_stage_model.{k}": v for k, v in ldm.items()}}, folder / "ldm.ckpt")
    return folder


def to_ldm(state):
    """diffusers' names -> the original ones, written independently of `from_ldm` (attention as 1 x 1 convolutions)."""
    out = {}
    for key, value in state.items():
        part = key.split(".")
        if part[1] == "down_blocks":
            part = [part[0], "down", part[2], *("downsample",) * (part[3] == "downsamplers"),
                    *(("block", part[4]) if part[3] == "resnets" else ()), *part[5:]]  # fmt: skip
        elif part[1] == "up_blocks":
            part = [part[0], "up", str(3 - int(part[2])), *("upsample",) * (part[3] == "upsamplers"),
                    *(("block", part[4]) if part[3] == "resnets" else ()), *part[5:]]  # fmt: skip
        elif part[1] == "mid_block":
            if part[2] == "resnets":
                part = [part[0], "mid", f"block_{int(part[3]) + 1}", *part[4:]]
            else:
                names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
                value = value[:, :, None, None] if value.ndim == 2 else value
                part = [part[0], "mid", "attn_1", names[part[4]], part[-1]]
        elif part[1] == "conv_norm_out":
            part[1] = "norm_out"
        out[".".join(part).replace("conv_shortcut", "nin_shortcut")] = value.contiguous()
    return out


@pytest.mark.parametrize("name", ["plain", "pipeline", "single.safetensors", "ldm.safetensors", "ldm.ckpt"])
def test_every_kind_of_source_gives_the_same(small, name, images):
    vae = tokenizer(source=str(small / name))
    assert vae.latent_channels == 4 and vae.downsample == 8 and list(vae.levels) == NAMES
    assert [vae.levels[n].channels for n in ("conv_in", "down1.res0", "down2.res0", "mid.res1")] == [32, 32, 64, 64]
    wanted = tokenizer(source=str(small / "plain")).encode(images, ["mid.attn"])
    encoded = vae.encode(images, ["mid.attn"])
    torch.testing.assert_close(encoded.mean, wanted.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.taps["mid.attn"], wanted.taps["mid.attn"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vae.decode(encoded.mean), tokenizer(source=str(small / "plain")).decode(wanted.mean))
    assert float(vae.factor) == pytest.approx(0.18215)


def test_known_hub_ids_need_no_network():
    with torch.device("meta"):
        sd, sdxl = (tokenizer(source=f"stabilityai/{n}") for n in ("sd-vae-ft-mse", "sdxl-vae"))
    assert list(sd.levels) == NAMES and sd.levels == sdxl.levels
    assert [tuple(sd.levels[n]) for n in NAMES] == [
        (128, 1), (128, 1), (128, 1), (128, 2), (256, 2), (256, 2), (256, 4), (512, 4), (512, 4), (512, 8),
        (512, 8), (512, 8), (512, 8), (512, 8), (512, 8)]  # fmt: skip
    assert float(sd.factor) == pytest.approx(0.18215) and float(sdxl.factor) == pytest.approx(0.13025)


def test_what_is_not_there_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for source, word in ((tmp_path / "none", "neither a folder nor a file"), (tmp_path / "empty", "config.json"),
                         ("nobody/unknown-vae", "local cache"), (tmp_path / "words.safetensors", "no AutoencoderKL")):  # fmt: skip
        with pytest.raises(UserError) as caught:
            tokenizer(source=str(source))
        assert word in str(caught.value) and "--vae" in str(caught.value) and "--demo" in str(caught.value)
    known = tokenizer(source="stabilityai/sd-vae-ft-mse")
    with pytest.raises(UserError, match="sd-vae-ft-mse.*--demo"):
        known.load()


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    path = tmp_path / "vae.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "ran")}))
    with pytest.raises(UserError, match="refused"):
        tokenizer(source=str(path))
    assert not (tmp_path / "ran").exists()


def test_importing_the_priors_does_not_import_diffusers():
    code = "import sys, ahpa.priors; print([m for m in ('diffusers', 'timm', 'open_clip') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(__file__).resolve().parents[1])  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


def test_fingerprint_tells_weights_apart(small):
    marks = {tokenizer().fingerprint, tokenizer(source=str(small / "plain")).fingerprint}
    assert len(marks) == 2 and tokenizer().fingerprint in marks


# ---- the prior ----


def test_taps_share_the_tokenizers_pass_or_run_their_own(images, small):
    vae, prior = tokenizer(), build(PRIORS, dict(type="VAETaps"))
    prior.bind(tokenizer=vae, backbone=None)
    prior.request(["mid.res1", "down2.res0"])
    assert prior.shared_levels == ("down2.res0", "mid.res1"), "in the order of the encoder"
    step = Step(batch={}, images=images)
    step.encoded = vae.encode(images, prior.shared_levels)
    assert prior(step)["mid.res1"] is step.encoded.taps["mid.res1"]
    own = build(PRIORS, dict(type="VAETaps", autoencoder=dict(type="KLAutoencoder", source=str(small / "plain"))))
    own.bind(tokenizer=vae, backbone=None)
    own.request(["mid.res0"])
    assert own.shared_levels == () and own.own.precision == "bf16"
    assert own(step)["mid.res0"].shape == (3, 64, 16, 16)


def test_prior_mistakes():
    prior = build(PRIORS, dict(type="VAETaps"))
    with pytest.raises(ConfigError, match="no levels to share"):
        prior.bind(tokenizer=torch.nn.Identity(), backbone=None)
    prior.bind(tokenizer=tokenizer(), backbone=None)
    with pytest.raises(ConfigError, match="down2.res0"):
        prior.request(["down2.res9"])
