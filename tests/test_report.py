"""`ahpa report`: what is drawn is what was logged, every text is escaped, nothing is loaded from
the network, missing parts are said, and Chromium shows the page at several widths."""

import html
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support.browser import chromium

from ahpa.analysis.report.chart import (
    BINS,
    LEFT,
    TOP,
    WIDTH,
    Series,
    line_chart,
    linear_ticks,
    map_chart,
)
from ahpa.analysis.report.methods import Point, better_of, seed_curve, sort_runs, thin
from ahpa.analysis.report.pictures import chosen_steps
from ahpa.analysis.report.runs import read_run, read_table
from ahpa.cli.compare import main as compare
from ahpa.cli.report import main
from ahpa.evaluation.protocol import EvaluationResult

NASTY = "<img src=x onerror=alert(1)>"
CLOSING = "</style></script></title><script>alert(2)</script>"


def config_of(seed, *, align=None, lr=1e-3, iterations=40, work_dir="w"):
    model = {"backbone": {"type": "SiT", "depth": 6}, "alignments": {}}
    if align is not None:
        model["alignments"] = {"main": {"weight": align, "router": {"type": "LUT"}}}
    return {
        "model": model,
        "randomness": {"seed": seed},
        "train_cfg": {"max_iters": iterations, "log_interval": 5},
        "train_dataloader": {"global_batch_size": 8},
        "optim_wrapper": {"optimizer": {"lr": lr}},
        "work_dir": work_dir,
    }


def loss_at(seed, iteration):
    return 1.5 * math.exp(-iteration / 30) + 0.1 * seed


def make_run(folder, seed, *, last=40, fid=None, iterations=(20, 40), method=None, **options):
    """Write a run as training, evaluation and analysis leave it."""
    (folder / "samples").mkdir(parents=True)
    config = config_of(seed, work_dir=str(folder), **options)
    (folder / "config.json").write_text(json.dumps(config))
    lines = []
    for i in range(5, last + 1, 5):
        record = {"iteration": i, "loss": loss_at(seed, i), "loss/flow": loss_at(seed, i) / 2}
        lines.append({**record, "lr": 1e-3, "images_per_s": 16.0, "time": 1e9 + i})
    (folder / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    colours = np.random.default_rng(seed).integers(0, 255, (60, 60, 3), np.uint8)
    for i in (20, 40):
        if i <= last:
            Image.fromarray(colours).save(folder / "samples" / f"iter_{i:09d}.png")
    if options.get("align") is not None:
        (folder / "policy").mkdir()
        rows = ["t,beta_mid,beta_deep,alpha_mid_a,alpha_mid_b,alpha_deep_c,entropy_beta"]
        rows += [f"{t},{t},{1 - t},0.25,0.75,1,0.5" for t in (0.0, 0.5, 1.0)]
        (folder / "policy" / "main_iter_000000040.csv").write_text("\n".join(rows) + "\n")
    if fid is not None:
        for iteration in iterations:
            save_result(folder, seed, fid + 40 - iteration, iteration, method=method)
    return folder


def save_result(folder, seed, fid, iteration, *, method=None, sampler="ode", name=""):
    protocol = {"sampler": sampler, "num": 100, "iteration": iteration}
    provenance = {
        "method": method or re.sub("-seed.*", "", folder.name),
        "run": folder.name,
        "training_seed": seed,
        "sampling_seed": 0,
        "versions": {"torch": "2.15", "ahpa": "0.2"},
        "commit": "abc123",
    }
    found = EvaluationResult({"fid": fid}, protocol, provenance)
    found.save(folder / "evaluations" / f"fid_{iteration}{name}.json")


def make_runs(folder, *, sizes=(3, 3)):
    """Two methods with three seeds each, of which the second is clearly better."""
    base = [10.0, 10.1, 9.9, 10.05]
    better = [8.0, 8.1, 7.95, 8.02]
    runs = [make_run(folder / f"base-seed{s}", s, fid=base[s]) for s in range(sizes[0])]
    for s in range(sizes[1]):
        runs.append(make_run(folder / f"aligned-seed{s}", s, fid=better[s], align=0.5))
    return runs


def report_of(tmp_path, *arguments):
    """Write a report and return its text."""
    out = tmp_path / "report.html"
    assert main([*map(str, arguments), "--out", str(out)]) == 0
    return out.read_text()


class Page(HTMLParser):
    """Elements, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.said, self.ids = [], [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.said).split())

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        for key, value in attributes:
            if key in ("src", "href", "srcset", "xlink:href", "data", "action"):
                self.addresses.append(value)
            if key.startswith("on") or key == "style":
                self.handlers.append((name, key))
            if key == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.said.append(data)


# ---- curves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("band", ["range", "stderr"])
def test_a_band_is_what_its_name_says(band):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4))
    curves = [dict(zip((10, 20, 30, 40), row.tolist(), strict=True)) for row in values]
    del curves[2][40], curves[1][20]
    found = seed_curve(curves, band)
    assert [point.x for point in found] == [10, 30, 40]  # 20: a seed that goes on lacks it
    for point, column, seeds in zip(found, (0, 2, 3), (3, 3, 2), strict=True):
        own = values[:seeds, column]
        low, high = own.min(), own.max()
        if band == "stderr":
            error = math.sqrt(sum((own - own.mean()) ** 2) / (seeds - 1)) / math.sqrt(seeds)
            low, high = own.mean() - error, own.mean() + error
        assert point[1:] == pytest.approx((own.mean(), low, high, seeds), rel=1e-12)


def test_figures_that_are_not_finite_are_no_points():
    (point,) = seed_curve([{1: math.nan, 2: 3.0}, {1: math.inf}], "range")
    assert point == Point(2, 3.0, 3.0, 3.0, 1)


def test_long_curves_are_averaged_but_not_over_the_end_of_a_seed():
    points = [Point(x, x, x - 1, x + 1, 2 if x < 450 else 1) for x in range(1000)]
    found = thin(points, 100)
    assert found[0] == (4.5, 4.5, 3.5, 5.5, 2) and found[-1].x == 994.5
    assert len(found) == 100 and {point.seeds for point in found} == {1, 2}
    assert thin(points[:100], 100) == points[:100]


def test_ticks_are_round_and_inside():
    assert linear_ticks(0, 60) == [0, 20, 40, 60]
    assert linear_ticks(0.217, 0.281) == [0.22, 0.24, 0.26, 0.28]
    assert linear_ticks(-1, 1) == [-1, -0.5, 0, 0.5, 1]


@pytest.mark.parametrize("values", [(0.9, 0.4, 0.55, 0.2), (900.0, 40.0, 2.0, 0.3)])
def test_a_line_is_where_its_ticks_say(values):
    """The pixels of a line, read back by the chart's own grid lines and numbers."""
    points = [Point(10 * (i + 1), v, v, v, 1) for i, v in enumerate(values)]
    svg = line_chart("loss", [Series("a", points, 0)], x_label="iteration")
    grid = re.findall(r'class="grid"[^>]* y1="([\d.]+)".*?<text[^>]*>([^<]+)</text>', svg)
    pixels, numbers = zip(*((float(y), float(text)) for y, text in grid), strict=True)
    logarithmic = "y logarithmic" in svg
    assert logarithmic == (values[0] > 100) and len(grid) > 2
    if logarithmic:
        numbers = np.log(numbers)
    slope, start = np.polyfit(pixels, numbers, 1)
    corners = re.search(r'<polyline class="line" points="([^"]+)"', svg)[1].split()
    for corner, value in zip(corners, values, strict=True):
        found = slope * float(corner.split(",")[1]) + start
        found = math.exp(found) if logarithmic else found
        assert found == pytest.approx(value, rel=0.02)
    assert float(corners[0].split(",")[0]) == LEFT
    assert LEFT < float(corners[1].split(",")[0]) < float(corners[2].split(",")[0]) < WIDTH
    assert "from 0.9 at 10 to 0.2 at 40" in svg or "from 900 at 10 to 0.3 at 40" in svg


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("fid", "lower"),
        ("kid:tiny-vit", "lower"),
        ("fd:mine", "lower"),
        ("is", "higher"),
        ("x", None),
    ],
)
def test_the_direction_of_a_figure_is_known_with_any_extractor(metric, better):
    assert better_of(metric) == better


def test_weights_of_a_router_have_an_axis_from_0_to_1():
    points = [Point(x, y, y, y, 1) for x, y in ((0.0, 1e-6), (0.5, 0.5), (1.0, 1.0))]
    svg = line_chart("beta", [Series("a", points, 0)], x_label="t", y_range=(0.0, 1.0))
    assert "logarithmic" in line_chart("beta", [Series("a", points, 0)], x_label="t")
    assert "logarithmic" not in svg
    (line,) = re.findall(r'<polyline[^>]*points="([^"]*)"', svg)
    low, middle, high = (float(pair.split(",")[1]) for pair in line.split())
    assert middle == pytest.approx((low + high) / 2, abs=0.11)


def test_a_steep_start_does_not_flatten_the_rest():
    values = [50.0, 9.0] + [2 - 0.01 * i for i in range(98)]
    points = [Point(i, v, v, v, 1) for i, v in enumerate(values)]
    svg = line_chart("loss", [Series("a", points, 0)], x_label="iteration")
    assert "the start is off the scale" in svg and ">50<" not in svg
    corners = re.search(r'<polyline class="line" points="([^"]+)"', svg)[1].split()
    heights = [float(corner.split(",")[1]) for corner in corners]
    assert heights[0] == heights[1] == TOP and heights[-1] - heights[5] > 140
    svg = line_chart("loss", [Series("a", points[2:], 0)], x_label="iteration")
    assert "off the scale" not in svg


def test_many_levels_are_a_map_of_shades():
    t = [i / 100 for i in range(101)]
    rows = [(f"l{i}", [i / 9 * time for time in t]) for i in range(10)]
    svg = map_chart("alpha", t, rows)
    shades = [float(s) for s in re.findall(r'fill-opacity="([\d.]+)"', svg)]
    assert len(shades) == 10 * BINS
    top = shades[:BINS]  # the last row is at the top: l9, which is t itself
    assert top == pytest.approx([i / (BINS - 1) for i in range(BINS)], abs=0.011)
    assert shades[-BINS:] == [0.0] * BINS
    assert "the darkest shade is 1" in svg and "on average l9 is the largest" in svg


# ---- methods and steps --------------------------------------------------------------------------


def test_runs_that_differ_in_their_seeds_are_one_method(tmp_path):
    for seed in (2, 1):
        make_run(tmp_path / f"base-seed{seed}", seed)
    make_run(tmp_path / "longer", 3, iterations=80)
    make_run(tmp_path / "fast", 1, lr=1e-2)
    runs = [read_run(tmp_path / n) for n in ("base-seed2", "fast", "longer", "base-seed1")]
    found = {m.name: [run.name for run in m.runs] for m in sort_runs(runs)}
    assert found == {"base": ["base-seed1", "base-seed2", "longer"], "fast": ["fast"]}


def test_equal_names_of_two_methods_are_told_apart(tmp_path):
    make_run(tmp_path / "a" / "base-seed1", 1)
    make_run(tmp_path / "b" / "base-seed1", 1, lr=1e-2)
    runs = [read_run(tmp_path / side / "base-seed1") for side in "ab"]
    assert [method.name for method in sort_runs(runs)] == ["base", "base-seed1"]


def test_steps_are_those_that_all_runs_have():
    grids = [dict.fromkeys(range(0, 1001, 10)), dict.fromkeys(range(0, 1001, 50))]
    assert chosen_steps(grids, 5) == [0, 250, 500, 750, 1000]
    assert chosen_steps(grids, 1) == [1000]
    assert chosen_steps([{1: None}, {2: None}], 5) == []


# ---- the page -----------------------------------------------------------------------------------


def test_the_page_says_what_the_commands_say(tmp_path, capsys):
    runs = make_runs(tmp_path)
    text = Page(report_of(tmp_path, *runs)).text
    capsys.readouterr()
    assert compare([*map(str, runs), "--iteration", "40"]) == 0
    verdict = next(line for line in capsys.readouterr().out.splitlines() if "against" in line)
    assert "aligned is better" in verdict and verdict in text
    assert "fid (lower is better) at iteration 40" in text and "decided" in text
    assert "6 runs of 2 methods: base (seeds 0, 1, 2; finished, 40 iterations)" in text
    assert "10 (9.9 to 10.1; 3 seeds) at 40" in text  # mean of 10, 10.1, 9.9
    assert "fid over training" in text and "beta between groups" in text
    assert "model.alignments.main.weight – 0.5" in text and "work_dir" not in text
    mean = sum(loss_at(seed, 40) for seed in range(3)) / 3
    low, high = loss_at(0, 40), loss_at(2, 40)
    assert f"{mean:.4g} ({low:.4g} to {high:.4g}) at 40" in text
    assert "torch 2.15, ahpa 0.2 abc123" in text
    assert "320 16 " in text  # 40 steps of 8 images at 16 images/s, in 20 s
    assert "0.3 min" in text


def test_one_run_a_method_is_inconclusive(tmp_path):
    text = Page(report_of(tmp_path, *make_runs(tmp_path, sizes=(1, 1)))).text
    assert "aligned against base: -20.0 %, no interval: inconclusive" in text
    assert "Why: a verdict needs at least 3 training seeds of each method" in text
    assert "Next: " in text and "FID" in text


def test_of_many_verdicts_those_that_decide_nothing_are_closed(tmp_path):
    runs = make_runs(tmp_path)
    for number in range(6):
        runs.append(make_run(tmp_path / f"other{number}", 0, fid=12 + number, lr=1 + number))
    page = report_of(tmp_path, *runs)
    text = Page(page).text
    assert "6 of 7 comparisons decide nothing" in text and "12 runs of 8 methods. Verdicts" in text
    opened, closed = page.index("aligned is better"), page.index("6 of 7 comparisons")
    assert opened < closed < page.index("other0 against base")


def test_unlike_protocols_are_not_compared(tmp_path):
    first, second = make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 0, lr=0.1)
    save_result(first, 0, 10.0, 40)
    save_result(second, 0, 5.0, 40, sampler="sde")
    text = Page(report_of(tmp_path, first, second)).text
    assert "No verdict: no figure was measured for two methods under the same protocol" in text
    assert "The results have 2 protocols" in text and "sampler ode sde" in text
    assert "is better" not in re.sub(r"(higher|lower) is better", "", text)


def test_the_baseline_and_groups_are_the_users(tmp_path):
    runs = make_runs(tmp_path)
    text = Page(report_of(tmp_path, *runs, "--baseline", "aligned")).text
    assert "base against aligned" in text
    halves = ["--group", "A & B", *runs[:3], "--group", "C", *runs[3:]]
    assert "C against A & B" in Page(report_of(tmp_path, *halves)).text


def test_everything_is_in_the_page(tmp_path):
    runs = make_runs(tmp_path)
    source = report_of(tmp_path, *runs)
    page = Page(source)
    assert page.addresses and all(a.startswith(("data:", "#")) for a in page.addresses)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert (
        "url(" not in source
        and "@import" not in source
        and "http" not in source.replace("http-equiv", "")
    )
    assert "default-src 'none'" in html.unescape(source)
    assert page.tags.count("script") == 1 and page.tags.count("h1") == 1
    assert len(source) < 500_000


def test_large_pictures_are_shrunk(tmp_path):
    run = make_run(tmp_path / "a", 0)
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8)
    Image.fromarray(noise).save(run / "samples" / "iter_000000040.png")
    assert (run / "samples" / "iter_000000040.png").stat().st_size > 6_000_000
    source = report_of(tmp_path, run)
    assert len(source) < 1_000_000 and "data:image/jpeg" in source


def test_every_text_is_escaped(tmp_path):
    run = make_run(tmp_path / NASTY, 1, align=0.1)
    other = make_run(tmp_path / "b-seed1", 1)
    config = config_of(1, align=0.1)
    config["model"][NASTY] = CLOSING
    config["model"]["classes"] = [CLOSING, NASTY]
    (run / "config.json").write_text(json.dumps(config))
    with open(run / "scalars.json", "a") as file:
        file.write(json.dumps({"iteration": 45, NASTY: 1.0, f"loss/{CLOSING}": 2.0}) + "\n")
    policy = run / "policy" / "main_iter_000000040.csv"
    policy.write_text(policy.read_text().replace("beta_mid", f"beta_{NASTY}"))
    policy.rename(policy.with_name(f"{NASTY}_iter_000000040.csv"))
    protocol = {NASTY: CLOSING, "iteration": 40}
    provenance = {"method": CLOSING, "run": NASTY, "versions": {NASTY: CLOSING}, "commit": NASTY}
    for folder in (run, other):
        EvaluationResult({NASTY: 1.0, "fid": 2.0}, protocol, provenance).save(
            folder / "evaluations" / "a.json"
        )
    (run / "evaluations" / f"{NASTY}.json").write_text("{")
    analysis = {
        "format": "ahpa-analysis-1",
        "kind": NASTY,
        "notes": [CLOSING],
        "rows": [{NASTY: CLOSING}],
    }
    analysis["record"] = {"command": [NASTY, CLOSING], "versions": CLOSING}
    (run / "analysis").mkdir()
    (run / "analysis" / "x.json").write_text(json.dumps(analysis))
    (run / "analysis" / "x.svg").write_text(f"<svg>{CLOSING}</svg>")
    (run / "analysis" / "x.csv").write_text(NASTY)
    table = tmp_path / "t.csv"
    table.write_text(f"{NASTY},b\n{CLOSING},2\n")
    options = ["--title", CLOSING, "--table", table]
    page = Page(report_of(tmp_path, run, other, *options))
    plain = Page(report_of(tmp_path, make_run(tmp_path / "plain", 1)))
    assert page.tags.count("script") == plain.tags.count("script") == 1
    assert page.tags.count("style") == page.tags.count("title") == 1
    assert not page.handlers and "x" not in page.addresses
    assert page.text.count(NASTY) > 10 and page.text.count("alert(2)") > 10
    assert page.tags.count("img") == len([a for a in page.addresses if a.startswith("data:image")])


# ---- what is missing or spoilt ------------------------------------------------------------------


def test_a_run_that_goes_on_is_shown_as_it_stands(tmp_path):
    run = make_run(tmp_path / "a-seed1", 1, last=25)
    other = make_run(tmp_path / "a-seed2", 2)
    (run / "run.lock").write_text("{}")
    text = Page(report_of(tmp_path, run, other)).text
    assert "going on: 25 of 40 iterations" in text and "finished, 40 iterations" in text
    (run / "run.lock").unlink()
    assert "stopped: 25 of 40 iterations" in Page(report_of(tmp_path, run, other)).text


def test_spoilt_files_are_left_out_and_said(tmp_path, capsys):
    run = make_run(tmp_path / "a", 1, fid=3.0, align=0.3)
    with open(run / "scalars.json", "ab") as file:
        file.write(
            b'{"iteration": 45, "loss": NaN, "lr": 0.5}\n\xff\xfe\n[1]\n{"iteration": true}\n'
        )
        file.write(b'{"iteration": 50, "loss": 0.5')
    (run / "samples" / "iter_000000040.png").write_bytes(b"\x89PNG none")
    (run / "samples" / "iter_x.png").write_bytes(b"")
    (run / "policy" / "main_iter_000000040.csv").write_text("t,beta_a\n0,1\n1\n")
    (run / "evaluations" / "bad.json").write_text('{"format": "else"}')
    (run / "analysis").mkdir()
    (run / "analysis" / "gsnr.json").write_text("[]")
    text = Page(report_of(tmp_path, run)).text
    printed = capsys.readouterr().out
    for note in (
        "scalars.json: 4 spoilt lines left out",
        "1 figures that are not finite are not drawn",
        "policy/main_iter_000000040.csv cannot be read",
        "bad.json is no result of `ahpa evaluate`",
        "gsnr.json was not written by `ahpa analyze` and is left out",
    ):
        assert note in printed, note
        assert note.split("`")[0].strip() in text, note
    assert "iter_000000040.png of a cannot be read." in text


@pytest.mark.parametrize("kept", ["config.json", "scalars.json"])
def test_missing_parts_are_one_line(tmp_path, kept):
    whole = make_run(tmp_path / "whole", 1)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / kept).write_bytes((whole / kept).read_bytes())
    text = Page(report_of(tmp_path, bare)).text
    assert "Traceback" not in text and "bare: no grids of samples" in text
    assert "No verdict: there is one method" in text
    assert "No method has a router" in text and "No diagnostics" in text
    if kept == "config.json":
        assert "Nothing has been logged yet" in text and "bare: no log (scalars.json)" in text
    else:
        assert "bare: config: config.json cannot be read" in text and "40 iterations" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either RUN..., or --group"),
        (["nowhere"], "nowhere does not exist; expected the work dir"),
        ([""], "has neither scalars.json nor config.json"),
        (["run", "--out", "report.pdf"], "--out: must end in .html"),
        (["run", "--steps", "0"], "--steps"),
        (["run", "--baseline", "rum"], "--baseline: no method 'rum'; did you mean 'run'?"),
        (["run", "--table", "none.csv"], "none.csv cannot be read"),
        (["run", "--table", "none.txt"], "must be a .csv or .json file"),
        (["run", "--analysis", "none"], "--analysis: none is no folder"),
        (["--group", "a"], "--group: 'a' has no runs"),
        (["--group", "a", "run", "--group", "b", "run"], "is in both 'a' and 'b'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    make_run(tmp_path / "run", 1)
    monkeypatch.chdir(tmp_path)
    assert main([a or str(tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))


# ---- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "method,FID\nbase,10\nours,\n"),
        ("a.json", '[{"method": "base", "FID": 10}, {"method": "ours"}]'),
        ("a.json", '{"columns": ["method", "FID"], "rows": [["base", 10], ["ours", null]]}'),
    ],
)
def test_tables_of_every_form_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_table(tmp_path / name)
    assert found.columns == ["method", "FID"] and found.title == "a"
    assert [list(row) for row in found.rows] == [["base", "10"], ["ours", found.rows[1][1]]]
    assert found.rows[1][1] in ("", "–")


# ---- the browser --------------------------------------------------------------------------------


def test_chromium_shows_the_page(tmp_path):
    runs = make_runs(tmp_path)
    kind = {"format": "ahpa-analysis-1", "kind": "gsnr", "notes": [], "rows": [{"t": 0.5}]}
    (runs[0] / "analysis").mkdir()
    (runs[0] / "analysis" / "gsnr.json").write_text(json.dumps(kind))
    wide = '<svg xmlns="http://www.w3.org/2000/svg" width="1500" height="300"/>'
    (runs[0] / "analysis" / "gsnr.svg").write_text(wide)
    table = tmp_path / "wide.json"
    row = {f"column number {n} of a wide table": "x" * 12 for n in range(20)}
    table.write_text(json.dumps([row]))
    report_of(tmp_path, *runs, "--table", table)
    path = tmp_path / "report.html"
    with chromium() as browser:
        for width in (320, 360, 800, 1400):
            browser.open(path, width)
            browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.requests == [path.as_uri()]
            assert browser.problems == []
            widths = "(e => [e.scrollWidth, e.clientWidth])(document.documentElement)"
            whole, seen = browser.evaluate(widths)
            assert whole <= seen <= width, f"the page is wider than {width} px"
            broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
            assert browser.evaluate(broken) == 0
        check_colours(browser, path)
        check_controls(browser, path)
        browser.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def check_colours(browser, path):
    """Text and lines stand out from the ground, in the light and in the dark."""
    read = """(() => {
      const style = s => getComputedStyle(document.querySelector(s));
      return [style("body").backgroundColor, style("body").color, style(".plot text").fill,
              style(".look0 .line").stroke, style(".look1 .line").stroke, style("a").color,
              style("thead th").color,
              style(".badge").color + style(".badge").backgroundColor];
    })()"""
    for dark in (False, True):
        browser.open(path, 800, dark=dark)
        ground, *colours, badge = browser.evaluate(read)
        assert (luminance(ground) < 0.1) == dark
        text, axis, first, second, link, soft = colours
        for colour in (text, axis, link, soft):
            assert contrast(ground, colour) >= 4.5
        for colour in (first, second):
            assert contrast(ground, colour) >= 3
        own, behind = re.findall(r"rgb\([^)]*\)", badge)
        assert contrast(own, behind) >= 4.5


def check_controls(browser, path):
    """A box hides its method without any script; the slider smooths; the first key skips."""
    lines = "[...document.querySelectorAll('#curves .own0')].filter(e => e.getClientRects().length)"
    for script in (False, True):
        browser.open(path, 800, script=script)
        before = browser.evaluate(f"{lines}.length")
        browser.evaluate("document.querySelector('#show0').focus()")
        browser.press(" ", 32)
        assert before > 0 and browser.evaluate(f"{lines}.length") == 0
        shown = browser.evaluate("document.querySelector('.controls').getClientRects().length")
        assert bool(shown) == script
    points = "document.querySelector('#curves polyline.line').getAttribute('points')"
    raw = [float(pair.split(",")[1]) for pair in browser.evaluate(points).split()]
    move = "const s = document.getElementById('smoothing'); s.value = 0.6;"
    browser.evaluate(move + " s.dispatchEvent(new Event('input'))")
    found = [float(pair.split(",")[1]) for pair in browser.evaluate(points).split()]
    for n, value in enumerate(found):
        weights = [0.6 ** (n - i) for i in range(n + 1)]
        mean = sum(w * y for w, y in zip(weights, raw, strict=False)) / sum(weights)
        assert value == pytest.approx(mean, abs=0.06)
    browser.open(path, 800)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


def channels(colour):
    return [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]


def luminance(colour):
    """WCAG 2.2's relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    """WCAG 2.2's contrast ratio."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
