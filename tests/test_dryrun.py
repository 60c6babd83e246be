"""--dry-run: builds everything, one step on synthetic data, prints parameters, GMACs in both countings, the config."""

import subprocess
import sys

from support.runs import ROOT, environment


def test_it_prints_what_a_run_would_cost():
    done = subprocess.run(
        [sys.executable, "tools/train.py", "configs/ahpa_sit-b.py", "--vae", "bundled", "--dry-run", "--cfg-options",
         "model.backbone.depth=3"], capture_output=True, text=True, cwd=ROOT, env=environment())  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = done.stdout
    for word in ("backbone parameters", "router parameters", "projector parameters", "with attention's products",
                 "peak memory", "resolved config", "LinearPath", "loss_main_cosine", "block 3 <- vae"):  # fmt: skip
        assert word in out, word
    assert "1.33 M" in out, "the projector: a 3 x 3 convolution from 768 to 2 x 96 channels"


def test_the_dry_run_of_a_vanilla_config_in_its_demo():
    done = subprocess.run([sys.executable, "tools/train.py", "configs/sit-l.py", "--demo", "--dry-run"],
                          capture_output=True, text=True, cwd=ROOT, env=environment())  # fmt: skip
    assert done.returncode == 0 and "router" not in done.stdout.split("resolved config")[0]
