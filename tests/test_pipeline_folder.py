"""Diffusers pipeline folders: what a stranger without ahpa loads predicts and samples as ours does; there and back is exact."""

import json
import subprocess
import sys

import pytest
import torch
from support.runs import ROOT, environment

from ahpa.engine import checkpoint
from ahpa.engine.denoiser import generator_parts
from ahpa.engine.inference import Generator
from ahpa.flow.ddpm import ddim
from ahpa.flow.guidance import guided
from ahpa.flow.samplers import euler
from ahpa.interop.pipeline_folder import read_pipeline, write_pipeline
from ahpa.registry import UserError

CLASSES, STEPS = 7, 40
SIZES = dict(depth=2, hidden_size=32, num_heads=2, patch_size=2, num_classes=CLASSES)
PATH = dict(type="DiscretePath", steps=STEPS, beta_start=1e-3, beta_end=0.2)
MODELS = {
    "sit": dict(backbone=dict(type="SiT", **SIZES)),
    "sit_reversed": dict(
        backbone=dict(type="SiT", reversed_time=True, **SIZES),
        tokenizer=dict(type="KLAutoencoder", source="bundled", mean=[0.1, 0.2, -0.3, 0.0], std=[1.0, 2.0, 0.5, 4.0]),
    ),
    "dit": dict(backbone=dict(type="DiT", time_scale=float(STEPS), **SIZES), flow=dict(type="DiscreteFlow", path=PATH)),
    "dit_shifted": dict(
        backbone=dict(type="DiT", time_scale=float(STEPS), **SIZES),
        flow=dict(type="DiscreteFlow", path=PATH),
        tokenizer=dict(type="KLAutoencoder", source="bundled", scale=0.5, shift=0.25),
    ),
}


def make(folder, name, **changes):
    """A checkpoint with random weights everywhere, also where training starts from zero."""
    model = {"type": "AlignedDenoiser", "resolution": 64, "tokenizer": dict(type="KLAutoencoder", source="bundled"),
             **MODELS[name]}  # fmt: skip
    model["backbone"] = {**model["backbone"], **changes}
    parts = generator_parts(**{key: model[key] for key in model if key != "type"})
    stream = torch.Generator().manual_seed(3)
    state = {
        key: 0.1 * torch.randn(value.shape, generator=stream) for key, value in parts["backbone"].state_dict().items()
    }
    checkpoint.save_imported(model, state, folder / f"{name}.pth", layout="test")
    return folder / f"{name}.pth"


STRANGER = """
import sys, torch
sys.modules["ahpa"] = None  # nothing of ahpa can be imported
from diffusers import DiffusionPipeline
folder, given, out, exact = sys.argv[1:]
options = dict(custom_pipeline="pipeline") if exact == "stock" else {}
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
pipe.set_progress_bar_config(disable=True)
given = torch.load(given)
with torch.no_grad():
    predicted = [pipe.predict(given["x"], t, given["label"]) for t in given["t"]]
    decoded = pipe.decode(given["x"])
common = dict(class_labels=given["label"].tolist(), num_inference_steps=given["steps"], latents=given["x"])
guided = dict(guidance_scale=2.5, guidance_interval=given["interval"], guidance_channels=3)
torch.save(dict(predicted=predicted, decoded=decoded, plain=pipe(**common, guidance_scale=1.0, output_type="latent").images,
                guided=pipe(**common, **guided, output_type="latent").images), out)
image = pipe(class_labels=[1], num_inference_steps=2, generator=torch.Generator().manual_seed(1)).images[0]
assert image.size == (64, 64), image
"""


@pytest.mark.parametrize("name", MODELS)
def test_a_stranger_predicts_and_samples_as_we_do(tmp_path, name):
    source, folder = make(tmp_path, name), tmp_path / "folder"
    write_pipeline(source, folder)
    stock = json.loads((folder / "model_index.json").read_text())["_class_name"] == "DiTPipeline"
    assert stock == (name == "dit")
    steps = STEPS if name.startswith("dit") else 5
    times = [i / STEPS for i in (0, 1, 13, 39)] if name.startswith("dit") else [0.0, 0.125, 0.77, 1.0]
    stream = torch.Generator().manual_seed(0)
    given = dict(x=torch.randn(4, 4, 8, 8, generator=stream), label=torch.tensor([0, 3, 6, 1]), t=times, steps=steps,
                 interval=[0.2, 0.7])  # fmt: skip
    torch.save(given, tmp_path / "given.pt")
    env = {**environment(), "PYTHONPATH": "", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", STRANGER, folder, tmp_path / "given.pt", tmp_path / "out.pt",
                           "stock" if stock else "own"], capture_output=True, text=True, env=env, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, ours = torch.load(tmp_path / "out.pt"), Generator.load(source)
    x, label = {"image": given["x"]}, given["label"]
    null = torch.full_like(label, CLASSES)
    draw = ddim if name.startswith("dit") else euler
    with torch.no_grad():
        for t, found in zip(times, theirs["predicted"], strict=True):
            wanted = ours.velocity(x, torch.full((4,), t), label)["image"]
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs["decoded"], ours.tokenizer.decode(given["x"]), rtol=1e-5, atol=1e-5)
        for key, options in (("plain", (1.0,)), ("guided", (2.5, (0.2, 0.7), 3))):
            velocity = guided(ours.velocity, label, null, *options)
            wanted = draw(velocity, x, steps=steps, path=ours.flow.path, noise=None)["image"]
            torch.testing.assert_close(theirs[key], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_exact(tmp_path, name):
    source = make(tmp_path, name)
    write_pipeline(source, tmp_path / "folder")
    done = read_pipeline(tmp_path / "folder", tmp_path / "back.pth")
    first, back = checkpoint.load(source)["ema"], checkpoint.load(tmp_path / "back.pth")["ema"]
    assert first.keys() == back.keys() and all(torch.equal(first[key], back[key]) for key in first)
    wanted = MODELS[name]["backbone"]
    assert {key: done["backbone"][key] for key in wanted} == wanted and done["resolution"] == 64
    a, b = Generator.load(source), Generator.load(tmp_path / "back.pth")
    torch.testing.assert_close(a.sample([1, 2], steps=3).float(), b.sample([1, 2], steps=3).float(), rtol=0, atol=1)


def test_diffusers_own_pipeline_needs_no_code_and_differs_by_its_frequencies_only(tmp_path):
    from diffusers import DiffusionPipeline, DiTPipeline
    from diffusers.models.embeddings import Timesteps

    source = make(tmp_path, "dit")
    assert "DiffusionPipeline.from_pretrained" in write_pipeline(source, tmp_path / "folder")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "folder")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is DiTPipeline
    images = pipe(
        class_labels=[0, 6], num_inference_steps=4, output_type="np"
    ).images  # guided: the null class is row 1000
    assert images.shape == (2, 64, 64, 3) and images.std() > 0
    x, step, null = torch.randn(2, 4, 8, 8), torch.tensor([39, 20]), torch.tensor([1000, 1000])
    with torch.no_grad():
        wanted = Generator.load(source).velocity({"image": x}, step / STEPS, torch.tensor([CLASSES] * 2))["image"]
        off = (pipe.transformer(x, step, null).sample - wanted).abs().max()
        for module in pipe.transformer.modules():
            if isinstance(module, Timesteps):
                module.downscale_freq_shift = 0
        torch.testing.assert_close(pipe.transformer(x, step, null).sample, wanted, rtol=1e-5, atol=1e-5)
    assert off > 1e-4


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    source, target = make(tmp_path, "sit"), tmp_path / "folder"
    with pytest.raises(UserError, match="no autoencoder"):
        write_pipeline(source, target, vae=str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(UserError, match="qk_norm"):
        write_pipeline(make(tmp_path, "sit", qk_norm=True), target)
    with pytest.raises(UserError, match="mlp_ratio"):
        write_pipeline(make(tmp_path, "sit", mlp_ratio=2.0), target)
    with pytest.raises(UserError, match="holds a DDT"):
        write_pipeline(make(tmp_path, "sit", type="DDT", encoder_depth=1), target)
    model = dict(resolution=64, backbone=dict(type="MMDiT"), tokenizer=dict(type="KLAutoencoder", source="bundled"))
    checkpoint.save_imported(model, {}, tmp_path / "mmdit.pth", layout="test")
    with pytest.raises(UserError, match="holds a MMDiT.*tools/publish.py"):
        write_pipeline(tmp_path / "mmdit.pth", target)
    model |= dict(backbone=MODELS["sit"]["backbone"], tokenizer=dict(type="Theirs", weights="x"))
    checkpoint.save_imported(model, {}, tmp_path / "mmdit.pth", layout="test")
    with pytest.raises(UserError, match="autoencoder is a Theirs"):
        write_pipeline(tmp_path / "mmdit.pth", target)
    assert not target.exists()
    target.mkdir()
    (target / "mine").write_text("keep")
    with pytest.raises(UserError, match="is there already"):
        write_pipeline(make(tmp_path, "sit"), target)
    assert [path.name for path in target.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="no pipeline folder"):
        read_pipeline(target, tmp_path / "back.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "mmdit.pth", "sit.pth"]


def test_a_folder_whose_blocks_embed_differently_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    write_pipeline(make(tmp_path, "sit"), tmp_path / "folder")
    path = tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    save_file(state, path, metadata=dict(format="pt"))
    with pytest.raises(UserError, match="t_embedder.mlp.0.bias"):
        read_pipeline(tmp_path / "folder", tmp_path / "back.pth")


def test_an_older_folder_of_dit_is_read_and_a_strangers_scheduler_is_refused(tmp_path):
    """As the published DiT folders: the general class's name and options, no options of ours, a table of 1000 classes."""
    write_pipeline(make(tmp_path, "dit"), tmp_path / "folder")
    index, config, scheduler = (tmp_path / "folder" / name for name in (
        "model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"))  # fmt: skip

    def rewrite(path, change):
        found = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in {**found, **change}.items() if value != "gone"}))

    rewrite(index, dict.fromkeys(("num_classes", "time_scale", "reversed_time"), "gone"))
    rewrite(config, dict(_class_name="Transformer2DModel", cross_attention_dim=None, num_vector_embeds=None))
    done = read_pipeline(tmp_path / "folder", tmp_path / "back.pth")
    assert done["backbone"]["num_classes"] == 1000 and done["backbone"]["time_scale"] == STEPS
    ours, back = checkpoint.load(tmp_path / "dit.pth")["ema"], checkpoint.load(tmp_path / "back.pth")["ema"]
    table = "y_embedder.embedding_table.weight"
    assert all(torch.equal(ours[key], back[key]) for key in ours if key != table)
    assert torch.equal(back[table][:CLASSES], ours[table][:-1]) and torch.equal(back[table][1000], ours[table][-1])
    rewrite(scheduler, dict(beta_schedule="squaredcos_cap_v2"))
    with pytest.raises(UserError, match="scheduler"):
        read_pipeline(tmp_path / "folder", tmp_path / "no.pth")
    assert not (tmp_path / "no.pth").exists()


def test_a_folder_that_lacks_something_is_refused(tmp_path):
    """diffusers itself only warns of weights that a file has not, and goes on with random ones."""
    from safetensors.torch import load_file, save_file

    write_pipeline(make(tmp_path, "dit"), tmp_path / "folder")
    path = tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    save_file(
        {key: value for key, value in whole.items() if key != "proj_out_2.bias"}, path, metadata=dict(format="pt")
    )
    with pytest.raises(UserError, match=r"has no proj_out_2\.bias\."):
        read_pipeline(tmp_path / "folder", tmp_path / "back.pth")
    save_file(whole, path, metadata=dict(format="pt"))
    (tmp_path / "folder" / "vae").rename(tmp_path / "vae")
    with pytest.raises(UserError, match="config.json"):
        read_pipeline(tmp_path / "folder", tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()
    assert read_pipeline(tmp_path / "folder", tmp_path / "back.pth", vae=str(tmp_path / "vae"))["resolution"] == 64
    (tmp_path / "folder" / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="scheduler"):
        read_pipeline(tmp_path / "folder", tmp_path / "no.pth")


def test_the_command_both_ways(tmp_path):
    source = make(tmp_path, "sit")
    tool = [sys.executable, "tools/import_weights.py", "--format", "diffusers"]
    for arguments in ([source, tmp_path / "folder", "--export"], [tmp_path / "folder", tmp_path / "back.pth"]):
        done = subprocess.run(
            [*tool, *map(str, arguments)], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "sample from it" in done.stdout and (tmp_path / "back.pth").is_file()
    done = subprocess.run([*tool, str(tmp_path), str(tmp_path / "x.pth")], cwd=ROOT, env=environment(), capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 2 and "no pipeline folder" in done.stderr and "Traceback" not in done.stderr
