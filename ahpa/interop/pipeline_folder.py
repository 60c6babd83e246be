"""SiT and DiT as a diffusers pipeline folder, and back. The weights are those of diffusers'
DiTTransformer2DModel; `pipeline.py` beside them predicts exactly what our backbones do.

Every block of diffusers' class has its own copy of the embedders of time and label, keeps q, k and
v apart, and its own pipeline takes row 1000 of the label table for the null class.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.sit import SiT
from ..engine import checkpoint
from ..engine.assembly import build_generator_parts
from ..engine.weights import MOST_PIXELS, read_run, with_autoencoder
from ..flow.discrete import DiscretePath
from ..flow.flows import ContinuousFlow
from ..registry import TOKENIZERS, UserError, build
from ..registry.contracts import Backbone, Flow, Tokenizer
from ..registry.errors import printable
from ..registry.files import read_json, whole_folder
from ..registry.shapes import shapes_only
from ..registry.validation import boolean, integer, number, positive
from ..registry.weight_files import read_shapes, read_state_dict
from ..tokenizers.autoencoder_kl import KLAutoencoder
from .published import MOST_BLOCKS, Imported, State, build_backbone

STOCK_CLASSES = 1000  # diffusers' DiTPipeline takes this label for the null class
STOCK_PIPELINE = "DiTPipeline"
OWN_PIPELINE = ["pipeline", "AlignedTransformerPipeline"]  # the file pipeline.py, and its class
KINDS = ("SiT", "DiT")
TAILS = ("weight", "bias")
TRANSFORMER = "transformer/config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
MOST_SIZE = 1 << 20  # largest integer in a transformer's config
MOST_CHANNELS = 1 << 12  # of a latent
MOST_STEPS = 1 << 20  # of a noise schedule
MOST_EPS = 1e-5  # of LayerNorm: diffusers' default; ours, as DiT's own, is 1e-6
COMPUTED = {  # what the shapes of a DiTTransformer2DModel do not tell
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
}
DEFAULTS: dict[str, Any] = {  # diffusers' own, for what a config leaves out
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
    **COMPUTED,
}
POSITIONS = {"pos_embed.pos_embed"}  # the fixed positions, which some versions stored

# Names of linear layers, ours -> diffusers'.
OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
IN_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
EMBEDDERS = {  # one for all blocks in ours, a copy in each block of diffusers'
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
}
TABLE = "y_embedder.embedding_table.weight"
THEIR_TABLE = "norm1.emb.class_embedder.embedding_table.weight"


# ---- names ----------------------------------------------------------------------------------


def to_diffusers(state: Mapping[str, Tensor], depth: int, classes: int) -> State:
    """Rename our backbone's state dict to the names of DiTTransformer2DModel.

    Args:
        state: The state dict of a SiT or DiT.
        depth: Number of blocks.
        classes: Number of labels in the result; rows beyond ours repeat the null class.
    """
    out = {}
    for ours, theirs in OUTER.items():
        for tail in TAILS:
            out[f"{theirs}.{tail}"] = state[f"{ours}.{tail}"]
    rows = state[TABLE]
    table = torch.cat([rows, rows[-1:].expand(classes + 1 - len(rows), -1)])
    for i in range(depth):
        block = f"transformer_blocks.{i}."
        for tail in TAILS:
            for ours, theirs in IN_BLOCK.items():
                out[f"{block}{theirs}.{tail}"] = state[f"blocks.{i}.{ours}.{tail}"]
            qkv = state[f"blocks.{i}.attn.qkv.{tail}"].chunk(3)
            for name, part in zip("qkv", qkv, strict=True):
                out[f"{block}attn1.to_{name}.{tail}"] = part
            for ours, theirs in EMBEDDERS.items():
                out[f"{block}{theirs}.{tail}"] = state[f"{ours}.{tail}"]
        out[f"{block}{THEIR_TABLE}"] = table
    return {key: value.clone() for key, value in out.items()}


def from_diffusers(state: Mapping[str, Tensor], depth: int, num_classes: int) -> State:
    """Rename a state dict of DiTTransformer2DModel to our names: the inverse of `to_diffusers`.

    Args:
        state: The state dict.
        depth: Number of blocks.
        num_classes: Number of labels to keep, without the null class.

    Raises:
        UserError: If the blocks' copies of an embedder differ, since ours has one for all blocks.
    """
    out = {}
    for ours, theirs in OUTER.items():
        for tail in TAILS:
            out[f"{ours}.{tail}"] = state[f"{theirs}.{tail}"]
    for i in range(depth):
        block = f"transformer_blocks.{i}."
        shared = {TABLE: state[f"{block}{THEIR_TABLE}"][: num_classes + 1]}
        for tail in TAILS:
            for ours, theirs in IN_BLOCK.items():
                out[f"blocks.{i}.{ours}.{tail}"] = state[f"{block}{theirs}.{tail}"]
            qkv = [state[f"{block}attn1.to_{name}.{tail}"] for name in "qkv"]
            out[f"blocks.{i}.attn.qkv.{tail}"] = torch.cat(qkv)
            for ours, theirs in EMBEDDERS.items():
                shared[f"{ours}.{tail}"] = state[f"{block}{theirs}.{tail}"]
        for key, value in shared.items():
            if not torch.equal(out.setdefault(key, value), value):
                raise UserError(
                    f"block {i} has an embedder of its own ({key}); "
                    "SiT and DiT have one for all blocks."
                )
    return {key: value.contiguous() for key, value in out.items()}


# ---- out ------------------------------------------------------------------------------------


def write_pipeline(
    source: Path,
    target: Path,
    *,
    weights: str = "ema",
    vae: str | None = None,
) -> str:
    """Write a trained SiT or DiT as a diffusers pipeline folder.

    Args:
        source: A checkpoint, work dir, published folder or Hub id.
        target: The folder to write, which must not exist.
        weights: "ema" or "model".
        vae: Replaces the run's autoencoder.

    Returns:
        The Python call that loads the folder.

    Raises:
        UserError: If diffusers' class cannot hold the backbone, if the autoencoder's weights are
            missing, or if `target` exists.
    """
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    target = Path(target)
    model, state = read_run(source, weights)
    if vae:
        model = {**model, "tokenizer": with_autoencoder(model["tokenizer"], vae)}
    check_fits(source, model["backbone"], model["tokenizer"])
    needed = ("resolution", "tokenizer", "backbone", "flow", "classes")
    parts = build_generator_parts({key: model[key] for key in needed if key in model})
    backbone, tokenizer = parts.backbone, parts.tokenizer
    assert isinstance(backbone, SiT) and isinstance(tokenizer, KLAutoencoder)
    scheduler = scheduler_of(source, parts.flow)
    tokenizer.load()
    factors = latent_factors(tokenizer)
    num_classes = len(state[TABLE]) - 1
    stock = is_stock(backbone, num_classes, parts.flow, factors)
    classes = STOCK_CLASSES if stock else num_classes
    transformer = DiTTransformer2DModel(
        num_attention_heads=backbone.num_heads,
        attention_head_dim=backbone.hidden_size // backbone.num_heads,
        num_layers=backbone.depth,
        in_channels=backbone.in_channels,
        out_channels=backbone.out_channels,
        sample_size=backbone.input_size,
        patch_size=backbone.patch_size,
        num_embeds_ada_norm=classes,
        norm_eps=1e-6,
    )
    theirs = to_diffusers(state, backbone.depth, classes)
    missing, unknown = transformer.load_state_dict(theirs, strict=False)
    assert not unknown and not missing, (missing, unknown)
    index = model_index(scheduler, stock, backbone, parts.classes)
    with whole_folder(target) as folder:
        transformer.save_pretrained(folder / "transformer")
        scheduler.save_pretrained(folder / "scheduler")
        tokenizer.network.save_pretrained(folder / "vae")
        config = json.loads((folder / "vae" / "config.json").read_text())
        write_json(folder / "vae" / "config.json", {**config, **factors})
        write_json(folder / "model_index.json", index)
        shutil.copyfile(Path(__file__).with_name("pipeline.py"), folder / "pipeline.py")
        (folder / "README.md").write_text(card(stock, target.name))
    return usage(stock, target)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data as indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def check_fits(source: Path, backbone: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    """Check that diffusers' classes compute what a backbone and an autoencoder do.

    Args:
        source: Where they come from, for messages.
        backbone: Config of the backbone.
        tokenizer: Config of the autoencoder.

    Raises:
        UserError: If they do not.
    """
    kind = backbone["type"]
    if kind not in KINDS:
        raise UserError(
            f"{source} holds a {kind}; diffusers has a class for {' and '.join(KINDS)} only. "
            "Export it in its published layout, or share it with `ahpa publish`."
        )
    unsupported = {
        "qk_norm": backbone.get("qk_norm", False),
        "mlp_ratio": backbone.get("mlp_ratio", 4.0) != 4.0,
    }
    for name, wrong in unsupported.items():
        if wrong:
            raise UserError(
                f"{source}: backbone.{name} is {backbone[name]}, which diffusers' "
                "DiTTransformer2DModel does not support. Share it with `ahpa publish`."
            )
    if tokenizer["type"] != "KLAutoencoder":
        raise UserError(
            f"{source}: the autoencoder is a {tokenizer['type']}; a pipeline folder holds "
            "diffusers' AutoencoderKL. Share it with `ahpa publish`."
        )


def is_stock(
    backbone: SiT,
    num_classes: int,
    flow: Flow,
    factors: Mapping[str, Any],
) -> bool:
    """Whether diffusers' own DiTPipeline samples from it, but for the time embedding."""
    path = flow.path
    plain_latents = not factors["shift_factor"] and not factors["latents_mean"]
    return (
        isinstance(path, DiscretePath)
        and plain_latents
        and not backbone.reversed_time
        and num_classes <= STOCK_CLASSES
        and backbone.time_scale == path.steps
    )


def scheduler_of(source: Path, flow: Flow) -> Any:
    """Return the diffusers scheduler that fits the flow.

    Raises:
        UserError: If no scheduler does: those of diffusers take a velocity, or the noise at
            discrete steps.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    path = flow.path
    if isinstance(flow, ContinuousFlow) and flow.prediction == "velocity":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    if not isinstance(path, DiscretePath):
        raise UserError(
            f"{source}: a pipeline folder needs a velocity on a continuous path or the noise on a "
            f"DiscretePath, which this {type(flow).__name__} does not predict. Share it with "
            "`ahpa publish`."
        )
    betas = path.schedule.tables["betas"]
    return DDIMScheduler(
        num_train_timesteps=path.steps,
        beta_start=float(betas[0]),
        beta_end=float(betas[-1]),
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def latent_factors(tokenizer: KLAutoencoder) -> dict[str, Any]:
    """Express the normalisation z = (raw - offset) * factor in the keys of diffusers' config."""
    offset, factor = tokenizer._offset, tokenizer._factor
    if len(offset) == len(factor) == 1:
        return {
            "scaling_factor": factor[0],
            "shift_factor": offset[0] or None,
            "latents_mean": None,
            "latents_std": None,
        }
    return {
        "scaling_factor": 1.0,
        "shift_factor": None,
        "latents_mean": list(offset),
        "latents_std": [1 / value for value in factor],
    }


def model_index(
    scheduler: Any, stock: bool, backbone: SiT, classes: Sequence[str] | None
) -> dict[str, Any]:
    """Return model_index.json: diffusers' own pipeline if it fits, else that of pipeline.py.

    Args:
        scheduler: A diffusers scheduler.
        stock: Whether diffusers' own pipeline fits.
        backbone: The backbone, for the options of our pipeline.
        classes: Names of the classes, if they have names.
    """
    import diffusers

    return {
        "_class_name": STOCK_PIPELINE if stock else OWN_PIPELINE,
        "_diffusers_version": diffusers.__version__,
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "num_classes": backbone.num_classes,
        "time_scale": backbone.time_scale,
        "reversed_time": backbone.reversed_time,
        "id2label": {str(number): name for number, name in enumerate(classes or ())},
    }


def usage(stock: bool, folder: Path | str) -> str:
    """Return the Python call that loads the folder and, if it fits, diffusers' own pipeline."""
    exact = ', custom_pipeline="pipeline"' if stock else ""
    own = f'DiffusionPipeline.from_pretrained("{folder}"{exact}, trust_remote_code=True)'
    if not stock:
        return own
    return (
        f"{own}\n"
        "or, with nothing but diffusers' own code, whose time embedding differs a little from "
        f'DiT\'s: DiffusionPipeline.from_pretrained("{folder}")'
    )


def card(stock: bool, name: str) -> str:
    """Return the folder's README."""
    text = f"""---
library_name: diffusers
tags: [image-generation, class-conditional, ahpa]
---
# {name}

A class-conditional latent diffusion transformer, trained with ahpa. `pipeline.py` holds the code
that samples from it: read it, then

    from diffusers import DiffusionPipeline
    pipe = {usage(stock, ".").splitlines()[0]}
    pipe(class_labels=[0, 1], guidance_scale=1.5, num_inference_steps=50).images[0]
"""
    if stock:
        text += """
Without `custom_pipeline` diffusers' own DiTPipeline is used: no code of this folder runs, and every
prediction differs a little, since that class embeds the time with other frequencies
(10000^(-i/127) instead of DiT's 10000^(-i/128)).
"""
    return text


# ---- in -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """What the config files of a pipeline folder hold.

    Attributes:
        index: model_index.json.
        scheduler: The scheduler's config.
        transformer: The transformer's config, with diffusers' defaults for what it leaves out.
    """

    index: dict[str, Any]
    scheduler: dict[str, Any]
    transformer: dict[str, Any]

    @property
    def discrete(self) -> bool:
        """Whether the network predicts noise at whole steps rather than a velocity."""
        return self.index["scheduler"][1] != "FlowMatchEulerDiscreteScheduler"


def read_pipeline(source: Path, target: Path, *, vae: str | None = None) -> Imported:
    """Turn a diffusers pipeline folder of a DiT, or one of ours, into a checkpoint.

    No code of the folder is executed, and the sizes in its configs are compared with the shapes in
    its weight files before memory is taken for them.

    Args:
        source: The folder.
        target: The checkpoint to write.
        vae: Autoencoder to sample with; the folder's own by default.

    Raises:
        UserError: If the folder holds another pipeline, or lacks something.
    """
    source = Path(source)
    found = read_folder(source)
    own = found.transformer
    files = weight_files(source / "transformer")
    options = backbone_options(found)
    tokenizer_cfg = {"type": "KLAutoencoder", "source": vae or str(source)}
    tokenizer: Tokenizer = build(TOKENIZERS, tokenizer_cfg, where="the autoencoder")
    side = integer("sample_size", own["sample_size"], most=MOST_PIXELS // tokenizer.downsample)
    resolution = side * tokenizer.downsample
    backbone = build_backbone(options, side, own["in_channels"])
    theirs, left_out = read_transformer(source, files, backbone, own["num_embeds_ada_norm"])
    state = from_diffusers(theirs, options["depth"], options["num_classes"])
    model: dict[str, Any] = {
        "resolution": resolution,
        "backbone": options,
        "tokenizer": tokenizer_cfg,
    }
    if found.discrete:
        path = {
            "type": "DiscretePath",
            "steps": found.scheduler["num_train_timesteps"],
            "beta_start": found.scheduler["beta_start"],
            "beta_end": found.scheduler["beta_end"],
        }
        model["flow"] = {"type": "DiscreteFlow", "path": path}
        if options["learn_sigma"]:
            model["flow_loss"] = {"type": "HybridLoss"}
    names = class_names(found.index.get("id2label"), options["num_classes"])
    if names:
        model["classes"] = names
    checkpoint.save_imported(model, state, Path(target), layout="diffusers")
    return Imported(
        backbone=options,
        tokenizer=tokenizer_cfg,
        resolution=resolution,
        kept=[],
        left_out=left_out,
    )


def read_folder(source: Path) -> Folder:
    """Read the configs of a pipeline folder of a DiT.

    Raises:
        UserError: If it is another one or incomplete, or if its network computes something else.
    """
    what = f"{source} is not a pipeline folder of a diffusers DiT"
    index, scheduler, config = (
        read_json(source / name, what)
        for name in ("model_index.json", "scheduler/scheduler_config.json", TRANSFORMER)
    )
    try:
        found = Folder(index, scheduler, {**DEFAULTS, **config})
        steps = scheduler["num_train_timesteps"]
        integer("num_train_timesteps", steps, least=1, most=MOST_STEPS)
        if found.discrete:
            positive("beta_start", scheduler["beta_start"])
            positive("beta_end", scheduler["beta_end"])
        linear = scheduler.get("beta_schedule") == "linear"
        noise = scheduler.get("prediction_type", "epsilon") == "epsilon"
    except Exception as error:  # a folder of someone else may fail in any way
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{what}: {reason}") from error
    if "time_scale" not in index and not (found.discrete and linear and noise):
        raise UserError(
            f"{source}: its scheduler is neither DiT's (noise, linearly spaced betas) "
            "nor one of ahpa's."
        )
    for key, only in COMPUTED.items():
        given = found.transformer[key]
        if type(given) is not type(only) or given != only:
            shown = printable(repr(given)[:80])
            raise UserError(f"{what}: transformer: {key} is {shown}, DiT's is {only!r}.")
    number(f"{what}: transformer: norm_eps", found.transformer["norm_eps"], least=0, most=MOST_EPS)
    return found


def weight_files(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Find the weights of a transformer: in one file, or in several that an index lists.

    Args:
        folder: The transformer's folder.

    Returns:
        {name of a weight: (its file, its shape)}, read from the headers alone.

    Raises:
        UserError: If there is no weight file, if the index names a file of another folder, or if a
            file does not hold what the index promises.
    """
    what = "the transformer"
    for name in WEIGHTS:  # in diffusers' order
        index = folder / f"{name}.index.json"
        if index.is_file():
            return sharded_weights(index)
        if (folder / name).is_file():
            path = folder / name
            return {key: (path, shape) for key, shape in read_shapes(path, what).items()}
    raise UserError(f"{what}: {folder} has none of {', '.join(WEIGHTS)}, and no index of several.")


def sharded_weights(index: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Find the weights that an index lists; see `weight_files`."""
    what = "the transformer"
    content = read_json(index, what)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{what}: {index.name} has no weight_map, {{weight: file}}.")
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, name in listed.items():
        shown = printable(repr(name)[:80])
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(
                f"{what}: {index.name} names {shown} for {printable(key[:80])}; expected the name "
                "of a file beside it."
            )
        if name not in shapes:
            shapes[name] = read_shapes(index.with_name(name), what)
        if key not in shapes[name]:
            raise UserError(
                f"{what}: {shown} holds no {printable(key[:80])}, which {index.name} promises."
            )
    return {key: (index.with_name(name), shapes[name][key]) for key, name in listed.items()}


def read_transformer(
    source: Path,
    files: Mapping[str, tuple[Path, tuple[int, ...]]],
    backbone: Backbone,
    classes: int,
) -> tuple[State, list[str]]:
    """Read the weights of a transformer that has the names and shapes of a backbone.

    Args:
        source: The pipeline folder, for messages.
        files: What `weight_files` found.
        backbone: Our backbone, which may be on the meta device.
        classes: Number of labels in diffusers' table, without the null class.

    Returns:
        The state dict under diffusers' names, float32, and what was left out.

    Raises:
        UserError: If a weight is missing, unknown, of another shape, or not of floats.
    """
    with shapes_only():
        rows = torch.empty(classes + 1, backbone.hidden_size)
        ours = {**backbone.state_dict(), TABLE: rows}
        wanted = to_diffusers(ours, backbone.depth, classes)
    left_out = sorted(files.keys() & POSITIONS)
    absent = sorted(wanted.keys() - files.keys())
    unknown = sorted(files.keys() - wanted.keys() - POSITIONS)
    for verb, keys in (("has no", absent), ("has unknown", unknown)):
        if keys:
            more = " ..." if len(keys) > 3 else ""
            shown = printable(", ".join(keys[:3])[:300])
            raise UserError(f"{source}: the transformer's file {verb} {shown}{more}.")
    for key, value in wanted.items():
        given, expected = files[key][1], tuple(value.shape)
        if given != expected:
            raise UserError(
                f"{source}: the transformer's {key} has the shape {given}; its config tells "
                f"{expected}."
            )
    state: State = {}
    for path in sorted({path for path, _ in files.values()}):
        keys = [key for key in wanted if files[key][0] == path]
        state |= read_state_dict(path, "the transformer", keys)
    odd = [key for key, value in state.items() if not value.is_floating_point()]
    if odd:
        raise UserError(
            f"{source}: the transformer's {odd[0]} holds {state[odd[0]].dtype}, not floats."
        )
    return {key: value.float() for key, value in state.items()}, left_out


def class_names(labels: Any, count: int) -> list[str]:
    """Return the names of the classes from diffusers' id2label; [] if there are none.

    Raises:
        UserError: Unless it is {number of a class: different names}, for the first classes.
    """
    if not labels:
        return []
    numbers = [str(number) for number in range(len(labels))]
    named = isinstance(labels, dict) and sorted(labels) == sorted(numbers) and len(labels) <= count
    names = [labels[number] for number in numbers] if named else []
    if (
        not names
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) < len(names)
    ):
        raise UserError("model_index.json: id2label must name each class from 0 on, differently.")
    return names


def backbone_options(found: Folder) -> dict[str, Any]:
    """Return the config of our backbone for a folder's transformer.

    Raises:
        UserError: If a number is out of its range.
    """
    own, index = found.transformer, found.index
    steps = float(found.scheduler["num_train_timesteps"])

    def size(key: str, most: int = MOST_SIZE) -> int:
        return integer(f"the transformer: {key}", own[key], least=1, most=most)

    heads = size("num_attention_heads")
    rows = size("num_embeds_ada_norm")
    channels = size("in_channels", MOST_CHANNELS)
    if own["out_channels"] not in (None, channels, 2 * channels):
        raise UserError(
            f"the transformer: out_channels is {printable(repr(own['out_channels'])[:80])}; a DiT "
            f"of {channels} channels has {channels}, or {2 * channels} with a variance."
        )
    return {
        "type": "DiT" if found.discrete else "SiT",
        "depth": size("num_layers", MOST_BLOCKS),
        "num_heads": heads,
        "hidden_size": heads * size("attention_head_dim", MOST_SIZE // heads),
        "patch_size": size("patch_size"),
        "num_classes": integer("num_classes", index.get("num_classes", rows), least=1, most=rows),
        "learn_sigma": own["out_channels"] == 2 * channels,
        "reversed_time": boolean("reversed_time", index.get("reversed_time", False)),
        "time_scale": positive("time_scale", index.get("time_scale", steps)),
    }
