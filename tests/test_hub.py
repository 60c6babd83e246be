"""Autoencoders by hub id, over HTTP: the real client against a server on this machine that speaks the hub's protocol."""

import json
import os
import subprocess
import sys

import pytest
from support.hub import serving
from support.runs import ROOT, TINY, environment

from ahpa.priors import sources


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with the bundled autoencoder as `someone/a-vae`, once at the top and once in a pipeline's vae/."""
    folder = tmp_path_factory.mktemp("hub")
    for place in ("someone/a-vae", "someone/a-pipeline/vae"):
        (folder / place).mkdir(parents=True)
        for path in sources.BUNDLED.iterdir():
            (folder / place / path.name).write_bytes(path.read_bytes())
    with serving(folder) as (endpoint, asked):
        yield endpoint, asked


def run(hub, cache, *arguments, options=(), **extra):
    env = {**environment(), "HF_ENDPOINT": hub[0], "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", **extra}
    if "HF_HUB_OFFLINE" not in extra:
        del env["HF_HUB_OFFLINE"]
    for name in [name for name in env if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
        del env[name]
    command = [sys.executable, "tools/train.py", "configs/ahpa_sit-b_router-lut.py", "--demo", "--max-iters", "2",
               *arguments, "--cfg-options", *TINY, *options]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def last_losses(folder):
    lines = [json.loads(line) for line in (folder / "scalars.json").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "loss" in key} for line in lines]


def test_a_hub_id_is_downloaded_once_and_trains_as_the_same_files_do(hub, tmp_path):
    cache, asked = tmp_path / "cache", hub[1]
    assert run(hub, cache, "--work-dir", str(tmp_path / "bundled")).returncode == 0
    asked.clear()
    first = run(hub, cache, "--vae", "someone/a-vae", "--work-dir", str(tmp_path / "first"))
    assert first.returncode == 0, first.stderr[-2000:]
    fetched = [path for method, path in asked if method == "GET" and "/resolve/" in path]
    assert [os.path.basename(path) for path in fetched] == ["config.json", sources.WEIGHTS[0]]
    assert last_losses(tmp_path / "first") == last_losses(tmp_path / "bundled")
    asked.clear()
    again = run(hub, cache, "--vae", "someone/a-vae", "--work-dir", str(tmp_path / "again"), HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and not asked, (again.stderr[-2000:], asked)
    assert last_losses(tmp_path / "again") == last_losses(tmp_path / "bundled")


def test_a_subfolder_of_a_hub_id(hub, tmp_path):
    options = ["model.tokenizer=dict(type='KLAutoencoder', source='someone/a-pipeline', subfolder='vae')"]
    done = run(hub, tmp_path / "cache", "--work-dir", str(tmp_path / "run"), options=options)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_the_hub_says_is_told(hub, tmp_path):
    for name in ("nobody/nothing", "someone/a-pipeline"):  # no such repository; a repository without that file
        done = run(hub, tmp_path / "cache", "--vae", name, "--work-dir", str(tmp_path / "run"))
        assert done.returncode == 2 and name in done.stderr and "the hub said" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and "--demo" in done.stderr
        assert not (tmp_path / "run").exists()
