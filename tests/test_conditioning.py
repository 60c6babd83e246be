"""Conditions of the backbone: class labels, text encoders, the empty prompt, and dropout."""

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F

from ahpa.conditioning.labels import ClassLabels
from ahpa.conditioning.text import PROMPTS, TextConditioner
from ahpa.conditioning.words import WordEncoder
from ahpa.registry import CONDITIONERS, TEXT_ENCODERS, ConfigError, UserError, build
from ahpa.registry.contracts import Clean, Condition, TextCond
from ahpa.testing.common import toy_geometry
from ahpa.testing.conditioning import check_conditioner, check_text_encoder

WORDS = dict(type="WordEncoder", length=8, width=24)
CAPTIONS = ["a red mushroom", "A Blue fish!", "one two three four five six seven eight nine ten"]


def text_geometry(text_dim=24, pooled_dim=None):
    return toy_geometry(num_classes=None, text_dim=text_dim, pooled_dim=pooled_dim)


def text_conditioner(geometry=None, **options):
    cfg = dict(type="TextConditioner", **{"encoder": WORDS, **options})
    return build(CONDITIONERS, cfg, geometry=geometry or text_geometry())


def label_conditioner(**options):
    cfg = dict(type="ClassLabels", **options)
    return build(CONDITIONERS, cfg, geometry=toy_geometry(num_classes=10))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clean(**entries):
    """An encoded batch with labels=... or captions=..."""
    return Clean({"image": torch.zeros(1)}, **entries)


def own_names(registry):
    registry.import_from_location()
    parts = registry.module_dict.items()
    return {name for name, part in parts if part.__module__.startswith("ahpa.")}


# ---- the contracts -------------------------------------------------------------------------------


def test_none_is_left_out():
    assert own_names(CONDITIONERS) == {"ClassLabels", "TextConditioner"}
    assert own_names(TEXT_ENCODERS) == {"CLIPTextEncoder", "WordEncoder"}


@pytest.mark.parametrize("dropout", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    "cfg, geometry",
    [
        (dict(type="ClassLabels"), toy_geometry(num_classes=10)),
        (dict(type="TextConditioner", encoder=WORDS), text_geometry()),
        (dict(type="TextConditioner", encoder=WORDS), text_geometry(pooled_dim=24)),
    ],
    ids=["labels", "text", "pooled text"],
)
def test_contract_of_conditioners(cfg, geometry, dropout):
    check_conditioner({**cfg, "dropout": dropout}, geometry=geometry)


def test_contract_of_the_word_encoder():
    check_text_encoder(WORDS)


class Trainable(ClassLabels):
    def __init__(self, **options):
        super().__init__(**options)
        self.table = torch.nn.Embedding(2, 2)


class NoCondition(ClassLabels):
    def forward(self, clean, rng):
        return super().forward(clean, rng).value


class GlobalDropout(ClassLabels):
    def forward(self, clean, rng):
        return super().forward(clean, None)


class BeyondNull(ClassLabels):
    def null(self, count, device):
        return super().null(count, device) + 1


class WrongMask(ClassLabels):
    def forward(self, clean, rng):
        cond = super().forward(clean, rng)
        return Condition(cond.value, ~cond.dropped)


class AcceptsAll(ClassLabels):
    def encode(self, wanted, device):
        return torch.tensor(wanted, dtype=torch.long)


class AlwaysPooled(TextConditioner):
    def _encode(self, prompts):
        return self.encoder(prompts)


@pytest.mark.parametrize(
    "broken, message",
    [
        (Trainable, "nothing to train"),
        (NoCondition, "must return a Condition"),
        (GlobalDropout, "one generator state gives two"),
        (BeyondNull, "not null|exceeds the null class"),
        (WrongMask, "not null|not its own"),
        (AcceptsAll, "must raise UserError"),
        (AlwaysPooled, "has a pooled vector"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_check_of_conditioners_finds(broken, message):
    text = issubclass(broken, TextConditioner)
    geometry = text_geometry() if text else toy_geometry(num_classes=10)
    options = dict(encoder=WORDS) if text else {}
    part = broken(geometry=geometry, dropout=0.5, **options)
    with pytest.raises(AssertionError, match=message):
        check_conditioner(part, geometry=geometry)


class OtherWidth(WordEncoder):
    def forward(self, prompts):
        tokens, pooled = super().forward(prompts)
        return TextCond(tokens[:, :, 1:], pooled)


class HalfTokens(WordEncoder):
    def forward(self, prompts):
        tokens, pooled = super().forward(prompts)
        return TextCond(tokens.half(), pooled)


class Constant(WordEncoder):
    def forward(self, prompts):
        tokens, pooled = super().forward(prompts)
        return TextCond(torch.zeros_like(tokens), pooled)


class KnowsTheBatch(WordEncoder):
    def forward(self, prompts):
        tokens, pooled = super().forward(prompts)
        return TextCond(tokens - tokens.mean(0), pooled)


class Gradient(WordEncoder):
    def forward(self, prompts):
        tokens, pooled = super().forward(prompts)
        return TextCond(tokens.requires_grad_(), pooled)


@pytest.mark.parametrize(
    "broken, message",
    [
        (OtherWidth, "tokens: must be"),
        (HalfTokens, "must be float32"),
        (Constant, "same tokens"),
        (KnowsTheBatch, "depends on the other prompts"),
        (Gradient, "carries a gradient"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_check_of_text_encoders_finds(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_text_encoder(broken())


# ---- class labels --------------------------------------------------------------------------------


def test_label_dropout():
    labels = torch.arange(20_000) % 10
    cond = label_conditioner(dropout=0.1)(clean(labels=labels), generator(0))
    assert torch.equal(cond.dropped, cond.value == 10)
    assert torch.equal(cond.value[~cond.dropped], labels[~cond.dropped])
    assert float(cond.dropped.float().mean()) == pytest.approx(0.1, abs=0.008)


def test_label_dropout_comes_from_the_generator():
    part, batch = label_conditioner(dropout=0.1), clean(labels=torch.arange(20_000) % 10)
    first, again, other = (part(batch, generator(seed)).value for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    drawn = torch.rand(20_000, generator=generator(0)) < 0.1  # one draw for each label
    assert torch.equal(first == 10, drawn)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_no_label_or_every_label_is_dropped(dropout):
    labels = torch.arange(1000) % 10
    value = label_conditioner(dropout=dropout)(clean(labels=labels), generator()).value
    assert torch.equal(value, labels if dropout == 0 else torch.full_like(labels, 10))


@pytest.mark.parametrize("wrong", [-1, 10])
def test_labels_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"0\.\.9"):
        label_conditioner()(clean(labels=torch.tensor([1, wrong])), None)


def test_labels_of_samples():
    part = label_conditioner()
    assert part.null(3, "cpu").tolist() == [10, 10, 10]
    assert part.all() == list(range(10))
    assert part.encode([3, 0], "cpu").tolist() == [3, 0]
    with pytest.raises(UserError, match=r"10 is not in 0\.\.9"):
        part.encode([1, 10], "cpu")
    with pytest.raises(UserError, match="'a cat' is not in 0..9"):
        part.encode(["a cat"], "cpu")


def test_the_condition_repeats_for_views():
    cond = label_conditioner(dropout=0.5)(clean(labels=torch.arange(4)), generator()).repeat(2)
    assert torch.equal(cond.value[:4], cond.value[4:])
    assert torch.equal(cond.dropped[:4], cond.dropped[4:])


# ---- the encoder without weights -----------------------------------------------------------------


def test_words_are_fixed_vectors_and_know_their_place():
    encoder = build(TEXT_ENCODERS, WORDS)
    tokens, pooled = encoder(["red fish", "fish red", "RED  fish.", ""])
    assert tokens.shape == (4, 8, 24) and pooled.shape == (4, 24)
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens[0], tokens[2]) and not torch.equal(tokens[0], tokens[1])
    difference = tokens[0] - tokens[1]  # the same words swapped: only the words differ
    torch.testing.assert_close(difference[0], -difference[1])
    assert (difference[2:] == 0).all()
    torch.testing.assert_close(pooled[0], pooled[1])
    again = build(TEXT_ENCODERS, WORDS)(["red fish"])
    assert torch.equal(again.tokens[0], tokens[0]), "no state, no global randomness"
    assert not list(encoder.parameters()) and not encoder.state_dict()


def test_long_prompts_are_cut_and_end():
    encoder = build(TEXT_ENCODERS, WORDS)
    assert " ".join(encoder.words(CAPTIONS[2])) == "one two three four five six seven <end>"
    assert encoder.words("") == ["<end>"]
    assert encoder.words("ünïcode_名 42") == ["ünïcode", "名", "42", "<end>"]


@pytest.mark.parametrize(
    "wrong", [dict(length=1), dict(width=0), dict(width=25), dict(length=2.5)], ids=str
)
def test_mistakes_of_the_word_encoder(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(TEXT_ENCODERS, {**WORDS, **wrong})


# ---- CLIP by open_clip: a small network of its architecture, since real weights are a download --

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


def clip_cfg(clip, **options):
    cfg = dict(type="CLIPTextEncoder", model=clip[0], pretrained=clip[1], quick_gelu=True)
    return {**cfg, **options}


def clip_encoder(clip, **options):
    return build(TEXT_ENCODERS, clip_cfg(clip, **options))


def states(model, tokens):
    """CLIP's text tower by hand, from the state dict: [B, T] -> states after ln_final [B, T, W]."""
    w, heads = model.state_dict(), SMALL["text_cfg"]["heads"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name, kind="."):
        return x @ w[f"{name}{kind}weight"].T + w[f"{name}{kind}bias"]

    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    future = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)
    for i in range(SMALL["text_cfg"]["layers"]):
        b = f"transformer.resblocks.{i}"
        packed = linear(norm(x, f"{b}.ln_1"), f"{b}.attn.in_proj", "_")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, -1))
        weights = (q @ k.mT / q.shape[-1] ** 0.5 + future).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{b}.attn.out_proj")
        inner = linear(norm(x, f"{b}.ln_2"), f"{b}.mlp.c_fc")
        x = x + linear(inner * torch.sigmoid(1.702 * inner), f"{b}.mlp.c_proj")
    return norm(x, "ln_final")


def test_contract_of_clip(clip):
    check_text_encoder(clip_cfg(clip))


def test_clip_gives_the_last_hidden_states_and_the_projected_end(clip):
    name, _, model = clip
    encoder, tokenizer = clip_encoder(clip), open_clip.get_tokenizer(name)
    assert (encoder.length, encoder.width, encoder.pooled_dim) == (12, 24, 20)
    assert encoder.clip is None, "sizes are known without weights"
    prompts = [*CAPTIONS, "", "a " * 40]
    found, raw = encoder(prompts), tokenizer(prompts)
    assert found.tokens.shape == (5, 12, 24) and found.pooled.shape == (5, 20)
    assert found.tokens.dtype == torch.float32 and not found.tokens.requires_grad
    ends = raw.argmax(1)
    filled = raw.clone()
    for row, end in enumerate(ends):
        filled[row, end:] = 49407  # the end token fills the rest, as the published tokenizer does
    assert torch.equal(encoder.tokens(prompts), filled)
    wanted = states(model, filled)
    torch.testing.assert_close(found.tokens, wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        own = model.encode_text(raw)  # causal: what follows the end does not reach it
        torch.testing.assert_close(found.pooled, own, rtol=1e-4, atol=1e-5)
        zeros = states(model, raw)
    for row, end in enumerate(ends):
        first = slice(0, int(end) + 1)
        torch.testing.assert_close(
            found.tokens[row, first], zeros[row, first], rtol=1e-4, atol=1e-5
        )
    assert not torch.allclose(found.tokens[0], zeros[0], atol=1e-2), "the filling shows after it"


def test_clip_is_frozen_loads_once_and_follows_its_precision(clip):
    encoder = clip_encoder(clip)
    encoder.load()
    network = encoder.clip
    encoder.load()
    assert encoder.clip is network and not hasattr(network, "visual"), "the image tower is dropped"
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
    half = clip_encoder(clip, precision="bf16")
    rough, exact = half(CAPTIONS).tokens, encoder(CAPTIONS).tokens
    assert half.clip.ln_final.weight.dtype == torch.bfloat16 and rough.dtype == torch.float32
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(CAPTIONS).tokens, exact), "autocast must not reach it"


def test_quick_gelu_is_heeded(clip):
    plain = clip_encoder(clip, quick_gelu=False)(CAPTIONS).tokens
    assert not torch.allclose(plain, clip_encoder(clip)(CAPTIONS).tokens, atol=1e-4)


def test_the_published_encoder_is_known_without_a_download():
    encoder = build(TEXT_ENCODERS, dict(type="CLIPTextEncoder"))
    assert (encoder.model, encoder.pretrained, encoder.quick_gelu) == ("ViT-L-14", "openai", True)
    assert (encoder.length, encoder.width, encoder.pooled_dim) == (77, 768, 768)
    tokens = encoder.tokens(["a cat", ""])
    assert tokens.shape == (2, 77)
    assert (tokens[1] == torch.tensor([49406] + [49407] * 76)).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model="ViT-L14"), "did you mean.*'ViT-L-14'"),
        (dict(pretrained="opena"), "did you mean 'openai'"),
        (dict(precision="fp8"), "bf16"),
        (dict(quick_gelu=False), "trained with quick_gelu=True"),
        (dict(pretrained="weights.pt"), "give True for OpenAI's"),
        (dict(model="ViT-B-16-SigLIP"), "not CLIP's own"),
    ],
    ids=str,
)
def test_mistakes_of_clip(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(TEXT_ENCODERS, dict(type="CLIPTextEncoder", **changes))


def test_missing_weights_say_what_to_do(tmp_path):
    file = tmp_path / "no.pt"
    cfg = dict(type="CLIPTextEncoder", pretrained=str(file), quick_gelu=True)
    with pytest.raises(UserError, match=r"no CLIP weights at .*no\.pt"):
        build(TEXT_ENCODERS, cfg).load()


def test_broken_weights_say_what_to_do(tmp_path):
    file = tmp_path / "other.pt"
    file.write_bytes(b"no weights")
    cfg = dict(type="CLIPTextEncoder", pretrained=str(file), quick_gelu=True)
    with pytest.raises(UserError, match="cannot be read"):
        build(TEXT_ENCODERS, cfg).load()


def test_weights_that_are_not_in_the_cache_say_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    looked = r"CLIP text encoder 'timm/vit_large_patch14_clip_224.openai'.*local cache"
    advice = r"FILE with quick_gelu=True.*--demo"
    with pytest.raises(UserError, match=f"{looked}.*{advice}"):
        build(TEXT_ENCODERS, dict(type="CLIPTextEncoder")).load()


# ---- the conditioner of text ---------------------------------------------------------------------


def test_captions_are_encoded_and_a_share_is_the_empty_prompt():
    part, captions = text_conditioner(dropout=0.1), CAPTIONS[:2] * 1000
    cond = part(clean(captions=captions), generator())
    tokens = cond.value.tokens
    empty, kept = part.null(1, "cpu").tokens[0], part.encode(captions, "cpu").tokens
    assert torch.equal(cond.dropped, (tokens == empty).flatten(1).all(1))
    assert float(cond.dropped.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(tokens[~cond.dropped], kept[~cond.dropped])


def test_caption_dropout_comes_from_the_generator():
    part, batch = text_conditioner(dropout=0.1), clean(captions=CAPTIONS[:2] * 1000)
    first, again, other = (part(batch, generator(seed)).value.tokens for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("dropout", [0, 1])
def test_no_caption_or_every_caption_is_dropped(dropout):
    part = text_conditioner(dropout=dropout)
    tokens = part(clean(captions=CAPTIONS), generator()).value.tokens
    wanted = part.encode(CAPTIONS if dropout == 0 else [""] * 3, "cpu").tokens
    assert torch.equal(tokens, wanted)


def test_the_pooled_vector_goes_where_it_is_taken():
    plain = text_conditioner()
    assert plain(clean(captions=CAPTIONS), generator()).value.pooled is None
    assert plain.null(2, "cpu").pooled is None
    pooled = text_conditioner(text_geometry(pooled_dim=24), dropout=1)
    cond, null = pooled.encode(CAPTIONS, "cpu"), pooled.null(3, "cpu")
    assert cond.pooled.shape == (3, 24) and null.pooled.shape == (3, 24)
    assert null.tokens.shape == (3, 8, 24)
    dropped = pooled(clean(captions=CAPTIONS), generator()).value
    assert torch.equal(dropped.pooled, null.pooled) and torch.equal(dropped.tokens, null.tokens)


@pytest.mark.parametrize("load_first", [True, False])
def test_the_encoder_is_frozen_and_moves_along(clip, load_first):
    """Weights that are read after `.to()` get the device and dtype of the module."""
    part = text_conditioner(encoder=clip_cfg(clip))
    if load_first:
        part.load()
    part.double()
    part.load()
    assert part.encoder.clip.ln_final.weight.dtype == torch.float64
    assert not any(p.requires_grad for p in part.parameters())
    assert not part.encoder.clip.training


def test_prompts_of_samples():
    part = text_conditioner(prompts=["a cat", "a dog"])
    assert part.all() == ["a cat", "a dog"]
    assert text_conditioner().all() == list(PROMPTS)
    captions = part.example(50, generator())["caption"]
    assert len(captions) == 50 and set(captions) == {"a cat", "a dog"}


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(dropout=1.5), "dropout"),
        (dict(prompts="a cat"), "prompts"),
        (dict(prompts=[]), "prompts"),
        (dict(prompts=[3]), "prompts"),
        (dict(encoder=dict(type="WordEncoder", width=32)), "set model.backbone.text_dim=32"),
        (dict(encoder=dict(type="WordEncodr")), "did you mean 'WordEncoder'"),
    ],
    ids=str,
)
def test_mistakes_of_the_conditioner(options, message):
    with pytest.raises(ConfigError, match=message):
        text_conditioner(**options)


def test_a_dropout_of_labels_that_is_refused():
    with pytest.raises(ConfigError, match="dropout"):
        label_conditioner(dropout=-0.1)


def test_conditioners_that_do_not_fit_the_backbone():
    with pytest.raises(ConfigError, match="takes no text; use ClassLabels"):
        text_conditioner(toy_geometry(num_classes=10))
    with pytest.raises(ConfigError, match=r"set model\.backbone\.pooled_dim=24"):
        text_conditioner(text_geometry(pooled_dim=8))
    with pytest.raises(ConfigError, match="takes no class labels; use TextConditioner"):
        build(CONDITIONERS, dict(type="ClassLabels"), geometry=text_geometry())


def test_batches_that_do_not_fit_the_conditioner():
    with pytest.raises(UserError, match="no captions"):
        text_conditioner()(clean(labels=torch.zeros(2)), generator())
    with pytest.raises(UserError, match="no labels"):
        label_conditioner()(clean(captions=CAPTIONS), generator())
    with pytest.raises(UserError, match="takes texts, got 3"):
        text_conditioner().encode([3], "cpu")
