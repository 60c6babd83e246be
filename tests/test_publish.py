"""Published runs: the folder samples as the run does, by path and by hub id; what would execute code is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.hub import serving
from support.runs import ROOT, environment, train

from ahpa.engine import checkpoint
from ahpa.engine.inference import Generator
from ahpa.engine.shared import refuse_code
from ahpa.interop.publish import last_figures, publish
from ahpa.registry import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("run")
    train(work_dir, iters=3)
    return work_dir


def tool(name, *arguments, **extra):
    return subprocess.run([sys.executable, f"tools/{name}.py", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          env=environment(**extra), timeout=300)  # fmt: skip


@pytest.fixture(scope="module")
def folder(run):
    done = tool(
        "publish", run, run / "out" / "my-run", "--license", "apache-2.0", "--figure", "FID-50K 99.5 (Euler, 50)"
    )
    assert done.returncode == 0, done.stderr
    return run / "out" / "my-run"


def test_the_folder_holds_the_average_the_config_and_a_card(run, folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
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
    for word in ("license: apache-2.0", "FID-50K 99.5 (Euler, 50)", "MLPRouter(", "3 iterations (12 images seen in batches "
                 "of 4)", "AdamW(lr=0.002", f"| loss | {loss:.6g} |", "VAETaps()", "ShapesDataset("):  # fmt: skip
        assert word in card, word


def test_it_samples_as_the_run_does(run, folder):
    wanted = Generator.load(run).sample([1, 2, 3], steps=3, cfg_scale=2.0)
    assert torch.equal(Generator.load(folder).sample([1, 2, 3], steps=3, cfg_scale=2.0), wanted)
    with pytest.raises(UserError, match="'ema' weights only"):
        Generator.load(folder, weights="model")
    publish(run, folder.parent / "raw", weights="model")
    raw = Generator.load(run, weights="model").sample([1, 2], steps=3)
    assert torch.equal(Generator.load(folder.parent / "raw", weights="model").sample([1, 2], steps=3), raw)


def test_by_hub_id_over_http_once_then_offline(run, folder, tmp_path):
    (tmp_path / "hub" / "someone").mkdir(parents=True)
    os.symlink(folder, tmp_path / "hub" / "someone" / "my-run")
    with serving(tmp_path / "hub") as (endpoint, asked):
        web = dict(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "cache"), NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        common = ("someone/my-run", "--num", 2, "--steps", 2, "--out")
        done = tool("sample", *common, tmp_path / "a.png", HF_HUB_OFFLINE="0", **web)
        assert done.returncode == 0, done.stderr
        fetched = [path.rsplit("/", 1)[1] for method, path in asked if method == "GET" and "/resolve/" in path]
        assert fetched == ["config.json", "model.safetensors"]
        asked.clear()
        done = tool("sample", *common, tmp_path / "b.png", **web)
        assert done.returncode == 0 and not asked, done.stderr
        done = tool("sample", "someone/else", "--num", 1, "--out", tmp_path / "c.png", HF_HUB_OFFLINE="0", **web)
    assert done.returncode == 2 and "someone/else" in done.stderr and "Traceback" not in done.stderr
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
    return target


@pytest.mark.parametrize(
    "change, place",
    [
        (lambda c: c.update(custom_imports=dict(imports=["evil"])), "custom_imports"),
        (lambda c: c["training"].update(custom_imports=dict(imports=["evil"])), "training.custom_imports"),
        (lambda c: c["model"]["backbone"].update(type="os.system"), "model.backbone.type"),
        (lambda c: c["model"]["tokenizer"].update(trust_remote_code=True), "model.tokenizer.trust_remote_code"),
        (lambda c: c.update(extra=[1, dict(type="evil:run")]), r"extra\[1\].type"),
    ],
)
def test_a_config_that_would_execute_code_is_refused(folder, tmp_path, monkeypatch, change, place):
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('executed').write_text('')")
    bad = changed(folder, tmp_path / "bad", change)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{place} .*would execute code"):
        Generator.load(bad)
    assert not (tmp_path / "executed").exists()


def test_a_component_that_is_not_installed_or_a_damaged_file_is_told(folder, tmp_path):
    with pytest.raises(UserError, match="TheirBackbone"):
        Generator.load(changed(folder, tmp_path / "a", lambda c: c["model"]["backbone"].update(type="TheirBackbone")))
    with pytest.raises(UserError, match="format 'ahpa-9'"):
        Generator.load(changed(folder, tmp_path / "b", lambda c: c.update(format="ahpa-9")))
    for number, (change, word) in enumerate([
        (lambda c: c.pop("weights"), "'weights'"), (lambda c: c.pop("model"), "model.resolution"),
        (lambda c: c["model"].pop("backbone"), "model.backbone"), (lambda c: c.update(model=[]), "model.resolution")]):  # fmt: skip
        with pytest.raises(UserError, match=f"lacks .*{word}"):
            Generator.load(changed(folder, tmp_path / f"lacking{number}", change))
    cut = changed(folder, tmp_path / "c", lambda c: None)
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        Generator.load(cut)
    (cut / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        Generator.load(cut)
    with pytest.raises(UserError, match="do not fit"):
        Generator.load(changed(folder, tmp_path / "d", lambda c: c["model"]["backbone"].update(depth=3)))


def test_what_cannot_be_published_is_told_and_nothing_is_written(run, folder, tmp_path):
    done = tool("publish", run, folder)
    assert done.returncode == 2 and "is there already" in done.stderr
    done = tool("publish", tmp_path / "nothing", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_the_log_of_a_killed_run(run, tmp_path):
    """Its last line may be half written: the one before counts."""
    log = (run / "scalars.json").read_text()
    (tmp_path / "scalars.json").write_text(log + '{"iteration": 3, "lo')
    assert last_figures(tmp_path, 3) == json.loads(log.splitlines()[-1])
    assert last_figures(tmp_path, 1)["iteration"] == 1 and last_figures(tmp_path / "none", 3) == {}


def test_an_imported_checkpoint_and_one_with_own_components(run, tmp_path):
    saved = checkpoint.load(run)
    model = saved["meta"]["config"]["model"]
    checkpoint.save_imported(model, saved["ema"], tmp_path / "imported.pth", layout="repa")
    assert publish(tmp_path / "imported.pth", tmp_path / "a") == []
    assert "from a checkpoint of the layout 'repa'" in (tmp_path / "a" / "README.md").read_text()
    saved["meta"]["config"]["custom_imports"] = dict(imports=["their_package"])
    model["alignments"]["main"]["router"] = dict(type="TheirRouter")  # which is not there when it is published
    checkpoint.save({key: value for key, value in saved.items() if key != "format"}, tmp_path / "own.pth")
    notes = publish(tmp_path / "own.pth", tmp_path / "b", vae=str(ROOT / "ahpa" / "assets" / "tiny_vae"))
    assert "model.tokenizer.source" in notes[0] and "path of this machine" in notes[0] and "--vae" in notes[1]
    assert "their_package" in notes[2]
    assert "their_package" in (tmp_path / "b" / "README.md").read_text()
    assert Generator.load(tmp_path / "b").sample([1], steps=2).shape == (1, 3, 64, 64)
    refuse_code(json.loads((tmp_path / "b" / "config.json").read_text()), "b")
