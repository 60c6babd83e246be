"""Named sampling protocols, and the record of how a set of samples came about.

A protocol is a small JSON file in configs/protocols/: how many samples are drawn, how, and which
metrics judge them. The record holds what the protocol meant for one model, such as the times at
which the network was really called.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation.images import UINT8_RULES
from ..evaluation.protocol import canonical_json
from ..registry import SAMPLERS, ConfigError, UserError, check, nearest
from ..registry.contracts import Sampler, Streams
from ..registry.files import read_json
from ..registry.locations import find_shipped
from ..registry.precision import dtype_of
from ..registry.registry import parameters
from ..registry.validation import choice, positive_int
from ..sampling.generator import Generator
from ..sampling.guidance import ClassifierFreeGuidance
from ..tokenizers.autoencoder_kl import KLAutoencoder

BALANCES = ("balanced", "drawn")
SHOWN_DIGITS = 6  # decimals of a time
DIGEST = 12  # hexadecimal digits of a digest in a record


@dataclass(frozen=True)
class SamplingProtocol:
    """How samples are drawn for evaluation, and which metrics judge them.

    Attributes:
        count: Number of images N.
        sampler: A registered name or a config; None for the default of the model's flow.
        steps: Steps of the sampler; without effect on an adaptive one.
        cfg_scale: Guidance scale; 1 is no guidance.
        cfg_interval: Range of t in which guidance applies, bounds included.
        cfg_channels: How many latent channels are guided; None for all.
        cls_cfg_scale: Guidance scale of the streams beside the image; None for `cfg_scale`.
        balance: "balanced" (image i has class i mod K) or "drawn" (the class of image i is a
            function of the seed and i, uniform over the K classes).
        tile: Images of a forward pass. It decides the rounding of every image, so it is part of the
            protocol; guidance doubles it.
        uint8: How floats become 8 bits, one of `ahpa.evaluation.images.UINT8_RULES`.
        precision: "fp32", "bf16" or "fp16", of the network.
        metrics: Names of metrics, or configs, dict(type=...) with options such as `extractor`.
        description: What the protocol is for; not part of the record.
    """

    count: int
    sampler: str | Mapping[str, Any] | None = None
    steps: int = 250
    cfg_scale: float = 1.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    cfg_channels: int | None = None
    cls_cfg_scale: float | None = None
    balance: str = "balanced"
    tile: int = 50
    uint8: str = "round"
    precision: str = "fp32"
    metrics: tuple[str | Mapping[str, Any], ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        for name in ("count", "steps", "tile"):
            positive_int(name, asdict(self)[name])
        if self.sampler is not None:
            named = {"type": self.sampler} if isinstance(self.sampler, str) else self.sampler
            check(SAMPLERS, named, where="sampler")
        ClassifierFreeGuidance(
            scale=self.cfg_scale,
            interval=self.cfg_interval,
            channels=self.cfg_channels,
            cls_scale=self.cls_cfg_scale,
        )
        choice("balance", self.balance, BALANCES)
        choice("uint8", self.uint8, tuple(UINT8_RULES))
        dtype_of("precision", self.precision)
        if not isinstance(self.metrics, tuple) or not all(map(_names_a_metric, self.metrics)):
            raise ConfigError(
                "metrics: must be a list of names such as 'fd:tiny-vit', or of objects with a "
                f"'type' and its options; got {self.metrics!r}."
            )

    def sampling_options(self) -> dict[str, Any]:
        """Return the options of `Generator.latents`."""
        names = ("sampler", "steps", "cfg_scale", "cfg_interval", "cfg_channels", "cls_cfg_scale")
        own = {name: asdict(self)[name] for name in names}
        return {**own, "precision": self.precision}

    def changed(self, options: Mapping[str, Any]) -> "SamplingProtocol":
        """Return the protocol with single options replaced. Raises ConfigError for a wrong one."""
        return replace(self, **{name: _plain(name, value) for name, value in options.items()})


def _names_a_metric(item: Any) -> bool:
    """Whether an entry of `metrics` is a name, or a config with a type."""
    return isinstance(item, str) or (
        isinstance(item, Mapping) and isinstance(item.get("type"), str)
    )


def _plain(name: str, value: Any) -> Any:
    """Return a value of JSON as the field `name` holds it."""
    return (
        tuple(value) if name in ("cfg_interval", "metrics") and isinstance(value, list) else value
    )


def load_protocol(name: str) -> SamplingProtocol:
    """Read a protocol.

    Args:
        name: A shipped one such as "adm-50k-sde250", or a .json file.

    Raises:
        UserError: If there is none, or it is not a protocol.
    """
    path = Path(name).expanduser()
    if path.suffix != ".json":
        path = find_shipped("protocols", name, "--protocol")
    found = read_json(path, "--protocol")
    if not isinstance(found, Mapping):
        raise UserError(f"--protocol: {path} must hold an object of options.")
    return read_protocol(found, f"--protocol: {path.name}")


def read_protocol(found: Mapping[str, Any], where: str) -> SamplingProtocol:
    """Return the protocol with these options.

    Args:
        found: {option: value of JSON}.
        where: Where they stand, for messages.

    Raises:
        ConfigError: For an unknown or wrong option.
    """
    valid = [field.name for field in fields(SamplingProtocol)]
    for key in found:
        if key not in valid:
            raise ConfigError(f"{where} has no option {key!r}{nearest(key, valid)}")
    if "count" not in found:
        raise ConfigError(f"{where} needs the option 'count'.")
    try:
        return SamplingProtocol(**{key: _plain(key, value) for key, value in found.items()})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


# ---- what a protocol meant for a model ------------------------------------------------------


def sampling_record(
    generator: Generator,
    protocol: SamplingProtocol,
    prompts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return how a generator draws under a protocol, as plain values.

    Args:
        generator: The model.
        protocol: How it is sampled. Its number of images is not part of the record: `ImageSet`
            and the metrics know it.
        prompts: The prompts that are used in turn; None for classes.

    Raises:
        UserError: If the sampler does not fit the flow.
    """
    sampler = generator.sampler(protocol.sampler)
    times = None if sampler.adaptive else called_times(generator, sampler, protocol.steps)
    guided = protocol.cfg_scale != 1
    side = generator.backbone.streams["image"][-1] * generator.tokenizer.downsample
    classes: dict[str, Any] = {"balance": protocol.balance}
    if prompts is None:
        classes["count"] = len(class_numbers(generator))
    else:
        classes["prompts"] = len(prompts)
        classes["prompts_sha256"] = sha256_of(list(prompts))
    return {
        "sampler": sampler_options(generator, protocol.sampler),
        "steps": "adaptive" if times is None else protocol.steps,
        "evaluations": "adaptive" if times is None else len(times),
        "times": "adaptive" if times is None else describe_times(times),
        "guidance": {
            "scale": float(protocol.cfg_scale),
            "interval": list(map(float, protocol.cfg_interval)) if guided else None,
            "channels": protocol.cfg_channels if guided else None,
            "cls_scale": protocol.cls_cfg_scale if guided else None,
        },
        "latents": latent_record(generator),
        "decoder": decoder_record(generator),
        "resolution": side,
        "classes": classes,
        "tile": protocol.tile,
        "uint8": protocol.uint8,
        "precision": protocol.precision,
    }


def class_numbers(generator: Generator) -> list[Any]:
    """List the classes of a model; a backbone may have more labels than its data set has names."""
    known = generator.conditioner.all()
    return known if generator.classes is None else known[: len(generator.classes)]


def sampler_options(
    generator: Generator, sampler: str | Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the type of a sampler with all its options, those left out at their defaults."""
    given = generator.flow.default_sampler if sampler is None else sampler
    config = {"type": given} if isinstance(given, str) else dict(given)
    options, _ = parameters(SAMPLERS.get(config["type"]))
    defaults = {
        name: option.default
        for name, option in options.items()
        if option.default is not option.empty
    }
    return {**defaults, **config}


def called_times(generator: Generator, sampler: Sampler, steps: int) -> list[float]:
    """Return the times at which a sampler calls the network, from a run on a network of zeros.

    Args:
        generator: Whose flow and streams the sampler meets.
        sampler: One that is not adaptive.
        steps: Its steps.
    """
    times: list[float] = []
    shapes = generator.backbone.streams
    outputs = {**shapes, "image": (generator.backbone.out_channels, *shapes["image"][1:])}

    def zeros(x: Streams, t: Tensor) -> Streams:
        times.append(round(float(t), SHOWN_DIGITS))
        return {name: torch.zeros(1, *shape) for name, shape in outputs.items()}

    def no_noise(like: Streams) -> Streams:
        return {name: torch.zeros_like(x) for name, x in like.items()}

    start = {name: torch.zeros(1, *shape) for name, shape in shapes.items()}
    with torch.no_grad(), torch.device("cpu"):
        sampler.sample(zeros, start, steps=steps, path=generator.flow.path, noise=no_noise)
    return times


def describe_times(times: Sequence[float]) -> dict[str, Any]:
    """Return the first and the last of the times of all calls, and a digest of all of them."""
    return {"first": times[0], "last": times[-1], "sha256": sha256_of(list(times))}


def latent_record(generator: Generator) -> dict[str, Any]:
    """Return how raw latents z become those of the diffusion, (z - shift) * scale."""
    tokenizer = generator.tokenizer
    if not isinstance(tokenizer, KLAutoencoder):
        return {"tokenizer": type(tokenizer).__name__, "channels": tokenizer.latent_channels}
    rounded = {
        "shift": tokenizer.offset.flatten().tolist(),
        "scale": tokenizer.factor.flatten().tolist(),
    }
    return {name: [round(value, 7) for value in values] for name, values in rounded.items()}


def decoder_record(generator: Generator) -> dict[str, Any]:
    """Return what decodes the latents, with the SHA-256 of its weights."""
    tokenizer = generator.tokenizer
    found = {"type": type(tokenizer).__name__, "weights_sha256": weights_sha256(tokenizer)}
    if isinstance(tokenizer, KLAutoencoder):
        found["precision"] = tokenizer.precision
    return found


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of a network's tensors: names, types, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()


def sha256_of(value: Any) -> str:
    """Return the first 12 digits of the SHA-256 of plain values."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST]
