"""Autoencoders by hub id, over HTTP: the real client against a server on this machine that speaks
the hub's protocol."""

import os
import subprocess

import pytest
from support.hub import serving
from support.runs import ROOT, command, environment, stable

from ahpa.tokenizers import sources

CONFIG = "configs/ahpa_sit-b_router-lut.py"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with the bundled autoencoder as `someone/a-vae`, and in the folder vae/ of
    `someone/a-pipeline`."""
    folder = tmp_path_factory.mktemp("hub")
    for place in ("someone/a-vae", "someone/a-pipeline/vae"):
        (folder / place).mkdir(parents=True)
        for path in sources.BUNDLED.iterdir():
            (folder / place / path.name).write_bytes(path.read_bytes())
    with serving(folder) as (endpoint, asked):
        yield endpoint, asked


def run(hub, cache, work_dir, *arguments, options=(), **extra):
    """Train two steps in a process that knows this hub alone, with an empty cache at first."""
    own = {"HF_ENDPOINT": hub[0], "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
    env = {**environment(), **own, **extra}
    if "HF_HUB_OFFLINE" not in extra:
        del env["HF_HUB_OFFLINE"]
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    env = {name: value for name, value in env.items() if name.lower() not in proxies}
    whole = command(work_dir, *arguments, config=CONFIG, iters=2, options=options)
    return subprocess.run(whole, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_hub_id_is_downloaded_once_and_trains_as_the_same_files_do(hub, tmp_path):
    cache, asked = tmp_path / "cache", hub[1]
    assert run(hub, cache, tmp_path / "bundled").returncode == 0
    asked.clear()
    first = run(hub, cache, tmp_path / "first", "--vae", "someone/a-vae")
    assert first.returncode == 0, first.stderr[-2000:]
    fetched = [path for method, path in asked if method == "GET" and "/resolve/" in path]
    assert [os.path.basename(path) for path in fetched] == ["config.json", sources.WEIGHTS[0]]
    assert stable(tmp_path / "first") == stable(tmp_path / "bundled")
    asked.clear()
    given = ("--vae", "someone/a-vae")
    again = run(hub, cache, tmp_path / "again", *given, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and not asked, (again.stderr[-2000:], asked)
    assert stable(tmp_path / "again") == stable(tmp_path / "bundled")


@pytest.mark.slow
def test_a_subfolder_of_a_hub_id(hub, tmp_path):
    pipeline = "dict(type='KLAutoencoder', source='someone/a-pipeline', subfolder='vae')"
    options = [f"model.tokenizer={pipeline}"]
    done = run(hub, tmp_path / "cache", tmp_path / "run", options=options)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["nobody/nothing", "someone/a-pipeline"])
def test_what_the_hub_says_is_told(hub, tmp_path, name):
    """There is no such repository; or the repository does not have the file."""
    done = run(hub, tmp_path / "cache", tmp_path / "run", "--vae", name)
    assert done.returncode == 2 and name in done.stderr, done.stderr
    assert "the hub said" in done.stderr and "--demo" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
