"""Where an AutoencoderKL comes from: the bundled one, a diffusers folder, a file or a hub id.

Its config is known before its weights are read. Weights are read strictly: none may be missing and
none may be left over.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..registry import ConfigError, UserError
from ..registry.files import read_json, user_path
from ..registry.hub import hub_file
from ..registry.shapes import shapes_only
from ..registry.validation import boolean, choice, integer
from ..registry.weight_files import read_shapes, read_state_dict

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "tiny_vae"

# The options of diffusers' AutoencoderKL that shape the network, with diffusers' defaults.
NETWORK: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
# The factors of its latents, with diffusers' defaults: the published config.json of sd-vae-ft-mse
# does not mention its 0.18215.
FACTORS: dict[str, Any] = {
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
SD = {**NETWORK, **FACTORS, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
SDXL = {**SD, "scaling_factor": 0.13025}
KNOWN = {  # hub ids whose config need not be downloaded
    "stabilityai/sd-vae-ft-mse": SD,
    "stabilityai/sd-vae-ft-ema": SD,
    "stabilityai/sdxl-vae": SDXL,
    "madebyollin/sdxl-vae-fp16-fix": SDXL,
}
CONSISTENCY = "openai/consistency-decoder"

MOST_BLOCKS = 16  # largest sizes of a network that is built from a config
MOST_LAYERS = 64
MOST_CHANNELS = 1 << 14
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
HALF_WEIGHTS = ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16.bin")
ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
BLOCKS = {"DownEncoderBlock2D", "UpDecoderBlock2D"}

WHAT = "the autoencoder"
HINT = (
    "Point to a copy with --vae PATH (a diffusers folder or a single file), "
    "or use --demo for the bundled one."
)

# Parts of the original latent-diffusion names, and of diffusers' names of the same weights. The
# blocks themselves are renamed in `rename`.
LDM_NAMES = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1.norm.": "mid_block.attentions.0.group_norm.",
    "mid.attn_1.q.": "mid_block.attentions.0.to_q.",
    "mid.attn_1.k.": "mid_block.attentions.0.to_k.",
    "mid.attn_1.v.": "mid_block.attentions.0.to_v.",
    "mid.attn_1.proj_out.": "mid_block.attentions.0.to_out.0.",
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
    ".downsample.": ".downsamplers.0.",
    ".upsample.": ".upsamplers.0.",
}
# Names of the attention's layers in diffusers before 2023, and today.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Source(NamedTuple):
    """A located autoencoder.

    Attributes:
        kind: "folder", "file" or "hub".
        path: The folder or file; None for the hub.
        config: The complete config, with the keys of `NETWORK` and `FACTORS`.
    """

    kind: str
    path: Path | None
    config: dict[str, Any]


# ---- locating, without weights --------------------------------------------------------------


def find(source: str, subfolder: str | None = None) -> Source:
    """Locate an autoencoder and read its config, but not its weights.

    Args:
        source: "bundled", a folder, a file, or a hub id OWNER/NAME.
        subfolder: Where in a folder or repository it lies; by default at the top, or in "vae".

    Raises:
        UserError: If there is none; the message says what was looked for and where.
    """
    if source == "bundled":
        return Source("folder", BUNDLED, read_config(BUNDLED / CONFIG))
    path = user_path(source, WHAT)
    if path.is_dir():
        return _find_in_folder(path, subfolder)
    if path.is_file():
        return Source("file", path, _config_for_file(path))
    if looks_like_path(source):
        raise UserError(f"there is no autoencoder at {path}: neither a folder nor a file. {HINT}")
    if source == CONSISTENCY:
        raise UserError(
            f"{source} is a decoder only: its encoder, and so every level, is Stable Diffusion's. "
            "Use stabilityai/sd-vae-ft-ema, which has the same levels."
        )
    if source in KNOWN:
        return Source("hub", None, dict(KNOWN[source]))
    return Source("hub", None, read_config(_download(source, subfolder, (CONFIG,))))


def looks_like_path(source: str) -> bool:
    """Whether a source that does not exist was meant as a path and not as a hub id OWNER/NAME."""
    if source in KNOWN or source == CONSISTENCY:
        return False
    if source.startswith(("/", ".", "~")) or source.endswith(ENDINGS):
        return True
    return source.count("/") != 1 or Path(source).parent.is_dir()


def _find_in_folder(path: Path, subfolder: str | None) -> Source:
    places = [path / subfolder] if subfolder else [path, path / "vae"]
    for place in places:
        if (place / CONFIG).is_file():
            return Source("folder", place, read_config(place / CONFIG))
    wanted = f"{subfolder or '.'}/{CONFIG}"
    raise UserError(f"the folder {path} has no {wanted} (diffusers layout). {HINT}")


def _config_for_file(path: Path) -> dict[str, Any]:
    """Return the config of a single file: the one beside it in a diffusers folder, or a guess."""
    beside = path.parent / CONFIG
    if path.name in WEIGHTS + HALF_WEIGHTS and beside.is_file():
        return read_config(beside)
    return infer_config(path)


def _download(source: str, subfolder: str | None, names: Iterable[str]) -> Path:
    return hub_file(source, names, subfolder=subfolder, what=WHAT, hint=HINT)


# ---- configs --------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.json of an AutoencoderKL and complete it with diffusers' defaults.

    Raises:
        UserError: If it cannot be read, or describes a network that is not supported.
    """
    config = read_json(path, WHAT)
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a readable autoencoder config: it is no dict. {HINT}")
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise UserError(f"{path} describes a {kind}; KLAutoencoder reads an AutoencoderKL. {HINT}")
    channels = (config.get("in_channels", 3), config.get("out_channels", 3))
    if channels != (3, 3):
        raise UserError(
            f"{path}: in_channels and out_channels must be 3, as in images, got {channels}. {HINT}"
        )
    listed = (config.get(f"{way}_block_types") or () for way in ("down", "up"))
    kinds = {str(kind) for kinds in listed if isinstance(kinds, list) for kind in kinds}
    unsupported = sorted(kinds - BLOCKS)
    if unsupported:
        raise UserError(
            f"{path}: {unsupported[0]} is not supported; only the blocks of Stable Diffusion's "
            f"autoencoder are ({', '.join(sorted(BLOCKS))}). {HINT}"
        )
    complete = {key: config.get(key, default) for key, default in {**NETWORK, **FACTORS}.items()}
    try:
        check_network(complete)
    except ConfigError as error:
        raise UserError(f"{path}: {error} {HINT}") from error
    return complete


def check_network(config: Mapping[str, Any]) -> None:
    """Check the options of a network before it is built. Raises ConfigError for a wrong one."""
    widths = config["block_out_channels"]
    if not isinstance(widths, (list, tuple)) or not 1 <= len(widths) <= MOST_BLOCKS:
        raise ConfigError(
            f"block_out_channels: must list 1 to {MOST_BLOCKS} widths, got {widths!r:.80}."
        )
    groups = integer("norm_num_groups", config["norm_num_groups"], least=1, most=MOST_CHANNELS)
    for width in widths:
        integer("block_out_channels", width, least=1, most=MOST_CHANNELS)
        if width % groups:
            raise ConfigError(f"norm_num_groups: {groups} does not divide the width {width}.")
    integer("layers_per_block", config["layers_per_block"], least=1, most=MOST_LAYERS)
    integer("latent_channels", config["latent_channels"], least=1, most=MOST_CHANNELS)
    choice("act_fn", config["act_fn"], ACTIVATIONS)
    for name in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        boolean(name, config[name])


def infer_config(path: Path) -> dict[str, Any]:
    """Infer the config of a single file from its shapes, in diffusers' or the original names.

    What shapes do not tell is taken from Stable Diffusion: 32 groups a norm, and its factor if
    the latents have 4 channels (None otherwise).

    Raises:
        UserError: If the file holds no AutoencoderKL, or cannot have 32 groups.
    """
    shapes = read_shapes(path, WHAT)
    shapes = {name: shapes[key] for name, key in own_keys(shapes).items()}
    if is_ldm(shapes):
        first = "encoder.down.{}.block.{}.conv1.weight"
    else:
        first = "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    widths: list[int] = []
    while shapes.get(first.format(len(widths), 0)):
        widths.append(shapes[first.format(len(widths), 0)][0])
    layers = 0
    while first.format(0, layers) in shapes:
        layers += 1
    latent = shapes.get("decoder.conv_in.weight")
    if not widths or latent is None or len(latent) < 2 or not latent[1]:
        raise UserError(
            f"{path} holds no AutoencoderKL: it has no weights encoder.down* and decoder.conv_in. "
            f"{HINT}"
        )
    groups = SD["norm_num_groups"]
    if any(width % groups or not width for width in widths):
        raise UserError(
            f"{path}: a single file does not tell the number of groups of its norms, and it is not "
            f"Stable Diffusion's {groups} with block widths {widths}; give a diffusers folder, "
            f"which has a {CONFIG}."
        )
    channels = latent[1]
    is_attention = (".mid.attn_1.", ".mid_block.attentions.")
    return {
        **SD,
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "latent_channels": channels,
        "scaling_factor": SD["scaling_factor"] if channels == SD["latent_channels"] else None,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": any(part in key for key in shapes for part in is_attention),
    }


# ---- weights --------------------------------------------------------------------------------


def weights_path(found: Source, source: str, subfolder: str | None) -> Path:
    """Return the file of the weights, downloaded now for a hub id.

    Raises:
        UserError: If there is none.
    """
    if found.path is None:
        return _download(source, subfolder, WEIGHTS)
    if found.kind == "file":
        return found.path
    for name in WEIGHTS + HALF_WEIGHTS:
        if (found.path / name).is_file():
            return found.path / name
    raise UserError(f"{found.path} has a {CONFIG} but no weights ({' or '.join(WEIGHTS)}). {HINT}")


def read_network(path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    """Build diffusers' AutoencoderKL with exactly the weights of a file.

    Args:
        path: The weight file, in diffusers' names (today's or older) or the original ones.
        config: A complete config.
        dtype: Dtype of the weights.

    Returns:
        The network on the CPU.

    Raises:
        UserError: If the file cannot be read, or its weights do not fit the config.
    """
    from diffusers import AutoencoderKL

    count = len(config["block_out_channels"])
    with shapes_only():  # spends no time on random weights
        network: Any = AutoencoderKL(
            **{key: config[key] for key in NETWORK},
            down_block_types=("DownEncoderBlock2D",) * count,
            up_block_types=("UpDecoderBlock2D",) * count,
        )
    wanted = network.state_dict()
    with torch.device("cpu"):
        keys = own_keys(read_shapes(path, WHAT))
        tensors = read_state_dict(path, WHAT, keys.values())
        ldm = is_ldm(keys)
        odd = [key for key in keys.values() if not tensors[key].is_floating_point()]
        if odd:
            raise UserError(f"{path}: {odd[0]} holds {tensors[odd[0]].dtype}, not floats.")
        state = {rename(name, ldm, count): tensors[key].to(dtype) for name, key in keys.items()}
    for problem, names in (
        ("lacks", wanted.keys() - state.keys()),
        ("has unknown", state.keys() - wanted.keys()),
    ):
        if names:
            raise UserError(
                f"{path} does not fit an AutoencoderKL of this config: it {problem} "
                f"{len(names)} weights, such as {min(names)}."
            )
    for key, value in wanted.items():
        expected = tuple(value.shape)
        as_convolution = (*expected, 1, 1)  # what attention was made of in the original
        if tuple(state[key].shape) not in (expected, as_convolution):
            raise UserError(f"{path}: {key} is {tuple(state[key].shape)}, expected {expected}.")
    fitting = {key: state[key].reshape(value.shape) for key, value in wanted.items()}
    network.load_state_dict(fitting, assign=True)
    return network


def own_keys(keys: Iterable[str]) -> dict[str, str]:
    """Select the keys of the autoencoder in a file: {name in the autoencoder: key in the file}.

    A whole latent-diffusion model holds its autoencoder under `first_stage_model.`.
    """
    prefix = "first_stage_model."
    keys = list(keys)
    if any(key.startswith(prefix) for key in keys):
        keys = [key for key in keys if key.startswith(prefix)]
    named = {key.removeprefix(prefix): key for key in keys}
    return {name: key for name, key in named.items() if name.startswith(PARTS)}


def is_ldm(names: Iterable[str]) -> bool:
    """Whether these are the original names of latent diffusion and not those of diffusers."""
    return any(name.startswith(("encoder.down.", "decoder.up.")) for name in names)


def rename(name: str, ldm: bool, blocks: int) -> str:
    """Translate a weight's original or older name into diffusers' name of today.

    Args:
        name: The name.
        ldm: Whether it is an original latent-diffusion name.
        blocks: Number of blocks; the original counts the decoder's from the finest.
    """
    if not ldm:
        for old, new in OLD_ATTENTION.items():
            name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
        return name
    for old, new in LDM_NAMES.items():
        name = name.replace(old, new)
    parts = name.split(".")
    if parts[1] == "down":
        parts[1] = "down_blocks"
    elif parts[1] == "up":
        parts[1] = "up_blocks"
        if len(parts) > 2 and parts[2].isdecimal():
            parts[2] = str(blocks - 1 - int(parts[2][:3]))
    return ".".join("resnets" if part == "block" else part for part in parts)


def file_hash(path: Path) -> str:
    """Return the first 16 hex digits of a file's sha256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()[:16]
