"""Options of a run that cross several parts: parameter schedulers, user's hooks, compile, and the
classes of --data."""

import pytest
from support.runs import assert_same_state, call, final_state, scalars, stable, train

WARM_UP = "param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6)"


def test_a_schedulers_learning_rate_goes_on_after_a_resume(tmp_path):
    train(tmp_path / "whole", iters=8, options=[WARM_UP])
    rates = [record["lr"] for record in scalars(tmp_path / "whole")]
    steps = [min(0.1 + 0.9 * step / 5, 1) for step in range(8)]  # the first step has the tenth
    assert rates == pytest.approx([2e-3 * step for step in steps])
    train(tmp_path / "parts", iters=8, options=[WARM_UP])
    for path in sorted((tmp_path / "parts" / "checkpoints").iterdir())[1:]:
        path.unlink()
    train(tmp_path / "parts", "--resume", iters=8, options=[WARM_UP])
    assert stable(tmp_path / "parts") == stable(tmp_path / "whole")
    assert_same_state(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))


def test_data_brings_its_number_of_classes(shared, tmp_path):
    """The sample of ImageNet has 1,000 classes, the demo's backbone ten: it is changed, and the
    log says so."""
    done = train(tmp_path, "--data", str(shared / "data" / "imagenet256-sample.zip"), iters=2)
    assert "model.backbone.num_classes is 1000 instead of 10" in done.stdout
    assert final_state(tmp_path)["ema"]["y_embedder.embedding_table.weight"].shape[0] == 1001
    assert "1000 images, 1000 classes" in done.stdout


def test_classes_that_do_not_fit_are_refused_where_nobody_asked_for_a_change(shared, tmp_path):
    zipped = shared / "data" / "imagenet256-sample.zip"
    dataset = f"train_dataloader.dataset=dict(type='ImageFolder', root='{zipped}')"
    done = train(tmp_path, check=False, iters=2, options=[dataset])
    assert done.returncode == 2 and "num_classes=1000" in done.stderr


def test_a_hook_is_switched_off_by_none(tmp_path):
    train(tmp_path, iters=2, options=["hooks.samples=None", "hooks.policy=None"])
    assert not (tmp_path / "samples").exists() and not (tmp_path / "policy").exists()


def test_tensorboard_when_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    train(tmp_path, iters=2)
    assert list((tmp_path / "logs").rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_compiled_blocks_train_alike(tmp_path):
    train(tmp_path / "eager", iters=4)
    train(tmp_path / "compiled", iters=4, options=["compile=True"])
    for a, b in zip(scalars(tmp_path / "eager"), scalars(tmp_path / "compiled"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
    keys = [final_state(tmp_path / name)["model"].keys() for name in ("eager", "compiled")]
    assert keys[0] == keys[1], "compiling must not change the checkpoint's keys"


def test_the_policy_is_a_table_of_weights(tmp_path):
    train(tmp_path, iters=2, config="configs/ahpa_sit-b_router-content.py")
    (path,) = (tmp_path / "policy").glob("*.csv")
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    assert len(rows) == 101 and header[:3] == ["t", "beta_mid", "beta_deep"]
    for row in rows:
        values = dict(zip(header, map(float, row), strict=True))
        assert values["beta_mid"] + values["beta_deep"] == pytest.approx(1, abs=1e-4)
        for group in ("mid", "deep"):
            alphas = [v for name, v in values.items() if name.startswith(f"alpha_{group}")]
            assert sum(alphas) == pytest.approx(1, abs=1e-4)
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_a_run_can_be_started_again_from_its_own_config(tmp_path):
    train(tmp_path / "first", iters=3)
    config = (tmp_path / "first" / "config.json").read_text()
    assert "save_dir" not in config, "what a visualiser writes belongs to its own run"
    done = call("train", tmp_path / "first" / "config.json", "--work-dir", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert stable(tmp_path / "again") == stable(tmp_path / "first")
