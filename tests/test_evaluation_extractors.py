"""Feature extractors: Inception against torch-fidelity's own, timm and open_clip against the
packages used by hand, PickScore's renamed weights, and weights that are missing or unsafe."""

import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from support.runs import ROOT, environment

from ahpa.evaluation.clip_features import from_transformers
from ahpa.evaluation.extractors import PRESETS, build_extractor, extractor_config, resized
from ahpa.evaluation.inception import FILE, URL, InceptionFeatures
from ahpa.registry import EXTRACTORS, ConfigError, UserError, vision_files
from ahpa.testing import check_extractor

SMALL = dict(
    embed_dim=16,
    vision_cfg=dict(layers=2, width=64, head_width=32, patch_size=32),
    text_cfg=dict(layers=2, width=32, heads=2),
)
CLIP = dict(model="ViT-B-32", weights="random", changes=SMALL)
EXAMPLES = {
    "inception": dict(type="inception", weights="random"),
    "timm": dict(type="timm", model="resnet10t.c3_in1k", weights="random", side=64),
    "tiny-vit": dict(type="tiny-vit"),
    "open-clip": dict(type="open-clip", **CLIP),
    "open-clip-score": dict(type="open-clip-score", **CLIP),
    "pickscore": dict(type="pickscore", weights="random", changes=SMALL),
}


def images_of(count, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No network, no cache, no environment."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("AHPA_WEIGHTS", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_extractor_keeps_its_contract(name):
    check_extractor(EXAMPLES[name])


def test_all_registered_extractors_are_tried():
    ours = {n for n in EXTRACTORS.names() if EXTRACTORS.get(n).__module__.startswith("ahpa.")}
    assert ours == set(EXAMPLES)


# ---- Inception ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """torch-fidelity's own network with random weights and statistics, and the file of them."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    wanted = ["2048", "logits_unbiased", "logits"]
    path = tmp_path_factory.mktemp("inception") / FILE
    ours = InceptionFeatures(weights="random")
    network = ours.build(None)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in network.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            value = 0.1 * torch.randn(value.shape, generator=generator)
        elif key.endswith("running_var"):
            value = torch.rand(value.shape, generator=generator) * 0.2 + 0.2
        state[key.removeprefix("stem.")] = value
    torch.save(state, path)
    original = fidelity.FeatureExtractorInceptionV3("t", wanted, str(path))
    return original, path


def test_inception_is_torch_fidelitys_with_adms_outputs(inception):
    """Pool and logits without bias to the bit; the spatial features are the first 7 channels of the
    first branch of the block that TensorFlow calls mixed_6, as H, W, C."""
    original, path = inception
    images = images_of(2, 70)
    seen = []
    branch = original.Mixed_6d.branch1x1
    hook = branch.register_forward_hook(lambda _, inputs, output: seen.append(output))
    pool, unbiased, biased = original(images)
    hook.remove()
    found = build_extractor(dict(type="inception", weights=str(path)))(images)
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "pool": (2, 2048),
        "spatial": (2, 2023),
        "logits": (2, 1008),
    }
    assert torch.equal(found["pool"], pool) and torch.equal(found["logits"], unbiased)
    bias = original.fc.bias
    torch.testing.assert_close(biased - found["logits"], bias.expand(2, -1), rtol=1e-3, atol=1e-4)
    assert bias.abs().max() > 0.1
    (maps,) = seen
    assert tuple(maps.shape) == (2, 192, 17, 17)
    for row, column, channel in ((0, 0, 0), (3, 5, 2), (16, 16, 6), (16, 0, 3)):
        place = (row * 17 + column) * 7 + channel
        assert torch.equal(found["spatial"][:, place], maps[:, channel, row, column])


def test_inceptions_identity_is_that_of_its_file(inception):
    _, path = inception
    extractor = build_extractor(dict(type="inception", weights=str(path)))
    extractor.load()
    record = extractor.identity()
    assert record["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(path.parent) not in str(record)


def test_inceptions_weights_are_found(inception, nowhere, monkeypatch):
    _, path = inception
    folder = nowhere / "weights"
    folder.mkdir()
    (folder / FILE).symlink_to(path)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") as caught:
        build_extractor("inception").load()
    for words in (URL, str(nowhere / "torch"), "AHPA_WEIGHTS", "`weights`"):
        assert words in str(caught.value)
    monkeypatch.setenv("AHPA_WEIGHTS", str(folder))
    assert build_extractor("inception").weight_file() == folder / FILE
    monkeypatch.delenv("AHPA_WEIGHTS")
    cache = nowhere / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / FILE).symlink_to(path)
    assert build_extractor("inception").weight_file() == cache / FILE


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_unsafe_and_other_files_are_refused(tmp_path, capsys):
    """torch-fidelity unpickles whatever the file holds."""
    unsafe = tmp_path / "unsafe.pth"
    unsafe.write_bytes(pickle.dumps({"fc.bias": Harmful()}))
    with pytest.raises(UserError, match="could run code"):
        build_extractor(dict(type="inception", weights=str(unsafe))).load()
    assert "run" not in capsys.readouterr().out.split()
    other = tmp_path / "other.safetensors"
    save_file({"fc.bias": torch.zeros(1000)}, other)
    with pytest.raises(UserError, match="does not hold torch-fidelity's Inception weights"):
        build_extractor(dict(type="inception", weights=str(other))).load()


def test_without_torch_fidelity_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"pip install 'ahpa\[evaluation\]'"):
        build_extractor(EXAMPLES["inception"]).load()


# ---- timm ---------------------------------------------------------------------------------------


def test_resizing_is_pils():
    """Bicubic with antialias, in 8 bits: at most one level off, and mostly the same."""
    picture = images_of(1, 48)
    for side in (17, 64):
        wanted = Image.fromarray(picture[0].permute(1, 2, 0).numpy()).resize((side, side), 3)
        found = resized(picture, side)[0].permute(1, 2, 0).numpy()
        difference = np.abs(found - np.asarray(wanted, np.float32))
        assert difference.max() <= 1 and (difference == 0).mean() > 0.99
    assert torch.equal(resized(picture, 48), picture.float())


def test_the_bundled_encoder_is_the_file():
    """Against timm used by hand: class token, mean of the patches after the last norm."""
    options = dict(depth=4, mlp_ratio=2.0, img_size=64, num_classes=0)
    network = timm.create_model("vit_tiny_patch16_224", **options).eval()
    path = vision_files.BUNDLED / "model.safetensors"
    network.load_state_dict({key: x.float() for key, x in load_file(path).items()})
    images = images_of(3, 64)
    with torch.no_grad():
        tokens = network.forward_features(images.float() / 127.5 - 1)
    extractor = build_extractor("tiny-vit")
    found = extractor(images)
    torch.testing.assert_close(found["cls"], tokens[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["mean"], tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(found["pooled"], found["cls"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert extractor.identity()["weights_sha256"] == digest


def test_any_network_of_timm_from_a_file(tmp_path):
    """A convolutional one: pooled features with its own mean and std."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t.c3_in1k", num_classes=0).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = dict(type="timm", model="resnet10t.c3_in1k", weights=str(tmp_path), side=64)
    images = images_of(2, 64)
    mean, std = (
        torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std")
    )
    with torch.no_grad():
        wanted = network((images.float() / 255 - mean) / std)
    found = build_extractor(config)(images)
    assert list(found) == ["pooled"]
    torch.testing.assert_close(found["pooled"], wanted, rtol=1e-4, atol=1e-5)


def test_weights_by_the_environment(nowhere, monkeypatch):
    with pytest.raises(UserError, match="timm/vit_large_patch14_dinov2"):
        build_extractor("dinov2-l").weight_file()
    file = nowhere / "vit_large_patch14_dinov2.lvd142m.safetensors"
    file.write_bytes(b"")
    monkeypatch.setenv("AHPA_WEIGHTS", str(nowhere))
    assert build_extractor("dinov2-l").weight_file() == file


def test_presets_are_complete():
    """Each names a registered extractor and builds without weights; options override it."""
    assert extractor_config(dict(type="mae-l", weights="x.safetensors")) == dict(
        type="timm", model="vit_large_patch16_224.mae", weights="x.safetensors"
    )
    for config in PRESETS.values():
        assert config["type"] in EXAMPLES
        assert config["type"] != "timm" or timm.is_model(config["model"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("tiny-vitt", "did you mean 'tiny-vit'"),
        (dict(type="timm", model="vit_tny"), "timm has no 'vit_tny'"),
        (
            dict(type="timm", model="vit_tiny_patch16_224", side=50),
            "side: must be a multiple of its patch, 16",
        ),
        (dict(type="open-clip", model="ViT-B-33"), "open_clip has no 'ViT-B-33'"),
        (dict(type="inception", weight="x"), "did you mean 'weights'"),
    ],
    ids=str,
)
def test_mistakes(config, words):
    with pytest.raises(ConfigError) as caught:
        build_extractor(config)
    assert words in str(caught.value)


# ---- open_clip ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP of open_clip, moved away from its initialisation, and a file of it."""
    extractor = build_extractor(EXAMPLES["open-clip"])
    network = extractor.build(None).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file(network.state_dict(), path)
    return network, path


def test_embeddings_and_scores_are_open_clips(clip):
    network, path = clip
    images = images_of(2, 224)
    prompts = ["a red square on a blue ground", "nothing"]
    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1)
        for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        pictures = network.encode_image((images.float() / 255 - mean) / std)
        texts = network.encode_text(open_clip.get_tokenizer("ViT-B-32")(prompts))
    options = dict(model="ViT-B-32", weights=str(path), changes=SMALL)
    found = build_extractor(dict(type="open-clip", **options))(images)["image"]
    torch.testing.assert_close(found, pictures, rtol=1e-4, atol=1e-5)
    score = build_extractor(dict(type="open-clip-score", **options))
    wanted = F.cosine_similarity(pictures, texts)[:, None]
    torch.testing.assert_close(score(images, prompts)["score"], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="one prompt for each image"):
        score(images, prompts[:1])


def as_transformers(state):
    """The names of transformers' CLIPModel, written out for two layers."""
    found = {"logit_scale": state["logit_scale"]}
    for tower, prefix, encoder in (
        ("text_model", "", "transformer"),
        ("vision_model", "visual.", "visual.transformer"),
    ):
        for i in range(2):
            ours, theirs = f"{encoder}.resblocks.{i}", f"{tower}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                parts = state[f"{ours}.attn.in_proj_{kind}"].chunk(3)
                for letter, part in zip("qkv", parts):
                    found[f"{theirs}.self_attn.{letter}_proj.{kind}"] = part.clone()
                out = state[f"{ours}.attn.out_proj.{kind}"]
                found[f"{theirs}.self_attn.out_proj.{kind}"] = out
                found[f"{theirs}.layer_norm1.{kind}"] = state[f"{ours}.ln_1.{kind}"]
                found[f"{theirs}.layer_norm2.{kind}"] = state[f"{ours}.ln_2.{kind}"]
                found[f"{theirs}.mlp.fc1.{kind}"] = state[f"{ours}.mlp.c_fc.{kind}"]
                found[f"{theirs}.mlp.fc2.{kind}"] = state[f"{ours}.mlp.c_proj.{kind}"]
        position = f"{tower}.embeddings.position_embedding.weight"
        found[position] = state[f"{prefix}positional_embedding"]
    for kind in ("weight", "bias"):
        found[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        found[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        found[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
    found["text_model.embeddings.token_embedding.weight"] = state["token_embedding.weight"]
    found["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    found["vision_model.embeddings.class_embedding"] = state["visual.class_embedding"]
    found["vision_model.embeddings.patch_embedding.weight"] = state["visual.conv1.weight"]
    found["text_projection.weight"] = state["text_projection"].T.contiguous()
    found["visual_projection.weight"] = state["visual.proj"].T.contiguous()
    return found


def test_pickscore_reads_transformers_names(tmp_path):
    """The published file has transformers' names; the score is exp(temperature) times a cosine."""
    extractor = build_extractor(EXAMPLES["pickscore"])
    network = extractor.build(None)
    state = network.state_dict()
    renamed = from_transformers(as_transformers(state))
    assert renamed.keys() == state.keys()
    assert all(torch.equal(renamed[key], state[key]) for key in state)
    path = tmp_path / "model.safetensors"
    save_file(as_transformers(state), path)
    loaded = build_extractor(dict(type="pickscore", weights=str(path), changes=SMALL))
    images, prompts = images_of(2, 224), ["a cat", "a dog"]
    cosine = loaded.cosines
    found = loaded(images, prompts)["score"]
    scale = float(state["logit_scale"].exp())
    torch.testing.assert_close(found, scale * cosine(images, prompts), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, extractor(images, prompts)["score"], rtol=1e-4, atol=1e-4)


def test_pickscore_without_weights_says_what_to_fetch(nowhere):
    with pytest.raises(UserError, match=r"huggingface.co/yuvalkirstain/PickScore_v1"):
        build_extractor("pickscore").weight_file()


# ---- a third party's ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_third_partys_extractor(shared):
    """The example package's own tests pass, on real pictures with a real network."""
    example = ROOT / "examples" / "custom_extractor"
    path = os.pathsep.join([str(example), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    options = dict(capture_output=True, text=True, env=environment(PYTHONPATH=path), cwd=ROOT)
    done = subprocess.run([*command, "--rootdir", example, example / "tests"], **options)
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0 and "passed" in last and "skipped" not in last, done.stdout
