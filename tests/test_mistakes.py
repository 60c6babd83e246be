"""Config mistakes (R16): refused before data or weights are touched, naming the key and the nearest valid ones."""

import subprocess
import sys

import pytest
from support.runs import ROOT, environment
from test_configs import arguments

from ahpa import cli
from ahpa.registry import ConfigError, UserError

A = "model.alignments.main"
MISTAKES = {  # option -> what the message must hold
    "modle=1": ["'modle'", "model"],
    "model.backbone.depht=3": ["model.backbone", "'depht'", "depth"],
    "model.backbone.type=SIT": ["model.backbone.type", "SiT"],
    "model.bakcbone.depth=3": ["model", "'bakcbone'", "backbone"],
    f"{A}.tap=13": [A, "13", "12"],
    f"{A}.tap=0": [A, "0", "1"],
    f"{A}.weight=-1": [A, "-1"],
    f"{A}.source=vea": [f"{A}.source", "'vea'", "vae"],
    f"{A}.router.type=LutRouter": [f"{A}.router.type", "LUTRouter"],
    f"{A}.router.groups=5/20": [f"{A}.router", "5/20", "15"],
    f"{A}.router.groups=dict(mid=[7, 8], deep=[])": [f"{A}.router", "deep", "empty"],
    f"{A}.router.groups=dict(mid=[7, 99])": [f"{A}.router", "99"],
    f"{A}.router.groups=dict(mid=['down2.res9'])": [f"{A}.router", "down2.res9", "down2.res"],
    f"{A}.router.groups=dict(mid=[0, 14])": [f"{A}.router", "128", "512"],
    f"{A}.router.grid=4": [f"{A}.router", "derived"],
    f"{A}.router_grad=aux2": [A, "aux"],
    f"{A}.projector.kernel=2": [f"{A}.projector", "2"],
    f"{A}.criteria.cosine.type=CosinLoss": [f"{A}.criteria.cosine", "CosineLoss"],
    "model.backbone.num_heads=7": ["model.backbone", "7", "768"],
    "model.resolution=100": ["resolution", "100", "8"],
    "model.ema=2": ["model.ema", "2"],
    "model.conditioner.dropout=1.5": ["model.conditioner", "1.5"],
    "model.flow.path.type=CosPath": ["model.flow", "CosinePath"],
    "optim_wrapper.precision=bf32": ["precision", "bf32", "bf16"],
    "optim_wrapper.optimizer.type=AdamV": ["optim_wrapper.optimizer", "AdamW"],
    "optim_wrapper.optimizer.learning_rate=1": ["optim_wrapper.optimizer", "learning_rate", "lr"],
    "optim_wrapper.clip_grad=-1": ["optim_wrapper", "-1"],
    "train_cfg.max_iter=5": ["train_cfg", "max_iter", "max_iters"],
    "train_cfg.max_iters=0": ["train_cfg", "max_iters"],
    "train_dataloader.batch_size=5": ["train_dataloader", "batch_size", "global_batch_size"],
    "train_dataloader.global_batch_size=0": ["global_batch_size"],
    "train_dataloader.dataset.roots=5": ["train_dataloader.dataset", "roots", "root"],
    "hooks.samples.intervall=5": ["hooks.samples", "intervall", "interval"],
    "hooks.samples.sampler=eular": ["hooks.samples", "eular", "euler"],
    "hooks.policy.type=RoutingPolice": ["hooks.policy", "RoutingPolicy"],
    "randomness.sed=5": ["randomness", "sed", "seed"],
    "model.flow_loss=dict(type='HybridLoss')": ["flow_loss", "DiscreteFlow"],
    "model.backbone.learn_sigma=True": ["flow_loss", "learn_sigma", "HybridLoss"],
    "noequals": ["noequals", "KEY=VALUE"],
}


@pytest.mark.parametrize("option", MISTAKES)
def test_each_is_named_with_the_nearest(option):
    with pytest.raises(ConfigError) as caught:
        cli.training_config(arguments(ROOT / "configs" / "ahpa_sit-b.py", cfg_options=[option]))
    for part in MISTAKES[option]:
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"


def test_a_config_that_is_not_there():
    with pytest.raises(UserError, match="ahpa_sit-b.py"):
        cli.training_config(arguments(ROOT / "configs" / "ahpa_sit_b.py"))


def test_a_file_that_is_no_config(tmp_path):
    path = tmp_path / "broken.py"
    for text, message in (("a = (", "SyntaxError"), ("a = b", "NameError"), ("model = dict()", "train_dataloader")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            cli.training_config(arguments(path))


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_exit_code_2_before_anything_is_touched(tmp_path, dry):
    """The real command: exit 2, one message and no traceback, no work dir, diffusers never imported."""
    script = (
        "import sys; sys.argv = ['tools/train.py', *sys.argv[1:]]; sys.path.insert(0, 'tools'); import train\n"
        "code = train.main(); heavy = [m for m in ('diffusers', 'timm', 'open_clip') if m in sys.modules]\n"
        "print('imported', heavy); sys.exit(code)"
    )
    work = tmp_path / "work"
    done = subprocess.run(
        [sys.executable, "-c", script, "configs/ahpa_sit-b_router-lut.py", "--work-dir", str(work), *dry,
         "--cfg-options", "model.alignments.main.router.bin=5"],
        capture_output=True, text=True, cwd=ROOT, env=environment())  # fmt: skip
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("error: model.alignments.main.router: LUTRouter has no option 'bin'")
    )
    assert "Traceback" not in done.stderr and "bins" in done.stderr
    assert "imported []" in done.stdout and not work.exists()


def test_data_that_is_not_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "tools/train.py", "configs/ahpa_sit-b.py", "--data", str(tmp_path / "none"), "--vae", "bundled",
         "--work-dir", str(tmp_path / "work")],
        capture_output=True, text=True, cwd=ROOT, env=environment())  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr and "--demo" in done.stderr


def test_an_autoencoder_that_is_not_there(tmp_path):
    """Without network and cache: what was looked for, where, and what to do; never a silent fall-back (R19)."""
    for vae in ("stabilityai/sd-vae-ft-mse", str(tmp_path / "no_vae")):
        done = subprocess.run(
            [sys.executable, "tools/train.py", "configs/ahpa_sit-b.py", "--demo", "--vae", vae,
             "--work-dir", str(tmp_path / "work")],
            capture_output=True, text=True, cwd=ROOT, env=environment(HF_HOME=str(tmp_path / "hf")))  # fmt: skip
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert vae in done.stderr and "--vae" in done.stderr
