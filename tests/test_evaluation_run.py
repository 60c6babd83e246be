"""`ahpa evaluate` and evaluation during training, on a tiny real run."""

import json
import os
import re

import numpy as np
import pytest
import scipy.linalg
import torch
from support.runs import assert_same_state, call, final_state, scalars, stable, train

from ahpa.analysis.evaluation_hook import Evaluation
from ahpa.analysis.protocols import load_protocol
from ahpa.cli.evaluate import parse, wanted_metrics
from ahpa.data.shapes import ShapesDataset
from ahpa.engine import checkpoint
from ahpa.engine.weights import sha256
from ahpa.evaluation.extractors import build_extractor
from ahpa.evaluation.protocol import UNKNOWN, load_result
from ahpa.registry import ConfigError, UserError

SMALL = ("--count", 10, "--tile", 4, "--steps", 2, "--metrics", "fd:tiny-vit")
TRAIN = ("--reference", "train", "--reference-count", 40)
HOOK = [
    "hooks.evaluation={'type': 'Evaluation'}",
    "hooks.evaluation.interval=3",
    "hooks.evaluation.metrics=['fd:tiny-vit']",
    "hooks.evaluation.weights=['ema','model']",
    "hooks.evaluation.count=6",
    "hooks.evaluation.reference_count=12",
    "hooks.evaluation.steps=2",
    "hooks.evaluation.tile=4",
    "checkpoints.keep=1",
]
FIGURE = "eval/ema/fd:tiny-vit"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with evaluations and without."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "with", iters=7, options=HOOK)
    train(folder / "without", iters=7)
    return folder


# ---- during training --------------------------------------------------------------------------


def test_an_evaluation_leaves_the_training_as_it_is(runs):
    plain = [
        {key: value for key, value in record.items() if not key.startswith("eval/")}
        for record in stable(runs / "with")
    ]
    assert plain == stable(runs / "without")
    keys = ("model", "ema", "optimizer", "data", "rng")
    assert_same_state(final_state(runs / "with"), final_state(runs / "without"), keys)


def test_the_figures_stand_in_the_log_and_in_results(runs):
    found = {r["iteration"]: r[FIGURE] for r in scalars(runs / "with") if FIGURE in r}
    assert sorted(found) == [3, 6, 7]
    assert all("eval/model/fd:tiny-vit" in r for r in scalars(runs / "with") if FIGURE in r)
    results = {}
    for path in (runs / "with" / "evaluations").glob("*.json"):
        result = load_result(path)
        results[result.protocol["iteration"], result.protocol["weights"]] = result
    assert len(results) == 6
    for iteration, value in found.items():
        result = results[iteration, "ema"]
        assert result.figures == {"fd:tiny-vit": value}
        assert result.provenance["training_seed"] == 0 and result.protocol["images"] == 6
        assert result.provenance["method"] == "ahpa_sit-b"
        assert result.protocol["reference"]["images"] == 12


def test_the_best_checkpoint_is_kept_beside_those_that_are_pruned(runs):
    found = {r["iteration"]: r[FIGURE] for r in scalars(runs / "with") if FIGURE in r}
    best = min(found, key=found.get)
    folder = runs / "with" / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {"best.pth", "iter_000000007.pth"}
    state = checkpoint.load(folder / "best.pth")
    assert state["meta"]["iteration"] == best
    own = {"figure": "fd:tiny-vit", "value": found[best], "iteration": best}
    assert final_state(runs / "with")["hooks"]["evaluation"] == own
    assert f"best checkpoint so far: iteration {best}" in (runs / "with/train.log").read_text()


def test_a_resumed_run_is_the_same_to_the_bit(runs, tmp_path):
    train(tmp_path, iters=4, options=[*HOOK, "checkpoints.keep=3"])
    os.unlink(tmp_path / "checkpoints" / "iter_000000004.pth")  # as if killed before it,
    os.unlink(tmp_path / "checkpoints" / "best.pth")  # and between the two files of iteration 3
    train(tmp_path, "--resume", iters=7, options=HOOK)
    assert stable(tmp_path) == stable(runs / "with")
    assert_same_state(final_state(tmp_path), final_state(runs / "with"))
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"best.pth", "iter_000000007.pth"}
    ours, theirs = (
        checkpoint.load(folder / "checkpoints" / "best.pth")["meta"]["iteration"]
        for folder in (tmp_path, runs / "with")
    )
    assert ours == theirs


def test_an_evaluation_that_fails_is_a_warning(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = [*HOOK, "hooks.evaluation.metrics=['fd:dinov2-l']"]
    train(tmp_path, iters=3, options=options)
    log = (tmp_path / "train.log").read_text()
    assert re.search("evaluation left out: .*dinov2.* The run goes on", log)
    assert scalars(tmp_path)[-1]["loss"] == scalars(runs / "without")[2]["loss"]
    assert not (tmp_path / "checkpoints" / "best.pth").exists()


class Told:
    """What the hook tells its run."""

    rank = 0

    def __init__(self):
        self.kept = []
        self.logger = self

    def keep_checkpoint(self, name):
        self.kept.append(name)

    def info(self, *arguments):
        pass


@pytest.mark.parametrize(
    ("metrics", "values", "best"),
    [
        (["fd:tiny-vit"], [5.0, 4.0, float("nan"), 4.0, 3.0, 9.0], [0, 1, 4]),
        (["is"], [5.0, 4.0, float("nan"), 6.0, 6.0, 3.0], [0, 3]),
    ],
)
def test_the_best_is_the_lowest_or_the_highest_as_the_metric_says(metrics, values, best):
    hook, told, found = Evaluation(metrics=metrics), Told(), []
    for number, value in enumerate(values):
        before = len(told.kept)
        hook.compare(told, value, number)
        found += [number] * (len(told.kept) - before)
        again = Evaluation(metrics=metrics)
        again.load_state_dict(hook.state_dict())
        hook = again
    assert found == best


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(metrics=["fdd"]), "fdd"),
        (dict(metrics=[]), "metrics"),
        (dict(metrics=["fd:tiny-vit"], best="fid"), "best"),
        (dict(weights=["emma"]), "ema"),
        (dict(count=0), "count"),
        (dict(interval=0), "interval"),
    ],
    ids=str,
)
def test_mistakes_in_the_hooks_options(options, message):
    with pytest.raises(ConfigError, match=message):
        Evaluation(**options)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("hooks.evaluation.cfg_channels=99", "hooks.evaluation.cfg_channels"),
        ("hooks.evaluation.sampler=ddpm", "hooks.evaluation.*does not fit"),
        ("train_cfg.log_interval=2", "multiple of train_cfg.log_interval .2."),
    ],
)
def test_options_that_do_not_fit_the_run(tmp_path, option, message):
    done = train(tmp_path, iters=4, options=[*HOOK, option], check=False)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr


# ---- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(runs, tmp_path_factory):
    """The run evaluated once -> (result, the archive of its samples)."""
    folder = tmp_path_factory.mktemp("evaluated")
    done = evaluate(
        *(runs / "without", *TRAIN, *SMALL, "--protocol", "demo", "--seed", 3),
        *("--out", folder / "result.json", "--save", folder / "samples.npz"),
    )
    return load_result(folder / "result.json"), folder / "samples.npz", done.stdout


def evaluate(*arguments, code=0):
    done = call("evaluate", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def features(images):
    extractor = build_extractor("tiny-vit")
    return extractor(torch.from_numpy(images).permute(0, 3, 1, 2))["pooled"].double().numpy()


def test_the_figure_is_the_formula(evaluated):
    result, archive, _ = evaluated
    data = ShapesDataset(length=50_000, resolution=64)
    chosen = [data[1250 * i]["image"].permute(1, 2, 0).numpy() for i in range(40)]
    with np.load(archive) as samples:
        ours = features(samples["arr_0"])
    theirs = features(np.stack(chosen))
    first, second = (np.cov(x, rowvar=False) for x in (ours, theirs))
    root = scipy.linalg.sqrtm(first @ second)
    root = root[0] if isinstance(root, tuple) else root
    gap = ours.mean(0) - theirs.mean(0)
    expected = gap @ gap + np.trace(first) + np.trace(second) - 2 * np.trace(root).real
    assert result.figures["fd:tiny-vit"] == pytest.approx(expected, rel=1e-4)


def test_the_result_says_how_it_came_about(runs, evaluated):
    result, _, printed = evaluated
    protocol, provenance = result.protocol, result.provenance
    assert protocol["evaluations"] == 2 and protocol["sampler"]["type"] == "euler"
    assert protocol["images"] == 10 and protocol["tile"] == 4 and protocol["iteration"] == 7
    assert protocol["classes"] == {"balance": "balanced", "count": 10}
    assert protocol["weights"] == "ema" and protocol["ema_decay"] == 0.995
    assert UNKNOWN not in json.dumps(protocol)
    path = runs / "without" / "checkpoints" / "iter_000000007.pth"
    assert provenance["checkpoint_sha256"] == sha256(path)
    assert provenance["method"] == "ahpa_sit-b" and provenance["run"] == "without"
    assert (provenance["training_seed"], provenance["sampling_seed"]) == (0, 3)
    assert provenance["replaced"] == {"count": 10, "steps": 2, "tile": 4}
    assert result.protocol_hash in printed and "fd:tiny-vit" in printed
    (own,) = (runs / "without" / "evaluations").glob("*.json")
    assert load_result(own) == result


def test_a_second_command_draws_nothing_and_another_batch_changes_no_figure(runs, evaluated):
    tiles = sorted((runs / "without" / "evaluations" / "samples").rglob("*.npy"))
    before = [path.stat().st_mtime_ns for path in tiles]
    common = (runs / "without", *TRAIN, *SMALL, "--protocol", "demo", "--seed", 3)
    done = evaluate(*common, "--batch", 1)
    assert "3 there already" in done.stdout
    assert [path.stat().st_mtime_ns for path in tiles] == before and len(tiles) == 3
    (own,) = (runs / "without" / "evaluations").glob("*.json")
    assert load_result(own).figures == evaluated[0].figures


def test_given_images_keep_what_was_recorded_and_nothing_else(runs, evaluated, tmp_path):
    result, archive, _ = evaluated
    reference = tmp_path / "reference.npz"
    data = ShapesDataset(length=40, resolution=64)
    pictures = np.stack([data[i]["image"].permute(1, 2, 0).numpy() for i in range(40)])
    np.savez(reference, arr_0=pictures)
    bare = tmp_path / "bare.npz"
    with np.load(archive) as samples:
        np.savez(bare, arr_0=samples["arr_0"])
    folder = next((runs / "without" / "evaluations" / "samples").iterdir())
    found = {}
    for source in (archive, bare, folder):
        out = tmp_path / f"{source.stem}.json"
        options = ("--reference", reference, "--metrics", "fd:tiny-vit", "--out", out)
        shown = evaluate(source, *options).stdout
        assert ("drawn     not recorded" in shown) == (source == bare), shown
        assert ("unknown" in shown) is False and "sha256" in shown
        found[source] = load_result(out)
    assert len({one.figures["fd:tiny-vit"] for one in found.values()}) == 1
    assert found[archive].protocol == found[folder].protocol
    assert found[archive].protocol["sampler"] == result.protocol["sampler"]
    assert found[archive].provenance["training_seed"] == 0
    unknown = {key for key, value in found[bare].protocol.items() if value == UNKNOWN}
    assert {"sampler", "guidance", "decoder", "weights", "iteration", "uint8"} <= unknown


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(runs):
    before = sorted((runs / "without").rglob("*"))
    done = evaluate(
        *(runs / "without", *TRAIN, "--metrics", "fd:tiny-vit", "--dry-run"),
        *("--count", 1000, "--steps", 10, "--tile", 8, "--cfg-scale", 2, "--cfg-interval", 0, 0.55),
    )
    assert "10 calls of the network" in done.stdout and "125 tiles of 8" in done.stdout
    assert sorted((runs / "without").rglob("*")) == before


def test_metrics_without_a_reference_still_run():
    given = parse(["x", "--metrics", "fid,is"])
    assert list(wanted_metrics(given, ())) == ["is"]
    with pytest.raises(UserError, match="--reference: fid, sfid compare with real images"):
        wanted_metrics(parse(["x"]), ("fid", "sfid"))
    extractor = parse(["x", "--metrics", "fd", "--extractor", "tiny-vit", "--reference", "train"])
    assert list(wanted_metrics(extractor, ())) == ["fd:tiny-vit"]


def test_a_protocol_file_gives_metrics_and_extractors_their_options(tmp_path):
    """As a network whose weights are a file needs, in JSON that `ahpa table` could write too."""
    network = {"type": "tiny-vit", "side": 32}
    kid = {"type": "kid", "extractor": network, "subsets": 7}
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"count": 4, "metrics": ["precision", kid]}))
    given = parse(["x", "--reference", "train", "--extractor", "tiny-vit"])
    metrics = wanted_metrics(given, load_protocol(str(path)).metrics)
    assert list(metrics) == ["precision-recall:tiny-vit", "kid:tiny-vit"]
    assert metrics["kid:tiny-vit"].identity()["subsets"] == 7
    (need,) = metrics["kid:tiny-vit"].needs
    assert json.loads(need.extractor)["side"] == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--protocol", "adm-50k"), "adm-50k-sde250"),
        (("--metrics", "fdi"), "fid"),
        (("--out", "x.txt"), "--out: must end in .json"),
        (("--save", "x.png"), "--save"),
        (("--batch", 0), "--batch"),
        (("--count", 0), "count: must be a positive integer"),
        (("--sampler", "eular"), "euler"),
        (("--uint8", "floor"), "uint8"),
        (("--reference", "nothing.npz"), "there is nothing at nothing.npz"),
        (("--device", "tpu"), "device"),
        (("--prompts", "prompts.txt"), "this model takes classes"),
        (("--samples", "/dev/null"), "is not empty and holds no samples"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(runs, arguments, message):
    common = ("--protocol", "demo", *TRAIN, *SMALL)
    done = evaluate(runs / "without", *common, *arguments, code=2)
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_options_of_sampling_are_refused_for_images(evaluated):
    done = evaluate(evaluated[1], "--reference", evaluated[1], "--steps", 5, code=2)
    assert "--steps: " in done.stderr and "drawn already" in done.stderr


def test_a_source_that_is_not_there(tmp_path):
    done = evaluate(tmp_path / "x.npz", "--reference", "y.npz", "--metrics", "fd:tiny-vit", code=2)
    assert "there are no images at" in done.stderr
    done = evaluate(tmp_path / "x.pth", "--reference", "y.npz", "--metrics", "fd:tiny-vit", code=2)
    assert "there is no checkpoint" in done.stderr
