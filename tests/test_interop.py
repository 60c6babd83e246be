"""Published layouts: round trips are bit-exact, forward passes agree with a reading of the layout's
own, files are data."""

import argparse
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ahpa.backbones.layers import sincos_2d
from ahpa.engine import checkpoint
from ahpa.engine.inference import load_generator
from ahpa.interop import published as interop
from ahpa.registry import UserError

D, DEPTH, HEADS, P, C, SIDE = 48, 3, 4, 2, 4, 8


def made(layout, *, seed=0):
    """A random state dict of the layout, with the published keys and shapes, made by hand."""
    stream = torch.Generator().manual_seed(seed)

    def w(*shape):
        return 0.1 * torch.randn(shape, generator=stream)

    state, classes = {}, 10
    outputs = P * P * C * (2 if layout in ("sit", "dit") else 1)

    def linear(name, rows, columns):
        state[f"{name}.weight"], state[f"{name}.bias"] = w(rows, columns), w(rows)

    def block(name, *, last=False):
        linear(f"{name}attn.qkv", 3 * D, D)
        linear(f"{name}adaLN_modulation.1", (2 if last else 6) * D, D)
        if not last:
            linear(f"{name}attn.proj", D, D)
            linear(f"{name}mlp.fc1", 4 * D, D)
            linear(f"{name}mlp.fc2", D, 4 * D)

    positions = sincos_2d(D, (SIDE // P, SIDE // P))
    if layout == "reg":
        positions = torch.cat([torch.zeros(1, 1, D), positions], 1)
    state["pos_embed"] = positions
    state["x_embedder.proj.weight"], state["x_embedder.proj.bias"] = w(D, C, P, P), w(D)
    linear("t_embedder.mlp.0", D, 256)
    linear("t_embedder.mlp.2", D, D)
    linear("final_layer.linear", outputs, D)
    linear("final_layer.adaLN_modulation.1", 2 * D, D)
    for number in range(DEPTH):
        if layout == "repa-t2i":
            block(f"joint_blocks.{number}.x_block.")
            block(f"joint_blocks.{number}.context_block.", last=number == DEPTH - 1)
        else:
            block(f"blocks.{number}.")
    if layout == "repa-t2i":
        linear("context_embedder", D, 768)
    else:
        state["y_embedder.embedding_table.weight"] = w(classes + 1, D)
    if layout in ("repa", "irepa", "reg", "repa-t2i"):
        linear("projectors.0.0", 24, D)
    if layout == "sra":
        linear("ap_head.0", 2 * D, D)
    if layout == "reg":
        linear("cls_projectors2", D, 16)
        linear("final_layer.linear_cls", 16, D)
        state["wg_norm.weight"], state["wg_norm.bias"] = 1 + w(D), w(D)
    return state


def forward(state, x, t, label):
    """The forward pass of SiT and DiT from a state dict alone; t as it is embedded."""
    rate = torch.exp(-torch.log(torch.tensor(10_000.0)) * torch.arange(128) / 128)
    angle = t[:, None] * rate
    h = torch.cat([angle.cos(), angle.sin()], -1)

    def lin(name, value):
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(value, shift, scale):
        return F.layer_norm(value, (D,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    time = lin("t_embedder.mlp.2", F.silu(lin("t_embedder.mlp.0", h)))
    c = F.silu(time + state["y_embedder.embedding_table.weight"][label])
    weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    h = F.conv2d(x, weight, bias, stride=P).flatten(2).mT + state["pos_embed"]
    for i in range(DEPTH):
        m = lin(f"blocks.{i}.adaLN_modulation.1", c).chunk(6, -1)
        qkv = lin(f"blocks.{i}.attn.qkv", norm(h, m[0], m[1]))
        qkv = qkv.unflatten(-1, (3, HEADS, D // HEADS))
        q, k, v = (qkv[:, :, j].transpose(1, 2) for j in range(3))
        attention = ((q @ k.mT) / (D // HEADS) ** 0.5).softmax(-1) @ v
        h = h + m[2][:, None] * lin(f"blocks.{i}.attn.proj", attention.transpose(1, 2).flatten(2))
        inner = F.gelu(lin(f"blocks.{i}.mlp.fc1", norm(h, m[3], m[4])), approximate="tanh")
        h = h + m[5][:, None] * lin(f"blocks.{i}.mlp.fc2", inner)
    shift, scale = lin("final_layer.adaLN_modulation.1", c).chunk(2, -1)
    out = lin("final_layer.linear", norm(h, shift, scale))
    n, channels = SIDE // P, out.shape[-1] // (P * P)
    out = out.view(-1, n, n, P, P, channels).permute(0, 5, 1, 3, 2, 4)
    return out.reshape(-1, channels, SIDE, SIDE)


def write(path, state, **entries):
    args = argparse.Namespace(model="x")
    torch.save(
        {"ema": state, "model": made("sit", seed=9), "steps": 7, "args": args, **entries}, path
    )
    return path


def bring(tmp_path, layout, **options):
    source = write(tmp_path / "in.pt", made(layout))
    done = interop.import_weights(
        source, tmp_path / "ours.pth", layout=layout, num_heads=HEADS, vae="bundled", **options
    )
    return done, tmp_path / "ours.pth"


@pytest.mark.parametrize("layout", interop.FORMATS)
def test_round_trip_is_bit_exact(tmp_path, layout):
    _, ours = bring(tmp_path, layout)
    interop.export_weights(ours, tmp_path / "back.pt", layout=layout)
    back = torch.load(tmp_path / "back.pt", weights_only=True)["ema"]
    heads = ("projectors.", "ap_head.")
    wanted = {key: value for key, value in made(layout).items() if not key.startswith(heads)}
    if layout == "sit":  # the channels of the variance are not kept
        for name in ("weight", "bias"):
            value = wanted[f"final_layer.linear.{name}"]
            kept = value.unflatten(0, (P * P, 2 * C))[:, :C]
            wanted[f"final_layer.linear.{name}"] = kept.flatten(0, 1)
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[key], wanted[key]) for key in wanted)
    options = dict(layout=layout, num_heads=HEADS, vae="bundled")
    interop.import_weights(tmp_path / "back.pt", tmp_path / "again.pth", **options)
    first, again = checkpoint.load(ours)["ema"], checkpoint.load(tmp_path / "again.pth")["ema"]
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("layout", ["sit", "dit", "repa", "irepa", "sra"])
def test_forward_parity(tmp_path, layout):
    """SiT's t = 1 is data, its velocity points there; DiT embeds whole steps; REPA is like ours."""
    generator = load_generator(bring(tmp_path, layout)[1])
    x, label = torch.randn(3, C, SIDE, SIDE), torch.tensor([1, 9, 10])
    t = torch.tensor([0.125, 0.5, 0.999])
    with torch.no_grad():
        ours = generator.backbone({"image": x}, t, label).pred["image"]
    embedded = {"sit": 1 - t, "dit": (t * 1000).round()}.get(layout, t)
    wanted = forward(made(layout), x, embedded, label)
    wanted = -wanted[:, :C] if layout == "sit" else wanted
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout, sampler", [("sit", "euler"), ("dit", "ddim"), ("reg", "sde")])
def test_an_imported_file_is_sampled_from(tmp_path, layout, sampler):
    done, ours = bring(tmp_path, layout)
    assert done["resolution"] == 64
    images = load_generator(ours).sample([1, 2], sampler=sampler, steps=3)
    assert images.shape == (2, 3, 64, 64)


def test_what_is_left_out_is_reported_and_either_weights_can_be_chosen(tmp_path):
    done, _ = bring(tmp_path, "sra")
    assert done["left_out"] == ["ap_head.0.bias", "ap_head.0.weight"]
    assert "variance" in bring(tmp_path, "sit")[0]["left_out"][0]
    raw = interop.import_weights(
        tmp_path / "in.pt", tmp_path / "raw.pth", layout="sit", weights="model", num_heads=HEADS
    )
    assert raw["backbone"]["depth"] == DEPTH and raw["backbone"]["num_classes"] == 10
    bare = tmp_path / "bare.pt"
    torch.save({f"module.{key}": value for key, value in made("dit").items()}, bare)
    done = interop.import_weights(bare, tmp_path / "x.pth", layout="dit", num_heads=HEADS)
    assert done["backbone"]["learn_sigma"]


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
    own, side, channels = interop.sizes_of(state, interop.FORMATS[layout][0], None)
    assert (own["num_heads"], own["patch_size"], side, channels) == (heads, 2, 32, 4)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


LATE = "t_embedder.mlp.0.bias"
UNFIT = {
    "unknown keys": ({"blocks.0.extra": torch.ones(1)}, (), r"has unknown blocks\.0\.extra"),
    "missing keys": ({}, (LATE,), f"lacks {LATE}"),
    "shape": ({LATE: torch.ones(3)}, (), r"\(3,\), expected"),
    "positions": ({"pos_embed": torch.randn(1, 16, D)}, (), "pos_embed"),
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
        ("sit", "repa", "holds a SiT of reversed time; the layout 'repa' is that of a SiT"),
        ("repa", "sit", "holds a SiT; the layout 'sit' is that of a SiT of reversed time"),
        ("reg", "repa", "holds a ClassStreamSiT; the layout 'repa' is that of a SiT"),
    ],
)
def test_an_export_in_another_layout_is_refused(tmp_path, held, layout, message):
    with pytest.raises(UserError, match=f"{message}."):
        interop.export_weights(bring(tmp_path, held)[1], tmp_path / "out.pt", layout=layout)
    assert not (tmp_path / "out.pt").exists()


def test_the_command(tmp_path):
    from support.runs import ROOT, environment

    def run(*command):
        options = dict(cwd=ROOT, env=environment(), capture_output=True, text=True)
        return subprocess.run([sys.executable, *command], **options)

    source = write(tmp_path / "in.pt", made("dit"))
    tool, files = "tools/import_weights.py", (str(source), str(tmp_path / "ours.pth"))
    options = ("--num-heads", str(HEADS), "--vae", "bundled")
    done = run(tool, "--format", "dit", *files, *options)
    assert done.returncode == 0, done.stderr
    printed = re.search(r"sample from it: python (\S+ \S+)", done.stdout)[1].split()
    done = run(*printed, "--num", "2", "--steps", "2", "--out", str(tmp_path / "a.png"))
    assert done.returncode == 0 and Path(tmp_path / "a.png").exists(), done.stderr
    wrong = run(tool, "--format", "siit", *files, *options)
    assert wrong.returncode == 2 and "did you mean 'sit'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
