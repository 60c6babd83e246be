"""SiT and DiT as a diffusers pipeline folder, and back. The weights are those of diffusers' DiTTransformer2DModel.

Every block of that class has its own copy of the time's and label's embedders, q, k and v are apart, and its own pipeline
takes row 1000 of the label table for the null class. `pipeline.py` lies beside the weights: its pipeline predicts exactly
what ours does.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from ..engine import checkpoint
from ..engine.denoiser import generator_parts
from ..engine.shared import read_run
from ..registry import AUTOENCODERS, UserError, build

STOCK_CLASSES = 1000  # diffusers' DiTPipeline takes this number for the null class
KINDS = ("SiT", "DiT")
OPTIONS = ("num_classes", "time_scale", "reversed_time")  # of our pipeline, beside its parts
LINEARS = {  # ours -> diffusers'; of each block, and of the whole
    "attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear"}  # fmt: skip
OUTER = {"x_embedder.proj": "pos_embed.proj", "final_layer.adaLN_modulation.1": "proj_out_1",
         "final_layer.linear": "proj_out_2"}  # fmt: skip
EMBEDDERS = {"t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2"}
TABLE = "y_embedder.embedding_table.weight"
THEIR_TABLE = "norm1.emb.class_embedder.embedding_table.weight"
TAILS = ("weight", "bias")


def to_diffusers(state: dict[str, Tensor], depth: int, classes: int) -> dict[str, Tensor]:
    """Our backbone's state dict in the names of DiTTransformer2DModel. Rows of the label table beyond ours, up to
    `classes`, are the null class's."""
    out = {f"{b}.{tail}": state[f"{a}.{tail}"] for a, b in OUTER.items() for tail in TAILS}
    table = state[TABLE]
    table = torch.cat([table, table[-1:].expand(classes + 1 - len(table), -1)])
    for i in range(depth):
        ours, theirs = f"blocks.{i}.", f"transformer_blocks.{i}."
        for tail in TAILS:
            for a, b in LINEARS.items():
                out[f"{theirs}{b}.{tail}"] = state[f"{ours}{a}.{tail}"]
            for name, part in zip("qkv", state[f"{ours}attn.qkv.{tail}"].chunk(3), strict=True):
                out[f"{theirs}attn1.to_{name}.{tail}"] = part
            for a, b in EMBEDDERS.items():
                out[f"{theirs}norm1.emb.{b}.{tail}"] = state[f"{a}.{tail}"]
        out[theirs + THEIR_TABLE] = table
    return {key: value.clone() for key, value in out.items()}


def from_diffusers(state: dict[str, Tensor], depth: int, num_classes: int) -> dict[str, Tensor]:
    """The inverse of `to_diffusers`. UserError where the blocks' copies of an embedder differ: ours has one of each."""
    out = {f"{a}.{tail}": state[f"{b}.{tail}"] for a, b in OUTER.items() for tail in TAILS}
    for i in range(depth):
        ours, theirs = f"blocks.{i}.", f"transformer_blocks.{i}."
        shared = {TABLE: state[theirs + THEIR_TABLE][: num_classes + 1]}
        for tail in TAILS:
            for a, b in LINEARS.items():
                out[f"{ours}{a}.{tail}"] = state[f"{theirs}{b}.{tail}"]
            out[f"{ours}attn.qkv.{tail}"] = torch.cat([state[f"{theirs}attn1.to_{name}.{tail}"] for name in "qkv"])
            shared |= {f"{a}.{tail}": state[f"{theirs}norm1.emb.{b}.{tail}"] for a, b in EMBEDDERS.items()}
        for key, value in shared.items():
            if not torch.equal(out.setdefault(key, value), value):
                raise UserError(f"block {i} has an embedder of its own ({key}); SiT and DiT have one for all blocks.")
    return {key: value.contiguous() for key, value in out.items()}


def write_pipeline(source: Path, target: Path, *, weights: str = "ema", vae: str | None = None) -> str:
    """Writes a checkpoint or published run as a diffusers pipeline folder -> what to call, for a person.

    vae: replaces the run's autoencoder. UserError for a backbone that diffusers' class does not hold, an autoencoder
    whose weights are missing, and a target that exists.
    """
    from diffusers import DiTTransformer2DModel

    model, state = read_run(source, weights)
    if vae:
        model = {**model, "tokenizer": dict(type="KLAutoencoder", source=vae)}
    check_fits(source, model["backbone"], model["tokenizer"])
    parts = generator_parts(**{k: model[k] for k in ("resolution", "tokenizer", "backbone", "flow") if k in model})
    backbone, tokenizer, flow = parts["backbone"], parts["tokenizer"], parts["flow"]
    scheduler, discrete = scheduler_of(flow)
    tokenizer.load()
    factors = latent_factors(tokenizer)
    stock = (discrete and not factors["shift_factor"] and not factors["latents_mean"] and not backbone.reversed_time
             and backbone.num_classes <= STOCK_CLASSES and backbone.time_scale == flow.path.steps)  # fmt: skip
    classes = STOCK_CLASSES if stock else backbone.num_classes
    heads = backbone.blocks[0].attn.num_heads
    transformer = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=backbone.hidden_size // heads, num_layers=backbone.depth,
        in_channels=backbone.in_channels, out_channels=backbone.out_channels, sample_size=backbone.input_size,
        patch_size=backbone.patch_size, num_embeds_ada_norm=classes, norm_eps=1e-6)  # fmt: skip
    missing, unknown = transformer.load_state_dict(to_diffusers(state, backbone.depth, classes), strict=False)
    assert not unknown and not missing, (missing, unknown)
    index = model_index(scheduler, stock, {name: getattr(backbone, name) for name in OPTIONS})
    with checkpoint.whole_folder(target) as folder:
        transformer.save_pretrained(folder / "transformer")
        scheduler.save_pretrained(folder / "scheduler")
        tokenizer.held["vae"].save_pretrained(folder / "vae")
        config = json.loads((folder / "vae" / "config.json").read_text())
        (folder / "vae" / "config.json").write_text(json.dumps({**config, **factors}, indent=2) + "\n")
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        shutil.copyfile(Path(__file__).with_name("pipeline.py"), folder / "pipeline.py")
        (folder / "README.md").write_text(card(stock, target.name))
    return usage(stock, target)


def check_fits(source, options: dict, tokenizer: dict) -> None:
    """UserError unless diffusers' classes compute what a backbone and an autoencoder of these options do."""
    kind, ratio = options["type"], options.get("mlp_ratio", 4.0)
    if kind not in KINDS:
        raise UserError(f"{source} holds a {kind}; diffusers has a class for {' and '.join(KINDS)} only. Export it in its "
                        "published layout, or publish it with tools/publish.py.")  # fmt: skip
    for name, bad in (("qk_norm", options.get("qk_norm")), ("mlp_ratio", ratio != 4.0)):
        if bad:
            raise UserError(f"{source}: backbone.{name} is {options[name]}; diffusers' DiTTransformer2DModel has no such "
                            "option. Publish it with tools/publish.py.")  # fmt: skip
    if tokenizer["type"] != "KLAutoencoder":
        raise UserError(f"{source}: the autoencoder is a {tokenizer['type']}; a pipeline folder holds diffusers' own. "
                        "Publish it with tools/publish.py.")  # fmt: skip


def scheduler_of(flow):
    """-> (the scheduler that fits the flow, whether the flow predicts noise at whole steps)."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if getattr(flow.path, "predicts", "velocity") != "noise":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0), False
    betas = flow.path.schedule.tables["betas"]
    return DDIMScheduler(num_train_timesteps=flow.path.steps, beta_start=float(betas[0]), beta_end=float(betas[-1]),
                         beta_schedule="linear", clip_sample=False, timestep_spacing="trailing"), True  # fmt: skip


def latent_factors(tokenizer) -> dict:
    """The autoencoder's normalisation in the words of its config.json: z = (raw - offset) * factor."""
    offset, factor = (tokenizer._constants[name] for name in ("offset", "factor"))
    if len(offset) == len(factor) == 1:
        return dict(scaling_factor=factor[0], shift_factor=offset[0] or None, latents_mean=None, latents_std=None)
    std = [1 / value for value in factor]
    return dict(scaling_factor=1.0, shift_factor=None, latents_mean=list(offset), latents_std=std)


def model_index(scheduler, stock: bool, options: dict) -> dict:
    """model_index.json: diffusers' own pipeline where it will do, else the one in pipeline.py with its options."""
    import diffusers

    name = "DiTPipeline" if stock else ["pipeline", "AlignedTransformerPipeline"]
    index = {"_class_name": name, "_diffusers_version": diffusers.__version__,
             "transformer": ["diffusers", "DiTTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
             "scheduler": ["diffusers", type(scheduler).__name__]}  # fmt: skip
    return index | options


def usage(stock: bool, folder) -> str:
    """How the folder is loaded, as Python."""
    exact = ', custom_pipeline="pipeline"' if stock else ""
    own = f'DiffusionPipeline.from_pretrained("{folder}"{exact}, trust_remote_code=True)'
    if not stock:
        return own
    return (f'{own}\nor, with nothing but diffusers\' own code, whose time embedding differs a little from DiT\'s: '
            f'DiffusionPipeline.from_pretrained("{folder}")')  # fmt: skip


def card(stock: bool, name: str) -> str:
    """The folder's README."""
    return f"""---
library_name: diffusers
tags: [image-generation, class-conditional, ahpa]
---
# {name}

A class-conditional latent diffusion transformer, trained with ahpa. `pipeline.py` holds the code that samples from it: read
it, then

    from diffusers import DiffusionPipeline
    pipe = {usage(stock, ".").splitlines()[0]}
    pipe(class_labels=[0, 1], guidance_scale=1.5, num_inference_steps=50).images[0]
""" + (
        "\nWithout `custom_pipeline` diffusers' own DiTPipeline is used: no code of this folder runs, and every prediction "
        "differs a\nlittle, since that class embeds the time with other frequencies (10000^(-i/127) in place of DiT's "
        "10000^(-i/128)).\n"
        if stock
        else ""
    )


def read_pipeline(source: Path, target: Path, *, vae: str | None = None) -> dict:
    """Turns a diffusers pipeline folder of a DiT (or of ours) into a checkpoint -> what was done, for a person.

    UserError for a folder of another pipeline. No code of the folder is executed.
    """
    from diffusers import DiTTransformer2DModel

    source = Path(source)
    try:
        index = json.loads((source / "model_index.json").read_text())
        scheduler = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
        discrete, steps = index["scheduler"][1] != "FlowMatchEulerDiscreteScheduler", scheduler["num_train_timesteps"]
        transformer, loaded = DiTTransformer2DModel.from_pretrained(
            source / "transformer", local_files_only=True, output_loading_info=True)  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{source} is no pipeline folder of a diffusers DiT: {reason}") from error
    if absent := sorted(loaded["missing_keys"]):  # diffusers only warns, and leaves them random
        raise UserError(f"{source}: the transformer's file has no {', '.join(absent[:3])}{' ...' * (len(absent) > 3)}.")
    linear = scheduler.get("beta_schedule") == "linear" and scheduler.get("prediction_type", "epsilon") == "epsilon"
    if "time_scale" not in index and not (discrete and linear):
        raise UserError(f"{source}: its scheduler is neither that of DiT (noise, betas on a line) nor one of ahpa's.")
    own = transformer.config
    num_classes = index.get("num_classes", own.num_embeds_ada_norm)
    learns = own.out_channels is not None and own.out_channels == 2 * own.in_channels
    options = dict(type="DiT" if discrete else "SiT", depth=own.num_layers, num_heads=own.num_attention_heads,
                   hidden_size=own.num_attention_heads * own.attention_head_dim, patch_size=own.patch_size,
                   num_classes=num_classes, learn_sigma=learns, reversed_time=index.get("reversed_time", False),
                   time_scale=index.get("time_scale", float(steps)))  # fmt: skip
    tokenizer = dict(type="KLAutoencoder", source=vae or str(source))
    side = own.sample_size * build(AUTOENCODERS, tokenizer, where="the autoencoder").downsample
    model = dict(type="AlignedDenoiser", resolution=side, backbone=options, tokenizer=tokenizer)
    if discrete:
        path = dict(type="DiscretePath", steps=steps, beta_start=scheduler["beta_start"],
                    beta_end=scheduler["beta_end"])  # fmt: skip
        model |= dict(flow=dict(type="DiscreteFlow", path=path))
        if learns:
            model |= dict(flow_loss=dict(type="HybridLoss"))
    state = from_diffusers(transformer.state_dict(), own.num_layers, num_classes)
    checkpoint.save_imported(model, state, Path(target), layout="diffusers")
    return dict(backbone=options, resolution=model["resolution"], left_out=[])
