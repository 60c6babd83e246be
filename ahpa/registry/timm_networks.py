"""Networks of timm with weights from a file or the hub, read safely and set completely. Priors and
feature extractors share this."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import ConfigError, UserError, nearest
from .hub import hub_file
from .shapes import shapes_only
from .vision_files import HINT, TIMM_FILES, first_line, unset_parameters, weights_file
from .weight_files import read_contents

EXAMPLE = "vit_base_patch14_dinov2.lvd142m"


def near_names(model: str) -> list[str]:
    """List timm's pretrained transformers with similar names."""
    import timm

    return difflib.get_close_matches(model, timm.list_pretrained("*vit*"), n=5, cutoff=0.3)


def meta_network(model: str, options: Mapping[str, Any]) -> Any:
    """Build a network on the meta device, to know its sizes.

    Args:
        model: timm's name, with or without a pretrained tag.
        options: Options for timm's `create_model`.

    Raises:
        ConfigError: If timm has no such model.
    """
    import timm

    if not timm.is_model(model):
        raise ConfigError(f"model: timm has no {model!r}{nearest(model, near_names(model))}")
    with shapes_only():
        return timm.create_model(model, num_classes=0, **options)


def timm_file(model: str, weights: str | None, what: str) -> Path:
    """Return the file of a network's weights: as given, or timm's own from the cache or the hub.

    Args:
        model: timm's name with its pretrained tag.
        weights: A file or a folder; None for timm's own weights.
        what: What reads it, for messages.

    Raises:
        UserError: If there is none.
    """
    import timm

    if weights is not None:
        return weights_file(weights, what)
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise UserError(
            f"{what}: timm has no weights for {model!r}: its name has no pretrained tag, as "
            f"{EXAMPLE!r} has. {HINT}"
        )
    names = (config.hf_hub_filename or TIMM_FILES[0], TIMM_FILES[1])
    return hub_file(config.hf_hub_id, names, what="the vision encoder", hint=HINT)


def loaded_network(
    model: str, path: Path, what: str, *, kind: type[nn.Module], options: Mapping[str, Any]
) -> nn.Module:
    """Build a network without a classifier on the CPU and set all of its weights.

    Args:
        model: timm's name.
        path: File of the weights.
        what: What reads it, for messages.
        kind: Class of the network.
        options: Options for timm's `create_model`.

    Raises:
        UserError: If the file is unsafe or does not fit.
    """
    import timm

    overlay = {"state_dict": read_contents(path, what), "custom_load": False}
    misfit = f"{what}: {path} does not fit {model!r}"
    try:
        with torch.device("cpu"), unset_parameters(kind) as unset:
            network = timm.create_model(
                model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **options
            )
    except Exception as error:  # other names or shapes
        raise UserError(f"{misfit}: {first_line(error)}") from error
    if unset:
        more = f" and {len(unset) - 3} more" if len(unset) > 3 else ""
        raise UserError(f"{misfit}: it has no {', '.join(unset[:3])}{more}.")
    return network
