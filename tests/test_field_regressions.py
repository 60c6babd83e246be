"""Mistakes that users of REPA, SiT, DiT, iREPA, SRA, REG, LightningDiT, diffusers, mmengine and
others reported, each tried here.

A test is named after the complaint; its docstring says what went wrong and in which thread. The
page docs/wrong_numbers.md lists them with the size of each effect, which
benchmarks/wrong_numbers.py measures; the last tests of this file keep page, threads and figures
together.
"""

import importlib.util
import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import numpy
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from support.backbones import moved
from support.models import VIT, compute, generator_of, rng_of, small_model
from support.runs import ROOT
from support.values import make_view
from test_engine_formulas import LR, PLAIN_SGD, ProbeLoss, assert_close, mean, run

from ahpa.backbones.layers import sincos_2d, time_sinusoid
from ahpa.conditioning.labels import ClassLabels
from ahpa.data.sampler import CursorLoader, CursorSampler
from ahpa.data.shapes import ShapesDataset
from ahpa.engine import config as configs
from ahpa.engine.ema import ExponentialMovingAverage
from ahpa.engine.optimiser import Optimiser
from ahpa.engine.trainer import Trainer, TrainOptions
from ahpa.evaluation.collect import evaluate_images
from ahpa.evaluation.images import UINT8_RULES, Batch, open_images, to_uint8, write_npz
from ahpa.evaluation.inception import InceptionFeatures
from ahpa.evaluation.metrics import build_metrics
from ahpa.evaluation.protocol import differences
from ahpa.evaluation.reference import Reference
from ahpa.evaluation.statistics import KINDS
from ahpa.flow.flows import ContinuousFlow
from ahpa.flow.paths import LinearPath
from ahpa.losses.dispersive import DispersiveLoss
from ahpa.losses.pairwise import CosineLoss, SmoothL1Loss
from ahpa.priors.internal import LatentPrior
from ahpa.priors.vision import DINO, TimmEncoder
from ahpa.registry import UserError
from ahpa.registry.contracts import Clean, Progress, Tap, Tokens
from ahpa.sampling.generator import Generator
from ahpa.sampling.guidance import ClassifierFreeGuidance
from ahpa.sampling.samplers import EulerMaruyamaSampler, EulerSampler, HeunSampler
from ahpa.testing.common import toy_geometry
from ahpa.tokenizers import sources
from ahpa.tokenizers.autoencoder_kl import KLAutoencoder
from ahpa.tokenizers.statistics import PUBLISHED

SIT = dict(type="SiT", depth=4, hidden_size=32, num_heads=2, num_classes=10)
TINY_VIT = dict(embed_dim=16, depth=1, num_heads=2)
REGISTERS = "vit_base_patch14_reg4_dinov2.lvd142m"
SD_FACTOR, SDXL_FACTOR = 0.18215, 0.13025
WEIGHTS = "diffusion_pytorch_model.safetensors"
PAGE = ROOT / "docs" / "wrong_numbers.md"
SCRIPT = ROOT / "benchmarks" / "wrong_numbers.py"


def batch_of(count, *, resolution=64, flip=False, epoch=0):
    """A batch of the synthetic shapes as the loader gives it."""
    dataset = ShapesDataset(resolution=resolution, flip=flip)
    items = [dataset[i, epoch] for i in range(count)]
    return {
        "image": torch.stack([item["image"] for item in items]),
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
    }


def images_of(count, **options):
    """Images [B, 3, H, W] in [0, 1]."""
    return batch_of(count, **options)["image"].float() / 255


def aligned_model(prior, level, *, tap=2, **changes):
    """A small model whose block `tap` is aligned by a cosine with a level of a prior."""
    aligned = dict(
        tap=tap,
        source="own",
        router=dict(type="StaticRouter", groups=dict(own=[level])),
        projector=dict(type="MLPProjector", depth=2, hidden_dim=16),
    )
    cfg = dict(backbone=SIT, priors=dict(own=prior), alignments=dict(main=aligned))
    return small_model(**{**cfg, **changes})


def vae(**options):
    return KLAutoencoder(source="bundled", **options)


def diffusers_vae(folder=sources.BUNDLED):
    """The same autoencoder as diffusers reads it."""
    return AutoencoderKL.from_pretrained(folder).eval()


def raw_posterior(images):
    """Mean and standard deviation by diffusers, unscaled."""
    with torch.no_grad():
        posterior = diffusers_vae().encode(2 * images - 1).latent_dist
    return posterior.mean, posterior.std


def by_channel(values):
    return torch.tensor(values).view(1, -1, 1, 1)


def folder_of(path, **config):
    """A copy of the bundled autoencoder with some of its config replaced."""
    shutil.copytree(sources.BUNDLED, path)
    own = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**own, **config}))
    return str(path)


# ---- losses and taps ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1e-7, 3e3])
def test_half_precision_normalisation_gives_no_nan(value):
    """In float16 a zero vector normalises to NaN, and one longer than 65,504 to zero; REPA's loss
    became NaN after 70K to 160K steps.

    Reported: sihyun-yu/REPA#46.
    """
    pred = torch.full((1, 1, 768), value, dtype=torch.float16, requires_grad=True)
    target = torch.linspace(-1, 3, 768, dtype=torch.float16).view(1, 1, 768)
    if value != 1e-7:
        wrong = F.normalize(pred, dim=-1).norm()
        assert not wrong.isfinite() or wrong == 0
    with torch.autocast("cpu", dtype=torch.float16):
        loss = CosineLoss(dim=768)(pred, target)
    loss.backward()
    assert loss.dtype == torch.float32 and pred.grad.isfinite().all()
    exact = F.cosine_similarity(torch.ones(768).double(), target.flatten().double(), dim=0)
    if value == 3e3:
        assert float(loss.detach()) == pytest.approx(1 - float(exact), abs=1e-4)
    assert 1 - float(exact) - 1e-4 <= float(loss.detach()) <= 1 + 1e-4


def test_cosine_is_over_channels_unless_a_method_says_tokens():
    """torch's cosine reduces dimension 1 by default, which of [B, N, C] is the tokens.

    Reported: facebookresearch/WMReward#11.
    """
    pred, target = torch.randn(2, 3, 5, 7, generator=rng_of(0)).unbind()
    over = {dim: 1 - float(F.cosine_similarity(pred, target, dim=dim).mean()) for dim in (1, 2)}
    assert abs(over[1] - over[2]) > 0.01
    assert float(CosineLoss(dim=7)(pred, target)) == pytest.approx(over[2], abs=1e-5)
    assert float(CosineLoss(dim=7, over="tokens")(pred, target)) == pytest.approx(over[1], abs=1e-5)


@pytest.mark.parametrize("tap", [1, 3])
def test_only_the_named_block_is_aligned_and_blocks_count_from_one(tap):
    """Whether `encoder_depth` 8 means the output of the eighth block, the ninth or the first eight
    was asked again and again.

    Reported: sihyun-yu/REPA#50, sihyun-yu/REPA#17.
    """
    model = aligned_model(VIT, "patch", tap=tap)
    outputs = {}
    for number, block in enumerate(model.backbone.blocks, start=1):
        keep = lambda _m, _i, out, n=number: outputs.update({n: out[0]})  # noqa: E731
        block.register_forward_hook(keep)
    seen = compute(model, batch_of(3))
    assert list(seen.view.out.taps) == [Tap(tap)]
    assert torch.equal(seen.view.out.taps[Tap(tap)], outputs[tap])
    seen.weighted()["main/cosine"].backward()
    reached = [
        any(p.grad is not None and p.grad.any() for p in block.parameters())
        for block in model.backbone.blocks
    ]
    assert reached == [number <= tap for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("method", ["repa", "irepa"])
@pytest.mark.parametrize(("size", "tap"), [("b", 4), ("l", 8), ("xl", 8)])
def test_the_aligned_block_is_the_papers_and_is_told(method, size, tap):
    """A user took the published iREPA-B for one aligned at block 8, since nothing but a config file
    said 4.

    Reported: End2End-Diffusion/iREPA#5.
    """
    cfg = configs.load(ROOT / "configs" / f"{method}_sit-{size}.py")
    with torch.device("meta"):
        model = configs.check_config(cfg)
    assert model.taps == {Tap(tap)}
    assert model.alignments["main"].summary().startswith(f"block {tap} <- dino")


def test_features_that_grow_leave_the_cosine_unchanged():
    """Smooth L1 on a teacher's features grows with their norm, so SRA's loss rose until its code
    changed to a cosine.

    Reported: vvvvvjdy/SRA#7.
    """
    pred, target = torch.randn(2, 3, 5, 7, generator=rng_of(0)).unbind()
    losses = {"cosine": CosineLoss(dim=7), "smooth": SmoothL1Loss(dim=7)}
    grown = {
        name: float(loss(10 * pred, 10 * target) / loss(pred, target))
        for name, loss in losses.items()
    }
    assert grown["cosine"] == pytest.approx(1, abs=1e-4) and grown["smooth"] > 9
    for name in ("sra_sit-b_cosine", "sra_dit-xl_cosine"):
        criteria = configs.load(ROOT / "configs" / f"{name}.py")["model"]["alignments"]["main"]
        assert [c["type"] for c in criteria["criteria"].values()] == ["CosineLoss"]


@pytest.mark.parametrize("scale", [1 / SD_FACTOR, 100.0])
def test_a_latent_target_of_another_scale_is_told_and_can_be_standardised(scale, caplog):
    """SRA 2 on a video autoencoder: an alignment loss of 60 beside a denoising loss of 0.06.

    Reported: WalkingMeatAxolotl/AnimaLoraStudio#290.
    """
    latent = torch.randn(4, 4, 8, 8, generator=rng_of(0))

    def target(z, **options):
        prior = LatentPrior(geometry=toy_geometry(), **options)
        return prior.from_clean(Clean({"image": z}), ["latent"])["latent"].flatten(1)[:, None]

    smooth = SmoothL1Loss(dim=256)
    losses = [
        float(smooth(torch.zeros(4, 1, 256), target(z, standardise=True)))
        for z in (latent, scale * latent)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] < 1
    assert not caplog.records
    assert float(smooth(torch.zeros(4, 1, 256), target(scale * latent))) > 0.8 * scale
    assert "root mean square" in caplog.text and "standardise=True" in caplog.text


def test_the_pool_of_the_dispersive_loss_is_an_option(caplog):
    """Its value depends on how many samples are compared: whatever one GPU happened to hold.

    Reported: raywang4/DispLoss#10.
    """
    h = torch.randn(16, 4, 8, generator=rng_of(0))

    def by_hand(part):
        z = part.flatten(1)
        distances = (z[:, None] - z).square().mean(-1)
        return float((-distances / 0.5).exp().mean().log())

    def loss(pool, tokens=h):
        return float(DispersiveLoss(dim=8, pool=pool)(Tokens(tokens, 0, (2, 2))))

    whole, halves = by_hand(h), (by_hand(h[:8]) + by_hand(h[8:])) / 2
    assert abs(whole - halves) > 0.1
    assert loss("rank") == pytest.approx(whole, abs=1e-5)
    assert loss(8) == pytest.approx(halves, abs=1e-5)
    assert not caplog.records
    loss(32)
    assert "another objective" in caplog.text


# ---- what the teacher sees ------------------------------------------------------------------


@pytest.mark.parametrize("model", ["bundled", DINO])
def test_the_teacher_is_given_its_own_normalisation(model):
    """DINOv2 was given the autoencoder's images in [-1, 1], or images in [0, 1].

    Reported: hustvl/LightningDiT#78, aigc3d/LAM#54, facebookresearch/locate-3d#19.
    """
    own = {} if model == "bundled" else dict(weights="random", options=TINY_VIT)
    prior = TimmEncoder(geometry=toy_geometry(), model=model, precision="fp32", **own)
    mean, std = ([0.5] * 3, [0.5] * 3) if model == "bundled" else IMAGENET
    images = images_of(2)
    prior.load()
    given = []
    prior.network.patch_embed.register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    prior.from_clean(Clean({}, images), ["patch"])
    wanted = (images - by_channel(mean)) / by_channel(std)
    if model == DINO:
        wanted = F.interpolate(wanted, size=56, mode="bicubic", align_corners=False)
    torch.testing.assert_close(given[0], wanted)


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_the_teachers_grid_is_the_students_at_512_pixels():
    """Latents of 512 pixels have 32 x 32 tokens; DINOv2 at 224 gives 16 x 16.

    Reported: sihyun-yu/REPA#26.
    """
    geometry = toy_geometry(resolution=512)
    prior = TimmEncoder(
        geometry=geometry, model=DINO, weights="random", precision="fp32", options=TINY_VIT
    )
    image = torch.zeros(1, 3, 512, 512)
    image[..., 240:256, 496:512] = 1  # the pixels of token (15, 31)
    found = [prior.from_clean(Clean({}, x), ["patch"])["patch"] for x in (image, 0 * image)]
    assert prior.input_side == 448 and found[0].shape[2:] == geometry.grid == (32, 32)
    change = (found[0] - found[1]).abs().sum(1).flatten()
    assert divmod(int(change.argmax()), 32) == (15, 31)


def test_register_tokens_are_not_taken_for_patches():
    """DINOv2 with registers has four tokens between the class token and the patches.

    Reported: Martinser/REG#9, huggingface/transformers#37817.
    """
    prior = TimmEncoder(
        geometry=toy_geometry(),
        model=REGISTERS,
        weights="random",
        precision="fp32",
        options=TINY_VIT,
    )
    images = images_of(2)
    found = prior.from_clean(Clean({}, images), ["patch", "cls"])
    with torch.no_grad():
        tokens = prior.network.forward_features(prior.preprocess(images))
    assert tokens.shape[1] == 1 + 4 + 16
    assert torch.equal(found["patch"].flatten(2).mT, tokens[:, 5:])
    assert torch.equal(found["cls"], tokens[:, 0])


def test_a_mirrored_image_has_the_latent_and_the_target_of_its_mirror_image():
    """Latents and features that are stored once cannot follow a flip; REPA's and MAR's users asked
    whether flips were applied at all.

    Reported: sihyun-yu/REPA#19, LTH14/mar#52, soran-ghaderi/torchebm#304.
    """
    model = aligned_model(VIT, "patch")
    epochs = [batch_of(8, flip=True, epoch=epoch) for epoch in (0, 1)]
    turned = [
        row
        for row in range(8)
        if torch.equal(epochs[0]["image"][row], epochs[1]["image"][row].flip(-1))
    ]
    assert 0 < len(turned) < 8  # a coin of the epoch, and the same samples
    assert torch.equal(epochs[0]["index"], epochs[1]["index"])
    for batch in epochs:
        seen = compute(model, batch)
        images = batch["image"].float() / 255
        target = model.parts.priors["own"].from_clean(Clean({}, images), ["patch"])["patch"]
        torch.testing.assert_close(seen.features["own"]["patch"], target)
        latent = model.parts.tokenizer.encode(images)
        posterior = (seen.view.clean.streams["image"] - latent.mean) / latent.std
        assert posterior.abs().max() < 6


def test_the_teacher_shares_the_students_label_dropout():
    """Whether the averaged teacher drops labels together with the student or for itself.

    Reported: black-forest-labs/Self-Flow#10.
    """
    conditioner = dict(type="ClassLabels", dropout=0.5)
    model = aligned_model(dict(type="TeacherPrior", block=3), "teacher", conditioner=conditioner)
    given = {"student": [], "teacher": []}
    networks = {"student": model.backbone, "teacher": model.parts.ema.backbone}
    for name, network in networks.items():
        keep = lambda _m, args, name=name: given[name].append(args[0])  # noqa: E731
        network.y_embedder.register_forward_pre_hook(keep)
    compute(model, batch_of(32))
    (student,), (teacher,) = given.values()
    assert torch.equal(student, teacher)
    assert 4 < int((student == 10).sum()) < 28


# ---- latents --------------------------------------------------------------------------------


def test_latents_are_drawn_from_the_posterior_and_are_not_its_mean():
    """`latent_dist.mode()` or `.sample()` was asked of one training script after another.

    Reported: levihsu/OOTDiffusion#132, wgsxm/PartCrafter#27.
    """
    model = small_model(backbone=SIT)
    batch = batch_of(16)
    mean, std = raw_posterior(batch["image"].float() / 255)
    factor = model.parts.tokenizer.factor
    drawn = model.parts.encode(batch, rng_of(0)).streams["image"]
    normal = (drawn / factor - mean) / std
    assert float(normal.mean()) == pytest.approx(0, abs=0.05)
    assert float(normal.std()) == pytest.approx(1, abs=0.05)


def test_stored_moments_are_drawn_from_anew_in_every_step():
    """A cache that holds one draw of each image trains on that draw for ever.

    Reported: Nerogar/OneTrainer#652.
    """
    model = small_model(backbone=SIT)
    moments = {"mean": torch.zeros(4, 4, 8, 8), "std": torch.full((4, 4, 8, 8), 0.5)}
    batch = {"latent": moments, "label": torch.zeros(4, dtype=torch.long)}
    draws = [model.parts.encode(batch, rng_of(seed)).streams["image"] for seed in (0, 1)]
    assert float((draws[0] - draws[1]).std()) == pytest.approx(0.5 * math.sqrt(2), rel=0.1)


def test_the_moments_are_a_mean_and_a_log_variance():
    """An encoder's output has twice the latent's channels; a user fed all of them to the model.

    Reported: hustvl/LightningDiT#35.
    """
    images = images_of(4)
    mean, std = raw_posterior(images)
    tokenizer = vae()
    found = tokenizer.encode(images)
    assert found.mean.shape == (4, 4, 8, 8)
    torch.testing.assert_close(found.mean / tokenizer.factor, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.std / tokenizer.factor, std, rtol=1e-4, atol=1e-5)


def test_the_autoencoder_is_given_images_from_minus_one_to_one():
    """Images in [0, 1] went into an autoencoder made for [-1, 1].

    Reported: Magicboomliu/Accelerator-Simple-Template#4.
    """
    tokenizer = vae()
    tokenizer.load()
    given = []
    keep = lambda _m, args: given.append(args[0])  # noqa: E731
    tokenizer.network.encoder.conv_in.register_forward_pre_hook(keep)
    black_and_white = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    out = tokenizer.decode(tokenizer.encode(black_and_white).mean)
    assert given[0].unique().tolist() == [-1, 1]
    assert out[0].mean() < 0.1 and out[1].mean() > 0.9


@pytest.mark.parametrize(
    "options", [{}, dict(scale=SD_FACTOR), dict(mean=[1, -2, 3, 0], std=[4.0] * 4)]
)
def test_decoding_undoes_what_encoding_did(options):
    """Latents were normalised in training and not in decoding, or the other way round: FID 130
    after 400K steps, and blurred reconstructions.

    Reported: hustvl/LightningDiT#34, hustvl/LightningDiT#57, facebookresearch/DiT#13.
    """
    images, tokenizer = images_of(4), vae(**options)
    mean, _ = raw_posterior(images)
    with torch.no_grad():
        wanted = (diffusers_vae().decode(mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(
        tokenizer.decode(tokenizer.encode(images).mean), wanted, rtol=1e-3, atol=1e-4
    )


def test_latents_are_standardised_by_channel_where_the_source_is():
    """One factor for all channels, or one for each: it changes the noise at every t.

    Reported: hustvl/LightningDiT#58, LTH14/mar#2.
    """
    images, published = images_of(4), PUBLISHED["sd-imagenet"]
    mean, _ = raw_posterior(images)
    found = vae(statistics="sd-imagenet").encode(images).mean
    wanted = (mean - by_channel(published.mean)) / by_channel(published.std)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    variance = (SD_FACTOR * torch.tensor(published.std)).square().mean()
    assert float(variance) == pytest.approx(0.52, abs=0.01)
    named = {"irepa_sit-b": "sd-imagenet", "ahpa_sit-b": "sd-imagenet", "sit-b": None}
    for name, statistics in named.items():
        tokenizer = configs.load(ROOT / "configs" / f"{name}.py")["model"].get("tokenizer") or {}
        assert tokenizer.get("statistics") == statistics, name


def test_a_configs_own_statistics_are_used(tmp_path):
    """diffusers' autoencoders may bring a mean and a standard deviation by channel; pipelines
    overlooked them, and one had zeros and ones exchanged.

    Reported: huggingface/diffusers#7111, huggingface/diffusers#12934.
    """
    images, (mean, _) = images_of(2), raw_posterior(images_of(2))
    own = dict(latents_mean=[1.0, 2.0, -1.0, 0.5], latents_std=[2.0, 4.0, 1.0, 0.5])
    tokenizer = KLAutoencoder(source=folder_of(tmp_path / "own", **own, scaling_factor=0.5))
    wanted = (mean - by_channel(own["latents_mean"])) * 0.5 / by_channel(own["latents_std"])
    torch.testing.assert_close(tokenizer.encode(images).mean, wanted, rtol=1e-4, atol=1e-5)
    half = vae(mean=[1.0, 2.0, -1.0, 0.5])  # without std: 1
    wanted = mean - by_channel(own["latents_mean"])
    torch.testing.assert_close(half.encode(images).mean, wanted, rtol=1e-4, atol=1e-5)
    half = vae(std=[2.0, 4.0, 1.0, 0.5])  # without mean: 0
    torch.testing.assert_close(
        half.encode(images).mean, mean / by_channel(own["latents_std"]), rtol=1e-4, atol=1e-5
    )


def test_the_factor_is_the_autoencoders_own(tmp_path):
    """0.18215 was used with SDXL's autoencoder, whose factor is 0.13025.

    Reported: hpcaitech/Open-Sora#494.
    """
    images, (mean, _) = images_of(2), raw_posterior(images_of(2))
    tokenizer = KLAutoencoder(source=folder_of(tmp_path / "xl", scaling_factor=SDXL_FACTOR))
    found = tokenizer.encode(images).mean
    torch.testing.assert_close(found, SDXL_FACTOR * mean, rtol=1e-4, atol=1e-5)
    sdxl = sources.find("stabilityai/sdxl-vae").config
    assert sdxl["scaling_factor"] == SDXL_FACTOR
    assert sources.find("stabilityai/sd-vae-ft-mse").config["scaling_factor"] == SD_FACTOR


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_autoencoder_stays_outside_autocast(dtype):
    """SDXL's autoencoder overflows in float16; autocast around it gave NaNs and black images.

    Reported: kohya-ss/sd-scripts#2322, huggingface/diffusers#9844.
    """
    images, tokenizer = images_of(2), vae()
    encoded = tokenizer.encode(images)
    decoded = tokenizer.decode(encoded.mean)
    with torch.autocast("cpu", dtype=dtype):
        again = tokenizer.encode(images)
        assert torch.equal(again.mean, encoded.mean) and torch.equal(again.std, encoded.std)
        assert torch.equal(tokenizer.decode(encoded.mean), decoded)


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    """`strict=False` left layers at their random start without a word; the output was noise.

    Reported: hexgrad/kokoro#368, huggingface/lerobot#4713, houyuanchen111/LINO_UniPS#14.
    """
    folder = folder_of(tmp_path / "vae")
    state = load_file(f"{folder}/{WEIGHTS}")
    lost = "encoder.mid_block.resnets.0.conv1.weight"
    save_file({name: value for name, value in state.items() if name != lost}, f"{folder}/{WEIGHTS}")
    with pytest.raises(UserError, match=f"lacks 1 weights, such as {re.escape(lost)}"):
        KLAutoencoder(source=folder).load()


def test_images_are_rounded_and_clamped_to_bytes():
    """Truncation makes every image half a level darker; a value outside [0, 1] wraps round.

    Reported: marcinz606/NegPy#897, Project-MONAI/GenerativeModels#323.
    """
    values = torch.tensor([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 126.6 / 255, 254.6 / 255, 1.0, 1.3])
    images = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    plain = SimpleNamespace(decode=lambda latent: images)
    sampler = Generator(tokenizer=plain, backbone=None, flow=None, conditioner=None)
    found = sampler.decode(torch.zeros(1))
    assert found.dtype == torch.uint8
    assert found[0, 0, 0].tolist() == [0, 0, 0, 1, 127, 255, 255, 255]


# ---- times and positions --------------------------------------------------------------------


def test_time_one_is_noise_in_training_and_sampling():
    """Half of the field has noise at t = 0 and half at t = 1; mixing path, sign and sampler of the
    two conventions trains a model that cannot be sampled.

    Reported: VinAIResearch/LFM#19, sii-research/tau-0-vla#7, primepake/splitmeanflow#2.
    """
    z, eps = torch.randn(2, 3, 4, 8, 8, generator=rng_of(0)).unbind()
    for t, end in ((0.0, z), (1.0, eps)):
        x, v = LinearPath().mix(z, eps, torch.full((3,), t))
        torch.testing.assert_close(x, end)
        torch.testing.assert_close(v, eps - z)
    flow = ContinuousFlow(geometry=toy_geometry())
    noised = flow.sample({"image": z}, rng_of(1))
    t = noised.t.view(-1, 1, 1, 1)
    torch.testing.assert_close(noised.x["image"], (1 - t) * z + t * noised.noise["image"])

    def exact(x, t):  # the velocity of one data point, z
        return {"image": (x["image"] - z) / t}

    for sampler in (EulerSampler(), HeunSampler()):
        start = {"image": eps}
        out = sampler.sample(exact, start, steps=7, path=LinearPath(), noise=lambda like: like)
        torch.testing.assert_close(out["image"], z, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_the_other_convention_is_mirrored():
    """SiT's own checkpoints have t = 1 as data: both the time and the sign have to be turned.

    Reported: primepake/splitmeanflow#2, sii-research/tau-0-vla#7.
    """
    ours, theirs = moved("SiT"), moved("SiT", reversed_time=True)
    theirs.load_state_dict(ours.state_dict())
    x = {"image": torch.randn(3, 4, 8, 8, generator=rng_of(0))}
    t, labels = torch.tensor([0.1, 0.5, 0.8]), torch.tensor([0, 1, 10])
    with torch.no_grad():
        found, wanted = theirs(x, t, labels).pred["image"], ours(x, 1 - t, labels).pred["image"]
    torch.testing.assert_close(found, -wanted)


@pytest.mark.parametrize(("kind", "embedded"), [("SiT", [0.0, 0.25, 0.9]), ("DiT", [0, 250, 900])])
def test_the_time_is_embedded_as_the_published_models_embed_it(kind, embedded):
    """SiT and REPA embed t in [0, 1] as it is, by accident, and DiT the step 0 .. 999; a factor of
    1000 added in good faith spoils their checkpoints.

    Reported: willisma/SiT#24, sihyun-yu/REPA#40, hustvl/LightningDiT#87.
    """
    model = moved(kind)
    given = []
    model.t_embedder.register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    x = {"image": torch.randn(3, 4, 8, 8)}
    model(x, torch.tensor([0.0, 0.25, 0.9]), torch.zeros(3, dtype=torch.long))
    assert given[0].tolist() == pytest.approx(embedded)


def test_the_frequencies_of_time_are_those_of_dit():
    """Embeddings divide the exponent by half the width or by one less, after the code they follow.

    Reported: hojonathanho/diffusion#15.
    """
    t = torch.tensor([0.7, 250.0, 999.0])
    rate = torch.tensor([10_000 ** (-i / 128) for i in range(128)])
    angle = t[:, None] * rate
    wanted = torch.cat([angle.cos(), angle.sin()], -1)
    torch.testing.assert_close(time_sinusoid(t), wanted, rtol=1e-4, atol=1e-4)


def test_columns_come_first_in_the_positions_and_rows_are_major_in_the_tokens():
    """MAE's table holds the column in its first half under the name of the row; who corrects one of
    the two places gets transposed positions.

    Reported: facebookresearch/mae#18, facebookresearch/mae#67, facebookresearch/mae#218,
    huggingface/diffusers#10877.
    """
    table = sincos_2d(8, (3, 5)).view(3, 5, 8)
    column, row = table.split(4, dim=-1)
    assert torch.equal(column, column[:1].expand_as(column))  # one row is like another
    assert torch.equal(row, row[:, :1].expand_as(row))
    assert torch.equal(column[0, :3], row[:, 0])
    model = moved("SiT")
    x = torch.zeros(2, 4, 8, 8)
    x[1, :, 2:4, 6:8] = 1  # the patch of row 1, column 3
    change = model.x_embedder(x).diff(dim=0).abs().sum((0, 2))
    assert change.nonzero().flatten().tolist() == [1 * 4 + 3]
    patches = torch.zeros(1, 16, 16)
    patches[0, 1 * 4 + 3] = 1
    assert torch.equal(model.unpatchify(patches), x[1:])


def test_students_and_teachers_tokens_are_in_the_same_order():
    """How an encoder's tokens have to be arranged to lie on the latent's grid was asked; a target
    whose rows and columns are exchanged still has a falling loss.

    Reported: hustvl/LightningDiT#70.
    """
    model = aligned_model(dict(type="LatentPrior"), "latent")
    alignment = model.alignments["main"]
    compared = []
    keep = lambda _m, args: compared.append(args[:2])  # noqa: E731
    ((_, criterion),) = alignment.criteria.pair_losses()
    criterion.register_forward_pre_hook(keep)
    latent = torch.zeros(1, 16, 4, 4)
    latent[0, :, 1, 3] = 1
    h = torch.zeros(1, 16, 32)
    for rows in (h, h.clone().index_fill_(1, torch.tensor([7]), 1.0)):
        alignment(make_view({2: rows}, grid=(4, 4)), {"own": {"latent": latent}}, Progress())
    (before, target), (after, _) = compared
    assert target.abs().sum(-1).nonzero()[:, 1].tolist() == [7]
    assert (after - before).abs().sum(-1).nonzero()[:, 1].tolist() == [7]


# ---- samplers and guidance ------------------------------------------------------------------

STD = 0.5  # of the Gaussian data below


def gaussian(x, t):
    """The exact velocity for data N(0, STD^2)."""
    state = x["image"].double()
    t = float(t)
    return {"image": (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2) * state}


class Kicks:
    """Noise for a sampler, counted."""

    def __init__(self):
        self.rng = rng_of(3)
        self.drawn = []

    def __call__(self, like):
        kick = {k: torch.randn(v.shape, generator=self.rng).double() for k, v in like.items()}
        self.drawn.append(kick["image"])
        return kick


def test_the_diffusion_of_the_sde_is_twice_the_noise_level():
    """REPA's paper says w = t, its code samples with 2 t.

    Reported: sihyun-yu/REPA#52.
    """
    x, kicks = {"image": torch.ones(1, 1, 2, 2).double()}, Kicks()
    nothing = lambda state, t: {"image": torch.zeros_like(state["image"])}  # noqa: E731
    out = EulerMaruyamaSampler().sample(nothing, x, steps=2, path=LinearPath(), noise=kicks)
    dt = 1 - 0.04
    state = 1 - dt * (0.5 * 2 * 1.0) * 1 / 1  # v = 0 at t = 1: the score is -x
    state = state + math.sqrt(2 * 1.0 * dt) * kicks.drawn[0]
    state = state - 0.04 * (0.5 * 2 * 0.04) * state / 0.04  # the last step: no noise
    torch.testing.assert_close(out["image"], state, rtol=1e-5, atol=1e-6)


def test_the_sde_has_the_marginals_of_the_ode():
    """Noise added on the way without the score's part of the drift widens the samples.

    Reported: tue-bmd/zea#551.
    """
    x = {"image": torch.randn(256, 4, 4, 4, generator=rng_of(0)).double()}
    found = EulerMaruyamaSampler().sample(gaussian, x, steps=100, path=LinearPath(), noise=Kicks())
    assert float(found["image"].std()) == pytest.approx(STD, rel=0.04)
    found = HeunSampler().sample(gaussian, x, steps=100, path=LinearPath(), noise=Kicks())
    assert float(found["image"].std()) == pytest.approx(STD, rel=0.02)


def test_the_last_step_of_the_sde_adds_no_noise():
    """diffusers returned the noisy sample of the last step where its mean was meant.

    Reported: huggingface/diffusers#118.
    """
    kicks, times = Kicks(), []

    def model(x, t):
        times.append(float(t))
        return gaussian(x, t)

    x = {"image": torch.randn(2, 4, 4, 4, generator=rng_of(0)).double()}
    EulerMaruyamaSampler().sample(model, x, steps=10, path=LinearPath(), noise=kicks)
    assert len(times) == 10 and len(kicks.drawn) == 9
    assert times[0] == 1 and times[-1] == pytest.approx(0.04)


def test_heuns_corrector_is_asked_at_the_following_time():
    """diffusers' corrector used the noise level of the predictor.

    Reported: huggingface/diffusers#1512.
    """
    times = []

    def model(x, t):
        times.append(round(float(t), 6))
        return gaussian(x, t)

    x = {"image": torch.randn(8, 4, 4, 4, generator=rng_of(0)).double()}
    found = HeunSampler().sample(model, x, steps=4, path=LinearPath(), noise=Kicks())
    assert times == [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    errors = []
    for steps in (20, 40):
        found = HeunSampler().sample(gaussian, x, steps=steps, path=LinearPath(), noise=Kicks())
        errors.append(float((found["image"] - STD * x["image"]).norm()))
    assert errors[0] / errors[1] > 3  # second order: 4


def test_guidance_goes_by_the_time_of_each_call_and_not_by_the_count_of_calls():
    """Samplers of second order call the model twice a step: schedules that counted calls ran twice
    as fast. REPA's Heun guides the corrector by the predictor's time.

    Reported: AUTOMATIC1111/stable-diffusion-webui#9669.
    """
    guided = {}

    def model(x, t, cond):
        guided.setdefault(round(float(t[0]), 6), []).append(len(cond))
        return {"image": torch.zeros_like(x["image"])}

    rule = ClassifierFreeGuidance(scale=2.0, interval=(0.25, 0.75))
    predict = rule.guide(model, torch.ones(3), torch.zeros(3))
    x = {"image": torch.zeros(3, 4, 2, 2)}
    HeunSampler().sample(predict, x, steps=8, path=LinearPath(), noise=Kicks())
    for t, calls in guided.items():
        assert set(calls) == {6 if 0.25 <= t <= 0.75 else 3}, t
    assert len(guided) == 8 and sum(map(len, guided.values())) == 15


def branches(x, t, cond):
    """1 for the class and 0 for the null class in every channel, with a variance behind them."""
    shape = (len(cond), 8, *x["image"].shape[2:])
    return {"image": cond.view(-1, 1, 1, 1).expand(shape).clone()}


def test_guidance_is_applied_to_every_channel():
    """DiT's guidance, which SiT, LightningDiT and others inherited, leaves the fourth channel out.

    Reported: facebookresearch/DiT#12, facebookresearch/DiT#41, hustvl/LightningDiT#21.
    """
    x = {"image": torch.zeros(2, 4, 3, 3)}
    for channels, fourth in ((None, 1.5), (3, 1.0)):
        rule = ClassifierFreeGuidance(scale=1.5, channels=channels)
        found = rule.guide(branches, torch.ones(2), torch.zeros(2))(x, torch.tensor(0.5))["image"]
        assert found[:, :3].unique().tolist() == [1.5]
        assert found[:, 3].unique().tolist() == [fourth]
        assert found[:, 4:].unique().tolist() == [1.0]  # the variance is the class's own


def test_both_branches_of_guidance_see_the_same_state():
    """Why SiT copies the first half of the batch over the second was asked: with two noises the
    difference of the branches would be one of noises.

    Reported: willisma/SiT#23.
    """
    seen = []

    def model(x, t, cond):
        seen.append((x["image"], t, cond))
        return x

    x = {"image": torch.randn(3, 4, 2, 2, generator=rng_of(0))}
    rule = ClassifierFreeGuidance(scale=4.0)
    rule.guide(model, torch.tensor([7, 8, 9]), torch.full((3,), 10))(x, torch.tensor(0.5))
    ((state, t, cond),) = seen
    assert torch.equal(state[:3], x["image"]) and torch.equal(state[3:], x["image"])
    assert cond.tolist() == [7, 8, 9, 10, 10, 10] and t.tolist() == [0.5] * 6


def test_the_null_class_is_the_number_of_classes():
    """Label 1000 stood for no class whatever the number of classes, in DiT and in diffusers.

    Reported: facebookresearch/DiT#108, huggingface/diffusers#13616.
    """
    model = small_model(backbone=SIT)
    labels = []
    keep = lambda _m, args: labels.append(args[0])  # noqa: E731
    model.parts.ema.backbone.y_embedder.register_forward_pre_hook(keep)
    generator_of(model).latents([3, 7], steps=1, cfg_scale=2.0)
    assert labels[0].tolist() == [3, 7, 10, 10]
    dropped = ClassLabels(geometry=toy_geometry(num_classes=4), dropout=1.0)
    assert dropped(Clean({}, labels=torch.arange(4)), rng_of(0)).value.tolist() == [4] * 4


def test_a_sample_does_not_depend_on_how_the_set_is_divided():
    """Noise that followed the number of GPUs: FID 1.34 on sixteen, 1.39 on four.

    Reported: tzco/Diffusion-wo-CFG#2.
    """
    sampler = generator_of(small_model(backbone=SIT))
    wanted = list(range(6))
    options = dict(steps=3, sampler="sde", seed=5)
    whole = sampler.sample(wanted, batch=6, **options)
    parts = [sampler.sample(wanted[i : i + 2], first=i, batch=2, **options) for i in (0, 2, 4)]
    assert (whole.int() - torch.cat(parts).int()).abs().max() <= 1


# ---- training -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory):
    """A run of three steps of two micro-batches with an average and a falling learning rate."""
    probe = ProbeLoss()
    schedule = "param_scheduler=dict(type='LinearLR', start_factor=1.0, end_factor=0.25, end=3)"
    options = ["optim_wrapper.accumulative_counts=2", "model.ema=0.75", schedule, *PLAIN_SGD]
    return run(tmp_path_factory.mktemp("accumulated"), *options, iters=3, probe=probe), probe


def test_the_average_moves_once_a_step_and_not_once_a_micro_batch(accumulated):
    """Under gradient accumulation the average was updated after every backward pass.

    Reported: SWivid/F5-TTS#631.
    """
    done, _ = accumulated
    average = done.ema[0]
    for weights, found in zip(done.backbone[1:], done.ema[1:], strict=True):
        average = {name: 0.75 * average[name] + 0.25 * weights[name] for name in average}
        assert_close(found, average)


def test_accumulated_losses_are_averaged(accumulated):
    """A loss that was summed over its micro-batches: loss and gradient grow with their number.

    Reported: karpathy/nanoGPT#206, agokrani/distillKitPlus#5.
    """
    done, probe = accumulated
    micros = probe.seen[:2]
    gradient = {k: mean([micro.gradient[k] for micro in micros]) for k in probe.trained}
    before, after = done.backbone[:2]
    assert_close(after, {k: before[k] - LR * gradient[k] for k in gradient})
    assert done.log[0]["loss"] == pytest.approx(float(mean([micro.loss for micro in micros])))


def test_the_learning_rate_counts_optimiser_steps(accumulated):
    """accelerate steps a schedule once for every process, so that it ended early on many GPUs.

    Reported: huggingface/accelerate#1398, huggingface/accelerate#2142.
    """
    done, probe = accumulated
    for step, share in enumerate([1.0, 0.625, 0.25]):  # of three steps of two micro-batches
        micros = probe.seen[2 * step : 2 * step + 2]
        gradient = {k: mean([micro.gradient[k] for micro in micros]) for k in probe.trained}
        before, after = done.backbone[step : step + 2]
        assert_close(after, {k: before[k] - share * LR * gradient[k] for k in gradient})


def test_the_decay_of_the_average_is_the_one_that_was_asked_for():
    """A decay that each update wrote back over the setting: 0.5 in place of 0.9999.

    Reported: huggingface/diffusers#1864.
    """
    backbone = moved("SiT")
    ema = ExponentialMovingAverage(backbone, decay=0.9)
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(1)
    for _ in range(20):
        ema.update(backbone)
    assert ema.decay == 0.9
    for p, average in zip(backbone.parameters(), ema.backbone.parameters(), strict=True):
        torch.testing.assert_close(p - average, torch.full_like(p, 0.9**20), rtol=1e-3, atol=1e-4)


def test_the_average_is_kept_in_float32():
    """In half precision an update of 1e-4 of the difference is rounded away.

    Reported: d8ahazard/sd_dreambooth_extension#1415, d8ahazard/sd_dreambooth_extension#1417.
    """
    backbone = moved("SiT").to(torch.bfloat16)
    ema = ExponentialMovingAverage(backbone, decay=0.9999)
    start = [p.clone() for p in ema.backbone.parameters()]
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(0.25)
    ema.update(backbone.float())
    for p, before, weight in zip(
        ema.backbone.parameters(), start, backbone.parameters(), strict=True
    ):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p - before, 1e-4 * (weight - before), rtol=1e-2, atol=1e-6)


def test_clipping_comes_after_the_scale_of_half_precision_is_taken_out():
    """The norm of the scaled gradient was clipped, which all but stops training.

    Reported: harubaru/waifu-diffusion#64, Lightning-AI/pytorch-lightning#9599,
    victorchall/EveryDream2trainer#175.
    """
    moves = {}
    for precision in ("fp32", "fp16"):
        weight = torch.nn.Parameter(torch.zeros(4))
        optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
        optimiser = Optimiser(optimizer=optimizer, precision=precision, clip_grad=1.0)
        optimiser.backward((weight * torch.tensor([0.3, 0.0, -0.4, 0.0])).sum())
        optimiser.step()
        assert float(optimiser.grad_norm) == pytest.approx(0.5, rel=1e-4)
        moves[precision] = weight.detach()
    torch.testing.assert_close(moves["fp32"], torch.tensor([-0.3, 0.0, 0.4, 0.0]))
    torch.testing.assert_close(moves["fp16"], moves["fp32"], rtol=1e-4, atol=1e-6)


def test_a_resumed_run_goes_on_in_the_data_where_it_stopped():
    """Runs that were resumed within an epoch began again with its first samples, or read all of the
    earlier ones to get past them.

    Reported: open-mmlab/mmengine#1471, open-mmlab/mmengine#1520, open-mmlab/mmagic#959,
    facebookresearch/dinov2#341.
    """
    whole = iter(CursorSampler(size=10, batch=4, seed=1))
    order = [next(whole) for _ in range(40)]
    resumed = iter(CursorSampler(size=10, batch=4, seed=1, start=16))
    assert [next(resumed) for _ in range(24)] == order[16:]

    class Counted(ShapesDataset):
        read = 0

        def __getitem__(self, key):
            self.read += 1
            return super().__getitem__(key)

    dataset = Counted(length=1_000_000)
    options = dict(batch=4, seed=0, rank=0, world=1, start=4_000_000_000)
    batch = next(iter(CursorLoader(dataset=dataset, **options)))
    assert dataset.read == 4 and len(batch["index"]) == 4


def test_processes_share_one_order_and_no_sample():
    """Samplers seeded differently on each rank overlap, and leave other samples out.

    Reported: NVlabs/LongLive#71.
    """
    ranks = [iter(CursorSampler(size=24, batch=2, seed=3, rank=r, world=4)) for r in range(4)]
    epoch = [next(rank)[0] for _ in range(3) for rank in ranks for _ in range(2)]
    alone = iter(CursorSampler(size=24, batch=8, seed=3))
    assert sorted(epoch) == list(range(24))
    assert epoch == [next(alone)[0] for _ in range(24)]


def test_every_process_step_and_micro_batch_has_its_own_noise():
    """One seed on all ranks: each drew the same noise and the same times for other images.

    Reported: mlcommons/training#844, Robbyant/lingbot-vla-v2#41.
    """

    def noise(rank, iteration, micro):
        run_of = SimpleNamespace(rank=rank)
        trainer = SimpleNamespace(
            run=run_of,
            options=TrainOptions(max_iters=9, seed=0),
            optimiser=SimpleNamespace(device=torch.device("cpu")),
        )
        rng = Trainer.rng(trainer, iteration, micro)
        return tuple(torch.rand(4, generator=rng).tolist())

    places = [(rank, step, micro) for rank in range(4) for step in range(4) for micro in range(4)]
    assert len({noise(*place) for place in places}) == 64
    assert noise(1, 2, 3) == noise(1, 2, 3)


def test_workers_and_epochs_have_their_own_augmentation():
    """Every worker inherited NumPy's random state, so that flips repeated among workers and epochs.

    Reported: pytorch/pytorch#5059, xingyizhou/CenterNet#233.
    """
    dataset = ShapesDataset(length=32, resolution=16, flip=True)
    plain = [ShapesDataset(length=32, resolution=16)[i]["image"] for i in range(32)]
    flips = {}
    for workers in (0, 2):
        options = dict(batch=8, seed=0, rank=0, world=1, start=0, num_workers=workers)
        batches = iter(CursorLoader(dataset=dataset, **options))
        flips[workers] = []
        for _ in range(2):  # epochs
            epoch = {}
            for batch in (next(batches) for _ in range(4)):
                for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
                    epoch[index] = not torch.equal(image, plain[index])
            flips[workers].append([epoch[i] for i in range(32)])
    assert flips[0] == flips[2]
    first, second = flips[0]
    assert 6 < sum(first) < 26 and first != second


# ---- metrics --------------------------------------------------------------------------------


def gathered(kind, values, batch=8):
    """A statistic of float features, added in batches."""
    found = KINDS[kind]()
    for indices in torch.arange(len(values)).split(batch):
        found.add(indices, values[indices])
    return found


def figures_of(name, samples, reference=None):
    """The figures of a metric from features [N, D]."""
    metric = next(iter(build_metrics([name]).values()))
    ours = {need: gathered(need.kind, samples) for need in metric.needs}
    theirs = {need: gathered(need.kind, reference) for need in metric.reference_needs}
    return metric.compute(ours, theirs)


def normals(count, dim, seed):
    return torch.randn(count, dim, generator=rng_of(seed), dtype=torch.float64)


def test_the_frechet_distance_needs_no_root_of_a_product(monkeypatch):
    """SciPy's sqrtm of a product of covariances gave imaginary parts of 1e125 or other figures from
    one version to the next, and 1.18 takes no `disp`: with fewer images than dimensions, too, the
    distance is real, is that of singular values, and uses no sqrtm at all. Reported:
    mseitzer/pytorch-fid#103, scipy/scipy#20178, Project-MONAI/MONAI#9076."""

    def refused(*args, **options):
        raise AssertionError("sqrtm was called")

    monkeypatch.setattr("scipy.linalg.sqrtm", refused)
    x, y = normals(20, 64, 0), normals(30, 64, 1) * 2
    a, b = ((v - v.mean(0)) / math.sqrt(len(v) - 1) for v in (x.float().double(), y))
    root = torch.linalg.svdvals(a @ b.mT).sum()
    wanted = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * root
    found = figures_of("fid", x, y)["fid"]
    assert found == pytest.approx(float(wanted), rel=1e-6)
    assert abs(figures_of("fid", x, x)["fid"]) < 1e-5


def test_precision_and_recall_are_not_swapped():
    """A collapsed generator, every sample near one real image, got precision 0 and recall 1:
    precision is the share of samples that look real, recall that of reality that is covered.
    Reported: toshas/torch-fidelity#58."""
    reality = normals(200, 4, 0)
    collapsed = reality[:1] + 1e-3 * normals(100, 4, 1)
    found = figures_of("precision-recall", collapsed, reality)
    assert found["precision"] > 0.95 and found["recall"] < 0.05
    wild = 5 * normals(100, 4, 2)
    found = figures_of("precision-recall", wild, reality)
    assert found["precision"] < 0.3 < found["recall"]


def test_spatial_features_are_flattened_as_height_width_channel():
    """Flattened as channel, height, width the features do not match the reference's and sFID is 299
    in place of 6. Reported: openai/guided-diffusion#159,
    lavinal712/ADM-evaluation-suite-pytorch#2."""
    network = InceptionFeatures(weights="random").build(None).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=rng_of(0))
    seen = []
    branch = network.stem.Mixed_6d.branch1x1
    branch.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        found = network(images)["spatial"]
    (maps,) = seen
    assert torch.equal(found.view(1, 17, 17, 7), maps[:, :7].permute(0, 2, 3, 1))
    assert not torch.equal(found, maps[:, :7].flatten(1))


def test_the_inception_score_is_of_consecutive_splits(monkeypatch):
    """ADM's evaluator takes the score of 5,000 consecutive images, so that samples sorted by class
    score 62 in place of 298: ours is that score, of whatever order the samples have, and does not
    depend on the order of batches. Reported: openai/guided-diffusion#165,
    openai/guided-diffusion#153."""
    monkeypatch.setattr("ahpa.evaluation.statistics.SPLIT", 50)
    certain = 50 * torch.eye(10, dtype=torch.float64)
    by_class = certain.repeat_interleave(50, 0)
    mixed = certain.repeat(50, 1)
    assert figures_of("is", by_class)["is"] == pytest.approx(1, abs=1e-6)
    assert figures_of("is", mixed)["is"] == pytest.approx(10, rel=1e-6)
    need = build_metrics(["is"])["is"].needs[0]
    backwards = KINDS["splits"]()
    for indices in torch.arange(500).flip(0).split(30):
        backwards.add(indices, mixed[indices])
    found = build_metrics(["is"])["is"].compute({need: backwards}, {})
    assert found["is"] == pytest.approx(10, rel=1e-6)


def test_figures_of_another_reference_are_not_comparable(tmp_path):
    """Two files of reference statistics, or validation for training images, move FID by one and
    more: the reference's SHA-256 is in the protocol, and the difference is named. Reported:
    LTH14/mar#8, Shenyi-Z/ToCa#19, GongXinyuu/sngan.pytorch#5."""
    pixels = torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8, generator=rng_of(0)).numpy()
    for name, images in (("a", pixels), ("b", pixels[::-1].copy()), ("samples", pixels)):
        numpy.savez(tmp_path / f"{name}.npz", arr_0=images)
    samples, metrics = open_images(tmp_path / "samples.npz"), build_metrics(["fd:tiny-vit"])
    records = []
    for name in "ab":
        reference = Reference(tmp_path / f"{name}.npz")
        records.append(evaluate_images(samples, reference, metrics, device="cpu")[1])
    assert [found.key for found in differences(*records)] == ["reference.sha256"]


def test_the_rule_of_8_bits_is_named(tmp_path):
    """Figures change with how floats become 8 bits: DiT and SiT round half up, ADM truncates. Ours
    rounds to the nearest, other rules have names, and what is measured is what is saved. Reported:
    mseitzer/pytorch-fid#63."""
    x = torch.linspace(0, 1, 2001)
    levels = {rule: to_uint8(x, rule).float() for rule in UINT8_RULES}
    bias = {rule: float((255 * x - value).mean()) for rule, value in levels.items()}
    assert abs(bias["round"]) < 1e-2 and abs(bias["half-up"]) < 1e-2
    assert bias["truncate"] == pytest.approx(0.5, abs=0.01)  # half a level too dark
    images = to_uint8(torch.rand(4, 3, 16, 16, generator=rng_of(0)))
    write_npz(tmp_path / "a.npz", [images], count=4, size=(16, 16))
    (part,) = open_images(tmp_path / "a.npz").batches(4)
    assert torch.equal(part.images, images)


def test_the_figure_during_training_is_the_one_afterwards(tmp_path):
    """FID during training was far from that of the evaluation script for the same weights, by other
    libraries, references or numbers of images: images that are fed directly and images that were
    saved go through one and the same code and give one figure and one record. Reported:
    bytetriper/RAE#75, mosaicml/diffusion#31, NVlabs/eg3d#107."""
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=rng_of(0))
    write_npz(tmp_path / "a.npz", images.split(6), count=20, size=(32, 32))
    write_npz(tmp_path / "r.npz", [images // 2], count=20, size=(32, 32))
    reference, metrics = Reference(tmp_path / "r.npz"), build_metrics(["fd:tiny-vit"])
    online = [Batch(i, images[i]) for i in torch.arange(20).split(7)]
    first = evaluate_images(online, reference, metrics, device="cpu")
    offline = open_images(tmp_path / "a.npz")
    second = evaluate_images(offline, reference, metrics, device="cpu", batch=5)
    assert first[0]["fd:tiny-vit"] == pytest.approx(second[0]["fd:tiny-vit"], rel=1e-5)
    assert differences(first[1], second[1]) == []


def test_figures_of_unequal_numbers_of_images_are_not_comparable(caplog):
    """FID falls with the number of samples: 2,000 real images are 30 away from the others, so a
    figure logged in training looked wrong. The number is in the protocol, and a set with fewer
    images than dimensions is told. Reported: crowsonkb/k-diffusion#51."""
    real = normals(4000, 32, 0)
    few, many = (figures_of("fid", real[:n], real[2000:])["fid"] for n in (33, 2000))
    assert few > 10 * many > 0
    assert not caplog.records
    figures_of("fid", real[:20], real)
    assert "20 samples for 32 dimensions" in caplog.text


# ---- the page -------------------------------------------------------------------------------

spec = importlib.util.spec_from_file_location("wrong_numbers", SCRIPT)
wrong_numbers = sys.modules["wrong_numbers"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wrong_numbers)
THREAD = re.compile(r"[\w.-]+/[\w.-]+#\d+")


def complaints():
    """{name of a test: its threads}"""
    here = sys.modules[__name__]
    found = {}
    for name, value in vars(here).items():
        if name.startswith("test_") and "Reported:" in (value.__doc__ or ""):
            found[name] = THREAD.findall(value.__doc__.split("Reported:")[1])
    return found


def rows():
    """The rows of the page's tables that name a test."""
    return [line for line in PAGE.read_text().splitlines() if "`test_" in line]


def test_every_complaint_names_its_thread_and_stands_on_the_page():
    found = complaints()
    assert len(found) >= 25 and all(found.values())
    listed = {name for row in rows() for name in re.findall(r"`(test_\w+)`", row)}
    assert listed == set(found)
    for row in rows():
        for name in re.findall(r"`(test_\w+)`", row):
            missing = [thread for thread in found[name] if thread not in row]
            assert not missing, f"{name}: {missing}"


@pytest.mark.parametrize("name", wrong_numbers.EFFECTS)
def test_the_sizes_on_the_page_are_those_that_are_measured(name):
    """Every figure of an effect stands in its row, to two digits."""
    ours = [row for row in rows() if f"`{name}`" in row]
    assert len(ours) == 1, f"one row of the page names {name}"
    size = ours[0].split("|")[3].replace(",", "")
    shown = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", size)]
    for what, value in wrong_numbers.EFFECTS[name]().items():
        near = [v for v in shown if v == pytest.approx(value, rel=0.06, abs=1e-4)]
        assert near, f"{name}: {what} is {value:.3g}, the page has {shown}"
