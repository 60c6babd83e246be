"""`ahpa table`: tables and scales as data, cells whose state is their files, orders compared."""

import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t as student
from support.runs import ROOT, call, environment

from ahpa.analysis import table_cells, table_runs
from ahpa.analysis.table_costs import count_passes, count_rows
from ahpa.analysis.table_report import methods_of, table_report
from ahpa.analysis.table_results import CHANCE, agreement, estimate, gather, kendall
from ahpa.analysis.table_runs import make_plan
from ahpa.analysis.table_text import FORMATS, results_csv, results_sheet
from ahpa.analysis.tables import load_scale, load_table, table_paths
from ahpa.cli import table as command
from ahpa.cli.main import main as ahpa_command
from ahpa.evaluation.protocol import EvaluationResult, load_result
from ahpa.registry import ConfigError, UserError

TINY = {
    "title": "a scale of a test",
    "notes": ["made up"],
    "training": {
        "demo": True,
        "iterations": 2,
        "options": {
            "model.backbone.depth": 2,
            "model.backbone.hidden_size": 32,
            "model.backbone.num_heads": 2,
            "train_dataloader.global_batch_size": 2,
            "hooks.samples": None,
            "hooks.policy": None,
        },
    },
    "protocol": {"count": 4, "steps": 1, "balance": "balanced", "tile": 2},
    "common_sampler": "euler",
    "metrics": {"*": ["kid:tiny-vit"]},
    "figures": {"FID": "kid:tiny-vit"},
    "references": {"*": {"training_data": 6}},
    "gsnr": {"num": 4, "batch": 4, "bins": 2},
    "cost": {"steps": 0},
}


@pytest.fixture
def scale(tmp_path):
    """The tiny scale as a file of a user."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def plan_of(scale, folder, name="D.17", rows=None, **options):
    """The plan of a table, or of its rows whose config ends so."""
    table = load_table(name)
    if rows is not None:
        kept = tuple(row for row in table.rows if row.config.endswith(tuple(rows)))
        table = replace(table, rows=kept)
    return make_plan(table, load_scale(str(scale)), folder, **{"seeds": 2, **options})


def pretend(plan, figures, protocol=None):
    """Write results as if everything had been run: figures(row, seed) -> {figure: value}."""
    for number, measurements in plan.measured.items():
        for measurement in measurements:
            seed = measurement.needs[0].seed
            own = {"sampler": {"type": "euler"}, "steps": 1, **(protocol or {}).get(number, {})}
            EvaluationResult(figures(number, seed), own, {"training_seed": seed}).save(
                measurement.path
            )


# ---- tables and scales ----------------------------------------------------------------------


def test_all_21_tables_are_there_and_rows_that_cannot_be_run_say_why():
    names = list(table_paths())
    assert names[:3] == ["1", "2", "3"] and names[7:10] == ["A.8", "A.9", "B.10"]
    assert names[20] == "I.21" and names[21:] == ["field", "field-guided"]
    tables = [load_table(name) for name in names]
    for row in (row for table in tables for row in table.rows):
        assert bool(row.why_not) or (ROOT / "configs" / f"{row.config}.py").is_file()
    assert [len(load_table(name).runnable) for name in ("A.8", "B.11", "G.20")] == [0, 4, 10]
    done = call("table", "--list")
    assert done.returncode == 0
    assert re.search(r"^C\.12 +T2I MS-COCO full +8 of 18 ", done.stdout, re.MULTILINE)
    assert "G.20: 10 not run: quoted from its own paper" in done.stdout


def test_the_field_table_holds_the_common_column():
    shown = {row.name: row.printed["FID"] for row in load_table("field").rows}
    assert shown["REPA"] == 22.39 and shown["RARE"] == 18.02 and len(shown) == 9
    guided = load_table("Field-Guided")
    assert guided.rows[0].guidance == {"cfg_scale": 1.65, "cfg_interval": [0, 0.72]}
    assert guided.rows[0].printed["FID"] == 14.33


def test_a_scale_may_change_another_one(tmp_path):
    path = tmp_path / "quick.json"
    path.write_text(json.dumps({"base": "paper", "protocol": {"count": 5000}, "metrics": {}}))
    quick, paper = load_scale(str(path)), load_scale("paper")
    assert quick.protocol == {**paper.protocol, "count": 5000}
    assert quick.metrics == paper.metrics and quick.name == "quick"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"protocl": {}}, "has no option 'protocl'; did you mean 'protocol'"),
        ({"training": {"iteration": 3}}, "training has no option 'iteration'"),
        ({"training": {"iterations": 0}}, "training.iterations: must be a positive integer"),
        ({"references": {"*": 5}}, r"references.\*: must be a file"),
        ({"prompts": {"coco": 5}}, "prompts.coco must be a text file, got 5"),
        ({"base": "self.json"}, "a scale is its own base"),
    ],
)
def test_mistakes_in_a_scale(tmp_path, content, message):
    path = tmp_path / "self.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        load_scale(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["D.71"], "there is no table 'D.71'; did you mean 'D.17'"),
        ([], "give either a table's ID"),
        (["D.17", "--scale", "papr"], "did you mean 'paper'"),
        (["D.17", "--seeds", "0"], "--seeds: must be an integer in 1..100"),
        (["D.17", "--cell", "x"], "--cell: has no meaning without --run"),
        (["D.17", "--rows", "nothing"], "has no such row; it has: Exp 1"),
        (
            ["D.17", "--rows", "router-lut", "--run", "--prompts", "x.txt"],
            "prompts: ahpa_sit-b_router-lut takes classes",
        ),
        (["D.17", "--processes", "2"], "--processes: needs --launcher"),
        (["D.17", "--report", "page.pdf"], "--report: must end in .html"),
        (["D.17", "--run", "--dry-run", "--report", "p.html"], "--report: is written with a table"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, arguments, message):
    done = call("table", *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---- the plan -------------------------------------------------------------------------------


def test_rows_and_tables_with_the_same_config_share_a_run(tmp_path):
    scale = load_scale("paper")
    plans = {
        name: make_plan(load_table(name), scale, tmp_path, seeds=2)
        for name in ("D.13", "D.15", "3")
    }
    paths = {
        name: {m.path for own in p.measured.values() for m in own} for name, p in plans.items()
    }
    vanilla = tmp_path / "paper" / "sit-b_matched_seed-1" / "tables"
    shared = [path for path in paths["D.13"] & paths["D.15"] & paths["3"] if path.parent == vanilla]
    assert len(shared) == 1
    names = {run.name for run in plans["3"].trainings()}
    assert {"ahpa_sit-xl_seed-0", "sit-xl_iters-7m_iters-7000000_seed-0"} <= names


def test_one_sampler_in_a_table_unless_it_compares_samplers():
    scale = load_scale("paper")
    used = {}
    for name in ("2", "4", "5", "C.12", "D.17"):
        table = load_table(name)
        used[name] = {scale.sampling(table, row)["sampler"] for row in table.runnable}
    assert used["2"] == used["D.17"] == {"euler"} and used["5"] == {"sde"}
    assert used["C.12"] == {"sde", "euler"} and used["4"] == {"sde", "euler", "ddpm"}
    row = load_table("4").runnable[0]
    protocol = scale.sampling(load_table("4"), row)
    assert (protocol["cfg_scale"], protocol["cfg_channels"], protocol["count"]) == (1.5, 3, 50000)


def test_a_gsnr_of_a_swapped_supervisor_needs_two_runs(scale, tmp_path):
    plan = plan_of(scale, tmp_path, "B.10", seeds=1)
    measurement = plan.measured[2][0]
    assert [run.config for run in measurement.needs] == ["sit-b_matched", "ahpa_sit-b_prior-sdxl"]
    words = measurement.command()
    assert words[:2] == ["analyze", "gsnr"] and words[2].endswith("sit-b_matched_seed-0")
    assert words[words.index("--heads") + 1].endswith("ahpa_sit-b_prior-sdxl_seed-0")


def test_costs_are_counted_at_full_size():
    """SiT-B/2: 3 forward passes of the backbone and of AHPA's head, 256 images, 400,000 steps."""
    plan = make_plan(load_table("D.16"), load_scale("paper"), Path("nowhere"), seeds=3)
    plan = replace(plan, measured={0: plan.measured[0]})
    cost = count_rows(plan, command.config_of)[0]
    assert (cost.runs, cost.measurements) == (3, 3)
    forward = 23.001956352  # GMAC, with attention's products
    head = 9 * 768 * 1024 * 256 / 1e9  # a 3x3 convolution on 256 tokens
    training = 3 * (forward + head) * 256 * 400_000
    assert cost.gmac == pytest.approx(3 * (training + forward * 250 * 50_000), rel=1e-9)
    passes = count_passes(command.config_of(plan.measured[0][0].needs[0]))
    assert passes.forward == pytest.approx(forward)


def test_rows_that_a_scale_makes_the_same_are_named(tmp_path):
    """Blocks 3 and 4 of 12 are both block 2 of the demo's 6; at full size they differ."""
    for name, expected in (("demo", [["block 3", "block 4"]]), ("paper", [])):
        plan = make_plan(load_table("D.16"), load_scale(name), tmp_path, seeds=1)
        configs = command.resolved(plan)
        groups = table_runs.equal_rows(plan, lambda run, found=configs: found[run.config])
        assert groups == expected


# ---- running --------------------------------------------------------------------------------


class Commands:
    """Stands for the commands: writes what they would write, and fails when asked to."""

    def __init__(self, plan, fail=()):
        self.plan, self.fail, self.seen = plan, fail, []

    def __call__(self, words, log):
        self.seen.append(words)
        options = dict(zip(words, words[1:]))
        if words[0] == "train":
            work_dir = Path(options["--work-dir"])
            if any(name in work_dir.name for name in self.fail):
                log.write_text(log.read_text() + "step 1\nerror: out of memory\n")
                return 1
            folder = work_dir / "checkpoints"
            folder.mkdir(parents=True)
            (folder / f"iter_{int(options['--max-iters']):09d}.pth").write_bytes(b"x")
        else:
            seed = int(words[1].rpartition("-")[2])
            figures = {"kid:tiny-vit": 1.0 + seed}
            result = EvaluationResult(figures, {"steps": 1}, {"training_seed": seed})
            result.save(Path(options["--out"]))
        return 0


def run(plan, commands, lines=None, **options):
    """Run a plan with pretended commands -> the failures."""
    said = [] if lines is None else lines
    config = {
        "train_dataloader": {"dataset": {"type": "ShapesDataset"}},
        "model": {"resolution": 64},
    }
    return table_cells.run_plan(
        plan, execute=commands, resolve=lambda training: config, say=said.append, **options
    )


def test_a_failed_cell_is_reported_and_the_others_go_on(scale, tmp_path):
    plan = plan_of(scale, tmp_path, rows=("lut", "mlp3", "mlp8"))
    commands, lines = Commands(plan, fail=["lut_seed-1"]), []
    failures = run(plan, commands, lines)
    assert list(failures) == ["ahpa_sit-b_router-lut_seed-1"]
    assert "error: out of memory" in failures["ahpa_sit-b_router-lut_seed-1"]
    assert lines[1].startswith("[1/6] ahpa_sit-b_router-lut_seed-0: training")
    assert any("left)" in line for line in lines)
    names = [words[-1] for words in commands.seen if words[0] == "evaluate"]
    assert len(names) == 5
    again = Commands(plan)
    assert run(plan, again) == {}
    assert [words[0] for words in again.seen] == ["train", "evaluate"]
    assert "ahpa_sit-b_router-lut_seed-1" in " ".join(again.seen[0])
    assert run(plan, Commands(plan)) == {} and not plan.missing()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["error: no weights", "E11 failed (exitcode: 2)"], "error: no weights"),
        (["[rank1]: RuntimeError: no room", "E11 failed"], "[rank1]: RuntimeError: no room"),
        (["ValueError: odd"], "ValueError: odd"),
        (["iter 5", "Killed"], "Killed"),
    ],
)
def test_a_failed_command_is_quoted_rather_than_torchruns_report(tmp_path, said, words):
    """As torchrun of torch 2.15 writes it: its own last lines hold the word "error", too."""
    report = [
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
        "  traceback : To enable traceback see: https://pytorch.org/docs/elastic/errors.html",
        "=" * 60,
    ]
    lines = ["$ ahpa evaluate before", "error: of another command", "$ ahpa train x", *said]
    log = tmp_path / "x.log"
    log.write_text("\n".join([*lines, *(report if "Killed" not in said else [])]) + "\n")
    assert table_cells.last_words(log) == words


def test_a_training_image_that_cannot_be_read_is_not_replaced_in_the_reference(tmp_path):
    """A data set passes on to the next picture; a reference with that one twice is no reference."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    data = dict(type="ImageFolder", root=str(tmp_path / "data"), flip=True)
    config = {"train_dataloader": {"dataset": data}, "model": {"resolution": 8}}
    out = tmp_path / "reference.npz"
    table_runs.make_training_reference(out, config, 3)
    assert np.array_equal(np.load(out)["arr_0"], pixels[[0, 1, 2]])
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        table_runs.make_training_reference(tmp_path / "other.npz", config, 3)
    assert not (tmp_path / "other.npz").exists()


def test_a_kill_between_training_and_evaluation_trains_nothing_twice(scale, tmp_path):
    plan = plan_of(scale, tmp_path, rows=("lut",), seeds=1)
    run(plan, Commands(plan))
    plan.measured[0][0].path.unlink()
    commands = Commands(plan)
    assert run(plan, commands) == {} and [words[0] for words in commands.seen] == ["evaluate"]


def test_a_work_dir_of_another_length_is_refused(scale, tmp_path):
    plan = plan_of(scale, tmp_path, rows=("lut",), seeds=1)
    run(plan, Commands(plan))
    scale.write_text(json.dumps({**TINY, "training": {**TINY["training"], "iterations": 3}}))
    with pytest.raises(UserError, match="was trained otherwise"):
        plan_of(scale, tmp_path, rows=("lut",), seeds=1)


def test_a_missing_reference_is_found_before_anything_is_run(scale, tmp_path):
    plan = plan_of(scale, tmp_path, rows=("lut",), reference="nowhere/imagenet.npz")
    commands = Commands(plan)
    with pytest.raises(UserError, match=r"nowhere/imagenet\.npz is missing.*ahpa reference"):
        run(plan, commands)
    assert commands.seen == []


def test_captions_are_passed_on_and_change_the_measurement(scale, tmp_path):
    """Of a scale or --prompts; other tables, and a scale without them, are as they were."""
    before = plan_of(scale, tmp_path, name="5", rows=("repa_mmdit",), seeds=1)
    file = tmp_path / "captions.txt"
    scale.write_text(json.dumps({**TINY, "prompts": {"coco": str(file)}}))
    plan = plan_of(scale, tmp_path, name="5", rows=("repa_mmdit",), seeds=1)
    (old,), (own,) = before.measured[0], plan.measured[0]
    assert own.command()[-2:] == ["--prompts", str(file)] and "--prompts" not in old.command()
    assert own.path != old.path and own.protocol_path == old.protocol_path
    given = dict(prompts="mine.txt", reference="x.npz")
    other = plan_of(scale, tmp_path, name="5", rows=("repa_mmdit",), seeds=1, **given)
    assert other.measured[0][0].command()[-2:] == ["--prompts", "mine.txt"]
    assert plan_of(scale, tmp_path, rows=("lut",), seeds=1).prompts is None
    assert load_scale("demo").prompts == {} and list(load_scale("paper").prompts) == ["coco"]


def test_missing_captions_are_found_before_anything_is_run(scale, tmp_path):
    file = tmp_path / "captions.txt"
    options = dict(name="5", rows=("repa_mmdit",), seeds=1, prompts=str(file))
    plan = plan_of(scale, tmp_path, **options)
    commands = Commands(plan)
    with pytest.raises(UserError, match=r"captions\.txt is missing.*captions_val2014\.json"):
        run(plan, commands)
    file.write_text(" \n")
    with pytest.raises(UserError, match="is empty; it must hold one prompt a line"):
        run(plan, commands)
    assert commands.seen == [] and not plan.reference.exists()


def test_one_cell_alone(scale, tmp_path):
    plan = plan_of(scale, tmp_path, rows=("lut", "mlp3"))
    commands = Commands(plan)
    run(plan, commands, only="ahpa_sit-b_router-mlp3_seed-1")
    assert len(commands.seen) == 2
    with pytest.raises(UserError, match="has no cell 'x'"):
        run(plan, commands, only="x")


def test_the_array_job_runs_each_cell(scale, tmp_path):
    plan = plan_of(scale, tmp_path, rows=("lut", "mlp3"))
    script = tmp_path / "job"
    script.write_text(table_cells.slurm_script(plan, list(plan.missing()), ["echo", "ahpa table"]))
    assert "#SBATCH --array=0-3\n" in script.read_text()
    for number, name in enumerate(plan.missing()):
        own = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number)}
        done = subprocess.run(["bash", script], env=own, capture_output=True, text=True, check=True)
        assert done.stdout == f"ahpa table --cell {name}\n"


def test_torchrun_starts_training_and_evaluation_alone():
    words = table_cells.process_command(["train", "x"], 4)
    assert words[1:3] == ["-m", "torch.distributed.run"] and words[-2:] == ["--launcher", "pytorch"]
    assert "torch.distributed.run" not in table_cells.process_command(["analyze", "gsnr"], 4)


# ---- figures --------------------------------------------------------------------------------


def test_intervals_over_seeds():
    values = [31.2, 30.4, 32.1]
    deviation = (sum((v - sum(values) / 3) ** 2 for v in values) / 2) ** 0.5
    found = estimate(values)
    assert found.mean == pytest.approx(sum(values) / 3) and found.seeds == 3
    assert found.margin == pytest.approx(4.302652729749464 * deviation / 3**0.5)
    assert estimate([5.0]) == (5.0, None, 1)


def test_kendall_against_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    printed = np.array([3.0, 1.0, 2.0, 2.0, 5.0])
    redrawn = rng.normal(size=(20, 5))
    for ours, found in zip(redrawn, kendall(printed, redrawn)):
        total = pairs = 0
        for i, j in itertools.combinations(range(5), 2):
            total += np.sign(printed[i] - printed[j]) * np.sign(ours[i] - ours[j])
            pairs += printed[i] != printed[j]
        assert found == pytest.approx(total / np.sqrt(pairs * 10))


def test_an_order_that_is_there_is_confirmed_and_noise_is_not():
    """False confirmations of unrelated orders stay below 5 %; a clear order is found."""
    rng = np.random.default_rng(1)
    printed = np.linspace(25, 32, 8)
    confirmed = 0
    for number in range(200):
        unrelated = rng.permutation(printed)
        values = unrelated[:, None] * np.exp(0.013 * rng.normal(size=(8, 3)))
        found = agreement(printed, values, seed=number)
        confirmed += "is confirmed" in found.words()
    assert confirmed <= 0.05 * 200 + 2.33 * (200 * 0.05 * 0.95) ** 0.5
    clear = agreement(printed, printed[:, None] * np.exp(0.013 * rng.normal(size=(8, 3))))
    assert clear.tau > 0.8 and clear.chance < CHANCE and "is confirmed" in clear.words()
    against = agreement(printed, printed[::-1, None] * np.exp(0.013 * rng.normal(size=(8, 3))))
    assert "is contradicted" in against.words()
    noisy = agreement(printed, 30 * np.exp(0.3 * rng.normal(size=(8, 3))))
    assert noisy.low < noisy.high and "not decided" in noisy.words()


def test_few_rows_and_single_seeds_never_confirm():
    three = agreement([1.0, 2.0, 3.0], [[1.0, 1.01], [2.0, 2.01], [3.0, 3.01]])
    assert three.chance == pytest.approx(1 / 6) and "not confirmed" in three.words()
    single = agreement([1.0, 2.0, 3.0, 4.0], [[1.0], [2.0], [3.0], [4.0]])
    assert single.low is None and "not decided" in single.words()
    assert agreement([1.0, 2.0], [[1.0], [2.0]]) is None


def test_the_table_puts_ours_beside_the_papers(scale, tmp_path):
    plan = plan_of(scale, tmp_path)
    pretend(plan, lambda row, seed: {"kid:tiny-vit": 10.0 + row + 0.1 * seed, "extra": 1.0})
    results = gather(plan)
    found = results.estimate(3, results.columns[0])
    half = student.ppf(0.975, 1) * np.std([13.0, 13.1], ddof=1) / 2**0.5
    assert found.mean == pytest.approx(13.05) and found.margin == pytest.approx(half)
    text = FORMATS["text"](results_sheet(results))
    line = next(line for line in text.splitlines() if line.startswith("Exp 4"))
    assert re.fullmatch(
        r"Exp 4  ahpa_sit-b_router-lut +27\.2 +13\.05 ± 0\.64 +1\.0+ ± 0\S* +2", line
    )
    assert "made up" in text and f"protocol: {results.hashes[0]}" in text
    tau = agreement([r.printed["FID"] for r in plan.table.rows], [[10.0 + n] for n in range(8)]).tau
    assert f"Kendall's tau {tau:.2f}" in text
    read = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert [row["FID printed"] for row in read] == [str(r.printed["FID"]) for r in plan.table.rows]
    assert float(read[3]["kid:tiny-vit low"]) == pytest.approx(13.05 - half, rel=1e-5)


def test_unlike_protocols_share_no_table_unless_forced_or_compared(scale, tmp_path):
    plan = plan_of(scale, tmp_path, seeds=1)
    figures = {"kid:tiny-vit": 1.0}
    pretend(plan, lambda row, seed: figures, {2: {"sampler": {"type": "sde"}}})
    with pytest.raises(UserError, match=r"Exp 3.*sampler\.type: euler against sde"):
        gather(plan)
    forced = results_sheet(gather(plan, force=True))
    assert any(note.startswith("UNLIKE PROTOCOLS") for note in forced.notes)
    allowed = replace(plan, table=replace(plan.table, compares=("sampler",)))
    assert not gather(allowed).unlike


def is_latex(text):
    """Whether braces and environments are balanced, rows are even and specials are escaped."""
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]
    body = re.search(r"\\begin\{tabular\}\{(\w+)\}(.*)\\end\{tabular\}", text, re.DOTALL)
    columns, rows = body.groups()
    for row in rows.split("\\\\\n")[:-1]:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1, row
    assert bare.count("$") % 2 == 0 and not re.search(r"[#%_^~]|[^\x00-\x7f]", bare)
    return True


@pytest.mark.parametrize("name", list(table_paths()))
def test_every_table_in_every_format(scale, tmp_path, name):
    plan = plan_of(scale, tmp_path, name, seeds=1)
    sheet = results_sheet(gather(plan))
    assert is_latex(FORMATS["latex"](sheet))
    lines = FORMATS["markdown"](sheet).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert len(list(csv.reader(io.StringIO(FORMATS["csv"](sheet))))) == len(plan.table.rows) + 1


# ---- real runs ------------------------------------------------------------------------------


def in_this_process(words, log):
    """Run a command here, which is faster than a process."""
    done = call(*words)
    log.write_text(log.read_text() + done.stdout + done.stderr)
    return done.returncode


def test_from_nothing_to_a_table(scale, tmp_path, capsys):
    """A scale of a user's own trains, samples and evaluates two rows; again, nothing is missing."""
    out = tmp_path / "out.md"
    words = ["D.17", "--scale", str(scale), "--run", "--seeds", "1", "--rows", "lut", "mlp3"]
    words += ["--work-dir", str(tmp_path / "runs"), "--out", str(out)]
    assert command.run(words, execute=in_this_process) == 0
    shown = capsys.readouterr().out
    assert "[2/2] ahpa_sit-b_router-mlp3_seed-0: evaluation" in shown
    runs = tmp_path / "runs" / "tiny"
    for row in ("lut", "mlp3"):
        work_dir = runs / f"ahpa_sit-b_router-{row}_seed-0"
        result = load_result(next((work_dir / "tables").glob("*.json")))
        assert result.figures["kid:tiny-vit"] == pytest.approx(result.figures["kid:tiny-vit"])
        assert result.protocol["iteration"] == 2 and result.protocol["steps"] == 1
        assert result.provenance["training_seed"] == 0
        assert f"{result.figures['kid:tiny-vit']:.4g}" in out.read_text()
    assert result.protocol_hash in shown and out.read_text().startswith("**Table D.17")
    page = (runs / "table_D.17.html").read_text()
    assert "Exp 4: ahpa_sit-b_router-lut" in page and "2 runs of 2 methods" in page
    assert f"{result.figures['kid:tiny-vit']:.4g}" in page and "Kendall" not in page
    assert page.index("Printed figures and ours") < page.index("What was trained")

    def nothing(words, log):
        raise AssertionError(f"{words} was run again")

    assert command.run(words, execute=nothing) == 0
    assert "0 cells to run, 2 complete" in capsys.readouterr().out


def test_a_report_of_what_is_there(scale, tmp_path, capsys):
    """Costs alone have no runs; rows that share a training are one method; what is missing is
    said."""
    out = tmp_path / "report.html"
    words = ["6", "--scale", str(scale), "--work-dir", str(tmp_path / "runs")]
    assert command.run([*words, "--report", str(out)]) == 0
    assert "No run has been trained." in out.read_text() and "report: " in capsys.readouterr().err
    plan = plan_of(scale, tmp_path, name="D.15", seeds=2)
    names = methods_of(plan)
    assert len({run.work_dir for own in names.values() for run in own}) == 2 * len(names)
    report = table_report(plan, results_sheet(gather(plan)))
    assert not report.methods and any("seed 1 is missing" in note for note in report.notes)


@pytest.mark.slow
def test_costs_and_gsnr(scale, tmp_path, capsys):
    words = ["--scale", str(scale), "--run", "--seeds", "1", "--work-dir", str(tmp_path / "runs")]
    assert (
        command.run(["6", *words, "--rows", "sit-xl_matched", "ahpa"], execute=in_this_process) == 0
    )
    shown = capsys.readouterr().out
    assert re.search(
        r"^SiT-XL/2 +sit-xl_matched +8\.1 +- +114\.5 +114\.4 .*-$", shown, re.MULTILINE
    )
    assert command.run(["7", *words, "--rows", "AHPA"], execute=in_this_process) == 0
    assert re.search(r"^AHPA +ahpa_sit-b +11\.9 +\d", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_killed_at_any_point_it_goes_on(scale, tmp_path):
    """kill -9 of the command and all it started, four times; then it ends as if undisturbed."""
    slow = {**TINY, "training": {**TINY["training"], "iterations": 40}}
    slow["training"]["options"] = {**TINY["training"]["options"], "checkpoints.interval": 10}
    scale.write_text(json.dumps(slow))
    words = ["D.17", "--scale", str(scale), "--run", "--seeds", "1", "--rows", "lut", "mlp3"]

    def start(folder):
        return subprocess.Popen(
            [sys.executable, "tools/table.py", *words, "--work-dir", str(tmp_path / folder)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    whole = start("whole")
    assert whole.communicate(timeout=600)[0] and whole.returncode == 0
    for seconds in (12, 16, 20, 24):
        killed = start("killed")
        time.sleep(seconds)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    last = start("killed")
    assert last.communicate(timeout=600)[0] and last.returncode == 0
    for path in (tmp_path / "whole").rglob("tables/*.json"):
        other = next(
            (tmp_path / "killed" / "tiny" / path.parents[1].name / "tables").glob("*.json")
        )
        a, b = load_result(path), load_result(other)
        assert a.figures == b.figures
        assert a.protocol_hash == b.protocol_hash


def test_the_command_is_listed():
    assert call("table", "--help").returncode == 0
    assert ahpa_command([]) == 0 and table_runs.RECORD == "table.json"
