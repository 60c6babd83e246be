"""Where an autoencoder comes from: the bundled one, a diffusers folder, a single file, a hub id; what is known of it
before its weights are read; and the reading, the same and strict for all of them (no weight missing, none left over).

Files are data and not trusted: configs are JSON, weights are safetensors or pickles read by torch's safe loader.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..registry import UserError
from ..registry.hub import hub_file

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "tiny_vae"
NETWORK = dict(  # the options that make diffusers' AutoencoderKL, with its defaults
    in_channels=3, out_channels=3, block_out_channels=(64,), layers_per_block=1, latent_channels=4, norm_num_groups=32,
    act_fn="silu", use_quant_conv=True, use_post_quant_conv=True, mid_block_add_attention=True)  # fmt: skip
# Its factors, with its defaults too: the published config.json of sd-vae-ft-mse is silent about 0.18215.
FACTORS = dict(scaling_factor=0.18215, shift_factor=None, latents_mean=None, latents_std=None)
SD = {**NETWORK, **FACTORS, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
SDXL = {**SD, "scaling_factor": 0.13025}
KNOWN = {  # hub ids whose config.json need not be asked for
    "stabilityai/sd-vae-ft-mse": SD,
    "stabilityai/sd-vae-ft-ema": SD,
    "stabilityai/sdxl-vae": SDXL,
    "madebyollin/sdxl-vae-fp16-fix": SDXL,
}
CONSISTENCY = "openai/consistency-decoder"
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
STEM = "diffusion_pytorch_model"
WEIGHTS = (f"{STEM}.safetensors", f"{STEM}.bin")  # in the order in which they are looked for
HALF_WEIGHTS = (f"{STEM}.fp16.safetensors", f"{STEM}.fp16.bin")  # only if a folder has nothing better
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
HINT = "Point to a copy with --vae PATH (a diffusers folder or a single file), or use --demo for the bundled one."
LDM = (  # original latent-diffusion name -> diffusers' name; blocks are renamed in `rename`
    ("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1"),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."), ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
    ("mid.attn_1.k.", "mid_block.attentions.0.to_k."), ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."), ("nin_shortcut", "conv_shortcut"),
    ("norm_out", "conv_norm_out"), (".downsample.", ".downsamplers.0."), (".upsample.", ".upsamplers.0."))  # fmt: skip
OLD_ATTENTION = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))  # before 2023


class Source(NamedTuple):
    """kind 'folder', 'file' or 'hub'; path of the folder or file (None for the hub); the complete config."""

    kind: str
    path: Path | None
    config: dict


# ---- finding, without weights ----


def find(source: str, subfolder: str | None = None) -> Source:
    """Resolves `source` without reading weights. UserError with what was looked for where, if there is nothing."""
    if source == "bundled":
        return Source("folder", BUNDLED, read_config(BUNDLED / "config.json"))
    path = Path(source).expanduser()
    if path.is_dir():
        for place in [path / subfolder] if subfolder else [path, path / "vae"]:
            if (place / "config.json").is_file():
                return Source("folder", place, read_config(place / "config.json"))
        raise UserError(f"the folder {path} has no {subfolder or '.'}/config.json (diffusers layout). {HINT}")
    if path.is_file():
        beside = path.parent / "config.json"
        described = path.name in WEIGHTS + HALF_WEIGHTS and beside.is_file()
        return Source("file", path, read_config(beside) if described else config_of_file(path))
    if looks_like_path(source):
        raise UserError(f"there is no autoencoder at {path}: neither a folder nor a file. {HINT}")
    if source == CONSISTENCY:  # METHODS 11.4
        raise UserError(f"{source} is only another decoder: its encoder, and so each level, is Stable Diffusion's. "
                        "Use stabilityai/sd-vae-ft-ema, whose levels are the same.")  # fmt: skip
    config = KNOWN.get(source)
    return Source("hub", None, dict(config) if config else read_config(from_hub(source, subfolder, ("config.json",))))


def looks_like_path(source: str) -> bool:
    """A hub id is OWNER/NAME; whatever is rooted, dotted, deeper, has a weights' ending or lies in a folder that exists
    is a path."""
    if source in KNOWN or source == CONSISTENCY:
        return False
    shaped = source.startswith(("/", ".", "~")) or source.count("/") != 1 or source.endswith(FILES)
    return shaped or Path(source).parent.is_dir()


def read_config(path: Path) -> dict:
    """The config.json of an AutoencoderKL, completed with diffusers' defaults."""
    try:
        config = json.loads(path.read_text())
        kind = config.get("_class_name", "AutoencoderKL")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no config of an autoencoder that can be read ({error}). {HINT}") from error
    if kind != "AutoencoderKL":
        raise UserError(f"{path} describes a {kind}; KLAutoencoder reads an AutoencoderKL. {HINT}")
    if (colours := (config.get("in_channels", 3), config.get("out_channels", 3))) != (3, 3):
        raise UserError(f"{path}: images have 3 channels, this autoencoder takes and gives {colours}. {HINT}")
    blocks = {*(config.get("down_block_types") or ()), *(config.get("up_block_types") or ())}
    if strange := sorted(blocks - {"DownEncoderBlock2D", "UpDecoderBlock2D"}):
        raise UserError(f"{path}: blocks of the kind {strange[0]} are not supported, only those of Stable Diffusion's "
                        f"autoencoder. {HINT}")  # fmt: skip
    return {key: config.get(key, default) for key, default in {**NETWORK, **FACTORS}.items()}


def config_of_file(path: Path) -> dict:
    """The config that the shapes in a single file tell, in diffusers' or the original (ldm) key names.

    What shapes do not tell is Stable Diffusion's: 32 groups, and the factor if there are 4 channels (else unknown).
    """
    with opened(path) as reader:
        shapes = reader(shapes=True)
    ldm = is_ldm(shapes)
    first = "encoder.down.{}.block.{}.conv1.weight" if ldm else "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    widths, layers = [], 0
    while (shape := shapes.get(first.format(len(widths), 0))) is not None:
        widths.append(shape[0])
    while first.format(0, layers) in shapes:
        layers += 1
    latent = shapes.get("decoder.conv_in.weight")
    if not widths or latent is None:
        raise UserError(f"{path} holds no AutoencoderKL: no encoder.down* and decoder.conv_in among its keys. {HINT}")
    if any(width % SD["norm_num_groups"] for width in widths):
        raise UserError(f"{path}: a file does not tell how many groups its norms have, and with block widths {widths} "
                        "it is not Stable Diffusion's 32; give a diffusers folder (with config.json).")  # fmt: skip
    attention = any(".mid.attn_1." in key or ".mid_block.attentions." in key for key in shapes)
    return {**SD, "block_out_channels": tuple(widths), "layers_per_block": layers, "latent_channels": latent[1],
            "scaling_factor": SD["scaling_factor"] if latent[1] == SD["latent_channels"] else None,
            "use_quant_conv": "quant_conv.weight" in shapes, "mid_block_add_attention": attention,
            "use_post_quant_conv": "post_quant_conv.weight" in shapes}  # fmt: skip


def from_hub(source: str, subfolder: str | None, names: Iterable[str]) -> Path:
    return hub_file(source, names, subfolder=subfolder, what="the autoencoder", hint=HINT)


# ---- weights ----


def weights(found: Source, source: str, subfolder: str | None) -> Path:
    """The file that holds the weights; of a hub id it is fetched now. UserError if there is none."""
    if found.kind == "file":
        return found.path
    if found.kind == "hub":
        return from_hub(source, subfolder, WEIGHTS)
    for name in WEIGHTS + HALF_WEIGHTS:
        if (found.path / name).is_file():
            return found.path / name
    raise UserError(f"{found.path} has a config.json but no weights ({' or '.join(WEIGHTS)}). {HINT}")


def read_network(path: Path, config: Mapping, dtype):
    """diffusers' AutoencoderKL of this config in `dtype` on the CPU, with exactly the weights of the file."""
    import torch
    from diffusers import AutoencoderKL

    count = len(config["block_out_channels"])
    with torch.device("meta"):  # no time spent on random weights
        vae = AutoencoderKL(**{key: config[key] for key in NETWORK}, down_block_types=("DownEncoderBlock2D",) * count,
                            up_block_types=("UpDecoderBlock2D",) * count)  # fmt: skip
    wanted = vae.state_dict()
    with torch.device("cpu"), opened(path) as reader:
        state = reader()
        state = {rename(key, is_ldm(state), count): value.to(dtype) for key, value in state.items()}
    for name, keys in (("lacks", wanted.keys() - state.keys()), ("has no place for", state.keys() - wanted.keys())):
        if keys:
            raise UserError(f"{path} does not fit an AutoencoderKL: it {name} {len(keys)} weights, as {min(keys)}.")
    for key, value in wanted.items():  # attention was made of 1 x 1 convolutions once
        if tuple(state[key].shape) not in (tuple(value.shape), (*value.shape, 1, 1)):
            raise UserError(f"{path}: {key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}.")
    vae.load_state_dict({key: state[key].reshape(value.shape) for key, value in wanted.items()}, assign=True)
    return vae


@contextmanager
def opened(path: Path):
    """Gives a function that reads an autoencoder's part of a weights file: {key: tensor}, or {key: shape} with
    `shapes=True` (of safetensors, only the header is read then). Whatever goes wrong is a UserError."""
    if path.suffix != ".safetensors":
        yield lambda shapes=False: read_pickle(path, shapes)
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            keys = own_keys(file.keys())
            yield lambda shapes=False: {name: tuple(file.get_slice(key).get_shape()) if shapes else file.get_tensor(key)
                                        for name, key in keys.items()}  # fmt: skip
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file that can be read ({error}). {HINT}") from error


def read_pickle(path: Path, shapes: bool) -> dict:
    """The same of a pickle, by torch's safe loader, which builds tensors and plain containers and runs nothing else."""
    import torch

    try:
        state = torch.load(path, map_location="meta" if shapes else "cpu", weights_only=True)
        state = state.get("state_dict", state)
        keys = own_keys(state)
        return {name: tuple(state[key].shape) if shapes else state[key] for name, key in keys.items()}
    except Exception as error:  # unpickling may fail in any way
        raise UserError(f"{path} is refused: it is damaged, or holds more than tensors, and such a pickle may run code "
                        f"({type(error).__name__}). Convert it to .safetensors. {HINT}") from error  # fmt: skip


def own_keys(keys: Iterable[str]) -> dict[str, str]:
    """{name in the autoencoder: key in the file}; a whole latent-diffusion model has it under `first_stage_model.`"""
    keys, prefix = list(keys), "first_stage_model."
    if any(key.startswith(prefix) for key in keys):
        keys = [key for key in keys if key.startswith(prefix)]
    return {name: key for key in keys if (name := key.removeprefix(prefix)).startswith(PARTS)}


def is_ldm(keys: Iterable[str]) -> bool:
    """Whether these are the original names of latent diffusion, and not diffusers'."""
    return any(key.startswith(("encoder.down.", "decoder.up.")) for key in keys)


def rename(key: str, ldm: bool, blocks: int) -> str:
    """A key of the original latent-diffusion layout, or of an old diffusers, -> today's name of the same weight."""
    if not ldm:
        for old, new in OLD_ATTENTION:
            key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
        return key
    for old, new in LDM:
        key = key.replace(old, new)
    part = key.split(".")
    if part[1] == "down":
        part[1] = "down_blocks"
    elif part[1] == "up":  # the original counts its decoder's blocks from the finest
        part[1], part[2] = "up_blocks", str(blocks - 1 - int(part[2]))
    return ".".join("resnets" if name == "block" else name for name in part)


def file_hash(path: Path) -> str:
    """The first 16 hex digits of a file's sha256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()[:16]
