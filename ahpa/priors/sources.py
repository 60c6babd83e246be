"""Where an autoencoder comes from: the bundled one, a diffusers folder, a single file, a hub id; and what is known of it
before its weights are read.

Only configs and safetensors headers are read here; nothing is executed, and pickles are left to the safe loader.
"""

import hashlib
import json
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ..registry import UserError

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "tiny_vae"
SD = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, scaling_factor=0.18215)
KNOWN = {  # hub ids whose topology is known without asking the hub (their config.json)
    "stabilityai/sd-vae-ft-mse": SD,
    "stabilityai/sd-vae-ft-ema": SD,
    "stabilityai/sdxl-vae": {**SD, "scaling_factor": 0.13025},
    "madebyollin/sdxl-vae-fp16-fix": {**SD, "scaling_factor": 0.13025},
}
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
CONNECT_SECONDS = 3  # how long the hub may take to answer before it counts as out of reach
HINT = "Point to a copy with --vae PATH (a diffusers folder or a single file), or use --demo for the bundled one."


class Source(NamedTuple):
    """kind: 'folder', 'file' or 'hub'; path of the folder or file (None for the hub); config of the AutoencoderKL."""

    kind: str
    path: Path | None
    config: dict


def find(source: str, subfolder: str | None = None) -> Source:
    """Resolves `source` without reading weights. UserError with what was looked for where, if there is nothing."""
    if source == "bundled":
        return _folder(BUNDLED)
    path = Path(source).expanduser()
    if path.is_dir():
        for place in [path / subfolder] if subfolder else [path, path / "vae"]:
            if (place / "config.json").exists():
                return _folder(place)
        raise UserError(
            f"the autoencoder's folder {path} has no {subfolder or '.'}/config.json (diffusers layout). {HINT}"
        )
    if path.is_file():
        return Source("file", path, _config_of_file(path))
    if looks_like_path(source):
        raise UserError(f"there is no autoencoder at {path}: neither a folder nor a file. {HINT}")
    return Source("hub", None, dict(KNOWN[source]) if source in KNOWN else _config_of_hub(source, subfolder))


def looks_like_path(source: str) -> bool:
    """A hub id is NAME or OWNER/NAME; anything rooted, dotted, deeper or with a weights' ending is a path."""
    return source.startswith(("/", ".", "~")) or source.count("/") != 1 or source.endswith(FILES)


def _folder(path: Path) -> Source:
    config = json.loads((path / "config.json").read_text())
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise UserError(f"{path} holds a {kind}; KLAutoencoder reads an AutoencoderKL. {HINT}")
    return Source("folder", path, config)


def _config_of_file(path: Path) -> dict:
    """Topology from the shapes of a single file, in diffusers' or the original (ldm) key names."""
    shapes = read_shapes(path)
    ldm = "encoder.down.0.block.0.conv1.weight" in shapes
    first = "encoder.down.{}.block.{}.conv1.weight" if ldm else "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    channels, block = [], 0
    while (shape := shapes.get(first.format(block, 0))) is not None:
        channels.append(shape[0])
        block += 1
    latent = shapes.get("decoder.conv_in.weight")
    if not channels or latent is None:
        raise UserError(f"{path} holds no AutoencoderKL: no encoder.down* and decoder.conv_in among its keys. {HINT}")
    layers = 0
    while first.format(0, layers) in shapes:
        layers += 1
    config = dict(SD, block_out_channels=tuple(channels), layers_per_block=layers, latent_channels=latent[1])
    return {**config, "ldm": ldm, "use_quant_conv": "quant_conv.weight" in shapes,
            "use_post_quant_conv": "post_quant_conv.weight" in shapes}  # fmt: skip


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{key: shape} of a weights file: a safetensors header, or a pickle read by torch's safe loader."""
    if path.suffix == ".safetensors":
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise UserError(f"{path} is no safetensors file (its header is longer than the file).")
            header = json.loads(file.read(size))
        return {strip(key): tuple(value["shape"]) for key, value in header.items() if key != "__metadata__"}
    return {key: tuple(value.shape) for key, value in read_tensors(path).items()}


def strip(key: str) -> str:
    """Keys of a whole latent-diffusion model carry `first_stage_model.`."""
    return key.removeprefix("first_stage_model.")


def read_tensors(path: Path) -> dict:
    """The tensors of a file, safely: safetensors, or `torch.load(weights_only=True)`, which runs nothing."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        import torch

        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{path} is refused: it is no plain file of tensors ({error}).") from error
        state = state.get("state_dict", state)
    return {strip(key): value for key, value in state.items() if hasattr(value, "shape")}


def _config_of_hub(source: str, subfolder: str | None) -> dict:
    """config.json of a hub id that is not in the table: from the local cache, else from the hub."""
    from huggingface_hub import hf_hub_download

    for local in (True, False) if not offline() else (True,):
        try:
            found = hf_hub_download(source, "config.json", subfolder=subfolder, local_files_only=local, etag_timeout=5)
            return json.loads(Path(found).read_text())
        except Exception as error:  # many kinds: not cached, no network, no such repository
            last = error
    raise UserError(missing(source, last)) from last


def offline() -> bool:
    """Whether the hub is not to be asked, or cannot be: found out at once instead of after a minute of retries."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return True
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return False  # a proxy looks names up itself
    from huggingface_hub.constants import ENDPOINT

    host = urlsplit(ENDPOINT)
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=CONNECT_SECONDS).close()
        return False
    except OSError:
        return True


def missing(source: str, error: Exception) -> str:
    """The message for a hub id that cannot be got."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = "the hub has no such id" if not offline() else "the hub cannot be reached, or HF_HUB_OFFLINE is set"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    looked = f"it is not in the local cache {HF_HUB_CACHE}, and {place} ({reason[:160]})"
    return f"the autoencoder {source!r} was not found: {looked}. {HINT}"


def fingerprint(source: Source, state: dict) -> str:
    """A short hash of the weights: of the file where there is one, else of the tensors."""
    digest = hashlib.sha256()
    path = source.path
    if source.kind == "folder":
        path = next((path / name for name in WEIGHTS if (path / name).exists()), None)
    if path is not None:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    else:
        for key in sorted(state):
            digest.update(key.encode() + state[key].detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
