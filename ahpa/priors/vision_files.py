"""Where a vision encoder's weights come from when not from the hub: the bundled network, a file, a folder. Files are data
and not trusted: configs are JSON, weights are safetensors or pickles read by torch's safe loader."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..registry import UserError

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "tiny_vit"
FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
HINT = "Give `weights` a file or a folder with a copy, or 'random' for an untrained network."


def bundled() -> tuple[str, str, dict]:
    """-> (timm's name, the folder of the weights, the options of timm's `create_model`) of `ahpa/assets/tiny_vit`."""
    config = json.loads((BUNDLED / "config.json").read_text())
    return config["architecture"], str(BUNDLED), config["model_args"]


def weights_file(weights: str, what: str) -> Path:
    """A file, or the usual one in a folder. UserError if there is none."""
    path = Path(weights).expanduser()
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{what}: the folder {path} holds none of {', '.join(FILES)}. {HINT}")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{what}: there are no weights at {path}. {HINT}")
    return path


def read_weights(path: Path, what: str) -> dict:
    """The tensors of a file, read without running anything in it. UserError for one that is damaged or holds more."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file may fail in any way
        raise UserError(f"{what}: {path} is refused: it is damaged, or holds more than tensors "
                        f"({type(error).__name__}). Convert it to .safetensors.") from error  # fmt: skip


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def unset_parameters(kind: type[nn.Module]) -> Iterator[list[str]]:
    """A list that fills with the parameters that loading a state dict into a network of this class leaves as they were.
    timm passes over them in silence where its tag's number of classes is another than the network's (0 here)."""
    unset: list[str] = []
    original, own = kind.load_state_dict, "load_state_dict" in vars(kind)

    def recording(network, state, *arguments, **options):
        result = original(network, state, *arguments, **options)
        parameters = {name for name, _ in network.named_parameters()}
        unset.extend(name for name in result.missing_keys if name in parameters)
        return result

    kind.load_state_dict = recording
    try:
        yield unset
    finally:
        if own:
            kind.load_state_dict = original
        else:
            del kind.load_state_dict
