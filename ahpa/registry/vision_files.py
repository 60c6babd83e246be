"""Where a vision encoder's weights come from, other than the hub: the bundled network, a file, a
folder; and the check that a file sets every parameter."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from .errors import UserError

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "tiny_vit"
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FILES = (TIMM_FILES[0], OPEN_CLIP_FILES[0], TIMM_FILES[1], OPEN_CLIP_FILES[1])
HINT = "Give `weights` a file or a folder with a copy, or 'random' for an untrained network."


def bundled() -> tuple[str, str, dict[str, Any]]:
    """Describe the network in `ahpa/assets/tiny_vit`.

    Returns:
        timm's name of its architecture, the folder of its weights, and its options for timm's
        `create_model`.
    """
    config = json.loads((BUNDLED / "config.json").read_text())
    return config["architecture"], str(BUNDLED), config["model_args"]


def weights_file(weights: str, what: str) -> Path:
    """Return a weight file: the path itself, or the usual file in a folder.

    Raises:
        UserError: If there is none.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{what}: the folder {path} holds none of {', '.join(FILES)}. {HINT}")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{what}: there are no weights at {path}. {HINT}")
    return path


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's name if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


@contextmanager
def unset_parameters(kind: type[nn.Module]) -> Iterator[list[str]]:
    """Record the parameters that loading a state dict into networks of a class leaves unset.

    timm ignores missing weights if its tag's number of classes differs from the network's, which
    is 0 here.

    Args:
        kind: Class of the networks.

    Yields:
        A list that fills with the names of the parameters.
    """
    unset: list[str] = []
    original: Any = kind.load_state_dict
    is_own = "load_state_dict" in vars(kind)

    def recording(network: nn.Module, state: Any, *args: Any, **options: Any) -> Any:
        result = original(network, state, *args, **options)
        parameters = {name for name, _ in network.named_parameters()}
        unset.extend(name for name in result.missing_keys if name in parameters)
        return result

    kind.load_state_dict = recording  # type: ignore
    try:
        yield unset
    finally:
        if is_own:
            kind.load_state_dict = original  # type: ignore
        else:
            del kind.load_state_dict
