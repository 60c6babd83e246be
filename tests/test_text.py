"""Text conditions: encoders, the empty prompt, dropout, guidance; captions; a text run from training to prompts' samples."""

import colorsys
import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.runs import ROOT, environment, final_state, scalars, train

from ahpa import cli
from ahpa.backbones.text import PROMPTS
from ahpa.data.shapes import CLASSES, COLOURS, HUE_SPREAD, HUES, ShapesDataset, caption, draw
from ahpa.engine.inference import Generator
from ahpa.flow.guidance import guided, joined
from ahpa.registry import BACKBONES, CONDITIONERS, TEXT_ENCODERS, ConfigError, UserError, build
from ahpa.registry.contracts import Step, TextCond

WORDS = dict(type="WordEncoder", length=8, width=24)
CAPTIONS = ["a red mushroom", "A Blue fish!", "one two three four five six seven eight nine ten"]


def backbone(**changes):
    cfg = dict(type="MMDiT", depth=2, hidden_size=16, num_heads=2, text_dim=24, **changes)
    return build(BACKBONES, cfg, input_size=4, in_channels=4)


def conditioner(model=None, **options):
    model = backbone() if model is None else model
    return build(CONDITIONERS, dict(type="TextConditioner", **{"encoder": WORDS, **options}), backbone=model)


# ---- the encoder without weights ----


def test_words_are_fixed_vectors_and_know_their_place():
    encoder = build(TEXT_ENCODERS, WORDS)
    tokens, pooled = encoder(["red fish", "fish red", "RED  fish.", ""])
    assert tokens.shape == (4, 8, 24) and pooled.shape == (4, 24) and tokens.dtype == torch.float32
    assert torch.equal(tokens[0], tokens[2]) and not torch.equal(tokens[0], tokens[1])
    place = tokens[0] - tokens[1]  # the same words, one place apart: what differs is the two words alone
    torch.testing.assert_close(place[0], -place[1])
    assert (place[2:] == 0).all()
    torch.testing.assert_close(pooled[0], pooled[1])
    again = build(TEXT_ENCODERS, WORDS)(["red fish"])
    assert torch.equal(again.tokens[0], tokens[0]), "no state, no global randomness"
    assert not list(encoder.parameters()) and not encoder.state_dict()


def test_long_prompts_are_cut_and_end():
    encoder = build(TEXT_ENCODERS, WORDS)
    assert encoder.words(CAPTIONS[2]) == ["one", "two", "three", "four", "five", "six", "seven", "<end>"]
    assert encoder.words("") == ["<end>"] and encoder.words("ünïcode_名 42") == ["ünïcode", "名", "42", "<end>"]


@pytest.mark.parametrize("wrong", [dict(length=1), dict(width=0), dict(width=25), dict(length=2.5)], ids=str)
def test_mistakes_of_the_word_encoder(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(TEXT_ENCODERS, {**WORDS, **wrong})


# ---- CLIP by open_clip: a small network of its own architecture, as real weights need a download ----

SMALL = dict(
    embed_dim=20,
    vision_cfg=dict(image_size=16, layers=1, width=16, patch_size=8, head_width=8),
    text_cfg=dict(context_length=12, vocab_size=49408, width=24, heads=3, layers=2),
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(the name of a small model that open_clip knows, a file of its weights, the model itself)."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-text-test.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / "tiny-text-test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-text-test", force_quick_gelu=True).eval()
    with torch.no_grad():  # CLIP starts with tiny embeddings: make words matter
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    torch.save(model.state_dict(), folder / "tiny.pt")
    return "tiny-text-test", str(folder / "tiny.pt"), model


def encoder_of(clip, **options):
    cfg = dict(type="CLIPTextEncoder", model=clip[0], pretrained=clip[1], quick_gelu=True, **options)
    return build(TEXT_ENCODERS, cfg)


def states(model, tokens):
    """CLIP's text tower by hand, from the state dict: [B, T] -> the states after ln_final [B, T, W]."""
    w, heads = {k: v for k, v in model.state_dict().items()}, SMALL["text_cfg"]["heads"]
    norm = lambda x, n: torch.nn.functional.layer_norm(x, x.shape[-1:], w[f"{n}.weight"], w[f"{n}.bias"])  # noqa: E731
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    future = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)
    for i in range(SMALL["text_cfg"]["layers"]):
        b = f"transformer.resblocks.{i}"
        packed = norm(x, f"{b}.ln_1") @ w[f"{b}.attn.in_proj_weight"].T + w[f"{b}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, -1))
        mixed = ((q @ k.mT / q.shape[-1] ** 0.5 + future).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + mixed @ w[f"{b}.attn.out_proj.weight"].T + w[f"{b}.attn.out_proj.bias"]
        inner = norm(x, f"{b}.ln_2") @ w[f"{b}.mlp.c_fc.weight"].T + w[f"{b}.mlp.c_fc.bias"]
        x = x + inner * torch.sigmoid(1.702 * inner) @ w[f"{b}.mlp.c_proj.weight"].T + w[f"{b}.mlp.c_proj.bias"]
    return norm(x, "ln_final")


def test_clip_gives_the_last_hidden_states_and_the_projected_end(clip):
    name, _, model = clip
    encoder, tokenizer = encoder_of(clip), open_clip.get_tokenizer(clip[0])
    assert (encoder.length, encoder.width, encoder.pooled_dim) == (12, 24, 20)
    assert not encoder.__dict__.get("held"), "sizes are known without weights"
    prompts = [*CAPTIONS, "", "a " * 40]
    found, raw = encoder(prompts), tokenizer(prompts)
    assert found.tokens.shape == (5, 12, 24) and found.pooled.shape == (5, 20)
    assert found.tokens.dtype == torch.float32 and not found.tokens.requires_grad
    ends = raw.argmax(1)
    filled = raw.clone()
    for row, end in enumerate(ends):
        filled[row, end:] = 49407  # the end token fills what is left, as in the published model's tokenizer
    assert torch.equal(encoder.tokens(prompts), filled)
    torch.testing.assert_close(found.tokens, states(model, filled), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        own = model.encode_text(raw)  # causal: what stands behind the end does not reach it
        torch.testing.assert_close(found.pooled, own, rtol=1e-4, atol=1e-5)
        zeros = states(model, raw)
    for row, end in enumerate(ends):
        torch.testing.assert_close(found.tokens[row, : end + 1], zeros[row, : end + 1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.tokens[0], zeros[0], atol=1e-2), "behind the end the filling shows"


def test_clip_is_frozen_loads_once_and_follows_its_precision(clip):
    encoder = encoder_of(clip)
    encoder.load()
    held = encoder.held["clip"]
    encoder.load()
    assert encoder.held["clip"] is held and not hasattr(held, "visual"), "the image tower is let go"
    assert not any(p.requires_grad for p in held.parameters()) and not held.training
    assert not list(encoder.parameters()) and not encoder.state_dict()
    half = encoder_of(clip, precision="bf16")
    rough, exact = half(CAPTIONS).tokens, encoder(CAPTIONS).tokens
    assert half.held["clip"].ln_final.weight.dtype == torch.bfloat16 and rough.dtype == torch.float32
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(CAPTIONS).tokens, exact), "autocast does not reach the frozen encoder"


def test_quick_gelu_is_heeded(clip):
    plain = build(TEXT_ENCODERS, dict(type="CLIPTextEncoder", model=clip[0], pretrained=clip[1], quick_gelu=False))
    assert not torch.allclose(plain(CAPTIONS).tokens, encoder_of(clip)(CAPTIONS).tokens, atol=1e-4)


def test_the_published_encoder_is_known_without_a_download():
    encoder = build(TEXT_ENCODERS, dict(type="CLIPTextEncoder"))
    assert (encoder.model, encoder.pretrained, encoder.quick_gelu) == ("ViT-L-14", "openai", True)
    assert (encoder.length, encoder.width, encoder.pooled_dim) == (77, 768, 768)
    tokens = encoder.tokens(["a cat", ""])
    assert tokens.shape == (2, 77) and (tokens[1] == torch.tensor([49406] + [49407] * 76)).all()


@pytest.mark.parametrize(
    "changes, message",
    [(dict(model="ViT-L14"), "did you mean.*'ViT-L-14'"), (dict(pretrained="opena"), "did you mean 'openai'"),
     (dict(precision="fp8"), "bf16"), (dict(quick_gelu=False), "trained with quick_gelu=True"),
     (dict(pretrained="weights.pt"), "give True for OpenAI's"), (dict(model="ViT-B-16-SigLIP"), "not CLIP's own")],
    ids=str)  # fmt: skip
def test_mistakes_of_clip(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(TEXT_ENCODERS, dict(type="CLIPTextEncoder", **changes))


def test_weights_that_cannot_be_had_say_what_to_do(clip, tmp_path, monkeypatch):
    missing = build(TEXT_ENCODERS, dict(type="CLIPTextEncoder", pretrained=str(tmp_path / "no.pt"), quick_gelu=True))
    with pytest.raises(UserError, match=r"no CLIP weights at .*no\.pt"):
        missing.load()
    (tmp_path / "other.pt").write_bytes(b"no weights")
    broken = build(TEXT_ENCODERS, dict(type="CLIPTextEncoder", pretrained=str(tmp_path / "other.pt"), quick_gelu=True))
    with pytest.raises(UserError, match="cannot be had"):
        broken.load()

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = (
        r"CLIP text encoder 'timm/vit_large_patch14_clip_224.openai'.*local cache.*FILE with quick_gelu=True.*--demo"
    )
    with pytest.raises(UserError, match=missing):
        build(TEXT_ENCODERS, dict(type="CLIPTextEncoder")).load()


# ---- the conditioner ----


def step(captions, seed=0):
    return Step(batch={"caption": captions}, generator=torch.Generator().manual_seed(seed))


def test_captions_are_encoded_and_a_share_is_the_empty_prompt():
    made, captions = conditioner(dropout=0.1), CAPTIONS[:2] * 1000
    tokens = made(step(captions)).tokens
    empty, kept = made.null(1, "cpu").tokens[0], made.encode(captions, "cpu").tokens
    dropped = (tokens == empty).flatten(1).all(1)
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(tokens[~dropped], kept[~dropped])
    assert torch.equal(tokens, made(step(captions)).tokens) and not torch.equal(tokens, made(step(captions, 1)).tokens)
    assert torch.equal(conditioner(dropout=0)(step(captions)).tokens, kept)
    assert (conditioner(dropout=1)(step(captions)).tokens == empty).all()


def test_the_pooled_vector_goes_where_it_is_taken():
    plain, pooled = conditioner(), conditioner(backbone(pooled_dim=24), dropout=1)
    assert plain(step(CAPTIONS)).pooled is None and plain.null(2, "cpu").pooled is None
    cond, null = pooled.encode(CAPTIONS, "cpu"), pooled.null(3, "cpu")
    assert cond.pooled.shape == (3, 24) and null.pooled.shape == (3, 24) and null.tokens.shape == (3, 8, 24)
    dropped = pooled(step(CAPTIONS))
    assert torch.equal(dropped.pooled, null.pooled) and torch.equal(dropped.tokens, null.tokens)


def test_the_encoder_is_in_no_parameter_list_and_moves_along(clip):
    made = conditioner(encoder=dict(type="CLIPTextEncoder", model=clip[0], pretrained=clip[1], quick_gelu=True))
    made.load()
    assert not list(made.parameters()) and not made.state_dict()
    made.double()
    assert made.held["encoder"].held["clip"].ln_final.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "options, message",
    [(dict(dropout=1.5), "dropout"), (dict(prompts="a cat"), "prompts"), (dict(prompts=[]), "prompts"),
     (dict(encoder=dict(type="WordEncoder", width=32)), "set model.backbone.text_dim=32"),
     (dict(encoder=dict(type="WordEncodr")), "did you mean 'WordEncoder'")], ids=str)  # fmt: skip
def test_mistakes_of_the_conditioner(options, message):
    with pytest.raises(ConfigError, match=message):
        conditioner(**options)


def test_parts_that_do_not_fit_together():
    sit = build(BACKBONES, dict(type="SiT", depth=1, hidden_size=16, num_heads=2), input_size=4, in_channels=4)
    with pytest.raises(ConfigError, match="SiT takes no text"):
        conditioner(sit)
    with pytest.raises(ConfigError, match=r"set model\.backbone\.pooled_dim=24"):
        conditioner(backbone(pooled_dim=8))
    with pytest.raises(UserError, match="no captions"):
        conditioner()(Step(batch={"label": torch.zeros(2)}))
    with pytest.raises(UserError, match="takes texts, got 3"):
        conditioner().encode([3], "cpu")
    labels = build(CONDITIONERS, dict(type="ClassLabels"), backbone=sit)
    with pytest.raises(UserError, match="'a cat' is not in 0..999"):
        labels.encode(["a cat"], "cpu")


# ---- guidance ----


def test_guidance_joins_any_condition():
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    both = joined(TextCond(a, None), TextCond(b, None))
    assert isinstance(both, TextCond) and both.pooled is None and torch.equal(both.tokens, torch.cat([a, b]))
    assert torch.equal(joined((a, b), (b, a))[1], torch.cat([b, a]))


@pytest.mark.parametrize("pooled_dim", [None, 24])
def test_guidance_of_text_is_two_single_passes(pooled_dim):
    torch.manual_seed(0)
    model = backbone(pooled_dim=pooled_dim)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        made = conditioner(model)
        cond, null = made.encode(CAPTIONS, "cpu"), made.null(3, "cpu")
        x, t = {"image": torch.randn(3, 4, 4, 4)}, torch.tensor(0.5)
        velocity = lambda x, t, cond: model(x, t, cond).pred  # noqa: E731
        with_text, without = (velocity(x, t.expand(3), c)["image"] for c in (cond, null))
        found = guided(velocity, cond, null, 2.0)(x, t)["image"]
        torch.testing.assert_close(found, without + 2 * (with_text - without), rtol=1e-4, atol=1e-5)
        assert torch.equal(guided(velocity, cond, null, 1.0)(x, t)["image"], with_text)
    assert not torch.allclose(with_text, without, atol=1e-4)


# ---- the drawn set's captions ----


def test_captions_say_what_is_drawn():
    dataset = ShapesDataset(length=300, resolution=32)
    corners = {"light": [], "dark": []}
    for index in range(300):
        item = dataset[index]
        article, colour, name, on, a, ground, last = item["caption"].split()
        assert (name, on, a, last) == (CLASSES[index % 10], "on", "a", "ground")
        assert article == ("an" if colour[0] in "aeiou" else "a") and colour in dict(COLOURS)
        assert item["caption"] == dataset[index, 5]["caption"]
        corners[ground].append(float(item["image"][:, :4, :4].amax(0).float().mean()) / 255)  # HSV's value
    assert len(corners["light"]) > 100 and len(corners["dark"]) > 100
    assert max(corners["dark"]) < 0.5 < min(corners["light"])


def test_the_colour_named_is_the_colour_seen():
    """Classes that cover the picture's middle: the hue of its pixels is one that the name stands for."""
    ranges = [(name, COLOURS[i - 1][1] if i else 0.0, end) for i, (name, end) in enumerate(COLOURS)]
    seen = set()
    for index in range(60):
        label = (1, 7, 4)[index % 3]  # heart, tree, cross
        image = draw(label, np.random.default_rng((9, index)), 64)[28:36, 28:36].reshape(-1, 3).mean(0) / 255
        hue = colorsys.rgb_to_hsv(*image)[0]
        colour = caption(label, np.random.default_rng((9, index))).split()[1]
        assert any(name == colour and low - 0.02 <= hue <= high + 0.02 for name, low, high in ranges), (colour, hue)
        seen.add(colour)
    assert seen == {"red", "pink", "green", "teal"}


def test_the_default_prompts_are_captions_of_the_drawn_set():
    for prompt, name in zip(PROMPTS, CLASSES, strict=True):
        _, colour, shown, *_ = prompt.split()
        assert shown == name
        hues = [(HUES[name] + offset * HUE_SPREAD) % 1 for offset in np.linspace(-1, 1, 41)]
        assert colour in {next(n for n, end in COLOURS if hue < end) for hue in hues}


# ---- from training to samples ----

SMALLER = ["model.alignments.main.router.hidden_dim=16", "model.conditioner.prompts=['a red mushroom','a blue fish']"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "text"
    train(folder, iters=3, config="configs/ahpa_mmdit.py", options=SMALLER)
    train(folder.parent / "classes", iters=1, config="configs/sit-b.py")
    return folder


def sample(*arguments, check=True):
    done = subprocess.run([sys.executable, "tools/sample.py", *map(str, arguments)], capture_output=True, text=True,
                          cwd=ROOT, env=environment())  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_text_demo_trains_and_draws_its_prompts(run):
    assert len(scalars(run)) == 3 and {"loss_flow", "loss_main_cosine"} <= set(scalars(run)[0])
    grid = Image.open(next((run / "samples").iterdir()))
    assert grid.width > 2 * 66 + 6 * len("a red mushroom") and grid.height == 2 * 66 + 2
    state = final_state(run)
    assert any("joint_blocks" in name for name in state["ema"]) and not any(
        "encoder" in name for name in state["model"]
    )
    assert state["meta"]["config"]["model"]["conditioner"]["encoder"]["type"] == "WordEncoder"


def test_prompts_of_ones_own(run, tmp_path):
    prompts = ("a green tree on a light ground", "a blue fish")
    common = (run, "--num", 4, "--steps", 2, "--cfg-scale", 2, "--prompts", *prompts)
    sample(*common, "--out", tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").height == 2 * 66 + 2  # a row a prompt
    sample(*common, "--out", tmp_path / "pngs")
    names = sorted(path.name for path in (tmp_path / "pngs").iterdir())
    assert names == ["000000_prompt0000.png", "000001_prompt0000.png", "000002_prompt0001.png",
                     "000003_prompt0001.png", "prompts.json"]  # fmt: skip
    assert json.loads((tmp_path / "pngs" / "prompts.json").read_text()) == list(prompts)
    sample(*common, "--out", tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as archive:
        assert archive["arr_0"].shape == (4, 64, 64, 3) and archive["arr_1"].tolist() == [0, 0, 1, 1]
        assert archive["prompts"].tolist() == list(prompts)
    sample(run, "--num", 2, "--steps", 1, "--out", tmp_path / "own.npz")
    with np.load(tmp_path / "own.npz") as archive:
        assert archive["prompts"].tolist() == ["a red mushroom", "a blue fish"]


def test_classes_and_prompts_are_told_apart(run):
    for where, option, value, other in ((run, "--classes", "3", "--prompts"),
                                        (run.parent / "classes", "--prompts", "a cat", "--classes")):  # fmt: skip
        done = sample(where, option, value, "--steps", 1, check=False)
        assert done.returncode == 2 and f"{option}: this checkpoint takes {other[2:]}; give {other}" in done.stderr
    both = sample(run, "--classes", 1, "--prompts", "a", check=False)
    assert both.returncode == 2 and "not allowed with" in both.stderr


def test_what_is_asked_for_decides_the_picture(run):
    generator = Generator.load(run)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in generator.backbone.parameters():
            p.add_(0.1 * torch.randn_like(p))
    one = generator.sample(["a red mushroom", "a blue fish"], steps=3, cfg_scale=3.0)
    other = generator.sample(["a red mushroom", "a green tree"], steps=3, cfg_scale=3.0)
    assert (one[0].int() - other[0].int()).abs().max() <= 1 and not torch.equal(one[1], other[1])


def test_data_names_cocos_folder_in_a_text_config():
    from test_configs import arguments

    cfg = cli.training_config(arguments(ROOT / "configs" / "ahpa_mmdit.py", data="some/coco"))
    dataset = cfg["train_dataloader"]["dataset"]
    assert dataset == dict(type="CocoCaptions", images="some/coco/train2014", resolution=256,
                           annotations="some/coco/annotations/captions_train2014.json")  # fmt: skip


def test_a_data_set_that_does_not_fit_the_condition_is_refused_before_training():
    from types import SimpleNamespace

    from ahpa.data.images import ImageFolder
    from ahpa.engine.runner import check_classes

    text, classes = (
        SimpleNamespace(conditioner=SimpleNamespace(takes=kind), backbone=object()) for kind in ("prompts", "classes")
    )
    with pytest.raises(UserError, match="ImageFolder gives no captions"):
        check_classes(text, object.__new__(ImageFolder))
    with pytest.raises(UserError, match="captions only"):
        check_classes(classes, SimpleNamespace(captioned=True))
    check_classes(text, ShapesDataset())
    check_classes(classes, ShapesDataset())
    check_classes(text, SimpleNamespace())
