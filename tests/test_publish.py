"""Published runs: the folder samples as the run does, by path and by Hub id; configs that would
execute code are refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.hub import serving
from support.runs import ROOT, call, environment, train

from ahpa.engine import checkpoint
from ahpa.engine.inference import load_generator
from ahpa.engine.weights import refuse_code, write_sums
from ahpa.interop.publish import last_figures, publish
from ahpa.registry import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("run")
    train(work_dir, iters=3)
    return work_dir


def tool(name, *arguments, **extra):
    command = [sys.executable, f"tools/{name}.py", *map(str, arguments)]
    options = dict(capture_output=True, text=True, cwd=ROOT, timeout=300)
    return subprocess.run(command, env=environment(**extra), **options)


@pytest.fixture(scope="module")
def folder(run):
    target = run / "out" / "my-run"
    card = ("--license", "apache-2.0", "--figure", "FID-50K 99.5 (Euler, 50)")
    done = call("publish", run, target, *card)
    assert done.returncode == 0, done.stderr
    return target


def test_the_folder_holds_the_average_the_config_and_a_card(run, folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
        "samples.png",
    ]
    saved, state = checkpoint.load(run), load_file(folder / "model.safetensors")
    assert state.keys() == saved["ema"].keys()
    assert all(torch.equal(state[key], saved["ema"][key]) for key in state)
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == saved["meta"]["config"]["model"] and config["iteration"] == 3
    assert config["training"]["optim_wrapper"] == saved["meta"]["config"]["optim_wrapper"]
    assert str(run) not in (folder / "config.json").read_text()
    card = (folder / "README.md").read_text()
    loss = json.loads((run / "scalars.json").read_text().splitlines()[-1])["loss"]
    words = (
        "license: apache-2.0",
        "FID-50K 99.5 (Euler, 50)",
        "MLPRouter(",
        "3 iterations (12 images seen in batches of 4)",
        "optimiser: AdamW(",
        "lr=0.002",
        f"| loss | {loss:.6g} |",
        "VAETaps()",
        "ShapesDataset(",
    )
    assert [word for word in words if word not in card] == []


def test_it_samples_as_the_run_does(run, folder):
    options = dict(steps=3, cfg_scale=2.0)
    wanted = load_generator(run).sample([1, 2, 3], **options)
    assert torch.equal(load_generator(folder).sample([1, 2, 3], **options), wanted)
    with pytest.raises(UserError, match="only holds the 'ema' weights"):
        load_generator(folder, weights="model")
    publish(run, folder.parent / "raw", weights="model")
    wanted, raw = (
        load_generator(source, weights="model").sample([1, 2], steps=3)
        for source in (run, folder.parent / "raw")
    )
    assert torch.equal(raw, wanted)


@pytest.mark.slow
def test_by_hub_id_over_http_once_then_offline(run, folder, tmp_path):
    (tmp_path / "hub" / "someone").mkdir(parents=True)
    os.symlink(folder, tmp_path / "hub" / "someone" / "my-run")
    with serving(tmp_path / "hub") as (endpoint, asked):
        local = dict(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        web = dict(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "cache"), **local)
        common = ("someone/my-run", "--num", 2, "--steps", 2, "--out")
        done = tool("sample", *common, tmp_path / "a.png", HF_HUB_OFFLINE="0", **web)
        assert done.returncode == 0, done.stderr
        got = [path for method, path in asked if method == "GET" and "/resolve/" in path]
        names = ["config.json", "model.safetensors", "SHA256SUMS"]
        assert [path.rsplit("/", 1)[1] for path in got] == names
        asked.clear()
        done = tool("sample", *common, tmp_path / "b.png", **web)
        assert done.returncode == 0 and not asked, done.stderr
        other = ("someone/else", "--num", 1, "--out", tmp_path / "c.png")
        done = tool("sample", *other, HF_HUB_OFFLINE="0", **web)
    assert done.returncode == 2 and "someone/else" in done.stderr
    assert "Traceback" not in done.stderr
    done = tool("sample", run, "--num", 2, "--steps", 2, "--out", tmp_path / "own.png")
    assert done.returncode == 0, done.stderr
    pictures = {(tmp_path / name).read_bytes() for name in ("a.png", "b.png", "own.png")}
    assert len(pictures) == 1 and not (tmp_path / "c.png").exists()


def changed(folder, target, change):
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    write_sums(target, ["config.json", "model.safetensors"])
    return target


EVIL = dict(custom_imports=dict(imports=["evil"]))


@pytest.mark.parametrize(
    "change, place",
    [
        (lambda c: c.update(EVIL), "custom_imports"),
        (lambda c: c["training"].update(EVIL), "training.custom_imports"),
        (lambda c: c["model"]["backbone"].update(type="os.system"), "model.backbone.type"),
        (
            lambda c: c["model"]["tokenizer"].update(trust_remote_code=True),
            "model.tokenizer.trust_remote_code",
        ),
        (lambda c: c.update(extra=[1, dict(type="evil:run")]), r"extra\[1\].type"),
    ],
)
def test_a_config_that_would_execute_code_is_refused(folder, tmp_path, monkeypatch, change, place):
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('executed').write_text('')")
    bad = changed(folder, tmp_path / "bad", change)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{place} .*would execute code"):
        load_generator(bad)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["model"]["backbone"].update(type="TheirBackbone"), "TheirBackbone"),
        (lambda c: c.update(format="ahpa-9"), "format 'ahpa-9'"),
        (lambda c: c.pop("weights"), "lacks .*'weights'"),
        (lambda c: c.pop("model"), "lacks .*model.resolution"),
        (lambda c: c["model"].pop("backbone"), "lacks .*model.backbone"),
        (lambda c: c.update(model=[]), "lacks .*model.resolution"),
        (lambda c: c["model"]["backbone"].update(depth=3), "do not fit"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(folder, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_generator(changed(folder, tmp_path / "changed", change))


def test_damaged_files_are_refused(folder, tmp_path):
    cut = changed(folder, tmp_path / "cut", lambda config: None)
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_generator(cut)
    (cut / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_generator(cut)


def test_what_cannot_be_published_is_refused_and_nothing_is_written(run, folder, tmp_path):
    done = call("publish", run, folder)
    assert done.returncode == 2 and "exists already" in done.stderr
    done = call("publish", tmp_path / "nothing", tmp_path / "out")
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


def test_the_log_of_a_killed_run(run, tmp_path):
    """Its last line may be half written: the one before counts."""
    log = (run / "scalars.json").read_text()
    (tmp_path / "scalars.json").write_text(log + '{"iteration": 3, "lo')
    assert last_figures(tmp_path, 3) == json.loads(log.splitlines()[-1])
    assert last_figures(tmp_path, 1)["iteration"] == 1
    assert last_figures(tmp_path / "none", 3) == {}


def test_an_imported_checkpoint_and_one_with_own_components(run, tmp_path):
    saved = checkpoint.load(run)
    model = saved["meta"]["config"]["model"]
    checkpoint.save_imported(model, saved["ema"], tmp_path / "imported.pth", layout="repa")
    assert publish(tmp_path / "imported.pth", tmp_path / "a") == []
    assert "from a checkpoint of the layout 'repa'" in (tmp_path / "a" / "README.md").read_text()
    saved["meta"]["config"]["custom_imports"] = dict(imports=["their_package"])
    # a router that is not installed when it is published
    model["alignments"]["main"]["router"] = dict(type="TheirRouter")
    content = {key: value for key, value in saved.items() if key != "format"}
    checkpoint.save(content, tmp_path / "own.pth")
    vae = str(ROOT / "ahpa" / "assets" / "tiny_vae")
    notes = publish(tmp_path / "own.pth", tmp_path / "b", vae=vae)
    assert "model.tokenizer.source" in notes[0] and "path of this machine" in notes[0]
    assert "--vae" in notes[1] and "their_package" in notes[2]
    assert "their_package" in (tmp_path / "b" / "README.md").read_text()
    assert load_generator(tmp_path / "b").sample([1], steps=2).shape == (1, 3, 64, 64)
    refuse_code(json.loads((tmp_path / "b" / "config.json").read_text()), "b")
