"""An official run goes on here: weights, average, heads and the optimiser's moments carry over, and
the next step is the official one."""

import argparse
import json

import pytest
import torch
from support.layouts import CLS, DEPTH, HEADS, HIDDEN, SIDE, TEXT, TEXT_DEPTH, WIDTH, C, official
from support.models import VIT
from support.runs import call

from ahpa.engine import checkpoint
from ahpa.engine.assembly import build_model
from ahpa.engine.optimiser import build_optimizer
from ahpa.interop.continued import import_run
from ahpa.interop.layouts import FORMATS
from ahpa.interop.published import export_weights
from ahpa.registry import UserError
from ahpa.registry.contracts import TextCond, Tokens

STEPS = 3
LR = 1e-2
BUNDLED = dict(type="KLAutoencoder", source="bundled")
SIZES = dict(depth=DEPTH, hidden_size=WIDTH, num_heads=HEADS, num_classes=10)
PATCHES = dict(type="StaticRouter", groups=dict(patch=["patch"]))
TOKENS = torch.randn(2, 16, 32 * TEXT_DEPTH, generator=torch.Generator().manual_seed(7))


def alignment(source, router, **projector):
    return {"main": dict(tap=2, source=source, router=router, projector=projector, weight=0.5)}


def model_of(layout):
    """The model section that continues a layout of support.layouts."""
    model = dict(resolution=64, tokenizer=BUNDLED, backbone=dict(type="SiT", **SIZES), ema=0.99)
    mlp = dict(type="MLPProjector", depth=3, hidden_dim=HIDDEN)
    if layout == "sit":
        model["backbone"]["reversed_time"] = True
    if layout in ("dit", "sra-dit"):
        model["backbone"]["type"] = "DiT"
        model |= dict(flow=dict(type="DiscreteFlow"), flow_loss=dict(type="HybridLoss"))
    if layout in ("repa", "irepa", "reg", "repa-t2i"):
        head = dict(type="ConvProjector") if layout == "irepa" else mlp
        model["priors"] = dict(vit=dict(VIT))
        model["alignments"] = alignment("vit", dict(PATCHES), **head)
    if layout in ("sra", "sra-dit"):
        head = dict(type="MLPProjector", depth=2, hidden_dim=2 * WIDTH)
        offset = dict(steps=200) if layout == "sra-dit" else dict(offset=0.2)
        model["priors"] = dict(ema=dict(type="TeacherPrior", block=3, **offset))
        router = dict(type="StaticRouter", groups=dict(teacher=["teacher"]))
        model["alignments"] = alignment("ema", router, **head)
    if layout == "reg":
        model["backbone"] = dict(type="ClassStreamSiT", class_width=CLS, **SIZES)
        model["streams"] = dict(cls=dict(source="vit", level="cls"))
    if layout == "repa-t2i":
        width, heads = 32 * TEXT_DEPTH, TEXT_DEPTH
        model["backbone"] = dict(
            type="MMDiT", depth=TEXT_DEPTH, hidden_size=width, num_heads=heads, text_dim=TEXT
        )
        encoder = dict(type="WordEncoder", width=TEXT, length=6)
        model["conditioner"] = dict(type="TextConditioner", encoder=encoder)
    return model


def config_of(layout, **more):
    return dict(
        model=model_of(layout),
        train_dataloader=dict(
            dataset=dict(type="ShapesDataset", length=40), global_batch_size=4, num_workers=0
        ),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=LR, weight_decay=0.0), clip_grad=1.0),
        train_cfg=dict(max_iters=STEPS + 2, log_interval=1),
        **more,
    )


def inputs(layout, step):
    stream = torch.Generator().manual_seed(step)
    x = {"image": torch.randn(2, C, SIDE, SIDE, generator=stream)}
    t, cond = torch.rand(2, generator=stream), torch.tensor([1, 10])
    if layout == "reg":
        x["cls"] = torch.randn(2, CLS, generator=stream)
    if layout == "repa-t2i":
        cond = TextCond(torch.randn(2, 5, TEXT, generator=stream))
    return x, t, cond


def official_loss(layout, net, step):
    """A loss that reaches every trained tensor of an official network."""
    x, t, cond = inputs(layout, step)
    embedded = {"sit": 1 - t}.get(layout, (t * 1000).round() if "dit" in layout else t)
    cond = cond.tokens if layout == "repa-t2i" else cond
    out = net(x["image"], embedded, cond, *([x["cls"]] if layout == "reg" else []))
    image, *cls = out if isinstance(out, tuple) else (out,)
    image = -image[:, :C] if layout == "sit" else image
    loss = (image - 1).square().mean() + sum((part - 1).square().mean() for part in cls)
    tokens = TOKENS[..., : 32 * TEXT_DEPTH if layout == "repa-t2i" else WIDTH]
    if layout in ("sra", "sra-dit"):
        head = net.ap_head
        projected = head.linear2(torch.nn.functional.silu(head.linear1(tokens)))
    elif layout == "irepa":
        grid = tokens.mT.unflatten(2, (4, 4))
        projected = net.projectors[0].projection_layer(grid).flatten(2).mT
    elif layout in ("repa", "reg", "repa-t2i"):
        projected = net.projectors[0](tokens)
    else:
        return loss
    return loss + (projected - 1).square().mean()


def our_loss(layout, net, step):
    """The same with our parts."""
    x, t, cond = inputs(layout, step)
    pred = net.backbone(x, t, cond).pred
    loss = sum((part - 1).square().mean() for part in pred.values())
    for module in net.alignments.values():
        tokens = TOKENS[..., : net.geometry.width]
        projected = module.projector(Tokens(tokens, 0, (4, 4)))
        loss = loss + (projected - 1).square().mean()
    return loss


def train_official(layout, net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        official_loss(layout, net, step).backward()
        optimizer.step()


def official_run(path, layout, **entries):
    """Train an official network for three steps and save as its program does."""
    net = official(layout)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0)
    train_official(layout, net, optimizer, range(STEPS))
    ema = official(layout, seed=3)
    saved = dict(model=net.state_dict(), ema=ema.state_dict(), opt=optimizer.state_dict())
    args = argparse.Namespace(model="x", learning_rate=LR, encoder_depth=2)
    torch.save({**saved, "args": args, "steps": STEPS, **entries}, path)
    return net, optimizer


@pytest.mark.parametrize("layout", FORMATS)
def test_the_next_step_is_the_official_one(tmp_path, layout):
    net, optimizer = official_run(tmp_path / "run.pt", layout)
    cfg = config_of(layout)
    done = import_run(
        tmp_path / "run.pt", tmp_path / "work", layout=layout, cfg=cfg, num_heads=HEADS
    )
    assert done["iteration"] == STEPS
    scaled = [note for note in done["notes"] if "latents were scaled by" in note]
    assert done["notes"] == scaled and len(scaled) == (layout == "irepa")  # this config has none
    saved = checkpoint.load(tmp_path / "work")
    assert saved["data"] == {"iteration": STEPS, "consumed": STEPS * 4}

    ours = build_model(cfg["model"])
    ours.load_state_dict(saved["model"])
    own = build_optimizer(cfg["optim_wrapper"]["optimizer"], ours)
    own.load_state_dict(saved["optimizer"]["optimizer"])
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    our_loss(layout, ours, STEPS).backward()
    own.step()
    train_official(layout, net, optimizer, [STEPS])
    trained = {name: p for name, p in ours.named_parameters() if p.grad is not None}
    assert len(trained) == len(before) and any((p != before[n]).any() for n, p in trained.items())

    # what our parts hold after the step is what the official network holds after it
    saved["model"] = ours.state_dict()
    del saved["meta"]["imported"]
    checkpoint.save(saved, tmp_path / "next.pth")
    export_weights(tmp_path / "next.pth", tmp_path / "next.pt", layout=layout)
    after = torch.load(tmp_path / "next.pt", weights_only=True)["model"]
    wanted = net.state_dict()
    if layout == "sit":
        for kind in ("weight", "bias"):
            key = f"final_layer.linear.{kind}"
            wanted[key] = wanted[key].unflatten(0, (4, 2 * C))[:, :C].flatten(0, 1)
    assert after.keys() == wanted.keys()
    for key, value in wanted.items():
        got = after[key]
        if key.endswith("attn.qkv.bias"):  # softmax ignores the keys' bias: its gradient is noise
            q, k = value.shape[0] // 3, 2 * value.shape[0] // 3
            got, value = (torch.cat([x[:q], x[k:]]) for x in (got, value))
        torch.testing.assert_close(got, value, rtol=1e-4, atol=2e-5, msg=key)


def test_the_average_and_its_heads_come_in_and_go_out(tmp_path):
    official_run(tmp_path / "run.pt", "repa")
    options = dict(layout="repa", cfg=config_of("repa"), num_heads=HEADS)
    import_run(tmp_path / "run.pt", tmp_path / "w", **options)
    export_weights(tmp_path / "w", tmp_path / "back.pt", layout="repa")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    given = torch.load(tmp_path / "run.pt", weights_only=False)
    for kind in ("ema", "model"):
        assert back[kind].keys() == given[kind].keys()
        assert all(torch.equal(back[kind][key], given[kind][key]) for key in given[kind])


@pytest.mark.parametrize("layout", ["repa", "sra-dit"])
def test_the_command_and_a_run_that_goes_on(tmp_path, layout):
    official_run(tmp_path / "run.pt", layout)
    config, work = tmp_path / "config.json", tmp_path / "work"
    config.write_text(json.dumps(config_of(layout)))
    options = ("--format", layout, "--config", config, "--num-heads", HEADS)
    done = call("import-weights", *options, tmp_path / "run.pt", work)
    assert done.returncode == 0, done.stderr
    assert f"--work-dir {work} --resume" in done.stdout
    done = call("train", config, "--work-dir", work, "--resume")
    assert done.returncode == 0, done.stderr
    log = (work / "train.log").read_text()
    assert f"resumed from {work}/checkpoints/iter_000000003.pth at iteration 3" in log
    assert "changed since" not in log
    saved, first = checkpoint.load(work), checkpoint.load(work / "checkpoints/iter_000000003.pth")
    assert saved["meta"]["iteration"] == STEPS + 2
    assert not torch.equal(
        saved["model"]["alignments.main.projector.mlp.0.weight"],
        first["model"]["alignments.main.projector.mlp.0.weight"],
    )
    done = call("import-weights", "--format", layout, "--export", work, tmp_path / "back.pt")
    assert done.returncode == 0 and "note" not in done.stdout, done.stderr + done.stdout
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back["steps"] == STEPS + 2
    for kind in ("ema", "model"):
        official(layout).load_state_dict(back[kind], strict=True)
    again = call(
        "import-weights", "--format", layout, "--config", config, tmp_path / "run.pt", work
    )
    assert again.returncode == 2 and "holds a run already" in again.stderr


@pytest.mark.parametrize("option", [("--export",), ("--weights", "ema")], ids=" ".join)
def test_options_without_a_meaning_beside_a_config_are_refused(tmp_path, option):
    arguments = ("--format", "repa", "--config", "repa_sit-b", *option)
    done = call("import-weights", *arguments, tmp_path / "a.pt", tmp_path / "b")
    assert done.returncode == 2 and f"--config: {option[0]} has no effect" in done.stderr


def refused(tmp_path, message, layout="repa", *, model=None, **entries):
    official_run(tmp_path / "run.pt", layout, **entries)
    cfg = config_of(layout)
    cfg["model"] |= model or {}
    options = dict(layout=layout, cfg=cfg, num_heads=HEADS)
    with pytest.raises(UserError, match=message):
        import_run(tmp_path / "run.pt", tmp_path / "work", **options)
    assert not (tmp_path / "work").exists()


def sized(**options):
    return dict(backbone=dict(type="SiT", **SIZES | options))


def headed(**projector):
    return dict(alignments=alignment("vit", dict(PATCHES), **projector))


OTHER_MODELS = {
    "head": ("repa", headed(type="ConvProjector"), "main.projector: .*no head for it"),
    "width of a head": (
        "repa",
        headed(type="MLPProjector", depth=3, hidden_dim=2 * HIDDEN),
        r"projectors.0.0.weight has the shape \(24, 48\); the config's .* has \(48, 48\)",
    ),
    "attention heads": ("repa", sized(num_heads=2), "num_heads is 2 in the config, but 4"),
    "depth": ("repa", sized(depth=2), "only the file's backbone has blocks.2"),
    "time": ("sit", sized(), "reversed_time is False in the config, but True"),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_config_of_another_model_is_refused(tmp_path, name):
    layout, model, message = OTHER_MODELS[name]
    refused(tmp_path, message, layout, model=model)


def test_a_damaged_optimiser_is_refused_and_a_missing_one_is_told(tmp_path):
    for opt, message in [
        ({"state": {}, "param_groups": [{"params": [0, 1]}]}, "2 parameters, but the model has"),
        ({"state": {}}, "not an Adam's state"),
    ]:
        refused(tmp_path, message, opt=opt)
    official_run(tmp_path / "run.pt", "repa", opt=None, args=argparse.Namespace(encoder_depth=1))
    done = import_run(
        tmp_path / "run.pt", tmp_path / "w", layout="repa", cfg=config_of("repa"), num_heads=HEADS
    )
    assert "without the optimiser's moments" in done["notes"][0]
    assert "encoder_depth was 1 there; the config has 2" in done["notes"]
    assert checkpoint.load(tmp_path / "w")["optimizer"]["optimizer"]["state"] == {}


@pytest.mark.parametrize("option", ["--vae", None])
def test_a_continued_run_keeps_its_normalisation_and_tells_another(tmp_path, option):
    """--vae changes the autoencoder, not how the latents were scaled."""
    official_run(tmp_path / "run.pt", "irepa")
    config, work = tmp_path / "config.json", tmp_path / "work"
    cfg = config_of("irepa")
    if option:
        cfg["model"]["tokenizer"] = {**cfg["model"]["tokenizer"], "statistics": "sd-imagenet"}
    config.write_text(json.dumps(cfg))
    options = ("--format", "irepa", "--config", config, "--num-heads", HEADS)
    more = ("--vae", "bundled") if option else ()
    done = call("import-weights", *options, *more, tmp_path / "run.pt", work)
    assert done.returncode == 0, done.stderr
    tokenizer = checkpoint.load(work)["meta"]["config"]["model"]["tokenizer"]
    assert tokenizer.get("statistics") == ("sd-imagenet" if option else None)
    told = "latents were scaled by statistics='sd-imagenet' there; the config has the autoencoder's"
    assert (told in done.stdout) == (option is None)
