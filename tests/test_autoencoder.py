"""The tokenizer against diffusers' own encoder and decoder, from every kind of source; scales that
must not be forgotten."""

import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file

from ahpa.data.shapes import ShapesDataset
from ahpa.registry import TOKENIZERS, ConfigError, UserError, build
from ahpa.tokenizers import sources

NAMES = [
    "conv_in",
    "down0.res0",
    "down0.res1",
    "down0.down",
    "down1.res0",
    "down1.res1",
    "down1.down",
    "down2.res0",
    "down2.res1",
    "down2.down",
    "down3.res0",
    "down3.res1",
    "mid.res0",
    "mid.attn",
    "mid.res1",
]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def tokenizer(**options):
    return build(TOKENIZERS, {"type": "KLAutoencoder", "source": "bundled", **options})


def network(**options):
    """A tiny AutoencoderKL of SD's topology with random weights; its factor is not the default."""
    torch.manual_seed(0)
    count = len(options.get("block_out_channels", range(4)))
    given = dict(
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.3,
    )
    return AutoencoderKL(**{**given, **options}).eval()


def saved(folder, model, *, config=None, state=None):
    """Save as a diffusers folder, with some of the config (None removes a key) or all of the
    weights replaced."""
    model.save_pretrained(folder)
    given = {**json.loads((folder / "config.json").read_text()), **(config or {})}
    kept = {key: value for key, value in given.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    if state is not None:
        save_file(state, folder / WEIGHTS)
    return str(folder)


def bundled():
    """The bundled autoencoder as diffusers reads it."""
    model = AutoencoderKL.from_pretrained(
        sources.BUNDLED, torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    return model.eval()


def pictures():
    """Three pictures [3, 3, 64, 64] in [0, 1]: real ones if they are there, else synthetic ones."""
    shared = Path(__file__).resolve().parents[2] / "shared"
    archive = shared / "data" / "imagenet256-sample.zip"
    if not archive.exists():
        drawn = [ShapesDataset(resolution=64)[i]["image"] for i in range(3)]
        return torch.stack(drawn).float() / 255
    with zipfile.ZipFile(archive) as file:
        names = [name for name in sorted(file.namelist()) if name.endswith(".jpg")][:3]
        opened = [Image.open(io.BytesIO(file.read(name))).convert("RGB") for name in names]
    arrays = np.stack([np.asarray(picture.resize((64, 64))) for picture in opened])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


images = pytest.fixture(pictures, scope="module")


# ---- normalisation --------------------------------------------------------------------------

PER_CHANNEL = dict(mean=[0.1, 0.2, 0.3, 0.4], std=[1.0, 2.0, 4.0, 0.5])


@pytest.mark.parametrize(
    ("options", "offset", "factor"),
    [
        (dict(), 0, 1.00005),
        (dict(scale=0.18215), 0, 0.18215),
        (dict(scale=0.13, shift=0.4), 0.4, 0.13),
        (dict(shift=-1.0), -1.0, 1.00005),
        (PER_CHANNEL, [0.1, 0.2, 0.3, 0.4], [1.0, 0.5, 0.25, 2.0]),
    ],
    ids=["default", "scale", "scale+shift", "shift", "per channel"],
)
def test_normalisation_is_applied_and_undone(images, options, offset, factor):
    """The bundled factor is 1.00005, which would hide a forgotten one: these do not."""
    own = bundled()
    vae = tokenizer(**options, channels_last=False)
    with torch.no_grad():
        raw = own.encode(2 * images - 1).latent_dist
        wanted = (own.decode(raw.mean).sample / 2 + 0.5).clamp(0, 1)
    encoded = vae.encode(images)
    offset = torch.as_tensor(offset, dtype=torch.float32).view(1, -1, 1, 1)
    factor = torch.as_tensor(factor, dtype=torch.float32).view(1, -1, 1, 1)
    torch.testing.assert_close(encoded.mean, (raw.mean - offset) * factor, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(encoded.std, raw.std * factor, rtol=1e-6, atol=0)
    torch.testing.assert_close(vae.decode(encoded.mean), wanted, rtol=0, atol=1e-5)


STATISTICS = dict(scaling_factor=0.5, latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 4, 5])


@pytest.mark.parametrize("place", ["", f"/{WEIGHTS}"], ids=["folder", "file"])
@pytest.mark.parametrize(
    ("config", "offset", "factor"),
    [
        (dict(scaling_factor=None), [0.0], [0.18215]),
        (dict(scaling_factor=0.25, shift_factor=0.5), [0.5], [0.25]),
        (STATISTICS, [1, 2, 3, 4], [0.5, 0.25, 0.125, 0.1]),
    ],
    ids=["as sd-vae-ft-mse: none given", "shift", "latents_mean"],
)
def test_factors_come_from_the_config(tmp_path, config, offset, factor, place):
    vae = tokenizer(source=saved(tmp_path / "vae", network(), config=config) + place)
    torch.testing.assert_close(vae.offset.flatten(), torch.tensor(offset).float())
    torch.testing.assert_close(vae.factor.flatten(), torch.tensor(factor).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=1.0, mean=[0.0] * 4), "not both"),
        (dict(mean=[0.0] * 3), "mean: must be 4 numbers.* got 3"),
        (dict(mean=0.5), "mean: must be 4 numbers.* got 0.5"),
        (dict(std=[0.0] * 4), "std: must be a finite number above 0, got 0.0"),
        (dict(std=[float("nan")] * 4), "std: must be a finite number above 0, got nan"),
        (dict(scale=0), "scale: must be a finite number above 0, got 0"),
        (dict(scale="1"), "scale: must be a finite number above 0, got '1'"),
        (dict(precision="int8"), "bf16"),
        (dict(sorce="bundled"), "source"),
        (dict(source=None), "hub id"),
    ],
    ids=str,
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer(**options)


def test_large_batches_are_decoded_in_parts():
    vae = tokenizer()
    latent = torch.randn(19, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    sizes = []
    vae.load()
    vae.network.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    images = vae.decode(latent)
    assert sizes == [16, 3]
    assert images.shape == (19, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(images[17:], vae.decode(latent[17:]), rtol=0, atol=1e-5)


def test_fingerprint_tells_weights_apart(tmp_path):
    mark = tokenizer().fingerprint
    assert len(mark) == 16
    assert mark == tokenizer(precision="bf16", scale=2.0).fingerprint
    shutil.copytree(sources.BUNDLED, tmp_path / "other")
    state = load_file(tmp_path / "other" / WEIGHTS)
    state["encoder.conv_in.bias"][0] += 1
    save_file(state, tmp_path / "other" / WEIGHTS)
    assert tokenizer(source=str(tmp_path / "other")).fingerprint != mark


# ---- sources --------------------------------------------------------------------------------


def to_ldm(state):
    """diffusers' names -> the original ones, written independently of `sources.rename`; the
    attention's weights become 1 x 1 convolutions."""
    out = {}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
    for key, value in state.items():
        part = key.split(".")
        if part[1] in ("down_blocks", "up_blocks"):
            way = part[1][:-7]
            place = part[2] if part[1] == "down_blocks" else str(3 - int(part[2]))
            is_sampler = part[3].endswith("samplers")
            kind = (f"{way}sample",) if is_sampler else ("block", part[4])
            part = [part[0], way, place, *kind, *part[5:]]
        elif part[1] == "mid_block" and part[2] == "resnets":
            part = [part[0], "mid", f"block_{int(part[3]) + 1}", *part[4:]]
        elif part[1] == "mid_block":
            value = value[:, :, None, None] if value.ndim == 2 else value
            part = [part[0], "mid", "attn_1", attention[part[4]], part[-1]]
        elif part[1] == "conv_norm_out":
            part[1] = "norm_out"
        out[".".join(part).replace("conv_shortcut", "nin_shortcut")] = value.contiguous()
    return out


def to_old(state):
    """The attention's names of the published sd-vae-ft-mse."""
    names = {".to_q": ".query", ".to_k": ".key", ".to_v": ".value", ".to_out.0": ".proj_attn"}
    out = {}
    for key, value in state.items():
        for new, old in names.items():
            key = key.replace(new, old)
        out[key] = value
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One random network as every kind of source; it has SD's factor, the default of a file."""
    folder = tmp_path_factory.mktemp("vae")
    model = network(scaling_factor=0.18215)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    for name, content in (("plain", None), ("pipeline/vae", None), ("old", to_old(state))):
        saved(folder / name, model, state=content)
    for name, content in (("single", state), ("old", to_old(state)), ("ldm", to_ldm(state))):
        save_file(content, folder / f"{name}.safetensors")
    whole = {f"first_stage_model.{key}": value for key, value in to_ldm(state).items()}
    whole["model.diffusion_model.out.2.bias"] = torch.zeros(4)  # its other networks are ignored
    torch.save({"state_dict": whole, "epoch": 3}, folder / "ldm.ckpt")
    torch.save(state, folder / "plain.pt")
    return folder


def test_the_ldm_layout_is_what_diffusers_reads(small):
    """Its own converter is the reference for the names, and for the test's own way back."""
    theirs = convert_ldm_vae_checkpoint(load_file(small / "ldm.safetensors"), network().config)
    ours = load_file(small / "single.safetensors")
    assert set(theirs) == set(ours)
    assert all(torch.equal(theirs[key].reshape(value.shape), value) for key, value in ours.items())
    assert [sources.rename(name, True, 4) for name in to_ldm(ours)] == list(ours)


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "pipeline",
        "old",
        f"plain/{WEIGHTS}",
        "single.safetensors",
        "old.safetensors",
        "ldm.safetensors",
        "ldm.ckpt",
        "plain.pt",
    ],
)
def test_every_kind_of_source_gives_the_same(small, name, images):
    vae = tokenizer(source=str(small / name), channels_last=False)
    model = network()
    assert vae.latent_channels == 4 and vae.downsample == 8 and list(vae.levels) == NAMES
    widths = [vae.levels[n].channels for n in ("conv_in", "down1.res0", "down2.res0", "mid.res1")]
    assert widths == [32, 32, 64, 64]
    with torch.no_grad():
        posterior = model.encode(2 * images[:1] - 1).latent_dist
        wanted = (model.decode(posterior.mean).sample / 2 + 0.5).clamp(0, 1)
    encoded = vae.encode(images[:1])
    torch.testing.assert_close(encoded.mean, 0.18215 * posterior.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(vae.decode(encoded.mean), wanted, rtol=0, atol=1e-5)


def test_a_hub_id_is_read_from_the_local_cache(tmp_path, monkeypatch, images):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--a-vae"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    saved(repository / "snapshots" / ("a" * 40) / "vae", network())
    vae = tokenizer(source="someone/a-vae", subfolder="vae", channels_last=False)
    with torch.no_grad():
        wanted = 0.3 * network().encode(2 * images - 1).latent_dist.mean
    torch.testing.assert_close(vae.encode(images).mean, wanted, rtol=1e-6, atol=1e-7)


def refusal(**options):
    """The message with which this is refused, at the latest when the weights are needed."""
    with pytest.raises(UserError) as caught:
        tokenizer(**options).load()
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("{folder}/none", "neither a folder nor a file"),
        ("{folder}/empty", "config.json"),
        ("empty/vae", "neither a folder nor a file"),
        ("nobody/unknown-vae", "local cache"),
        ("{folder}/words.safetensors", "no AutoencoderKL"),
        ("{folder}/bare", "no weights"),
        ("stabilityai/sd-vae-ft-mse", "local cache"),
    ],
)
def test_a_missing_autoencoder_is_reported_with_what_to_do(tmp_path, monkeypatch, source, word):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    network().save_config(tmp_path / "bare")
    (tmp_path / "words.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    source = source.format(folder=tmp_path)
    message = refusal(source=source)
    assert word in message and source in message and "--vae" in message and "--demo" in message


def test_the_consistency_decoder_has_stable_diffusions_levels():
    assert "sd-vae-ft-ema" in refusal(source="openai/consistency-decoder")


def test_without_a_network_the_hub_is_given_up_after_one_try(monkeypatch):
    asked = []
    waited = []
    dead = SimpleNamespace(head=lambda url, timeout: waited.append(timeout) or 1 / 0)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: dead)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *a, **options: asked.append(options) or 1 / 0
    )
    assert "cannot be reached" in refusal(source="nobody/unknown-vae")
    assert [options["local_files_only"] for options in asked] == [True]
    assert len(waited) == 1 and waited[0] <= 5


def lacking(state):
    return {key: value for key, value in state.items() if key != "encoder.conv_in.weight"}


def of_other_widths(state):
    return network(block_out_channels=(32, 32, 64, 32)).state_dict()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lacking, "lacks 1 weights, such as encoder.conv_in.weight"),
        (lambda state: {**state, "encoder.x": torch.ones(1)}, "unknown 1 weights.* encoder.x"),
        (
            lambda state: {**state, "encoder.conv_in.bias": torch.zeros(31)},
            r"encoder.conv_in.bias is \(31,\), expected \(32,\)",
        ),
        (of_other_widths, "conv_shortcut"),
    ],
    ids=["missing", "left over", "misshapen", "another network"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, word):
    source = saved(tmp_path / "vae", network(), state=change(network().state_dict()))
    with pytest.raises(UserError, match=word):
        tokenizer(source=source).load()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (dict(down_block_types=["AttnDownEncoderBlock2D"] * 4), "AttnDownEncoderBlock2D"),
        (dict(_class_name="VQModel"), "VQModel"),
        (dict(in_channels=1), r"must be 3, as in images, got \(1, 3\)"),
    ],
    ids=str,
)
def test_other_networks_are_refused(tmp_path, config, word):
    with pytest.raises(UserError, match=word):
        tokenizer(source=saved(tmp_path / "vae", network(), config=config))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(latent_channels=16), "scale"),
        (dict(block_out_channels=(24, 24), norm_num_groups=8), "groups"),
    ],
    ids=["factor", "groups"],
)
def test_what_a_lone_file_does_not_tell_is_not_guessed(tmp_path, options, word):
    saved(tmp_path / "vae", network(**options))
    shutil.copy(tmp_path / "vae" / WEIGHTS, tmp_path / "file.safetensors")
    assert word in refusal(source=str(tmp_path / "file.safetensors"))


def test_a_lone_files_factor_can_be_given(tmp_path):
    saved(tmp_path / "vae", network(latent_channels=16))
    shutil.copy(tmp_path / "vae" / WEIGHTS, tmp_path / "file.safetensors")
    assert float(tokenizer(source=str(tmp_path / "file.safetensors"), scale=0.5).factor) == 0.5


@pytest.mark.parametrize("place", [f"vae/{WEIGHTS}", "x.safetensors", "x.ckpt"])
@pytest.mark.parametrize("damage", ["empty", "short", "header", "half"])
def test_damaged_files_are_named(tmp_path, place, damage):
    folder = Path(saved(tmp_path / "vae", network()))
    whole = (folder / WEIGHTS).read_bytes()
    header = (9).to_bytes(8, "little") + b"not json!"
    content = {"empty": b"", "short": b"abc", "header": header, "half": whole[: len(whole) // 2]}
    path = tmp_path / place
    path.write_bytes(content[damage])
    source = folder if path.parent == folder else path
    assert str(path) in refusal(source=str(source))


def test_a_damaged_config_is_named(tmp_path):
    folder = Path(saved(tmp_path / "vae", network()))
    (folder / "config.json").write_text("{")
    assert "config.json" in refusal(source=str(folder))


class Evil(str):
    def __reduce__(self):
        return (os.system, (f"touch '{self}'",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("place", ["vae.ckpt", "vae.pt", "vae/diffusion_pytorch_model.bin"])
@pytest.mark.parametrize("write", ["pickle", "zip"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, place, write):
    target = tmp_path / "ran"
    path = tmp_path / place
    network().save_config(tmp_path / "vae")
    content = {"state_dict": Evil(target)}
    if write == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    source = path.parent if path.suffix == ".bin" else path
    assert "refused" in refusal(source=str(source)) and not target.exists()
    with contextlib.suppress(RuntimeError):  # a bare pickle runs before it proves no checkpoint
        torch.load(path, weights_only=False)
    assert target.exists(), "this pickle would have done nothing: the test shows nothing"


def test_importing_and_building_imports_no_diffusers():
    code = """import sys, torch
from ahpa.tokenizers.autoencoder_kl import KLAutoencoder
KLAutoencoder(source='bundled'), KLAutoencoder()
heavy = ('diffusers', 'timm', 'open_clip', 'huggingface_hub', 'torchvision')
print([name for name in heavy if name in sys.modules])"""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
