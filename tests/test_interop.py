"""Published layouts: round trips are bit-exact, forward passes agree with a reading of the layout's
own, files are data."""

import argparse
import pickle
import re
from pathlib import Path

import pytest
import torch
from support.layouts import (
    CLS,
    DEPTH,
    HEADS,
    SIDE,
    TEXT,
    WIDTH,
    C,
    P,
    official,
)
from support.models import BUNDLED, small_model
from support.runs import call, tool

from ahpa.engine import checkpoint
from ahpa.engine.inference import load_generator
from ahpa.interop import published as interop
from ahpa.registry import UserError
from ahpa.registry.contracts import TextCond

CLASS_CONDITIONAL = ["sit", "dit", "repa", "irepa", "sra", "sra-dit", "reg"]


def made(layout, *, seed=0, **options):
    """A random state dict of the layout, by the reading of the official code in support.layouts."""
    return official(layout, seed=seed, **options).state_dict()


def write(path, state, **entries):
    """A training program's file: the average, other trained weights, steps and arguments."""
    trained = {key: x if key == "pos_embed" else 2 * x for key, x in state.items()}
    args = argparse.Namespace(model="x")
    torch.save({"ema": state, "model": trained, "steps": 7, "args": args, **entries}, path)
    return path


def options_of(layout, **more):
    heads = {} if layout == "repa-t2i" else {"num_heads": HEADS}
    return dict(layout=layout, vae="bundled", **heads, **more)


def bring(tmp_path, layout, **options):
    source = write(tmp_path / "in.pt", made(layout))
    done = interop.import_weights(source, tmp_path / "ours.pth", **options_of(layout, **options))
    return done, tmp_path / "ours.pth"


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def without_variance(state):
    """The state dict of a SiT without the channels of the variance, which are not kept."""
    cut = dict(state)
    for name in ("weight", "bias"):
        value = cut[f"final_layer.linear.{name}"]
        kept = value.unflatten(0, (P * P, 2 * C))[:, :C]
        cut[f"final_layer.linear.{name}"] = kept.flatten(0, 1)
    return cut


@pytest.mark.parametrize("layout", interop.FORMATS)
def test_round_trip_is_bit_exact_with_its_heads_and_both_weights(tmp_path, layout):
    """Heads come in and go out; the official network loads both state dicts strictly."""
    done, ours = bring(tmp_path, layout)
    exported = interop.export_weights(ours, tmp_path / "back.pt", layout=layout)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    given = torch.load(tmp_path / "in.pt", weights_only=False)
    # SiT's scripts for sampling build no variance for a file of one's own
    reader = official(layout, seed=5, **({"channels": C} if layout == "sit" else {}))
    for kind in ("ema", "model"):
        wanted = without_variance(given[kind]) if layout == "sit" else given[kind]
        assert same(back[kind], wanted), kind
        reader.load_state_dict(back[kind], strict=True)
    assert back["steps"] == 7 and exported["notes"] == []
    heads = [key for key in given["ema"] if key.startswith(("projectors.", "ap_head."))]
    assert done["kept"] == sorted(heads) and bool(heads) == (layout not in ("sit", "dit"))
    interop.import_weights(tmp_path / "back.pt", tmp_path / "again.pth", **options_of(layout))
    first, again = checkpoint.load(ours), checkpoint.load(tmp_path / "again.pth")
    assert same(first["ema"], again["ema"]) and same(first["model"], again["model"])
    assert same(first["beside"]["model"], again["beside"]["model"])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("layout", interop.FORMATS)
def test_forward_parity(tmp_path, layout, qk_norm):
    """SiT's t = 1 is data, its velocity points there; DiT embeds whole steps; REPA is like ours."""
    net = official(layout, qk_norm=qk_norm)
    source = write(tmp_path / "in.pt", net.state_dict())
    heads = {} if qk_norm else options_of(layout)  # the norm of the queries tells the heads' width
    interop.import_weights(
        source, tmp_path / "ours.pth", **{"layout": layout, "vae": "bundled", **heads}
    )
    generator = torch.Generator().manual_seed(0)
    x = {"image": torch.randn(3, C, SIDE, SIDE, generator=generator)}
    t, label = torch.tensor([0.125, 0.5, 0.999]), torch.tensor([1, 9, 10])
    embedded = {"sit": 1 - t}.get(layout, (t * 1000).round() if "dit" in layout else t)
    cond, more = label, ()
    if layout == "reg":
        x["cls"] = torch.randn(3, CLS, generator=generator)
        more = (x["cls"],)
    if layout == "repa-t2i":
        cond = TextCond(torch.randn(3, 5, TEXT, generator=generator))
    saved = checkpoint.load(tmp_path / "ours.pth")
    backbone = backbone_of(saved)
    with torch.no_grad():
        ours = backbone(x, t, cond).pred
        wanted = net(x["image"], embedded, cond.tokens if layout == "repa-t2i" else label, *more)
    wanted = wanted if layout == "reg" else (wanted,)
    image = -wanted[0][:, :C] if layout == "sit" else wanted[0]
    torch.testing.assert_close(ours["image"], image, rtol=1e-5, atol=2e-5)
    if layout == "reg":
        torch.testing.assert_close(ours["cls"], wanted[1], rtol=1e-4, atol=1e-4)
    interop.export_weights(tmp_path / "ours.pth", tmp_path / "back.pt", layout=layout)
    if layout != "sit":
        back = torch.load(tmp_path / "back.pt", weights_only=True)["ema"]
        official(layout, seed=5, qk_norm=qk_norm).load_state_dict(back, strict=True)


def backbone_of(saved):
    """The averaged backbone of a checkpoint, built as the config in it says."""
    from ahpa.registry import BACKBONES, build

    options = saved["meta"]["config"]["model"]["backbone"]
    backbone = build(BACKBONES, dict(options), input_size=SIDE, in_channels=C)
    backbone.load_state_dict(saved["ema"])
    return backbone.eval()


@pytest.mark.parametrize(
    "layout, sampler", [("sit", "euler"), ("dit", "ddim"), ("sra-dit", "ddpm"), ("reg", "sde")]
)
def test_an_imported_file_is_sampled_from(tmp_path, layout, sampler):
    done, ours = bring(tmp_path, layout)
    assert done["resolution"] == 64
    images = load_generator(ours).sample([1, 2], sampler=sampler, steps=3)
    assert images.shape == (2, 3, 64, 64)


def test_what_is_left_out_is_reported_and_either_weights_can_be_chosen(tmp_path):
    done, _ = bring(tmp_path, "sra")
    names = [f"ap_head.linear{i}.{kind}" for i in (1, 2) for kind in ("bias", "weight")]
    assert done["kept"] == names and done["left_out"] == []
    assert "variance" in bring(tmp_path, "sit")[0]["left_out"][0]
    raw = interop.import_weights(
        tmp_path / "in.pt", tmp_path / "raw.pth", layout="sit", weights="model", num_heads=HEADS
    )
    assert raw["backbone"]["depth"] == DEPTH and raw["backbone"]["num_classes"] == 10
    saved, given = (
        checkpoint.load(tmp_path / "raw.pth"),
        torch.load(tmp_path / "in.pt", weights_only=False),
    )
    name = "blocks.0.mlp.fc1.weight"
    assert torch.equal(saved["ema"][name], given["model"][name])
    assert torch.equal(saved["model"][f"backbone.{name}"], given["model"][name])
    bare = tmp_path / "bare.pt"
    torch.save({f"module.{key}": value for key, value in made("dit").items()}, bare)
    done = interop.import_weights(bare, tmp_path / "x.pth", layout="dit", num_heads=HEADS)
    assert done["backbone"]["learn_sigma"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["repa", "reg"])
def test_half_precision_files_come_in_with_their_exact_values(tmp_path, layout, dtype):
    """Their positions are rounded as everything else; the computed ones take their place."""
    state = {key: value.to(dtype) for key, value in made(layout).items()}
    source = write(tmp_path / "half.pt", state)
    interop.import_weights(source, tmp_path / "ours.pth", **options_of(layout))
    saved = checkpoint.load(tmp_path / "ours.pth")
    assert all(torch.equal(value, state[key].float()) for key, value in saved["ema"].items())
    wrong = {**state, "pos_embed": state["pos_embed"] + 0.05}
    with pytest.raises(UserError, match="pos_embed"):
        interop.import_weights(
            write(tmp_path / "w.pt", wrong), tmp_path / "o.pth", **options_of(layout)
        )


@pytest.mark.parametrize("depth", [1, 2])
def test_the_older_layout_with_decoder_blocks(tmp_path, depth):
    """REPA's first code had the blocks behind the aligned one in a list of their own."""

    def old(key):
        found = re.fullmatch(r"blocks\.(\d)\.(.+)", key)
        behind = found and int(found[1]) >= depth
        return f"decoder_blocks.{int(found[1]) - depth}.{found[2]}" if behind else key

    wanted = made("repa")
    source = write(tmp_path / "old.pt", {old(key): value for key, value in wanted.items()})
    assert any(
        key.startswith("decoder_blocks.0.") for key in torch.load(source, weights_only=False)["ema"]
    )
    interop.import_weights(source, tmp_path / "ours.pth", **options_of("repa"))
    interop.export_weights(tmp_path / "ours.pth", tmp_path / "back.pt", layout="repa")
    assert same(torch.load(tmp_path / "back.pt", weights_only=True)["ema"], wanted)


@pytest.mark.parametrize("kind", ["conv", "linear", "mlp"])
def test_every_kind_of_head_of_irepa(tmp_path, kind):
    wanted = made("irepa", kind=kind)
    interop.import_weights(
        write(tmp_path / "in.pt", wanted), tmp_path / "ours.pth", **options_of("irepa")
    )
    interop.export_weights(tmp_path / "ours.pth", tmp_path / "back.pt", layout="irepa")
    assert same(torch.load(tmp_path / "back.pt", weights_only=True)["ema"], wanted)


@pytest.mark.parametrize("held", ["sit", "dit", "sra-dit"])
@pytest.mark.parametrize("layout", ["repa", "irepa", "sra"])
def test_outputs_of_a_variance_are_refused_where_the_format_has_none(tmp_path, held, layout):
    """A SiT or DiT read as REPA would be sampled with time the wrong way round, or worse."""
    source, target = write(tmp_path / "in.pt", made(held)), tmp_path / "out.pth"
    with pytest.raises(UserError, match=r"twice the latent's channels.*Try --format (sit|sra-dit)"):
        interop.import_weights(source, target, **options_of(layout))
    assert not target.exists()


@pytest.mark.parametrize(
    "held, layout, hint",
    [
        ("sra", "sra-dit", "no channels for a variance.*Try --format sra"),
        ("sra-dit", "dit", "unknown ap_head.*Formats with such a head: sra, sra-dit"),
        ("sra", "repa", "unknown ap_head.*Formats with such a head: sra, sra-dit"),
        ("repa", "sra", "unknown projectors.*Formats with such a head: repa, irepa, reg, repa-t2i"),
        ("repa", "sit", "unknown projectors"),
        ("irepa", "repa", "unknown projectors.0.projection_layer.*such a head: irepa"),
    ],
)
def test_a_file_of_another_format_is_refused_with_the_right_one(tmp_path, held, layout, hint):
    source, target = write(tmp_path / "in.pt", made(held)), tmp_path / "out.pth"
    with pytest.raises(UserError, match=hint):
        interop.import_weights(source, target, **options_of(layout))
    assert not target.exists()


def test_the_decoder_is_the_default_of_the_official_code(tmp_path):
    found = {}
    for layout in interop.FORMATS:
        source = write(tmp_path / "in.pt", made(layout))
        options = {**options_of(layout), "vae": None}
        interop.import_weights(source, tmp_path / f"{layout}.pth", **options)
        config = checkpoint.load(tmp_path / f"{layout}.pth")["meta"]["config"]
        found[layout] = config["model"]["tokenizer"]["source"].rpartition("-")[2]
    assert found == {**dict.fromkeys(interop.FORMATS, "ema"), "irepa": "mse"}


@pytest.mark.parametrize(
    "layout, path, kind",
    [("repa", "linear", None), ("repa", "cosine", "CosinePath"), ("sit", "GVP", "CosinePath")],
)
def test_the_path_in_the_files_arguments_is_the_models(tmp_path, layout, path, kind):
    args = argparse.Namespace(path_type=path, prediction="v")
    source = write(tmp_path / "in.pt", made(layout), args=args)
    interop.import_weights(source, tmp_path / "ours.pth", **options_of(layout))
    flow = checkpoint.load(tmp_path / "ours.pth")["meta"]["config"]["model"].get("flow")
    assert flow == (kind and {"type": "Flow", "path": {"type": kind}})
    done = interop.export_weights(tmp_path / "ours.pth", tmp_path / "b.pt", layout=layout)
    assert any("cosine path" in note for note in done["notes"]) == bool(kind)


@pytest.mark.parametrize(
    "args, message",
    [(dict(path_type="VP"), "the path 'VP'"), (dict(prediction="score"), "'score'")],
)
def test_other_paths_and_predictions_are_refused(tmp_path, args, message):
    source = write(tmp_path / "in.pt", made("sit"), args=argparse.Namespace(**args))
    with pytest.raises(UserError, match=message):
        interop.import_weights(source, tmp_path / "ours.pth", **options_of("sit"))


@pytest.mark.parametrize(
    "layout, width, heads", [("repa", 384, 6), ("repa", 768, 12), ("repa-t2i", 768, 24)]
)
def test_heads_of_published_widths_are_known(layout, width, heads):
    blocks = "joint_blocks.0.x_block" if layout == "repa-t2i" else "blocks.0"
    state = {
        "x_embedder.proj.weight": torch.zeros(width, 4, 2, 2),
        "pos_embed": torch.zeros(1, 256, width),
        "final_layer.linear.weight": torch.zeros(16, width),
        "y_embedder.embedding_table.weight": torch.zeros(1001, width),
        f"{blocks}.mlp.fc1.weight": torch.zeros(4 * width, width),
        "context_embedder.weight": torch.zeros(width, 768),
    }
    own, side, channels, _ = interop.sizes_of(state, interop.FORMATS[layout].backbone, None)
    assert (own["num_heads"], own["patch_size"], side, channels) == (heads, 2, 32, 4)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


LATE = "t_embedder.mlp.0.bias"
UNFIT = {
    "unknown keys": ({"blocks.0.extra": torch.ones(1)}, (), r"has unknown blocks\.0\.extra"),
    "missing keys": ({}, (LATE,), f"lacks {LATE}"),
    "shape": ({LATE: torch.ones(3)}, (), r"\(3,\), expected"),
    "positions": ({"pos_embed": torch.randn(1, 16, WIDTH)}, (), "pos_embed"),
    "another model": ({"a": torch.ones(1)}, tuple(made("repa")), "another format"),
    "no tensors": ({"a": "text"}, (), "does not hold a state dict"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, name):
    added, removed, message = UNFIT[name]
    state = {key: value for key, value in made("repa").items() if key not in removed} | added
    source, target = write(tmp_path / "bad.pt", state), tmp_path / "out.pth"
    with pytest.raises(UserError, match=message):
        interop.import_weights(source, target, layout="repa", num_heads=HEADS)
    assert not target.exists()


def test_files_are_data(tmp_path, capsys):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"ema": Evil()}))
    with pytest.raises(UserError, match="refused"):
        interop.import_weights(tmp_path / "evil.pt", tmp_path / "out.pth", layout="repa")
    assert "executed" not in capsys.readouterr().out and not (tmp_path / "out.pth").exists()


def test_mistakes_name_what_is_wrong(tmp_path):
    good, target = write(tmp_path / "good.pt", made("repa")), tmp_path / "out.pth"
    with pytest.raises(UserError, match="--num-heads"):
        interop.import_weights(good, target, layout="repa")
    with pytest.raises(UserError, match="irepa"):
        interop.import_weights(good, target, layout="ireppa")
    with pytest.raises(UserError, match="irepa"):
        interop.export_weights(good, target, layout="ireppa")
    with pytest.raises(UserError, match="no file"):
        interop.import_weights(tmp_path / "none.pt", target, layout="repa")
    torch.save({"ema": made("repa")}, tmp_path / "ema.pt")
    with pytest.raises(UserError, match="no 'model', only ema; choose with --weights"):
        interop.import_weights(tmp_path / "ema.pt", target, layout="repa", weights="model")
    assert not target.exists()


@pytest.mark.parametrize(
    "held, layout, message",
    [
        ("sit", "repa", "its backbone is SiT of reversed time, and the layout 'repa' is for SiT"),
        ("repa", "sit", "its backbone is SiT, and the layout 'sit' is for SiT of reversed time"),
        ("reg", "repa", "its backbone is ClassStreamSiT, and the layout 'repa' is for SiT"),
    ],
)
def test_an_export_in_another_layout_is_refused(tmp_path, held, layout, message):
    with pytest.raises(UserError, match=f"{message}."):
        interop.export_weights(bring(tmp_path, held)[1], tmp_path / "out.pt", layout=layout)
    assert not (tmp_path / "out.pt").exists()


def own_run(path, **model):
    """A checkpoint of a run of ours: a SiT aligned by AHPA's head, unless the options say else."""
    net = small_model(**{**OWN, **model})
    config = {"model": {"resolution": 64, "tokenizer": BUNDLED, **OWN, **model}}
    meta = {"iteration": 4, "seed": 0, "config": config}
    ema = net.parts.ema.backbone.state_dict()
    checkpoint.save({"model": net.state_dict(), "ema": ema, "meta": meta}, path)
    return path


SIZES = dict(depth=DEPTH, hidden_size=WIDTH, num_heads=HEADS, num_classes=10)
OWN = dict(
    backbone=dict(type="SiT", **SIZES),
    priors=dict(vae=dict(type="VAETaps")),
    alignments=dict(main=dict(tap=1, source="vae")),
)


def test_a_run_whose_head_has_no_place_in_the_layout_says_so(tmp_path):
    done = interop.export_weights(own_run(tmp_path / "o.pth"), tmp_path / "b.pt", layout="repa")
    assert "no heads" in done["notes"][0] and "strict=False" in done["notes"][0]
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert back["steps"] == 4 and not any(key.startswith("proj") for key in back["ema"])
    with pytest.raises(RuntimeError, match=r"Missing key.*projectors"):
        official("repa").load_state_dict(back["ema"])
    official("sit", channels=C).load_state_dict(back["ema"])


def test_its_convolution_is_a_head_of_irepa(tmp_path):
    done = interop.export_weights(own_run(tmp_path / "o.pth"), tmp_path / "b.pt", layout="irepa")
    back = torch.load(tmp_path / "b.pt", weights_only=True)["ema"]
    (note,) = done["notes"]  # the official script standardises each channel, this run does not
    assert "statistics='sd-imagenet'" in note
    assert back["projectors.0.projection_layer.weight"].ndim == 4


@pytest.mark.parametrize(
    "model, message",
    [
        (dict(backbone=dict(type="SiT", time_scale=1000.0, **SIZES)), "has time_scale=1000.0"),
        (dict(flow=dict(type="Flow", prediction="data")), "predicts the data"),
    ],
)
def test_what_an_official_script_would_misread_is_refused(tmp_path, model, message):
    source = own_run(tmp_path / "o.pth", **({"alignments": {}, "priors": {}} | model))
    with pytest.raises(UserError, match=message):
        interop.export_weights(source, tmp_path / "b.pt", layout="repa")
    assert not (tmp_path / "b.pt").exists()


def test_a_sit_with_a_variance_is_refused_by_layouts_without_one(tmp_path):
    state = made("dit")
    state.pop("pos_embed")
    backbone = dict(type="SiT", learn_sigma=True, **SIZES)
    model = {"resolution": 64, "tokenizer": BUNDLED, "backbone": backbone}
    checkpoint.save_imported(model, state, tmp_path / "o.pth", layout="own")
    with pytest.raises(UserError, match="twice the latent's channels"):
        interop.export_weights(tmp_path / "o.pth", tmp_path / "b.pt", layout="repa")


@pytest.mark.parametrize(
    ("layout", "scaling", "told"),
    [
        (
            "repa",
            {"scale": 0.5},
            "scale=0.5, those of the official script by the autoencoder's own",
        ),
        ("repa", {"statistics": "sd-imagenet"}, "by statistics='sd-imagenet', those of"),
        ("irepa", {}, "(Stable Diffusion's: 0.18215), those of the official script by statistics="),
        ("irepa", {"mean": [0.1, 0.2, 0.3, 0.4], "std": [1.0, 2.0, 3.0, 4.0]}, "std=[1.0, 2.0,"),
        ("repa", {}, None),
        ("irepa", {"statistics": "sd-imagenet"}, None),
    ],
)
def test_latents_of_another_scale_are_told(tmp_path, layout, scaling, told):
    """AHPA's and iREPA's configs standardise each channel, which REPA's script does not."""
    source = own_run(tmp_path / "o.pth", tokenizer={**BUNDLED, **scaling})
    notes = interop.export_weights(source, tmp_path / "b.pt", layout=layout)["notes"]
    found = [note for note in notes if "its latents are scaled by" in note]
    assert len(found) == (told is not None) and (told is None or told in found[0])


def test_one_kind_of_weights_is_written_under_both_names(tmp_path):
    """REPA's script for text to image reads "model", the others "ema"."""
    from ahpa.interop.publish import publish

    _, ours = bring(tmp_path, "repa-t2i")
    interop.export_weights(ours, tmp_path / "b.pt", layout="repa-t2i", weights="ema")
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    given = torch.load(tmp_path / "in.pt", weights_only=False)
    assert same(back["model"], given["ema"]) and same(back["ema"], given["ema"])
    publish(own_run(tmp_path / "o.pth"), tmp_path / "folder")
    done = interop.export_weights(tmp_path / "folder", tmp_path / "f.pt", layout="repa")
    back = torch.load(tmp_path / "f.pt", weights_only=True)
    assert same(back["model"], back["ema"]) and "'ema' weights" in done["notes"][0]
    with pytest.raises(UserError, match="only holds the 'ema' weights"):
        options = dict(layout="repa", weights="model")
        interop.export_weights(tmp_path / "folder", tmp_path / "f.pt", **options)


def test_a_file_that_promises_more_than_it_holds_is_refused_at_once(tmp_path):
    """A tensor of no strides: 4 bytes on the disk, 400 GB in memory."""
    state = made("repa")
    state["blocks.0.mlp.fc1.weight"] = torch.zeros(()).expand(10**6, 10**5)
    torch.save({"ema": state}, tmp_path / "big.pt")
    with pytest.raises(UserError, match="repeats fewer stored elements"):
        interop.import_weights(tmp_path / "big.pt", tmp_path / "o.pth", **options_of("repa"))


def test_the_command(tmp_path):
    source = write(tmp_path / "in.pt", made("dit"))
    files, options = (source, tmp_path / "ours.pth"), ("--num-heads", HEADS, "--vae", "bundled")
    done = tool("import_weights", "--format", "dit", *files, *options)
    assert done.returncode == 0, done.stderr
    printed = re.search(r"sample from it: python tools/(\S+).py (\S+)", done.stdout).groups()
    done = call(*printed, "--num", "2", "--steps", "2", "--out", tmp_path / "a.png")
    assert done.returncode == 0 and Path(tmp_path / "a.png").exists(), done.stderr
    wrong = call("import-weights", "--format", "siit", *files, *options)
    assert wrong.returncode == 2 and "did you mean 'sit'" in wrong.stderr


@pytest.mark.parametrize(
    "held, layout, args, hint",
    [
        ("sit", "dit", dict(model="SiT-XL/2", prediction="velocity"), "'SiT-XL/2'.*format sit"),
        ("dit", "sit", dict(model="DiT-XL/2"), "is a 'DiT-XL/2'. Try --format dit, sra-dit"),
        ("sra-dit", "sra", dict(model="DiT-B/2"), "is a 'DiT-B/2'. Try --format sra-dit"),
        ("small sit", "repa", dict(prediction="velocity"), "by SiT's program.*Try --format sit"),
        ("small sit", "dit", dict(model="SiT-B/2"), "Try --format sit, repa, irepa, sra"),
    ],
)
def test_the_arguments_tell_what_shapes_do_not(tmp_path, held, layout, args, hint):
    """A DiT has the shapes of a SiT, and a SiT without a variance those of a REPA without heads."""
    state = made("sit", channels=C) if held == "small sit" else made(held)
    source = write(tmp_path / "in.pt", state, args=argparse.Namespace(**args))
    with pytest.raises(UserError, match=hint):
        interop.import_weights(source, tmp_path / "out.pth", **options_of(layout))
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    "held, layout, hint",
    [
        ("reg", "repa", r"has unknown cls_projectors2.*Try --format reg\."),
        ("repa", "reg", r"no 'cls_projectors2.weight'.*Formats: repa, irepa\."),
        ("repa-t2i", "repa", r"another format\? Formats: repa-t2i\."),
        ("sra", "repa-t2i", r"another format\? Formats: sra, sra-dit\."),
    ],
)
def test_a_hint_names_only_the_formats_that_fit(tmp_path, held, layout, hint):
    source = write(tmp_path / "in.pt", made(held))
    with pytest.raises(UserError, match=hint):
        interop.import_weights(source, tmp_path / "out.pth", **options_of(layout))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_parallel_and_compiled_models_come_off(tmp_path, prefix):
    wanted = made("repa")
    torch.save({f"{prefix}{key}": x for key, x in wanted.items()}, tmp_path / "in.pt")
    interop.import_weights(tmp_path / "in.pt", tmp_path / "ours.pth", **options_of("repa"))
    interop.export_weights(tmp_path / "ours.pth", tmp_path / "back.pt", layout="repa")
    assert same(torch.load(tmp_path / "back.pt", weights_only=True)["ema"], wanted)


NORMALISATIONS = {
    (): {"statistics": "sd-imagenet"},
    ("statistics=None",): {},
    ("mean=[0.0,1.0,2.0,3.0]", "std=[1.0,1.0,2.0,2.0]"): {
        "mean": [0.0, 1.0, 2.0, 3.0],
        "std": [1.0, 1.0, 2.0, 2.0],
    },
}


@pytest.mark.parametrize("given", NORMALISATIONS)
def test_an_import_says_how_the_latents_were_scaled(tmp_path, given):
    """iREPA's files do not hold their statistics: the layout's can be replaced."""
    source, ours = write(tmp_path / "in.pt", made("irepa")), tmp_path / "ours.pth"
    options = ("--format", "irepa", "--num-heads", HEADS)
    if given:
        options += ("--cfg-options", *(f"model.tokenizer.{option}" for option in given))
    done = call("import-weights", source, ours, *options)
    assert done.returncode == 0, done.stderr
    wanted = NORMALISATIONS[given]
    shown = ", ".join(f"{key}={value!r}" for key, value in wanted.items()) or "the autoencoder's"
    assert f"autoencoder: stabilityai/sd-vae-ft-mse, scaling by {shown}" in done.stdout
    tokenizer = checkpoint.load(ours)["meta"]["config"]["model"]["tokenizer"]
    source = "stabilityai/sd-vae-ft-mse"
    assert tokenizer == {"type": "KLAutoencoder", "source": source, **wanted}


@pytest.mark.parametrize(
    "given, message",
    [
        (["model.tokenizer.statistics=imagenet"], "did you mean 'sd-imagenet'"),
        (["model.tokenizer.mean=3"], "model.tokenizer.mean: must be a list"),
        (["model.tokenizer.mean=[1.0]", "model.tokenizer.scale=2.0"], "not several"),
        (["model.tokenizer.source=x"], "Valid: mean, scale, shift, statistics, std"),
        (["model.backbone.depth=3"], r"takes model\.tokenizer\.\* only"),
    ],
)
def test_other_options_of_an_import_are_refused(tmp_path, given, message):
    source, ours = write(tmp_path / "in.pt", made("irepa")), tmp_path / "ours.pth"
    options = ("--format", "irepa", "--num-heads", HEADS)
    done = call("import-weights", *options, source, ours, "--cfg-options", *given)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert not ours.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--format", "repa", "--export", "--num-heads", "4"),
        ("--format", "repa", "--export", "--vae", "bundled"),
        ("--format", "repa", "--export", "--cfg-options", "model.tokenizer.scale=1.0"),
        ("--format", "diffusers", "--num-heads", "4"),
        ("--format", "diffusers", "--weights", "model"),
    ],
    ids=" ".join,
)
def test_options_without_an_effect_are_refused(tmp_path, options):
    done = call("import-weights", tmp_path / "in", tmp_path / "out", *options)
    assert done.returncode == 2 and "has no effect on an" in done.stderr


def test_a_checkpoint_of_ours_is_told_as_such(tmp_path):
    source = own_run(tmp_path / "own.pth")
    with pytest.raises(UserError, match="already a checkpoint of ours.*--export"):
        interop.import_weights(source, tmp_path / "out.pth", **options_of("repa"))


def test_no_attention_heads_are_refused(tmp_path):
    source = write(tmp_path / "in.pt", made("repa"))
    with pytest.raises(UserError, match="--num-heads: must be a positive integer, got 0"):
        interop.import_weights(source, tmp_path / "out.pth", layout="repa", num_heads=0)
