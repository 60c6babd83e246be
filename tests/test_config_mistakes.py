"""More than 300 mistakes in configs, config files and command lines: each is one line that names
the key, found before data or weights are touched. Beside them, what is unusual and legal."""

import copy
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from support.runs import ROOT, call, environment, train
from test_configs import ALL, arguments

from ahpa.cli import train as cli
from ahpa.engine import config as configs
from ahpa.engine.config_file import parse_value
from ahpa.registry import BACKBONES, ConfigError, UserError, build
from ahpa.registry.annotations import describe, fits
from ahpa.registry.registry import ComponentRegistry

SMALL = (  # of configs/ahpa_sit-b.py, so that a model is built in milliseconds
    "model.backbone.depth=4",
    "model.backbone.hidden_size=32",
    "model.backbone.num_heads=2",
    "model.resolution=64",
)
NAN, INF = math.nan, math.inf
B, M = "model.backbone", "model.alignments.main"
O, T, S = "optim_wrapper.optimizer", "train_dataloader", "hooks.samples"  # noqa: E741
NO_INTEGER = ("six", "", True, None, 2.5, [2], {}, NAN)
NO_COUNT = (*NO_INTEGER, 0, -1)
NO_NUMBER = ("fast", "", True, None, [0.1], {}, NAN, INF)
NO_BOOLEAN = ("perhaps", 1, 0, None, [True])
NO_TEXT = (5, True, None, ["a"], {})
NO_DICT = (5, "text", True, ["a"])

VALUES: dict[str, tuple[Any, ...]] = {  # key -> wrong values; each message must name the key
    f"{B}.depth": NO_COUNT,
    f"{B}.hidden_size": (*NO_COUNT, 33),
    f"{B}.num_heads": (*NO_COUNT, 5),
    f"{B}.patch_size": NO_COUNT,
    f"{B}.num_classes": NO_COUNT,
    f"{B}.mlp_ratio": (*NO_NUMBER, 0, -1),
    f"{B}.qk_norm": NO_BOOLEAN,
    f"{B}.reversed_time": NO_BOOLEAN,
    f"{B}.gradient_checkpointing": NO_BOOLEAN,
    f"{M}.tap": (*NO_COUNT, 5),
    f"{M}.source": (*NO_TEXT, "vea"),
    f"{M}.weight": ("heavy", True, None, [1], NAN, -1),
    f"{M}.router_grad": (*NO_TEXT, "tarket"),
    f"{M}.entropy_weight": (*NO_NUMBER, -1),
    f"{M}.router": NO_DICT,
    f"{M}.router.groups": (None, 0, -1, 2.5, True, {"deep": 5}),
    f"{M}.router.depth": NO_COUNT,
    f"{M}.router.resize": (*NO_TEXT, "bilinar"),
    f"{M}.projector": NO_DICT,
    f"{M}.projector.kernel": (*NO_COUNT, 2),
    f"{M}.criteria": NO_DICT,
    "model": (*NO_DICT, None),
    "model.backbone": (*NO_DICT, None, {}),
    "model.tokenizer": (*NO_DICT, None),
    "model.tokenizer.source": NO_TEXT,
    "model.tokenizer.precision": (*NO_TEXT, "bf61"),
    "model.tokenizer.scale": ("big", True, [1], NAN),
    "model.resolution": (*NO_COUNT[:3], *NO_COUNT[4:], 100),
    "model.ema": ("slow", True, NAN, 1, -0.1, [0.9]),
    "model.priors": NO_DICT,
    "model.alignments": NO_DICT,
    "model.streams": (*NO_DICT, {"cls": 5}),
    "model.conditioner.dropout": (*NO_NUMBER, -0.1, 1.1),
    "model.flow.path": (5, "linear", True),
    "model.flow.timesteps": (5, "uniform", True),
    "optim_wrapper": (*NO_DICT, None),
    O: (*NO_DICT, None, {}),
    f"{O}.lr": (*NO_NUMBER, -1),
    f"{O}.betas": (0.9, "fast", True, None, [0.9], [0.9, 0.99, 0.999], [0.9, "b"], [0.9, 1.5]),
    f"{O}.eps": (*NO_NUMBER, -1),
    f"{O}.weight_decay": (*NO_NUMBER, -1),
    f"{O}.amsgrad": NO_BOOLEAN,
    "optim_wrapper.precision": (*NO_TEXT, "bf61"),
    "optim_wrapper.clip_grad": ("hard", True, 0, -1, NAN, [1]),
    "optim_wrapper.accumulative_counts": NO_COUNT,
    "optim_wrapper.max_bad_steps": (*NO_COUNT, "x"),
    "train_cfg": (*NO_DICT, None),
    "train_cfg.max_iters": NO_COUNT,
    "train_cfg.log_interval": NO_COUNT,
    T: (*NO_DICT, None),
    f"{T}.global_batch_size": NO_COUNT,
    f"{T}.num_workers": (*NO_INTEGER, -1),
    f"{T}.dataset": (*NO_DICT, None),
    f"{T}.dataset.root": (*NO_TEXT, ""),
    f"{T}.dataset.flip": NO_BOOLEAN,
    f"{T}.dataset.seed": (*NO_INTEGER, -1),
    f"{T}.dataset.max_bad_share": (*NO_NUMBER, 2, -0.1),
    f"{T}.dataset.exact": NO_BOOLEAN,
    "checkpoints": NO_DICT,
    "checkpoints.interval": NO_COUNT,
    "checkpoints.keep": (*NO_COUNT, 1.5),
    "randomness": NO_DICT,
    "randomness.seed": (*NO_INTEGER, -1, 2**32),
    "randomness.deterministic": NO_BOOLEAN,
    "compile": NO_BOOLEAN,
    "launcher": (*NO_TEXT, "foo", "pytroch"),
    "work_dir": (5, True, "", ["a"]),
    "default_scope": (5, True, "", ["a"]),
    "custom_imports": NO_DICT,
    "demo": NO_DICT,
    "hooks": NO_DICT,
    S: NO_DICT,
    f"{S}.interval": NO_COUNT,
    f"{S}.rows": NO_COUNT,
    f"{S}.columns": NO_COUNT,
    f"{S}.steps": NO_COUNT,
    f"{S}.sampler": (5, True, ["a"], "eular", "ddpm"),
    f"{S}.seed": (*NO_INTEGER, -1),
    f"{S}.cfg_scale": (*NO_NUMBER, -1),
    f"{S}.cfg_interval": (0.5, "all", [0.5], [0.9, 0.1], [0, 2], [0, NAN]),
    f"{S}.cfg_channels": ("three", True, 2.5, 0, -1, 9, [3]),
    "hooks.policy.interval": NO_COUNT,
    "visualizer": NO_DICT,
    "visualizer.name": (5, True, ["a"]),
    "visualizer.vis_backends": (5, "tensorboard", [5], [{"type": "TensorbordVisBackend"}]),
    "param_scheduler": (5, "cosine", True, [5], {}),
}

SCHEDULES: dict[str, dict[str, Any]] = {  # what the message must hold -> a schedule
    "LinaerLR": dict(type="LinaerLR"),
    "T_max: must be a positive": dict(type="CosineAnnealingLR", T_max=-3, eta_min=0),
    "T_max: must be an integer": dict(type="CosineAnnealingLR", T_max=2.5, eta_min=0),
    "eta_min": dict(type="CosineAnnealingLR", T_max=10, eta_min=-1),
    "eta_min_ratio": dict(type="CosineAnnealingLR", T_max=9, eta_min=0, eta_min_ratio=0.1),
    "step_size'": dict(type="StepLR"),
    "step_size: ": dict(type="StepLR", step_size=0),
    "gamma'": dict(type="ExponentialLR"),
    "gamma: ": dict(type="ExponentialLR", gamma=-0.5),
    "milestones'": dict(type="MultiStepLR"),
    "milestones: must": dict(type="MultiStepLR", milestones="often"),
    "milestones: must be a pos": dict(type="MultiStepLR", milestones=[-5]),
    "periods: must": dict(type="CosineRestartLR", periods=[0], eta_min=0),
    "periods'": dict(type="CosineRestartLR", eta_min=0),
    "start_factor: must": dict(type="LinearLR", start_factor="low"),
    "start_factor": dict(type="LinearLR", start_factor=5.0),
    "begin: must": dict(type="LinearLR", begin=-1),
    "begin=9": dict(type="LinearLR", begin=9, end=5),
    "end: must": dict(type="LinearLR", end=True),
    "factor: must": dict(type="ConstantLR", factor=NAN),
    "power: must": dict(type="PolyLR", power=0),
    "400000 iterations": dict(type="OneCycleLR", eta_max=0.1, total_steps=10),
    "pct_start": dict(type="OneCycleLR", eta_max=0.1, total_steps=10**6, pct_start=2.0),
    "by_epoch": dict(type="LinearLR", by_epoch=True),
    "param_name": dict(type="LinearLR", param_name="lr"),
    "ReduceOnPlateauLR": dict(type="ReduceOnPlateauLR"),
    "no option 'warmup'": dict(type="LinearLR", warmup=5),
    "follows from": dict(type="LinearLR", optimizer=5),
}

NO_LENGTH: dict[str, dict[str, Any]] = {  # what the message must hold -> an endless schedule
    "end or T_max": dict(type="CosineAnnealingLR", eta_min=0),
    "end or total_steps": dict(type="OneCycleLR", eta_max=0.1),
    "LinearLR needs the option end": dict(type="LinearLR", start_factor=0.1),
    "ConstantLR needs the option end": dict(type="ConstantLR", factor=0.5),
    "PolyLR needs the option end": dict(type="PolyLR", begin=10),
}

OWN_HOOKS = {  # hooks of mmengine -> what does their work
    "CheckpointHook": "`checkpoints`",
    "EMAHook": "model.ema",
    "EarlyStoppingHook": "no validation",
    "LoggerHook": "train_cfg.log_interval",
    "ParamSchedulerHook": "`param_scheduler`",
}

COMMANDS = {  # what the message must hold -> a shipped config and its --cfg-options
    "a projector must be a dict": ("ahpa_sit-b", [f"{M}.projector=dict()"]),
    "an alignment must be a dict": ("ahpa_sit-b", [f"{M}=None"]),
    "an optimizer must be a name": ("ahpa_sit-b", [f"{O}.type=None"]),
    "with at least one, got ['CosineLoss']": ("ahpa_sit-b", [f"{M}.criteria=['CosineLoss']"]),
    "{share of the run: weight}": (
        "ahpa_sit-b",
        [f"{M}.weight=dict(type='StepSchedule',values={{0.5: 1}})"],
    ),
    "model.flow_loss: HybridLoss needs": (
        "ahpa_sit-b",
        ["model.flow_loss=dict(type='HybridLoss')"],
    ),
    "(none), got cls": ("ahpa_sit-b", ["model.streams=dict(cls=None)"]),
    "(cls), got none": ("reg_sit-b", ["model.streams=None"]),
    "99 is not a block of the encoder": ("haste_sit-b", ["model.priors.dino.attention=[99]"]),
    "criteria.distillation.heads: must be an integer in 1..12, got 13": (
        "haste_sit-b",
        ["model.alignments.attention.criteria.distillation.heads=13"],
    ),
    "criteria.distillation.heads: must be an integer in 1..6, got 12": (
        "haste_sit-b",
        ["model.backbone.num_heads=6", "model.alignments.attention.criteria.distillation.heads=12"],
    ),
    "lr: must be a finite number, got '1e-4x'": ("ahpa_sit-b", [f"{O}.lr=1e-4x"]),
    "sampler: must be the name of a sampler": (
        "ahpa_sit-b",
        [f"{S}.sampler=dict(type='euler')"],
    ),
    "hooks.policy.interval: must be": ("ahpa_sit-b", ["hooks.policy.interval=0"]),
    "WandbVisBackend has no option": (
        "ahpa_sit-b",
        ["visualizer=dict(type='RunVisualizer',vis_backends=[dict(type='WandbVisBackend',nme=1)])"],
    ),
    "param_scheduler[1]: a param scheduler": (
        "ahpa_sit-b",
        ["param_scheduler=[dict(type='LinearLR',end=10),5]"],
    ),
}

OBSERVED = {  # an unknown criterion, and what is said -> a shipped config and its alignment
    ("cosin", "did you mean 'cosine'? Valid: cosine"): ("ahpa_sit-b", "main"),
    ("router", "Valid: cosine."): ("ahpa_sit-b", "main"),
    ("main/cosine", "did you mean 'cosine'?"): ("ahpa_sit-b", "main"),
    ("distilation", "did you mean 'distillation'?"): ("haste_sit-b", "attention"),
    ("cosin", "did you mean 'cosine'?"): ("dupa_sit-b", "views"),
    ("regularizer", "did you mean 'regulariser'?"): ("dispersive_sit-b", "main"),
    ("adversarial", "did you mean"): ("sara_sit-b", "main"),
}

OPTIMISERS: dict[str, dict[str, Any]] = {  # what the message must hold -> an optimiser
    "did you mean 'Adam'": dict(type="AdamV"),
    "LBFGS cannot train": dict(type="LBFGS"),
    "SparseAdam": dict(type="SparseAdam"),
    "Optimizer": dict(type="Optimizer", defaults={}),
    "momentum": dict(type="SGD", lr=0.1, momentum=-1.0),
    "nesterov": dict(type="SGD", lr=0.1, nesterov=True),
    "fused": dict(type="AdamW", fused=True, foreach=True),
    "alpha": dict(type="RMSprop", alpha=-1.0),
    "step_sizes: must be a list of 2": dict(type="Rprop", step_sizes=[1e-6]),
    "params": dict(type="AdamW", params=[]),
}

FILES: dict[str, tuple[str, str | bytes, str]] = {  # name -> file, contents, what is said
    "its own base": ("own.py", '_base_ = "own.py"', "leads back to the config itself"),
    "a missing base": ("a.py", '_base_ = ["no.py"]', "_base_: there is no config"),
    "a missing shipped base": ("a.py", '_base_ = "ahpa::no.py"', "_base_: there is no config"),
    "a base that is a number": ("a.py", "_base_ = 5", "_base_: must be a path"),
    "a base that is a folder": ("a.py", '_base_ = "."', "this is a folder"),
    "a base that is no config": ("a.py", '_base_ = "a.txt"', "must end in .py"),
    "a base that is not closed": ("a.py", '_base_ = "open.py"', "open.py: line 2: SyntaxError"),
    "not closed": ("a.py", "a = 1\nb = (", "a.py: line 2: SyntaxError"),
    "indented": ("a.py", "a = 1\n  b = 2", "a.py: line 2: IndentationError|SyntaxError"),
    "an unknown name": ("a.py", "a = 1\nb = c", "a.py: line 2: NameError"),
    "a division by zero": ("a.py", "b = 1 / 0", "a.py: line 1: ZeroDivisionError"),
    "an assertion": ("a.py", "assert False, 'no'", "a.py: line 1: AssertionError: no"),
    "an error of its own": ("a.py", "raise RuntimeError('a\\nb')", "RuntimeError: a b"),
    "a missing module": (
        "a.py",
        "__import__('no_such')",
        "no_such",
    ),
    "an endless recursion": ("a.py", "def f(): return f()\nf()", "RecursionError"),
    "a wrong merge": ("a.py", '_base_ = "b.py"\nmodel = 5\nmodel.x = 1', "a.py"),
    "nothing": ("a.py", "", "needs the key 'model'"),
    "only model": ("a.py", "model = dict()", "needs the key 'train_dataloader'"),
    "binary": ("a.py", bytes(range(256)) * 8, "a.py: is not a config|SyntaxError"),
    "zeros": ("a.py", b"\0" * 100, "a.py: is not a config|SyntaxError"),
    "Latin-1": ("a.py", b"a = '\xe9'", "a.py: is not a config .UnicodeDecodeError"),
    "deep nesting": ("a.py", "a = " + "(" * 5000, "a.py"),
    "text": ("a.txt", "model", "must end in .py"),
    "no ending": ("a", "model", "must end in .py"),
    "broken JSON": ("a.json", '{"model": ', "a.json: is not a config .JSONDecodeError"),
    "a list in JSON": ("a.json", "[1, 2]", "a.json: must hold a dict of sections, got a list"),
    "a number in JSON": ("a.json", "5", "a.json: must hold a dict of sections, got a int"),
    "broken YAML": ("a.yaml", "a: [1", "a.yaml"),
    "imports that are no dict": ("a.py", "custom_imports = 5", "custom_imports: must be a dict"),
    "imports of numbers": ("a.py", "custom_imports = dict(imports=[5])", "custom_imports.imports"),
    "imports of nothing": (
        "a.py",
        "custom_imports = dict(imports=['no_such'])",
        "custom_imports: .*no_such",
    ),
    "an unknown import option": (
        "a.py",
        "custom_imports = dict(import_='os')",
        "custom_imports has no option 'import_'",
    ),
}

TRAIN = {  # what the message must hold -> command line after the config
    "--data: must not be empty": ["--data", ""],
    "--vae: must not be empty": ["--vae", ""],
    "--work-dir: must not be empty": ["--work-dir", ""],
    "train_cfg.max_iters": ["--max-iters", "0"],
    "train_cfg.max_iters: must": ["--max-iters", "-5"],
    "randomness.seed": ["--seed", "-1"],
    "no effect without --resume": ["--accept-changed-data", "--demo"],
    "KEY=VALUE": ["--cfg-options", "depth"],
    "'=5' is not": ["--cfg-options", "=5"],
    "the config has no 'modle'": ["--cfg-options", "modle.x=5"],
    "model has no option ''": ["--cfg-options", "model.=5"],
    "launcher: 'foo'": ["--cfg-options", "launcher=foo"],
    "custom_imports: .*no_such": ["--cfg-options", "custom_imports=dict(imports='no_such')"],
    "invalid choice: 'foo'": ["--launcher", "foo"],
    "invalid int value": ["--max-iters", "many"],
    "no config": ["--cfg-options", "model.ema=2", "no_such_config"],
}

SAMPLE = {  # what the message must hold -> command line after the checkpoint
    "--steps: must be a positive": ["--steps", "0"],
    "--steps: must be a positive int": ["--steps", "-5"],
    "--batch: must be a positive": ["--batch", "0"],
    "--num: must be a positive": ["--num", "0"],
    "--seed: must": ["--seed", "-1"],
    "--out: must not be empty": ["--out", ""],
    "--out: must end in": ["--out", "a.gif"],
    "--vae: must not be empty": ["--vae", ""],
    "--sampler: must not be empty": ["--sampler", ""],
    "--sampler.type": ["--sampler", "eular"],
    "--config: must not be empty": ["--config", ""],
    "cfg_scale": ["--cfg-scale", "nan"],
    "cfg_scale: must": ["--cfg-scale", "-1"],
    "cfg_interval": ["--cfg-interval", "0.9", "0.1"],
    "cfg_interval: must": ["--cfg-interval", "0", "2"],
    "cfg_channels": ["--cfg-channels", "0"],
    "invalid choice": ["--precision", "fp8"],
    "invalid int": ["--steps", "many"],
    "invalid float": ["--cfg-scale", "much"],
}


@pytest.fixture(scope="module")
def config():
    cfg = configs.load(ROOT / "configs" / "ahpa_sit-b.py", SMALL)
    cfg["model"]["tokenizer"]["statistics"] = None  # which replaces other factors
    return cfg


def refused(cfg, *words):
    """Check that a config is refused in one line that holds the words."""
    with pytest.raises(UserError) as caught:
        configs.check_config(cfg)
    message = str(caught.value)
    assert "\n" not in message, message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def changed(cfg, key, value):
    """A copy of a config with one value changed."""
    cfg = copy.deepcopy(cfg)
    *parents, last = key.split(".")
    place = cfg
    for part in parents:
        place = place[part]
    place[last] = value
    return cfg


WRONG = [(key, value) for key, values in VALUES.items() for value in values]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda part: str(part)[:40])
def test_a_wrong_value_is_named(config, key, value):
    place, _, option = key.rpartition(".")
    refused(changed(config, key, value), *place.split(".")[:1], option)


@pytest.mark.parametrize("words", SCHEDULES)
def test_a_wrong_schedule(config, words):
    refused(changed(config, "param_scheduler", SCHEDULES[words]), "param_scheduler[0]", words)


@pytest.mark.parametrize("words", NO_LENGTH)
def test_a_schedule_without_its_length(config, words):
    """mmengine would stretch it over a billion steps: the learning rate would stand still."""
    refused(changed(config, "param_scheduler", NO_LENGTH[words]), "param_scheduler[0]", words)


@pytest.mark.parametrize("kind", OWN_HOOKS)
def test_a_hook_whose_work_the_run_does_itself(config, kind):
    options = {"monitor": "loss"} if kind == "EarlyStoppingHook" else {}
    refused(changed(config, "hooks.own", dict(type=kind, **options)), "hooks.own", OWN_HOOKS[kind])


@pytest.mark.parametrize("words", COMMANDS)
def test_mistakes_as_they_are_typed(words):
    name, options = COMMANDS[words]
    with pytest.raises(UserError) as caught:
        cli.training_config(arguments(ROOT / "configs" / f"{name}.py", cfg_options=options))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "words"), OBSERVED)
def test_an_observed_criterion_that_there_is_not(name, words):
    """It was found in the first training step only."""
    file, alignment = OBSERVED[name, words]
    key = f"model.alignments.{alignment}.weight"
    given = f"{key}=dict(type='PlateauRelease',value=1,criterion='{name}')"
    with pytest.raises(ConfigError) as caught:
        cli.training_config(arguments(ROOT / "configs" / f"{file}.py", cfg_options=[given]))
    told = str(caught.value)
    assert told.startswith(f"{key}.criterion: ") and words in told and "\n" not in told, told


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine", {}),
        ("adversarial/fool", {"criteria": {"adversarial": {"type": "AdversarialLoss"}}}),
        ("router", {"router_grad": "aux"}),
        ("entropy", {"entropy_weight": 0.1}),
    ],
)
def test_an_observed_criterion(config, name, options):
    weight = {"type": "PlateauRelease", "value": 1, "criterion": name}
    cfg = copy.deepcopy(config)
    cfg["model"]["alignments"]["main"].update(weight=weight, **options)
    configs.check_config(cfg)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ShapesDataset", {"length": 0}, "length: must be a positive integer, got 0"),
        ("ShapesDataset", {"seed": -1}, "seed: must be a non-negative integer, got -1"),
        (
            "CocoCaptions",
            {"images": "none", "annotations": "none", "max_bad_share": 1.5},
            "max_bad_share: must be a finite number in [0, 1], got 1.5",
        ),
        ("FlatImages", {"root": "none", "max_bad_share": -1}, "max_bad_share: must be"),
    ],
)
def test_the_options_of_other_data_sets(config, kind, options, message):
    """They were looked at only when the data set was built."""
    wrong = changed(config, f"{T}.dataset", {"type": kind, **options})
    refused(wrong, f"{T}.dataset.{message}")


@pytest.mark.parametrize("words", OPTIMISERS)
def test_a_wrong_optimiser(config, words):
    refused(changed(config, O, OPTIMISERS[words]), O, words)


def test_a_batch_that_cannot_be_accumulated(config):
    refused(changed(config, "optim_wrapper.accumulative_counts", 3), "global_batch_size", "256")


@pytest.mark.parametrize("demo", [False, True], ids=["", "demo"])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file(tmp_path, name, demo):
    file, contents, message = FILES[name]
    (tmp_path / "open.py").write_text("a = 1\nb = (")
    (tmp_path / "b.py").write_text("model = dict()")
    (tmp_path / "a.txt").write_text("model")
    path = tmp_path / file
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(UserError, match=message) as caught:
        cli.training_config(arguments(path, demo=demo))
    told = str(caught.value)
    for searched in sys.path:  # a message may list where modules are looked for
        told = told.replace(searched, "")
    assert "\n" not in told and "/tmp/tmp" not in told  # mmengine's copy of the config


@pytest.mark.parametrize("length", [2, 3])
def test_bases_in_a_circle(tmp_path, length):
    for number in range(length):
        base = f"{(number + 1) % length}.py"
        (tmp_path / f"{number}.py").write_text(f"_base_ = {base!r}\na{number} = 1")
    with pytest.raises(ConfigError, match="leads back to the config itself"):
        configs.load(tmp_path / "0.py")


def test_a_base_may_be_reached_twice(tmp_path):
    """Two bases with a base in common are no circle; mmengine refuses only keys of both."""
    (tmp_path / "root.py").write_text("")
    for name in ("left", "right"):
        (tmp_path / f"{name}.py").write_text(f'_base_ = "root.py"\n{name} = 1')
    (tmp_path / "own.py").write_text('_base_ = ["left.py", "right.py"]')
    assert configs.load(tmp_path / "own.py") == {"left": 1, "right": 1}


@pytest.mark.parametrize("where", ["a folder", "/dev/null"])
def test_a_config_that_is_no_file(tmp_path, where):
    path = tmp_path if where == "a folder" else where
    with pytest.raises(ConfigError, match="a config file is expected, this is"):
        configs.load(path)


@pytest.mark.parametrize("section", ["model", "model.backbone", T, "optim_wrapper", O, "hooks"])
@pytest.mark.parametrize("given", [{"demo": True}, {"data": "x"}, {"vae": "x"}], ids=str)
def test_commands_look_at_the_file_before_they_change_it(tmp_path, config, section, given):
    """--demo, --data and --vae change sections that a file may have got wrong."""
    wrong = changed(config, section, 5)
    path = tmp_path / "a.py"
    path.write_text("\n".join(f"{key} = {value!r}" for key, value in wrong.items()))
    with pytest.raises(ConfigError, match=f"{section}: must be a dict, got 5"):
        cli.training_config(arguments(path, **given))


# ---- the commands ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[dict(type='A', b=[1, dict(c=2)]), 5]", [{"type": "A", "b": [1, {"c": 2}]}, 5]),
        ("{1: dict(type='A')}", {1: {"type": "A"}}),
        ("(1, dict(a=2))", (1, {"a": 2})),
        ("dict(type=A)", {"type": "A"}),
        ("[a, b]", "[a, b]"),
        ("[f(1)]", "[f(1)]"),
        ("{**x}", "{**x}"),
    ],
    ids=str,
)
def test_a_value_of_the_command_line(text, value):
    assert parse_value(text) == value


def one_line(done, message):
    """Check that a command ended with code 2, and that its last line holds the message."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "error: " in last and re.search(message, last), last


@pytest.mark.parametrize("message", TRAIN)
def test_the_command_line_of_train(tmp_path, message):
    *given, last = TRAIN[message]
    if message == "no config":
        return one_line(call("train", last, *given), message)
    one_line(call("train", ROOT / "configs" / "ahpa_sit-b.py", *given, last), message)


@pytest.mark.parametrize("message", SAMPLE)
def test_the_command_line_of_sample(tmp_path, message):
    """The checkpoint does not exist: the option is refused before anybody looks for it."""
    one_line(call("sample", tmp_path / "none.pth", *SAMPLE[message]), message)


def test_what_only_the_checkpoint_can_tell(tmp_path):
    """The latent has 4 channels, and this flow provides a velocity: told before the first batch."""
    train(tmp_path, iters=1, options=["hooks.samples=None"])
    out = ["--demo", "--out", tmp_path / "out.png"]
    one_line(call("sample", tmp_path, *out, "--cfg-channels", "9"), "cfg_channels: 9 exceeds")
    one_line(call("sample", tmp_path, *out, "--sampler", "ddpm"), "'ddpm' does not fit the")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("deltafm_sit-b", ["train_dataloader.global_batch_size=1"], "raise train_dataloader"),
        ("dispersive_sit-b", [f"{M}.regulariser.pool=3"], "DispersiveLoss.pool: the micro-batch"),
    ],
)
def test_what_only_a_batch_can_tell(tmp_path, config, options, message):
    given = ["hooks.samples=None", *options]
    done = train(tmp_path, config=f"configs/{config}.py", iters=1, options=given, check=False)
    one_line(done, message)


@pytest.mark.parametrize(
    ("tool", "given", "message"),
    [
        ("train", ["configs/ahpa_sit-b.py", "--cfg-options", f"{B}.depth=six"], f"{B}.depth"),
        ("train", ["configs/ahpa_sit-b.py", "--cfg-options", f"{S}.cfg_channels=9"], "at most 4"),
        pytest.param("train", ["configs", "--demo"], "this is a folder", marks=pytest.mark.slow),
        ("sample", ["none.pth", "--batch", "0"], "--batch"),
    ],
)
def test_the_real_commands(tmp_path, tool, given, message):
    whole = [sys.executable, f"tools/{tool}.py", *given]
    done = subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line


# ---- what is legal --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_shipped_configs_pass(path):
    """All but the model, which test_configs.py builds at full size."""
    cfg = configs.load(path)
    configs.check_keys(cfg)
    configs.check_data(cfg)
    configs.check_training(cfg)
    configs.check_visualizer(cfg.get("visualizer"))
    for name, part in cfg["hooks"].items():
        build(configs.HOOKS, part, where=f"hooks.{name}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{B}.mlp_ratio", 4),
        (f"{M}.weight", 1),
        (f"{M}.weight", {"type": "EarlyStop", "value": 1, "until_step": 0}),
        (f"{M}.router.groups", 1),
        (f"{M}.router.groups", {"deep": (12, "down3.res0")}),
        (f"{M}.criteria", None),
        ("model.ema", 0),
        ("model.conditioner.dropout", 0),
        ("model.flow.path", None),
        ("model.tokenizer.mean", (0, 0.5, 1, -1)),
        (f"{O}.betas", [0.0, 0.999]),
        (f"{O}.lr", 1),
        (f"{O}.foreach", None),
        (O, {"type": "SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("optim_wrapper.clip_grad", None),
        ("optim_wrapper.clip_grad", 1),
        (f"{S}.cfg_interval", [0, 1]),
        (f"{S}.cfg_channels", 4),
        (f"{S}.cfg_scale", 1),
        (S, None),
        ("hooks", None),
        ("checkpoints", None),
        ("randomness", None),
        ("randomness.seed", 2**32 - 1),
        ("visualizer", None),
        ("visualizer.vis_backends", [{"type": "TensorboardVisBackend"}]),
        ("param_scheduler", None),
        ("param_scheduler", []),
        ("param_scheduler", {"type": "LinearLR", "start_factor": 1e-3, "end": 1000}),
        ("param_scheduler", {"type": "CosineAnnealingLR", "T_max": 10, "eta_min": 0}),
        ("param_scheduler", ({"type": "OneCycleLR", "eta_max": 1e-3, "total_steps": 400_000},)),
        ("param_scheduler", {"type": "CosineRestartLR", "periods": [400_000], "eta_min": 0}),
        ("launcher", "slurm"),
        ("work_dir", "somewhere"),
        ("compile", True),
    ],
    ids=lambda part: str(part)[:40],
)
def test_what_is_unusual_and_legal(config, key, value):
    configs.check_config(changed(config, key, value))


def test_the_numbers_of_cases():
    tables = (WRONG, SCHEDULES, OBSERVED, OPTIMISERS, FILES, TRAIN, SAMPLE)
    assert sum(map(len, tables)) >= 300


# ---- components of other packages -----------------------------------------------------------

THINGS = ComponentRegistry("thing", scope="ahpa", locations=[])


@THINGS.register_module()
class Unchecked:
    """A component whose constructor checks nothing, with annotations as text."""

    def __init__(
        self,
        *,
        count: "int" = 1,
        mode: "Literal['mean', 'max'] | None" = None,
        later: "OnlyForTypeCheckers" = None,  # noqa: F821
        free=2.0,
        bug: bool = False,
    ) -> None:
        self.scaled = [0] * count + [free * 0.5]
        if bug:
            len(5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": "three"}, r"here\.count: must be an integer, got 'three'\.$"),
        ({"count": True}, r"here\.count: must be an integer, got True\.$"),
        ({"mode": "maks"}, r"here\.mode: 'maks' is unknown; did you mean 'max'"),
        ({"mode": 5}, r"here\.mode: 5 is unknown"),
        ({"free": "much"}, r"here: Unchecked refuses its options \(free\): can't multiply"),
        ({"bug": 1}, r"here\.bug: must be True or False, got 1\.$"),
    ],
    ids=str,
)
def test_a_constructor_that_checks_nothing(options, message):
    with pytest.raises(ConfigError, match=message):
        build(THINGS, {"type": "Unchecked", **options}, where="here")


@pytest.mark.parametrize("options", [{}, {"count": 2}, {"mode": "max"}, {"mode": None}], ids=str)
def test_a_bug_in_a_component_keeps_its_traceback(options):
    build(THINGS, {"type": "Unchecked", "later": object(), **options})
    with pytest.raises(TypeError, match="object of type 'int' has no len") as caught:
        build(THINGS, {"type": "Unchecked", "bug": True, **options})
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize(
    ("value", "annotation", "fit"),
    [
        (1, float, True),
        (1.0, int, False),
        (True, float, False),
        (False, int, False),
        (1, bool, False),
        (NAN, float, False),
        (INF, float, False),
        (NAN, float | None, False),
        (None, float | None, True),
        ("ab", Sequence[str], False),
        (["a", "b"], Sequence[str], True),
        (("a", 1), Sequence[str], False),
        ([], Sequence[int], True),
        ([1, 2], tuple[int, int], True),
        ([1, 2, 3], tuple[int, int], False),
        ([1, 2, 3], tuple[int, ...], True),
        ([1, True], list[int], False),
        ({"a": 1}, Mapping[str, float], True),
        ({"a": "b"}, Mapping[str, float], False),
        ({1: 2}, Mapping[str, float], False),
        ({"a": [1, "b"]}, dict[str, Sequence[int | str]], True),
        ([], dict, False),
        (1, Literal[1, 2], True),
        (True, Literal[1, 2], False),
        ("x", Annotated[int, "anything"], True),
        pytest.param(object(), Any, True, id="object-Any"),
        ("cpu", type, False),
    ],
    ids=str,
)
def test_values_and_annotations(value, annotation, fit):
    assert fits(value, annotation) is fit
    assert describe(annotation)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int | None, "an integer or None"),
        (Sequence[float] | None, "a list of finite numbers or None"),
        (tuple[float, float], "a list of 2 (a finite number, a finite number)"),
        (Mapping[str, Any] | str, "a dict or text"),
        (Mapping[float, float], "a dict (a finite number to a finite number)"),
        (Sequence[Sequence[int]], "a list of parts, each a list of integers"),
        (Literal["a", "b"], "'a' or 'b'"),
    ],
    ids=str,
)
def test_annotations_in_words(annotation, words):
    assert describe(annotation) == words


def test_every_option_of_ours_has_an_annotation():
    """An option without one would not be checked."""
    for name in BACKBONES.names():
        for parameter in list(inspect.signature(BACKBONES.get(name)).parameters.values()):
            assert parameter.annotation is not parameter.empty, f"{name}.{parameter.name}"
