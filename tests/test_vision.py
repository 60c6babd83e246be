"""Vision encoders: their own preprocessing, positions and tokens, against timm and open_clip used
by hand; and the attention of their blocks."""

import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Attention

from ahpa.data.shapes import ShapesDataset
from ahpa.registry import PRIORS, ROUTERS, ConfigError, UserError, build
from ahpa.registry.contracts import Clean, LevelSpec
from ahpa.testing.common import toy_geometry
from ahpa.testing.priors import check_prior

TINY = dict(embed_dim=48, depth=2, num_heads=3)
FOUR = {**TINY, "depth": 4}
DINO = "vit_base_patch14_dinov2.lvd142m"
REGISTERS = "vit_base_patch14_reg4_dinov2.lvd142m"
DINOV3 = "vit_base_patch16_dinov3.lvd1689m"
CLIP_SIZES = dict(embed_dim=32, width=96, layers=3, patch_size=16)
CLIP = dict(type="OpenCLIPEncoder", model="ViT-B-32", weights="random", precision="fp32")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def images():
    return torch.stack([ShapesDataset(resolution=256)[i]["image"] for i in range(2)]).float() / 255


def built(cfg, resolution=256):
    return build(PRIORS, cfg, geometry=toy_geometry(resolution=resolution))


def encoder(resolution=256, **options):
    return built(
        dict(type="TimmEncoder", precision="fp32") | dict(options=TINY) | options, resolution
    )


def features(prior, images, levels=None):
    return prior.from_clean(Clean({}, images), list(prior.levels) if levels is None else levels)


def as_tokens(x):
    """[B, C, h, w] -> [B, N, C]"""
    return x.flatten(2).mT


def normalised(images, statistics):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    return (images - mean) / std


def moved(network):
    """Move every parameter away from where training starts: many are zero there."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network


@pytest.mark.parametrize("name", [DINO, REGISTERS])
def test_a_local_copy_of_dinov2_as_repa_reads_it(tmp_path, images, name):
    """Images / 255, ImageNet's mean and std, bicubic to 224, positions resampled from 37 x 37 to
    16 x 16, normalised tokens."""
    torch.manual_seed(0)
    whole = moved(timm.create_model(name, num_classes=0, **TINY).eval())  # 518 px, as published
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    found = features(encoder(model=name, weights=str(tmp_path)), images)

    state = dict(whole.state_dict())
    registers = 4 if name == REGISTERS else 0
    prefix = 0 if registers else 1  # with registers, positions have no row for the class token
    state["pos_embed"] = resample_abs_pos_embed(
        state["pos_embed"], [16, 16], num_prefix_tokens=prefix
    )
    small = timm.create_model(name, num_classes=0, img_size=224, **TINY).eval()
    small.load_state_dict(state)
    resized = F.interpolate(normalised(images, IMAGENET), size=224, mode="bicubic")
    with torch.no_grad():
        tokens = small.forward_features(resized)
    assert list(found) == ["patch", "cls"] and found["patch"].shape == (2, 48, 16, 16)
    patches = tokens[:, 1 + registers :]
    torch.testing.assert_close(as_tokens(found["patch"]), patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["cls"], tokens[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "patch", "levels"),
    [
        ("vit_small_patch14_dinov2.lvd142m", 384, 14, 2),
        (DINO, 768, 14, 2),
        ("vit_large_patch14_dinov2.lvd142m", 1024, 14, 2),
        ("vit_giant_patch14_dinov2.lvd142m", 1536, 14, 2),
        (REGISTERS, 768, 14, 2),
        ("vit_base_patch16_224.dino", 768, 16, 2),
        ("vit_base_patch16_224.mae", 768, 16, 2),
        (DINOV3, 768, 16, 2),
        ("vit_base_patch16_siglip_224.v2_webli", 768, 16, 1),
        ("vit_pe_core_base_patch16_224.fb", 768, 16, 2),
        ("vit_large_patch14_clip_224.openai", 1024, 14, 2),
    ],
)
def test_sizes_are_known_without_weights(name, width, patch, levels):
    priors = {side: built(dict(type="TimmEncoder", model=name), side) for side in (256, 512)}
    prior = priors[256]
    assert prior.network is None
    assert prior.levels["patch"] == LevelSpec(width, 16) and len(prior.levels) == levels
    sides = [priors[256].input_side, priors[512].input_side]
    assert sides == ([224, 448] if patch == 14 else [256, 512])
    cfg = timm.get_pretrained_cfg(name)
    assert prior.mean.flatten().tolist() == pytest.approx(cfg.mean)
    assert prior.std.flatten().tolist() == pytest.approx(cfg.std)


@pytest.mark.parametrize(
    "name",
    [
        DINOV3,
        "vit_base_patch16_siglip_224.v2_webli",
        "vit_pe_core_base_patch16_224.fb",
        "vit_base_patch16_224.mae",
    ],
)
def test_each_family_gives_a_map_on_the_token_grid(name, images):
    prior = encoder(model=name, weights="random")
    found = features(prior, images[:1])
    assert found["patch"].shape == (1, 48, 16, 16) and found["patch"].isfinite().all()
    with pytest.raises(ValueError, match="made for 256"):
        features(prior, images[:1, :, :64, :64])


@pytest.mark.parametrize(
    "prior",
    [
        dict(
            type="TimmEncoder",
            weights="random",
            model="vit_tiny_patch16_224",
            precision="fp32",
            options=TINY,
        ),
        dict(CLIP, sizes=CLIP_SIZES),
    ],
    ids=lambda p: p["type"],
)
def test_conformance(prior):
    check_prior(prior)


def test_open_clips_tower(tmp_path, images):
    """Against the tower by hand: patch tokens and class token after ln_post, from a file with
    positions of 224 px."""
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    sizes = {**CLIP_SIZES, "layers": 2}
    vision = dict(open_clip.get_model_config("ViT-B-32")["vision_cfg"])
    vision.update(width=96, layers=2, patch_size=16)
    torch.manual_seed(0)
    whole = open_clip.create_model("ViT-B-32", vision_cfg=vision, embed_dim=32).eval()
    torch.save(whole.state_dict(), tmp_path / "clip.pt")
    prior = built(dict(CLIP, weights=str(tmp_path / "clip.pt"), side=224, sizes=sizes))
    found = features(prior, images)

    x = normalised(images, (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    x = F.interpolate(x, size=224, mode="bicubic")
    with torch.no_grad():
        tower = whole.visual
        tokens = tower.ln_post(tower.transformer(tower._embeds(x)))
    torch.testing.assert_close(as_tokens(found["patch"]), tokens[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["cls"], tokens[:, 0], rtol=1e-4, atol=1e-5)


# ---- inner layers ---------------------------------------------------------------------------

RANDOM = dict(type="TimmEncoder", weights="random", precision="fp32", options=FOUR)
INNER = [
    dict(RANDOM, model=REGISTERS),
    dict(RANDOM, model="vit_small_patch16_dinov3"),
    dict(CLIP, sizes=dict(embed_dim=32, width=64, layers=4, patch_size=16)),
]


@pytest.mark.parametrize("cfg", INNER, ids=lambda cfg: cfg["model"])
def test_inner_layers_are_the_blocks_outputs_after_the_last_norm(cfg, images):
    """Block by block by hand; the last block's is 'patch'."""
    prior = built({**cfg, "inner": True})
    plain = built(cfg)
    levels = ["block1", "block2", "block3", "patch", "cls"]
    assert list(prior.levels) == levels
    assert len({prior.levels[name] for name in levels[:4]}) == 1
    wanted = ["block1", "block3", "patch", "cls"]
    found = features(prior, images, wanted)
    bare = features(plain, images)
    assert list(found) == wanted and list(bare) == ["patch", "cls"]
    assert torch.equal(found["patch"], bare["patch"]) and torch.equal(found["cls"], bare["cls"])
    network = prior.network
    blocks = prior.blocks(network)
    assert not any(block._forward_hooks for block in blocks), "the prior's own hooks are gone"
    seen = []
    hooks = [
        block.register_forward_hook(lambda m, i, output: seen.append(output)) for block in blocks
    ]
    features(prior, images)
    for hook in hooks:
        hook.remove()
    prefix = seen[0].shape[1] - 256
    for name, number in (("block1", 1), ("block3", 3), ("patch", 4)):
        by_hand = prior.last_norm(network)(seen[number - 1])[:, prefix:]
        torch.testing.assert_close(as_tokens(found[name]), by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cfg", INNER, ids=lambda cfg: cfg["model"])
def test_conformance_with_inner_layers(cfg):
    check_prior({**cfg, "inner": True})


@pytest.mark.parametrize("attention", [[], [5]], ids=["maps", "maps and attention"])
def test_a_router_over_an_encoders_layers(attention):
    five = {**TINY, "depth": 5}
    prior = encoder(model=DINO, weights="random", options=five, inner=True, attention=attention)
    cfg = dict(type="MLPRouter", groups="2/2")
    router = build(ROUTERS, cfg, levels=prior.levels, geometry=prior.geometry)
    assert router.groups == {"mid": ("block2", "block3"), "deep": ("block4", "patch")}
    assert router.out_dim == 96


# ---- attention ------------------------------------------------------------------------------

QK_NORM = dict(FOUR, qk_norm=True)


def input_and_output(module, run):
    """What a module is given and returns during a call, [B, P + N, D] each."""
    seen = []
    hook = module.register_forward_hook(lambda m, args, output: seen.append((args[0], output)))
    run()
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [(DINO, FOUR), (REGISTERS, FOUR), (DINO, QK_NORM)],
    ids=["class token", "registers", "qk-norm"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_attention_levels_are_the_logits_of_timms_attention(images, name, options, fused):
    """softmax(logits) v must be what timm's attention module gives, fused or not, for the full
    token sequence; the level holds the rows and columns of the patch tokens."""
    prior = encoder(model=name, weights="random", options=options, attention=[2, 4])
    prior.load()
    moved(prior.network)
    assert list(prior.levels) == ["attention2", "attention4", "patch", "cls"]
    assert prior.levels["attention2"] == LevelSpec(3, 16, attention=True)
    found = features(prior, images)
    for number in (2, 4):
        attention = prior.network.blocks[number - 1].attn
        attention.fused_attn = fused
        assert isinstance(attention, Attention)
        x, output = input_and_output(attention, lambda: features(prior, images))
        with torch.no_grad():
            q, k, v = attention.qkv(x).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
            logits = attention.q_norm(q) @ attention.k_norm(k).mT / 16**0.5  # [B, H, P+N, P+N]
            mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
            torch.testing.assert_close(attention.proj(mixed), output, rtol=1e-4, atol=1e-5)
        prefix = 5 if name == REGISTERS else 1
        level = found[f"attention{number}"]
        assert level.shape == (2, 3, 256, 256) and level.dtype == torch.float32
        wanted = logits[:, :, prefix:, prefix:]
        torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-5)


def test_attention_changes_nothing_else_and_leaves_no_hooks(images):
    cfg = dict(RANDOM, model=DINO)
    prior = built(dict(cfg, attention=[1], inner=True))
    bare = features(built(cfg), images)
    assert list(prior.levels) == ["attention1", "block1", "block2", "block3", "patch", "cls"]
    found = features(prior, images)
    assert torch.equal(found["patch"], bare["patch"]) and torch.equal(found["cls"], bare["cls"])
    assert not any(module._forward_hooks for module in prior.network.modules())
    assert list(features(prior, images, ["patch"])) == ["patch"]


def test_logits_are_computed_in_the_wanted_blocks_only(images, monkeypatch):
    prior = built(dict(RANDOM, model=DINO, attention=[1, 2, 3, 4]))
    count = []
    original = prior._logits
    monkeypatch.setattr(prior, "_logits", lambda q, k: count.append(1) or original(q, k))
    features(prior, images, ["attention3", "patch"])
    assert len(count) == 1


def test_bf16_queries_give_float32_logits(images):
    exact = built(dict(RANDOM, model=DINO, attention=[4]))
    fast = built(dict(RANDOM, model=DINO, attention=[4], precision="bf16"))
    a = features(exact, images)["attention4"]
    b = features(fast, images)["attention4"]
    assert b.dtype == torch.float32
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", [DINO, REGISTERS])
def test_conformance_with_attention(name):
    check_prior(dict(RANDOM, model=name, attention=[1, 4], inner=True))


def test_hastes_blocks_of_dinov2():
    """HASTE's blocks 8 to 11, counted from 0, are 9 to 12 here; DINOv2-B has 12 heads of 64."""
    prior = built(dict(type="TimmEncoder", attention=[9, 10, 11, 12]))
    names = ["attention9", "attention10", "attention11", "attention12"]
    assert list(prior.levels) == [*names, "patch", "cls"]
    assert all(prior.levels[name] == LevelSpec(12, 16, attention=True) for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(attention=[0]), "attention: 0 is not a block of the encoder; blocks are 1..12"),
        (dict(attention=[13]), r"blocks are 1\.\.12"),
        (dict(attention=9), "attention: must be a list of blocks, got 9"),
        (dict(attention=[1], model=DINOV3), "use a model with timm's plain Attention"),
    ],
    ids=str,
)
def test_attention_that_cannot_be_read(options, message):
    with pytest.raises(ConfigError, match=message):
        built(dict(type="TimmEncoder", **options))


# ---- weights --------------------------------------------------------------------------------


def test_a_tag_brings_its_own_preprocessing_and_activation(monkeypatch):
    """LAION's ViT-L/14 is normalised by 0.5, OpenAI's by its own figures and with QuickGELU."""
    openai = built(dict(type="OpenCLIPEncoder", weights="openai"))
    laion = built(dict(type="OpenCLIPEncoder", weights="laion2b_s32b_b82k"))
    wanted = (0.48145466, 0.4578275, 0.40821073)
    assert openai.mean.flatten().tolist() == pytest.approx(wanted)
    assert laion.mean.flatten().tolist() == laion.std.flatten().tolist() == [0.5] * 3
    assert openai.tag["quick_gelu"] and not laion.tag.get("quick_gelu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="timm/vit_large_patch14_clip_224.openai.*local cache"):
        openai.load()


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (dict(type="TimmEncoder", model="vit_base_patch14_dinov"), "vit_base_patch14_dinov2"),
        (dict(type="TimmEncoder", model="resnet18"), "vision transformer"),
        (dict(type="TimmEncoder", side=100), "multiple of the encoder's patch 14, got 100"),
        (dict(type="TimmEncoder", inner=1), "inner: must be True or False"),
        (dict(type="TimmEncoder", precision="fp8"), "fp16"),
        (dict(type="OpenCLIPEncoder", model="ViT-L-41"), "ViT-L-14"),
        (dict(type="OpenCLIPEncoder", std=[1, 1, 0]), "std: must be a finite number above 0"),
    ],
    ids=str,
)
def test_mistakes(cfg, message):
    with pytest.raises(ConfigError, match=message):
        built(cfg)


def test_a_resolution_off_the_grid_needs_a_side():
    with pytest.raises(ConfigError, match="side: 250 pixels of an image are not a multiple of 16"):
        built(dict(type="TimmEncoder"), 250)
    assert built(dict(type="TimmEncoder", side=224), 250).input_side == 224


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "no weights at"),
        ("evil.pth", "refused"),
        ("empty", "holds none of"),
        ("other.safetensors", "does not fit"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, capsys, name, message):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"x": Evil()}))
    (tmp_path / "empty").mkdir()
    other = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        encoder(model=DINO, weights=str(tmp_path / name)).load()
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_an_unsafe_file_is_refused_before_open_clip_opens_it(tmp_path, capsys):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(UserError, match="refused"):
        built(dict(type="OpenCLIPEncoder", weights=str(tmp_path / "evil.pth"))).load()
    assert "executed" not in capsys.readouterr().out


def test_weights_that_are_not_in_the_cache(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="timm/vit_base_patch14_dinov2.*local cache.*`weights`"):
        encoder(model=DINO).load()
    with pytest.raises(UserError, match="no pretrained tag"):
        encoder(model="vit_base_patch16_gap_224").load()


def test_a_batch_without_images_is_refused():
    with pytest.raises(UserError, match="no images"):
        features(encoder(model=DINO, weights="random"), None)


def test_random_weights_are_a_function_of_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    networks = []
    for seed in (1, 1, 2):
        prior = encoder(64, weights="random", model="vit_tiny_patch16_224", seed=seed)
        prior.load()
        networks.append(prior.network.parameters())
    assert torch.equal(torch.rand(1), wanted)
    for a, b, c in zip(*networks, strict=True):
        is_constant = bool((a == a.flatten()[0]).all())
        assert torch.equal(a, b) and torch.equal(a, c) == is_constant


# timm ignores missing weights if its tag has classes, as this one with 1000: the encoder would be
# random there.
CLASSIFIER = "vit_tiny_patch16_224"
ONE_BLOCK = dict(depth=1, embed_dim=24, num_heads=2)


@pytest.mark.parametrize("lost", ["blocks.0.attn.qkv.weight", "pos_embed", "norm.bias", "all"])
def test_a_file_that_lacks_a_parameter_is_refused(tmp_path, lost):
    state = timm.create_model(CLASSIFIER, num_classes=1000, **ONE_BLOCK).state_dict()
    if lost == "all":
        kept = {f"of_another.{key}": value for key, value in state.items()}
        message = "it has no .* and 1[0-9] more"
    else:
        kept = {key: value for key, value in state.items() if key != lost}
        message = f"it has no {lost}"
    save_file(kept, tmp_path / "model.safetensors")
    prior = encoder(64, model=CLASSIFIER, weights=str(tmp_path), options=ONE_BLOCK)
    with pytest.raises(UserError, match=message):
        prior.load()


def test_a_classifiers_head_is_ignored(tmp_path):
    state = timm.create_model(CLASSIFIER, num_classes=1000, **ONE_BLOCK).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    prior = encoder(64, model=CLASSIFIER, weights=str(tmp_path), options=ONE_BLOCK)
    prior.load()
    loaded = prior.network.state_dict()
    assert "head.weight" not in loaded
    assert torch.equal(loaded["norm.bias"], state["norm.bias"])
    assert "load_state_dict" not in vars(prior.kind), "timm's class is as it was"
