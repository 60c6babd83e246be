"""--dry-run: builds everything, computes one step on synthetic data, and prints parameters, GMACs
in both countings and the config."""

import pytest
from support.runs import ROOT, call


def test_it_prints_what_a_run_would_cost():
    config = ROOT / "configs" / "ahpa_sit-b.py"
    options = ["--vae", "bundled", "--dry-run", "--cfg-options", "model.backbone.depth=3"]
    done = call("train", config, *options)
    assert done.returncode == 0, done.stderr
    for word in (
        "backbone parameters",
        "router parameters",
        "projector parameters",
        "with attention's products",
        "peak memory",
        "resolved config",
        "LinearPath",
        "loss/main/cosine",
        "block 3 <- vae",
    ):
        assert word in done.stdout, word
    assert "1.33 M" in done.stdout, "the projector: a 3 x 3 convolution from 768 to 2 x 96 channels"


def test_the_dry_run_of_a_vanilla_config_in_its_demo():
    done = call("train", ROOT / "configs" / "sit-l.py", "--demo", "--dry-run")
    assert done.returncode == 0 and "router" not in done.stdout.split("resolved config")[0]


@pytest.mark.parametrize("name", ["ahpa_sit-b", "sit-l"])
def test_a_dry_run_writes_nothing(tmp_path, name):
    work = tmp_path / "work"
    options = ["--demo", "--dry-run", "--work-dir", work]
    done = call("train", ROOT / "configs" / f"{name}.py", *options)
    assert done.returncode == 0 and not work.exists()
