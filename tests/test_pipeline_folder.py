"""Diffusers pipeline folders: what a stranger without ahpa loads predicts and samples as ours does;
there and back is exact."""

import json
import subprocess
import sys

import pytest
import torch
from support.runs import call, environment

from ahpa.engine import checkpoint
from ahpa.engine.assembly import build_generator_parts
from ahpa.engine.inference import load_generator
from ahpa.interop.pipeline_folder import read_pipeline, write_pipeline
from ahpa.registry import UserError

CLASSES, STEPS = 7, 40
SIZES = dict(depth=2, hidden_size=32, num_heads=2, patch_size=2, num_classes=CLASSES)
PATH = dict(type="DiscretePath", steps=STEPS, beta_start=1e-3, beta_end=0.2)
MODELS = {
    "sit": dict(backbone=dict(type="SiT", **SIZES)),
    "sit_reversed": dict(
        backbone=dict(type="SiT", reversed_time=True, **SIZES),
        tokenizer=dict(
            type="KLAutoencoder",
            source="bundled",
            mean=[0.1, 0.2, -0.3, 0.0],
            std=[1.0, 2.0, 0.5, 4.0],
        ),
    ),
    "dit": dict(
        backbone=dict(type="DiT", time_scale=float(STEPS), **SIZES),
        flow=dict(type="DiscreteFlow", path=PATH),
    ),
    "dit_shifted": dict(
        backbone=dict(type="DiT", time_scale=float(STEPS), **SIZES),
        flow=dict(type="DiscreteFlow", path=PATH),
        tokenizer=dict(type="KLAutoencoder", source="bundled", scale=0.5, shift=0.25),
    ),
}


BUNDLED = dict(type="KLAutoencoder", source="bundled")


def make(folder, name, *, flow=None, **changes):
    """A checkpoint with random weights everywhere, also where training starts from zero."""
    model = {"resolution": 64, "tokenizer": BUNDLED, **MODELS[name]}
    model["backbone"] = {**model["backbone"], **changes}
    if flow:
        model["flow"] = flow
    backbone = build_generator_parts(model).backbone
    stream = torch.Generator().manual_seed(3)
    shapes = {key: value.shape for key, value in backbone.state_dict().items()}
    state = {key: 0.1 * torch.randn(shape, generator=stream) for key, shape in shapes.items()}
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
common = dict(
    class_labels=given["label"].tolist(),
    num_inference_steps=given["steps"],
    latents=given["x"],
    output_type="latent",
)
guided = dict(guidance_scale=2.5, guidance_interval=given["interval"], guidance_channels=3)
found = dict(predicted=predicted, decoded=decoded)
found["plain"] = pipe(**common, guidance_scale=1.0).images
found["guided"] = pipe(**common, **guided).images
torch.save(found, out)
draw = torch.Generator().manual_seed(1)
image = pipe(class_labels=[1], num_inference_steps=2, generator=draw).images[0]
assert image.size == (64, 64), image
"""


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sit", "dit", "dit_shifted")]


@pytest.mark.parametrize("name", [*SLOW, "sit_reversed"])
def test_a_stranger_predicts_and_samples_as_we_do(tmp_path, name):
    source, folder = make(tmp_path, name), tmp_path / "folder"
    write_pipeline(source, folder)
    stock = json.loads((folder / "model_index.json").read_text())["_class_name"] == "DiTPipeline"
    assert stock == (name == "dit")
    steps = STEPS if name.startswith("dit") else 5
    times = [0.0, 0.125, 0.77, 1.0]
    if name.startswith("dit"):
        times = [i / STEPS for i in (0, 1, 13, 39)]
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 3, 6, 1])
    given = dict(x=noise, label=label, t=times, steps=steps, interval=[0.2, 0.7])
    torch.save(given, tmp_path / "given.pt")
    env = {**environment(), "PYTHONPATH": "", "HF_HOME": str(tmp_path / "cache")}
    files = [folder, tmp_path / "given.pt", tmp_path / "out.pt", "stock" if stock else "own"]
    command = [sys.executable, "-c", STRANGER, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, ours = torch.load(tmp_path / "out.pt"), load_generator(source)
    x = {"image": noise}
    sampler = "ddim" if name.startswith("dit") else "euler"
    with torch.no_grad():
        for t, found in zip(times, theirs["predicted"], strict=True):
            wanted = ours.backbone(x, torch.full((4,), t), label).pred["image"]
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        decoded = ours.tokenizer.decode(noise)
        torch.testing.assert_close(theirs["decoded"], decoded, rtol=1e-5, atol=1e-5)
    guided = dict(cfg_scale=2.5, cfg_interval=(0.2, 0.7), cfg_channels=3)
    for key, options in (("plain", {}), ("guided", guided)):
        common = dict(noise=x, sampler=sampler, steps=steps)
        wanted = ours.latents(label.tolist(), **common, **options)["image"]
        torch.testing.assert_close(theirs[key], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_exact(tmp_path, name):
    source = make(tmp_path, name)
    write_pipeline(source, tmp_path / "folder")
    done = read_pipeline(tmp_path / "folder", tmp_path / "back.pth")
    first, back = checkpoint.load(source)["ema"], checkpoint.load(tmp_path / "back.pth")["ema"]
    assert first.keys() == back.keys()
    assert all(torch.equal(first[key], back[key]) for key in first)
    wanted = MODELS[name]["backbone"]
    assert {key: done["backbone"][key] for key in wanted} == wanted and done["resolution"] == 64
    generators = load_generator(source), load_generator(tmp_path / "back.pth")
    a, b = (generator.sample([1, 2], steps=3).float() for generator in generators)
    torch.testing.assert_close(a, b, rtol=0, atol=1)


def test_diffusers_own_pipeline_needs_no_code_and_differs_by_its_frequencies_only(tmp_path):
    from diffusers import DiffusionPipeline, DiTPipeline
    from diffusers.models.embeddings import Timesteps

    source = make(tmp_path, "dit")
    assert "DiffusionPipeline.from_pretrained" in write_pipeline(source, tmp_path / "folder")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "folder")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is DiTPipeline
    # guided: the null class is row 1000
    images = pipe(class_labels=[0, 6], num_inference_steps=4, output_type="np").images
    assert images.shape == (2, 64, 64, 3) and images.std() > 0
    x, step, null = torch.randn(2, 4, 8, 8), torch.tensor([39, 20]), torch.tensor([1000, 1000])
    ours, label = load_generator(source).backbone, torch.tensor([CLASSES] * 2)
    with torch.no_grad():
        wanted = ours({"image": x}, step / STEPS, label).pred["image"]
        off = (pipe.transformer(x, step, null).sample - wanted).abs().max()
        for module in pipe.transformer.modules():
            if isinstance(module, Timesteps):
                module.downscale_freq_shift = 0
        found = pipe.transformer(x, step, null).sample
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert off > 1e-4


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(qk_norm=True), "qk_norm is True"),
        (dict(mlp_ratio=2.0), "mlp_ratio is 2.0"),
        (dict(type="DDT", encoder_depth=1), "holds a DDT"),
        (dict(flow=dict(type="Flow", prediction="data")), "ContinuousFlow does not predict"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        write_pipeline(make(tmp_path, "sit", **changes), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["sit.pth"]


@pytest.mark.parametrize(
    "backbone, tokenizer, message",
    [
        (dict(type="MMDiT"), BUNDLED, "holds a MMDiT.*ahpa publish"),
        (MODELS["sit"]["backbone"], dict(type="Theirs", weights="x"), "autoencoder is a Theirs"),
    ],
)
def test_other_components_are_refused(tmp_path, backbone, tokenizer, message):
    model = dict(resolution=64, backbone=backbone, tokenizer=tokenizer)
    checkpoint.save_imported(model, {}, tmp_path / "other.pth", layout="test")
    with pytest.raises(UserError, match=message):
        write_pipeline(tmp_path / "other.pth", tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]


def test_a_missing_autoencoder_is_reported(tmp_path):
    source, nowhere = make(tmp_path, "sit"), str(tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        write_pipeline(source, tmp_path / "folder", vae=nowhere)
    assert [path.name for path in tmp_path.iterdir()] == ["sit.pth"]


def test_what_exists_already_stays_unchanged(tmp_path):
    source, target = make(tmp_path, "sit"), tmp_path / "folder"
    target.mkdir()
    (target / "mine").write_text("keep")
    with pytest.raises(UserError, match="exists already"):
        write_pipeline(source, target)
    assert [path.name for path in target.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="not a pipeline folder"):
        read_pipeline(target, tmp_path / "back.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "sit.pth"]


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
    """As the published DiT folders: the general class's name and options, none of ours, a table of
    1000 classes."""
    write_pipeline(make(tmp_path, "dit"), tmp_path / "folder")
    index = tmp_path / "folder" / "model_index.json"
    config = tmp_path / "folder" / "transformer" / "config.json"
    scheduler = tmp_path / "folder" / "scheduler" / "scheduler_config.json"

    def rewrite(path, change):
        found = {**json.loads(path.read_text()), **change}
        path.write_text(json.dumps({key: x for key, x in found.items() if x != "gone"}))

    rewrite(index, dict.fromkeys(("num_classes", "time_scale", "reversed_time"), "gone"))
    general = dict(cross_attention_dim=None, num_vector_embeds=None)
    rewrite(config, dict(_class_name="Transformer2DModel", **general))
    done = read_pipeline(tmp_path / "folder", tmp_path / "back.pth")
    assert done["backbone"]["num_classes"] == 1000 and done["backbone"]["time_scale"] == STEPS
    ours = checkpoint.load(tmp_path / "dit.pth")["ema"]
    back = checkpoint.load(tmp_path / "back.pth")["ema"]
    table = "y_embedder.embedding_table.weight"
    assert all(torch.equal(ours[key], back[key]) for key in ours if key != table)
    assert torch.equal(back[table][:CLASSES], ours[table][:-1])
    assert torch.equal(back[table][1000], ours[table][-1])
    rewrite(scheduler, dict(beta_schedule="squaredcos_cap_v2"))
    with pytest.raises(UserError, match="scheduler"):
        read_pipeline(tmp_path / "folder", tmp_path / "no.pth")
    assert not (tmp_path / "no.pth").exists()


def test_a_folder_that_lacks_something_is_refused(tmp_path):
    """diffusers itself only warns of weights that a file lacks, and leaves them random."""
    from safetensors.torch import load, save_file

    write_pipeline(make(tmp_path, "dit"), tmp_path / "folder")
    path = tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = load(path.read_bytes())  # not load_file: it may map the file, which is written next
    cut = {key: value for key, value in whole.items() if key != "proj_out_2.bias"}
    save_file(cut, path, metadata=dict(format="pt"))
    with pytest.raises(UserError, match=r"has no proj_out_2\.bias\."):
        read_pipeline(tmp_path / "folder", tmp_path / "back.pth")
    save_file(whole, path, metadata=dict(format="pt"))
    (tmp_path / "folder" / "vae").rename(tmp_path / "vae")
    with pytest.raises(UserError, match="config.json"):
        read_pipeline(tmp_path / "folder", tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()
    options = dict(vae=str(tmp_path / "vae"))
    done = read_pipeline(tmp_path / "folder", tmp_path / "back.pth", **options)
    assert done["resolution"] == 64
    (tmp_path / "folder" / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="scheduler"):
        read_pipeline(tmp_path / "folder", tmp_path / "no.pth")


def test_the_command_both_ways(tmp_path):
    def run(*arguments):
        return call("import-weights", "--format", "diffusers", *arguments)

    source, folder, back = make(tmp_path, "sit"), tmp_path / "folder", tmp_path / "back.pth"
    for arguments in ([source, folder, "--export"], [folder, back]):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
    assert "sample from it" in done.stdout and back.is_file()
    done = run(tmp_path, tmp_path / "x.pth")
    assert done.returncode == 2 and "not a pipeline folder" in done.stderr
