"""DiT from training to samples: the tools, the guided channels, and mistakes at the command
line."""

import pytest
import torch
from PIL import Image
from support.runs import sample, tool, train

from ahpa.engine.inference import load_generator
from ahpa.registry import HOOKS, ConfigError, build


def test_the_hook_says_its_guidance_and_refuses_mistakes():
    hook = build(HOOKS, dict(type="SampleGrids", cfg_channels=3, cfg_scale=1.5))
    wanted = " --cfg-scale 1.5 --cfg-interval 0.0 1.0 --cfg-channels 3"
    assert hook.guidance_options() == wanted
    assert "channels" not in build(HOOKS, dict(type="SampleGrids")).guidance_options()
    hook = build(HOOKS, dict(type="SampleGrids", cls_cfg_scale=2.3))
    assert hook.guidance_options().endswith(" --cls-cfg-scale 2.3")
    for option in ("cfg_channels", "cls_cfg_scale"):
        with pytest.raises(ConfigError, match=option):
            build(HOOKS, {"type": "SampleGrids", option: -1})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    done = train(folder, iters=3, config="configs/dit-b.py")
    assert "--cfg-channels 3" in done.stdout, "the printed command guides as the grids are guided"
    return folder


CAPTIONS = 4 * 6 + 8  # pixels of "moon" and "tree", the names of classes 3 and 7


@pytest.mark.parametrize(
    "sampler",
    [(), ("--sampler", "ddpm"), ("--sampler", "ddim", "--cfg-channels", 3)],
    ids=str,
)
def test_samples_from_a_checkpoint(run, tmp_path, sampler):
    out = tmp_path / "grid.png"
    wanted = ("--num", 4, "--classes", 3, 7, "--steps", 3, "--cfg-scale", 1.5)
    sample(run, *wanted, *sampler, "--out", out)
    assert Image.open(out).size == (CAPTIONS + 2 * 66 + 2, 2 * 66 + 2)


def test_the_command_itself(run, tmp_path):
    out = tmp_path / "grid.png"
    done = tool("sample", run, "--num", 4, "--classes", 3, 7, "--steps", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size == (CAPTIONS + 2 * 66 + 2, 2 * 66 + 2)


def test_ddpm_and_ddim_and_the_guided_channels_differ(run):
    generator = load_generator(run)
    torch.manual_seed(0)
    with torch.no_grad():  # three steps of training leave the classes alike: separate them
        generator.backbone.y_embedder.embedding_table.weight.normal_(std=3)
        for p in generator.backbone.final_layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    options = dict(steps=5, cfg_scale=4.0)
    images = {
        (sampler, channels): generator.sample(
            [1, 2], sampler=sampler, cfg_channels=channels, **options
        )
        for sampler in ("ddpm", "ddim")
        for channels in (None, 1, 4)
    }
    for sampler in ("ddpm", "ddim"):
        assert torch.equal(images[sampler, None], images[sampler, 4])
        assert not torch.equal(images[sampler, None], images[sampler, 1])
    assert not torch.equal(images["ddpm", None], images["ddim", None])
    default = generator.sample([1, 2], **options)
    assert torch.equal(images["ddpm", None], default), "ddpm is the default"


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("--sampler", "euler"), ["'euler' does not fit the DiscreteFlow", "ddim, ddpm"]),
        (("--steps", 1001), ["between 1 and 1000"]),
        (("--cfg-channels", 9, "--cfg-scale", 2), ["cfg_channels: 9"]),
        (("--cfg-scale", -1), ["cfg_scale"]),
        (("--cfg-scale", 2, "--cls-cfg-scale", 2.3), ["cls_cfg_scale: the backbone has no stream"]),
    ],
    ids=str,
)
def test_mistakes_at_the_command_line(run, arguments, messages):
    done = sample(run, "--num", 1, "--steps", 2, *arguments, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(message in done.stderr for message in messages), done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("hooks.samples.sampler=euler", "'euler' does not fit the DiscreteFlow"),
        ("hooks.samples.cfg_channels=9", "9 exceeds"),
        ("hooks.samples.cls_cfg_scale=2.3", "cls_cfg_scale: the backbone has no stream"),
        ("model.flow_loss.vlb_weight=-1", "vlb_weight"),
        ("model.backbone.learn_sigma=False", "learn_sigma=True"),
    ],
    ids=str,
)
def test_mistakes_in_the_config_end_a_run_at_its_start(tmp_path, option, message):
    done = train(tmp_path, check=False, iters=3, config="configs/dit-b.py", options=[option])
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert "iter 1/" not in done.stdout
