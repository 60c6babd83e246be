"""Vision encoders: their own preprocessing, positions and tokens, against timm and open_clip used by hand."""

import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed

from ahpa.data.shapes import ShapesDataset
from ahpa.priors import clip_tower
from ahpa.registry import PRIORS, ConfigError, UserError, build
from ahpa.registry.contracts import Step
from ahpa.testing import check_prior

TINY = dict(embed_dim=48, depth=2, num_heads=3)
DINO = "vit_base_patch14_dinov2.lvd142m"
REGISTERS = "vit_base_patch14_reg4_dinov2.lvd142m"


@pytest.fixture(scope="module")
def images():
    return torch.stack([ShapesDataset(resolution=256)[i]["image"] for i in range(2)]).float() / 255


def encoder(**options):
    return build(PRIORS, dict(type="TimmEncoder", **{"precision": "fp32", "options": TINY, **options}))


def features(prior, images):
    return prior(Step(batch={}, images=images))


@pytest.mark.parametrize("name", [DINO, REGISTERS])
def test_a_local_copy_of_dinov2_as_repa_reads_it(tmp_path, images, name):
    """Images /255, ImageNet's mean and std, bicubic to 224, positions resampled from 37 x 37 to 16 x 16, normed tokens."""
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=0, **TINY).eval()  # 518 px, as published
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.05 * torch.randn_like(p))
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    found = features(encoder(model=name, weights=str(tmp_path)), images)

    state = dict(whole.state_dict())
    registers = 4 if name == REGISTERS else 0
    prefix = 0 if registers else 1  # with registers, timm's positions have no row for the class token
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [16, 16], num_prefix_tokens=prefix)
    small = timm.create_model(name, num_classes=0, img_size=224, **TINY).eval()
    small.load_state_dict(state)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        tokens = small.forward_features(F.interpolate((images - mean) / std, size=224, mode="bicubic"))
    assert list(found) == ["patch", "cls"] and found["patch"].shape == (2, 48, 16, 16)
    torch.testing.assert_close(found["patch"].flatten(2).mT, tokens[:, 1 + registers :], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["cls"], tokens[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, width, stride14, levels", [
    ("vit_small_patch14_dinov2.lvd142m", 384, True, 2), (DINO, 768, True, 2), ("vit_large_patch14_dinov2.lvd142m", 1024, True, 2),
    ("vit_giant_patch14_dinov2.lvd142m", 1536, True, 2), (REGISTERS, 768, True, 2), ("vit_base_patch16_224.dino", 768, False, 2),
    ("vit_base_patch16_224.mae", 768, False, 2), ("vit_base_patch16_dinov3.lvd1689m", 768, False, 2),
    ("vit_base_patch16_siglip_224.v2_webli", 768, False, 1), ("vit_pe_core_base_patch16_224.fb", 768, False, 2),
    ("vit_large_patch14_clip_224.openai", 1024, True, 2)])  # fmt: skip
def test_sizes_are_known_without_weights(name, width, stride14, levels):
    prior = build(PRIORS, dict(type="TimmEncoder", model=name))
    spec = prior.spec(None)
    assert spec["patch"].channels == width and len(spec) == levels
    sides = [prior.input_side(side) for side in (256, 512)]
    assert sides == ([224, 448] if stride14 else [256, 512])
    cfg = timm.get_pretrained_cfg(name)
    assert prior.mean.flatten().tolist() == pytest.approx(cfg.mean) and prior.std.flatten().tolist() == pytest.approx(
        cfg.std
    )


@pytest.mark.parametrize("name", ["vit_base_patch16_dinov3.lvd1689m", "vit_base_patch16_siglip_224.v2_webli",
                                  "vit_pe_core_base_patch16_224.fb", "vit_base_patch16_224.mae"])  # fmt: skip
def test_each_family_gives_a_map_on_the_token_grid(name, images):
    prior = encoder(model=name, weights="random")
    with torch.no_grad():
        found = features(prior, images[:1])
    assert found["patch"].shape == (1, 48, 16, 16) and found["patch"].isfinite().all()
    with pytest.raises(ValueError, match="made for 256"):
        features(prior, images[:1, :, :64, :64])


@pytest.mark.parametrize("prior", [
    dict(type="TimmEncoder", weights="random", model="vit_tiny_patch16_224", precision="fp32", options=TINY),
    dict(type="OpenCLIPEncoder", **clip_tower.OpenCLIPEncoder.demo)], ids=lambda p: p["type"])  # fmt: skip
def test_conformance(prior):
    check_prior(prior)


def test_open_clips_tower(tmp_path, images):
    """Against the tower by hand: patch tokens and class token after ln_post, from a file with positions of 224 px."""
    import open_clip

    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"].update(width=96, layers=2, patch_size=16)
    torch.manual_seed(0)
    whole = open_clip.create_model("ViT-B-32", vision_cfg=config["vision_cfg"], embed_dim=32).eval()
    torch.save(whole.state_dict(), tmp_path / "clip.pt")
    prior = build(PRIORS, dict(type="OpenCLIPEncoder", model="ViT-B-32", weights=str(tmp_path / "clip.pt"), side=224,
                               precision="fp32", sizes=dict(width=96, layers=2, patch_size=16, embed_dim=32)))  # fmt: skip
    found = features(prior, images)
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    x = F.interpolate((images - mean) / std, size=224, mode="bicubic")
    with torch.no_grad():
        tower = whole.visual
        tokens = tower.ln_post(tower.transformer(tower._embeds(x)))
    torch.testing.assert_close(found["patch"].flatten(2).mT, tokens[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["cls"], tokens[:, 0], rtol=1e-4, atol=1e-5)


INNER = [
    dict(type="TimmEncoder", model=REGISTERS, weights="random", precision="fp32", options={**TINY, "depth": 4}),
    dict(type="TimmEncoder", model="vit_small_patch16_dinov3", weights="random", precision="fp32", options={**TINY, "depth": 4}),
    dict(type="OpenCLIPEncoder", model="ViT-B-32", weights="random", precision="fp32",
         sizes=dict(embed_dim=32, width=64, layers=4, patch_size=16))]  # fmt: skip


@pytest.mark.parametrize("cfg", INNER, ids=lambda cfg: cfg["model"])
def test_inner_layers_are_the_blocks_outputs_after_the_last_norm(cfg, images):
    """Block by block by hand; the last block's is 'patch', and a level that nobody asked for is not kept."""
    prior, plain = build(PRIORS, {**cfg, "inner": True}), build(PRIORS, cfg)
    levels = ["block1", "block2", "block3", "patch", "cls"]
    assert list(prior.spec(None)) == levels and len({prior.spec(None)[name] for name in levels[:4]}) == 1
    prior.request(["block1", "block3", "patch"])
    found, bare = features(prior, images), features(plain, images)
    assert list(found) == ["block1", "block3", "patch", "cls"] and list(bare) == ["patch", "cls"]
    assert torch.equal(found["patch"], bare["patch"]) and torch.equal(found["cls"], bare["cls"])
    network, seen = prior.held["encoder"], []
    blocks = network.blocks if hasattr(network, "blocks") else network.transformer.resblocks
    hooks = [block.register_forward_hook(lambda module, given, output: seen.append(output)) for block in blocks]
    assert all(
        not block._forward_hooks or len(block._forward_hooks) == 1 for block in blocks
    )  # the prior's own are gone
    norm = network.norm if hasattr(network, "norm") else network.ln_post
    features(plain, images), features(prior, images)
    for hook in hooks:
        hook.remove()
    prefix = seen[0].shape[1] - 256
    for name, number in (("block1", 1), ("block3", 3), ("patch", 4)):
        wanted = norm(seen[number - 1])[:, prefix:]
        torch.testing.assert_close(found[name].flatten(2).mT, wanted, rtol=1e-4, atol=1e-5)
    check_prior({**cfg, "inner": True})


def test_a_router_over_an_encoders_layers():
    from ahpa.registry import ROUTERS

    prior = encoder(model=DINO, weights="random", options={**TINY, "depth": 5}, inner=True)
    router = build(ROUTERS, dict(type="MLPRouter", groups="2/2"), spec=prior.spec(None), grid=(16, 16), content_dim=8)
    assert router.groups == {"mid": ("block2", "block3"), "deep": ("block4", "patch")} and router.out_dim == 96


def test_a_tag_brings_its_own_preprocessing_and_activation(tmp_path, monkeypatch):
    """LAION's ViT-L/14 is normalised by 0.5, OpenAI's by its own figures and with QuickGELU."""
    openai, laion = (
        build(PRIORS, dict(type="OpenCLIPEncoder", weights=tag)) for tag in ("openai", "laion2b_s32b_b82k")
    )
    assert openai.mean.flatten().tolist() == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert laion.mean.flatten().tolist() == laion.std.flatten().tolist() == [0.5] * 3
    assert openai.known["quick_gelu"] and not laion.known.get("quick_gelu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="timm/vit_large_patch14_clip_224.openai.*local cache"):
        openai.network(256)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_what_is_wrong_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="vit_base_patch14_dinov2"):
        encoder(model="vit_base_patch14_dinov")
    with pytest.raises(ConfigError, match="vision transformer"):
        build(PRIORS, dict(type="TimmEncoder", model="resnet18"))
    with pytest.raises(ConfigError, match="multiple of the encoder's patch 14"):
        encoder(side=100)
    with pytest.raises(ConfigError, match="ViT-L-14"):
        build(PRIORS, dict(type="OpenCLIPEncoder", model="ViT-L-41"))
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"x": Evil()}))
    (tmp_path / "empty").mkdir()
    other = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    save_file(other, tmp_path / "other.safetensors")
    for weights, word in ((tmp_path / "none", "no weights at"), (tmp_path / "evil.pth", "refused"),
                          (tmp_path / "empty", "holds none of"), (tmp_path / "other.safetensors", "does not fit")):  # fmt: skip
        with pytest.raises(UserError, match=word) as caught:
            encoder(model=DINO, weights=str(weights)).network(256)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="refused"):
        build(PRIORS, dict(type="OpenCLIPEncoder", weights=str(tmp_path / "evil.pth"))).network(256)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(UserError, match="timm/vit_base_patch14_dinov2.*local cache.*`weights`"):
        encoder(model=DINO).network(256)
    with pytest.raises(UserError, match="pretrained tag"):
        encoder(model="vit_base_patch16_gap_224").network(256)
    with pytest.raises(UserError, match="no images"):
        features(encoder(model=DINO, weights="random"), None)


def test_random_weights_are_the_same_for_a_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (
        encoder(weights="random", model="vit_tiny_patch16_224", seed=s).network(64) for s in (1, 1, 2)
    )
    assert torch.equal(torch.rand(1), wanted)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and (torch.equal(a, c) == bool((a == a.flatten()[0]).all()))


@pytest.mark.parametrize("lost", ["blocks.0.attn.qkv.weight", "pos_embed", "norm.bias", "all"])
def test_a_file_that_lacks_a_parameter_is_refused(tmp_path, lost):
    """timm passes over it in silence where its tag has classes: the encoder would be random there."""
    name = "vit_tiny_patch16_224"  # its tag has 1000 classes
    options = dict(depth=1, embed_dim=24, num_heads=2)
    state = timm.create_model(name, num_classes=1000, **options).state_dict()  # with a head, which is not needed
    kept = {f"of_another.{key}" if lost == "all" else key: value for key, value in state.items() if key != lost}
    save_file(kept, tmp_path / "model.safetensors")
    own = encoder(model=name, weights=str(tmp_path), options=options, side=None)
    with pytest.raises(UserError, match="it has no .* and 1[0-9] more" if lost == "all" else f"it has no {lost}"):
        own.network(64)
    save_file(state, tmp_path / "model.safetensors")
    own.network(64)
    assert "load_state_dict" not in vars(own.kind)
