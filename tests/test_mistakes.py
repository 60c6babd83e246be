"""Config mistakes (R16): refused before data or weights are touched, naming the key and the nearest
valid ones."""

import subprocess
import sys

import pytest
from support.runs import ROOT, call, environment, tool
from test_configs import arguments

from ahpa.cli import train as cli
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
    f"{A}.router.geometry=4": [f"{A}.router", "follows from"],
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
    "model.alignments.a/b=dict(tap=1)": ["model.alignments.a/b", "slash"],
    "model.alignments.flow=dict(tap=1)": ["model.alignments.flow", "another name"],
    "model.priors=5": ["model.priors", "dict of names"],
    "checkpoints.interval=0": ["checkpoints.interval", "0"],
    "checkpoints.intervall=5": ["checkpoints", "intervall", "interval"],
    "hooks.checkpoints=dict(type='CheckpointHook', every=5)": ["hooks.checkpoints", "every"],
    "optim_wrapper.accumulative_counts=0": ["accumulative_counts", "0"],
    "train_dataloader.dataset.resolution=64": ["train_dataloader.dataset", "follows from"],
    "noequals": ["noequals", "KEY=VALUE"],
}


@pytest.mark.parametrize("option", MISTAKES)
def test_each_is_named_with_the_nearest(option):
    with pytest.raises(ConfigError) as caught:
        cli.training_config(arguments(ROOT / "configs" / "ahpa_sit-b.py", cfg_options=[option]))
    for part in MISTAKES[option]:
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"


def test_a_config_that_is_not_there():
    with pytest.raises(UserError, match="did you mean 'ahpa_sit-b'"):
        cli.training_config(arguments(ROOT / "configs" / "ahpa_sit_b.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = (", "SyntaxError"),
        ("a = b", "NameError"),
        ("model = dict()", "train_dataloader"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        cli.training_config(arguments(path))


SCRIPT = """
import sys
from ahpa.cli import train
try:
    code = train.main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
names = ("diffusers", "timm", "open_clip", "mmengine.hooks", "torch.distributed.fsdp")
heavy = [name for name in names if name in sys.modules]
print("imported", heavy)
sys.exit(code)
"""


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_exit_code_2_before_anything_is_touched(tmp_path, dry):
    """The real command: exit 2, one message without a traceback, no work dir, and no library of
    weights imported."""
    work = tmp_path / "work"
    given = ["configs/ahpa_sit-b_router-lut.py", "--work-dir", str(work), *dry]
    option = ["--cfg-options", "model.alignments.main.router.bin=5"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *given, *option],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: model.alignments.main.router: LUTRouter has no option 'bin'")
    assert "Traceback" not in done.stderr and "bins" in done.stderr
    assert "imported []" in done.stdout and not work.exists()


SIT = ROOT / "configs" / "ahpa_sit-b.py"


def test_data_that_is_not_there(tmp_path):
    data = ["--data", tmp_path / "none", "--vae", "bundled", "--work-dir", tmp_path / "work"]
    done = call("train", SIT, *data)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr and "--demo" in done.stderr


@pytest.mark.parametrize("vae", ["stabilityai/sd-vae-ft-mse", "no_vae"])
def test_an_autoencoder_that_is_not_there(tmp_path, vae):
    """Without network and cache: what was looked for, where, and what to do; never a silent
    fall-back (R19)."""
    vae = vae if "/" in vae else str(tmp_path / vae)
    given = ["--demo", "--vae", vae, "--work-dir", tmp_path / "work"]
    done = tool("train", SIT, *given, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert vae in done.stderr and "--vae" in done.stderr
