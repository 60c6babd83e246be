"""Every shipped config names its bricks, builds at full size and trains two steps of its demo.

Full size is on the meta device. Tables are complete, and the map of the configs is up to date.
"""

import argparse
import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ahpa.analysis.cost import added_macs, forward_macs, parameter_counts
from ahpa.cli import train as cli
from ahpa.engine import config as configs
from ahpa.engine.assembly import build_model
from ahpa.engine.dryrun import synthetic_batch, train_step
from ahpa.engine.optimiser import Optimiser, build_optimizer
from ahpa.registry.contracts import Progress

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
config_map = importlib.import_module("config_map")
ALL = sorted((ROOT / "configs").glob("*.py"))
BRICKS = sorted((ROOT / "configs" / "_base_").rglob("*.py"))
ROOMS = ("backbones", "methods", "recipes")
ITEMS = {"AdversarialLoss": ("/fool", "/judge")}  # losses of several terms
FLOW_TERMS = {"HybridLoss": "flow/vlb", "ContrastiveFlowLoss": "flow/contrast"}
NO_HEAD = ("Regularisation", "AttentionAlignment", "IdentityProjector")  # no parameters
TABLES = sorted((ROOT / "configs" / "tables").glob("table_*.json"))


def arguments(config, **changes):
    values = dict(
        config=str(config),
        demo=False,
        data=None,
        vae=None,
        work_dir=None,
        max_iters=None,
        resume=False,
        dry_run=True,
        seed=None,
        cfg_options=[],
        launcher="none",
    )
    return argparse.Namespace(**{**values, **changes})


def _name(path):
    return path.stem


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_builds_at_full_size(path):
    cfg = configs.load(path)
    model = configs.check_config(cfg)
    depth = cfg["model"]["backbone"]["depth"]
    assert model.backbone.depth == depth and all(1 <= tap.block <= depth for tap in model.taps)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_has_the_header(path):
    text = path.read_text()
    header = text.split('"""')[1]
    assert f"tools/train.py configs/{path.name}" in header
    assert "Hardware:" in header and "time" in header and "Paper:" in header
    assert max(map(len, text.splitlines())) <= 100


def bases(path):
    """The files that a config or a brick names in `_base_`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            return [(path.parent / name).resolve() for name in ast.literal_eval(node.value)]
    return []


def family(path):
    """A file, its bases, their bases, and so on."""
    return [path, *(file for base in bases(path) for file in family(base))]


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_names_its_bricks_and_little_else(path):
    """One backbone, the methods, one recipe; the methods' places; at most two assignments."""
    rooms = [base.parent.name for base in bases(path)]
    assert rooms == sorted(rooms) and rooms.count("backbones") == rooms.count("recipes") == 1
    assert set(rooms) <= set(ROOMS)
    lines = [ast.unparse(node) for node in ast.parse(path.read_text()).body]
    assert lines[1].startswith("_base_ = ")
    changes = lines[2:]
    if "methods" in rooms:
        assert re.fullmatch(r"_base_\.model\.merge\(_base_\._\w+\)", changes.pop(0))
    places = r"_base_\.model\.(\S+\.(tap|block|hidden_dim) = \d+|tokenizer\.statistics = .+)"
    others = [line for line in changes if not re.fullmatch(places, line) and line[:7] == "_base_."]
    helpers = [line for line in changes if re.match(r"_[a-z]+ = ", line)]
    assert len(others) <= 2 and len(helpers) <= 1, "one or two assignments"


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_latents_are_normalised_as_the_source_does(path):
    """AHPA's recipe and iREPA: by channel. Others, and text to image: by one factor. Nothing is
    published for SDXL's autoencoder."""
    names = {file.stem for file in family(path)}
    model = configs.load(path)["model"]
    wanted = None
    if names & {"dit_ahpa", "irepa"} or "_base_/recipes/ahpa.py" in path.read_text():
        wanted = "sd-imagenet"
    if "mmdit" in path.stem or "sdxl" in model["tokenizer"]["source"]:
        wanted = None
    assert model["tokenizer"].get("statistics") == wanted


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_at_most_three_files_tell_the_learning_rate(path):
    """They are the config, its recipe and what that is over; the recipe says it."""
    recipe = next(base for base in bases(path) if base.parent.name == "recipes")
    assert "lr=" in recipe.read_text()
    telling = [file for file in family(path) if re.search(r"\blr\b", file.read_text())]
    assert len(telling) <= 3


@pytest.mark.parametrize("path", BRICKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_bricks_build_on_their_own_room(path):
    """Never on a config, and never on another size: a change of B does not move XL."""
    for base in bases(path):
        assert base in BRICKS and (base.parent == path.parent or base.name == "runtime.py")
    if path.parent.name == "backbones":
        size = path.stem.split("_")[0]
        assert {file.stem.split("_")[0] for file in family(path)} <= {size, size.split("-")[0]}
    else:
        assert len(family(path)) <= 4


def test_every_brick_is_used():
    assert {file for path in ALL for file in family(path)} == {*ALL, *BRICKS}


@pytest.mark.parametrize("path", ALL[::10], ids=_name)
def test_mmengine_alone_reads_it(path):
    """`load` only drops the bricks' helper names."""
    plain = {key: value for key, value in Config.fromfile(path).to_dict().items() if key[0] != "_"}
    assert plain == configs.load(path)


def test_no_config_repeats_the_resolution():
    for path in (*ALL, *BRICKS):
        loader = Config.fromfile(path).get("train_dataloader", {})
        assert "resolution" not in loader.get("dataset", {}), path.name


def test_the_map_is_up_to_date():
    command = [sys.executable, ROOT / "tools" / "config_map.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def expected_terms(model):
    """The names of the terms that a config's model section asks for."""
    names = {"flow"} | {f"flow/{stream}" for stream in model.get("streams", {})}
    if model["flow_loss"]["type"] in FLOW_TERMS:
        names.add(FLOW_TERMS[model["flow_loss"]["type"]])
    for name, alignment in model["alignments"].items():
        for key, criterion in alignment.get("criteria", {}).items():
            items = ITEMS.get(criterion["type"], ("",))
            names |= {f"{name}/{key}{item}" for item in items}
        if "regulariser" in alignment:
            names.add(f"{name}/regulariser")
        if alignment.get("router_grad") == "aux":
            names.add(f"{name}/router")
        if alignment.get("entropy_weight"):
            names.add(f"{name}/entropy")
    return names


def has_head(alignment):
    """Whether an alignment of a config has parameters of its own."""
    parts = (alignment, alignment.get("projector", {}))
    return not any(part.get("type") in NO_HEAD for part in parts)


def demo_of(path):
    """A case for a config's demo; that of a larger size is the base size's, but for the blocks."""
    base = re.sub(r"(sit|dit)-(l|xl)", r"\1-b", path.stem)
    larger = base != path.stem and path.with_stem(base) in ALL
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if larger else [])


@pytest.mark.parametrize("path", map(demo_of, ALL))
def test_demo_keeps_the_method_and_trains_two_steps(path):
    full = configs.load(path)["model"]
    options = ["model.backbone.hidden_size=48", "model.backbone.num_heads=4"]
    cfg = cli.training_config(arguments(path, demo=True, cfg_options=options))
    for name, alignment in full["alignments"].items():
        small = cfg["model"]["alignments"][name]
        for part in ("router", "projector", "criteria", "regulariser", "weight", "source"):
            assert small.get(part) == alignment.get(part), f"the demo changed {part}"
    torch.manual_seed(0)
    model = build_model(cfg["model"])
    model.parts.load()
    assert model.geometry.resolution == 64
    wrapper = dict(cfg["optim_wrapper"])
    optimizer = build_optimizer(wrapper.pop("optimizer"), model)
    optimiser = Optimiser(optimizer=optimizer, **wrapper)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for seed in range(2):
        batch = synthetic_batch(model, batch=3, seed=seed)
        progress = Progress(seed, 2, diagnose=True)
        losses = train_step(model, optimiser, batch, seed=seed, progress=progress)
        assert all(torch.isfinite(value).all() for value in losses.scalars().values())
    assert int(optimiser.bad_total) == 0
    assert {term.name for term in losses.terms} == expected_terms(full)
    moved = {
        name.split(".")[0]
        for name, p in model.named_parameters()
        if not torch.equal(before[name], p)
    }
    heads = [name for name, alignment in full["alignments"].items() if has_head(alignment)]
    assert moved == ({"backbone", "alignments"} if heads else {"backbone"})
    learned = [n for n, p in model.named_parameters() if ".router." in n and p.requires_grad]
    assert all(
        not torch.equal(before[n], dict(model.named_parameters())[n])
        for n in learned
        if "weight" in n
    )


@pytest.mark.parametrize("path", TABLES, ids=_name)
def test_table_rows_lead_to_configs(path):
    table = json.loads(path.read_text())
    assert table["rows"] or table["not_run"]
    for row in table["rows"]:
        header = config_map.read_header(ROOT / row["config"])
        assert config_map.row_line(table, row) in header, f"{row['config']} does not quote its row"


def test_no_header_quotes_a_row_that_leads_elsewhere():
    tables = [json.loads(path.read_text()) for path in TABLES]
    lines = [config_map.row_line(table, row) for table in tables for row in table["rows"]]
    quoted = [
        line
        for path in ALL
        for line in config_map.read_header(path).splitlines()
        if line.startswith("Paper: AHPA Table")
    ]
    assert sorted(quoted) == sorted(lines)


def recipe(path):
    """Learning rate, clipping and flips of a config."""
    cfg = configs.load(path)
    wrapper = cfg["optim_wrapper"]
    flip = cfg["train_dataloader"]["dataset"].get("flip")
    return wrapper["optimizer"]["lr"], wrapper["clip_grad"], flip


@pytest.mark.parametrize("path", TABLES, ids=_name)
def test_rows_that_a_table_compares_have_one_recipe(path):
    """But for rows that quote other papers, which say so; AHPA's own is lr 2e-4, clip 2.0."""
    table = json.loads(path.read_text())
    rows = [row for row in table["rows"] if row.get("recipe") != "published"]
    if not rows:
        return  # tables A.8 and A.9 measure nothing
    text_to_image = table["table"] in ("5", "C.12")
    wanted = (1e-4, 1.0, None) if text_to_image else (2e-4, 2.0, False)
    assert {recipe(ROOT / row["config"]) for row in rows} == {wanted}
    quoted = {row["config"] for row in table["rows"]} - {row["config"] for row in rows}
    allowed = {"3": 1, "4": 6, "F.19": 2, "G.20": 6}  # rows at published lengths
    assert len(quoted) == allowed.get(table["table"], 0)


@pytest.mark.parametrize("size", ["b", "l", "xl"])
def test_vanilla_and_ahpa_differ_in_the_alignment_alone(size):
    vanilla, ahpa = (
        configs.load(ROOT / "configs" / f"{name}.py")
        for name in (f"sit-{size}_matched", f"ahpa_sit-{size}")
    )
    parts = ("alignments", "priors")
    assert vanilla["model"].pop("alignments") == {} and vanilla["model"].pop("priors") == {}
    assert all(ahpa["model"].pop(part) for part in parts)
    assert vanilla == ahpa


@pytest.mark.parametrize("method", ["repa", "sra2"])
def test_the_baselines_of_ahpas_readme_are_at_block_7(method):
    own, matched = (
        configs.load(ROOT / "configs" / f"{method}_sit-xl_{knob}.py")
        for knob in ("block-7", "matched")
    )
    assert own["model"]["alignments"]["main"].pop("tap") == 7
    assert matched["model"]["alignments"]["main"].pop("tap") == 8
    assert own == matched


ROW_KEYS = {"row", "config", "epochs", "iterations", "sampler", "steps", "cfg_scale"}
SAMPLERS = {
    "euler_ode_250": ("euler", 250),
    "euler_ode_50": ("euler", 50),
    "euler_maruyama_sde_250": ("sde", 250),
    "ddpm_250": ("ddpm", 250),
}
UNSURE = {"label_status", "block_status", "heuristic_status", "lut_status"}  # told by `note`


def test_no_runnable_row_of_the_paper_is_missing(shared):
    """Every runnable row of every table has a config, its figures and what else is known of it."""
    for table in json.loads((shared / "design" / "paper_tables.json").read_text()):
        wanted = [row for row in table["rows"] if row["runnable"]]
        name = f"table_{table['table'].replace('.', '').lower()}.json"
        whole = json.loads((ROOT / "configs" / "tables" / name).read_text())
        own = whole["rows"]
        assert [row["row"] for row in own] == [row["name"] for row in wanted], name
        left_out = [(row["name"], row["metrics"]) for row in table["rows"] if not row["runnable"]]
        if wanted:  # tables A.8 and A.9 measure nothing
            quoted = whole.get("not_run", ())
            assert [(row["row"], row["paper"]) for row in quoted] == left_out, name
        for row, source in zip(own, wanted, strict=True):
            assert row["paper"] == source["metrics"]
            assert row.get("published") == source.get("published_metrics")
            assert row.get("alternative") == source.get("alt_metrics")
            usual = table.get("default_config", {})
            for key in ("epochs", "iterations", "cfg_scale"):
                if row["sampler"] is None and key == "cfg_scale":  # nothing is sampled for a G-SNR
                    continue
                known = source["config"].get(key, usual.get(key))
                assert known in (None, row[key]), (name, row["row"], key)
            unsure = {key for key in UNSURE if key in source or key in source["config"]}
            assert not unsure or row.get("note"), (name, row["row"], unsure)
            interval = source["config"].get("guidance_interval")
            assert interval is None or interval == row["cfg_interval"]
            assumed = source["config"].get("cfg_status", "").startswith("assumed")
            assert row.get("guidance") == "assumed" or not assumed
            sampler = source["config"].get("sampler")
            assert sampler is None or (row["sampler"], row["steps"]) == SAMPLERS[sampler]


@pytest.mark.parametrize("path", TABLES, ids=_name)
def test_rows_say_how_long_and_how_sampled(path):
    table = json.loads(path.read_text())
    for row in table["rows"]:
        assert row.keys() >= ROW_KEYS | {"cfg_interval", "paper"}
        if table["table"] in ("6", "I.21"):  # a cost
            assert row["iterations"] is None
            continue
        images = 82_783 if "mmdit" in row["config"] else 1_281_167  # COCO 2014, ImageNet
        assert row["epochs"] == pytest.approx(256 * row["iterations"] / images, rel=2e-3)
        if not {"FID", "PickScore"} & row["paper"].keys():  # nothing is sampled for a G-SNR
            assert row["sampler"] is None
            continue
        assert row["sampler"] in ("euler", "sde", "ddpm") and row["steps"] in (50, 250)
        assert (row["cfg_scale"] > 1) == (row["cfg_interval"] is not None)


LEVELS = {}  # of the groups that a string names, which are the same in configs of one prior


def levels_of(name, key, groups):
    """The levels of each group of an alignment's router."""
    cfg = configs.load(ROOT / "configs" / f"{name}.py")
    known = (groups, json.dumps(cfg["model"]["priors"], default=str))
    if known not in LEVELS:
        router = configs.check_config(cfg).alignments[key].router
        LEVELS[known] = [list(levels) for levels in router.groups.values()]
    return LEVELS[known]


def model_of(name):
    """What decides on a config's model and training; equal for two names of the same."""
    cfg = configs.load(ROOT / "configs" / f"{name}.py")
    model = cfg["model"]
    tokenizer = model["tokenizer"]
    if tokenizer["source"] in ("stabilityai/sd-vae-ft-mse", "stabilityai/sd-vae-ft-ema"):
        tokenizer["source"] = "sd"  # they differ in the decoder alone
    for key, alignment in model["alignments"].items():
        groups = alignment.get("router", {}).get("groups")
        if isinstance(groups, str):
            alignment["router"]["groups"] = levels_of(name, key, groups)
    parts = (model, cfg["optim_wrapper"], cfg["train_dataloader"])
    return json.dumps(parts, sort_keys=True, default=str)


def test_one_model_claims_one_figure():
    """Rows of one model, length and sampling agree, but for those that say what is wrong."""
    models, claims = {}, {}
    for path in TABLES:
        table = json.loads(path.read_text())
        for row in table["rows"]:
            name = Path(row["config"]).stem
            if not row.get("reproducible", True):
                continue
            models.setdefault(name, model_of(name))
            for metric in ("FID", "sFID", "IS", "Precision", "Recall", "PickScore", "gsnr_avg"):
                value = row.get("alternative", {}).get(metric, row["paper"].get(metric))
                if value is None or (metric == "PickScore" and "alternative" in row):
                    continue
                how = (row["iterations"], row["sampler"], row["cfg_scale"])
                key = (models[name], *(how if metric != "gsnr_avg" else ()), metric)
                claims.setdefault(key, {})[f"{table['table']} {row['row']}"] = value
    conflicts = [rows for rows in claims.values() if len(set(rows.values())) > 1]
    assert conflicts == []
    assert len(claims) < sum(len(rows) for rows in claims.values())  # some are told twice


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ahpa_sit-b_groups-resolution", "ahpa_sit-b_groups-2-6"),
        ("ahpa_sit-b_vae-consistency", "ahpa_sit-b_groups-resolution"),
        ("sit-b_vae-consistency", "sit-b_matched"),
    ],
)
def test_a_config_that_is_another_ones_model_says_so(one, other):
    assert model_of(one) == model_of(other)
    header = config_map.read_header(ROOT / "configs" / f"{one}.py")
    assert f"`{other}`" in header.replace("\n", " ")
    quoted = [line for line in header.splitlines() if line.startswith("Paper: AHPA")]
    assert all("no public autoencoder reproduces it" in line for line in quoted)


STOPPING = sorted(path for path in ALL if path.stem.startswith("haste") or "stop" in path.stem)


@pytest.mark.parametrize("path", STOPPING, ids=_name)
def test_stops_like_hastes_are_counted_in_steps(path):
    """100,000 for B and 250,000 for L and XL, whatever the length of the run."""
    alignments = configs.load(path)["model"]["alignments"]
    step = 100_000 if "sit-b" in path.stem else 250_000
    wanted = dict(type="EarlyStop", value=0.5, until_step=step)
    assert [alignment["weight"] for alignment in alignments.values()] == [wanted] * len(alignments)


@pytest.mark.parametrize(
    ("names", "flip"),
    [
        (("sit-s", "sit-b", "sit-l", "sit-xl", "sit-xl_512px", "sit-xl_iters-7m"), True),
        (("layersync_sit-b", "layersync_sit-xl", "dispersive_sit-b"), True),
        (("sit-b_matched", "repa_sit-b", "sra_sit-b", "sra2_sit-b", "dupa_sit-b"), False),
    ],
)
def test_sits_own_code_flips_and_repas_family_does_not(names, flip):
    for name in names:
        dataset = configs.load(ROOT / "configs" / f"{name}.py")["train_dataloader"]["dataset"]
        assert dataset["flip"] is flip, name


def lengths(text):
    """The optimiser steps that a text speaks of: epochs of ImageNet, or steps in K or M."""
    found = [int(number) * 5004 for number in re.findall(r"(\d+) epochs", text)]
    for number, unit in re.findall(r"\b(\d+)([KM]) steps", text):
        found.append(int(number) * {"K": 1000, "M": 1_000_000}[unit])
    return found


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_figures_of_another_length_come_with_the_command(path):
    """What is printed after 100 to 1400 epochs is not what a command of 80 epochs gives."""
    own = configs.load(path)["train_cfg"]["max_iters"]
    header = config_map.read_header(path)
    for line in header.splitlines():
        if not line.startswith("Paper:") or "FID" not in line:
            continue
        told = re.search(r"--max-iters (\d+)", line)
        trained = own if told is None else int(told[1])
        for steps in lengths(line):
            assert trained == pytest.approx(steps, rel=0.002), line
        if "guid" in line and "without guidance" not in line and "not known here" not in line:
            assert "--cfg-scale" in line, line
        assert len(lengths(line)) == 1 or "AHPA Table" in line or "not known here" in line, line


PAPER_SETTINGS = [  # config, then what the paper's row says of it
    ("static-g4_sit-b_block-2", dict(tap=2, groups=[4], router="StaticRouter")),
    ("static-g1_sit-b", dict(tap=3, groups=[4], router="StaticRouter")),
    ("static-g2_sit-b", dict(tap=3, groups=[3], router="StaticRouter")),
    ("static-g1g2g3g4_sit-b", dict(tap=3, groups=[4, 3, 4, 4], router="StaticRouter")),
    ("ahpa_sit-b", dict(tap=3, groups=[4, 4], router="MLPRouter", out_dim=1024)),
    ("ahpa_sit-l", dict(tap=6, groups=[4, 4], router="MLPRouter", out_dim=1024)),
    ("ahpa_sit-xl", dict(tap=7, groups=[4, 4], router="MLPRouter", out_dim=1024)),
    ("ahpa_sit-b_groups-2-6", dict(tap=3, groups=[2, 6], router="MLPRouter")),
    ("ahpa_sit-b_groups-6-2", dict(tap=3, groups=[6, 2], router="MLPRouter")),
    ("ahpa_sit-b_block-8", dict(tap=8, groups=[4, 4], router="MLPRouter")),
    ("ahpa_sit-b_partition", dict(tap=3, groups=[15] * 4, router="PartitionRouter", out_dim=2048)),
    ("ahpa_sit-b_router-lut", dict(tap=3, groups=[4, 4], router="LUTRouter")),
    ("ahpa_sit-b_control-constant-weights", dict(tap=3, groups=[4, 4], router="LUTRouter")),
    ("repa_sit-b", dict(tap=4, groups=[1], router="StaticRouter", out_dim=768, weight=0.5)),
    (
        "repa_sit-xl_matched",
        dict(tap=8, groups=[1], router="StaticRouter", out_dim=768, weight=0.5),
    ),
    ("irepa_sit-l", dict(tap=8, groups=[1], router="StaticRouter", out_dim=768, weight=1.0)),
    ("sara_sit-xl", dict(tap=8, groups=[1], router="StaticRouter", out_dim=768, weight=1.0)),
    ("sra_sit-b", dict(tap=3, groups=[1], router="StaticRouter", out_dim=768, weight=0.2)),
    ("sra_sit-xl", dict(tap=8, groups=[1], router="StaticRouter", out_dim=1152, weight=0.2)),
    ("sra2_sit-b", dict(tap=2, groups=[1], router="StaticRouter", out_dim=16, weight=1.0)),
    ("sra2_sit-l", dict(tap=8, groups=[1], router="StaticRouter", out_dim=16, weight=1.0)),
    ("sra_dit-xl", dict(tap=8, groups=[1], router="StaticRouter", out_dim=1152, weight=0.04)),
    ("sra_sit-b_cosine", dict(tap=3, groups=[1], router="StaticRouter", out_dim=768, weight=0.5)),
    ("repa_mmdit", dict(tap=8, groups=[1], router="StaticRouter", out_dim=768, weight=0.5)),
]


@pytest.mark.parametrize("name, wanted", PAPER_SETTINGS, ids=[name for name, _ in PAPER_SETTINGS])
def test_settings_of_the_paper(name, wanted):
    model = configs.check_config(configs.load(ROOT / "configs" / f"{name}.py"))
    alignment = model.alignments["main"]
    assert alignment.tap == wanted["tap"] and type(alignment.router).__name__ == wanted["router"]
    assert [len(levels) for levels in alignment.router.groups.values()] == wanted["groups"]
    assert alignment.router.out_dim == wanted.get("out_dim", alignment.router.out_dim)
    assert alignment.weight(Progress()) == wanted.get("weight", 1.0)
    assert model.backbone.grid == (16, 16)


METHODS = ("repa", "irepa", "sara", "sra", "sra2", "reg", "dupa", "ahpa")
SIZES = ("sit-b", "sit-l", "sit-xl", "sit-xl_512px", "dit-b", "dit-l", "dit-xl", "mmdit")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_on_every_backbone_with_its_own_alignment(method, size):
    """What a brick says stays; the block and the head's width follow the size."""
    cfg, base = (
        configs.load(ROOT / "configs" / f"{method}_{name}.py")["model"] for name in (size, "sit-b")
    )
    own, wanted = ({**c["alignments"]} for c in (cfg, base))
    assert set(own) == set(wanted) and set(cfg["priors"]) == set(base["priors"])
    for name in own:
        if method == "sra" and size.startswith("dit"):  # as in its DiT code
            assert (own[name].pop("weight"), wanted[name].pop("weight")) == (0.04, 0.2)
        for part in ("type", "source", "router", "criteria", "weight", "out_dim"):
            assert own[name].get(part) == wanted[name].get(part), part
        head, first = (dict(alignments[name]["projector"]) for alignments in (own, wanted))
        if size == "mmdit" and first.get("init") == "xavier":
            assert head.pop("init") == "torch" and first.pop("init")
        if method in ("sra", "sra2"):
            assert head.pop("hidden_dim") == 2 * cfg["backbone"]["hidden_size"] and first.pop(
                "hidden_dim"
            )
        assert head == first
    assert cfg.get("streams") == base.get("streams") and cfg["flow"].get("views") == base[
        "flow"
    ].get("views")
    assert cfg["resolution"] == (512 if "512px" in size else 256)
    loss = "HybridLoss" if size.startswith("dit") else "FlowMatchingLoss"
    assert cfg["flow_loss"] == {**base["flow_loss"], "type": loss}


def drawn_from_xavier(path, name):
    """Whether the source of an alignment's head starts it so: REPA, REG and SRA, but for text."""
    bricks = {f"{base.parent.name}/{base.stem}" for base in family(path)}
    methods = {"methods/repa", "methods/reg", "methods/sra"} & bricks
    return bool(methods) and name == "main" and "backbones/mmdit" not in bricks


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_heads_start_as_in_the_official_codes(path):
    for name, alignment in configs.load(path)["model"]["alignments"].items():
        found = alignment.get("projector", {}).get("init", "torch")
        assert found == ("xavier" if drawn_from_xavier(path, name) else "torch"), name


@pytest.mark.parametrize(
    ("name", "xavier"),
    [
        ("repa_sit-b", True),
        ("reg_sit-b", True),
        ("sra_dit-b", True),
        ("ahpa-repa_sit-b", True),
        ("ahpa-reg_sit-b", True),
        ("repa_mmdit", False),
        ("reg_mmdit", False),
        ("sra_mmdit", False),
        ("irepa_sit-b", False),
        ("ahpa_sit-b", False),
    ],
)
def test_the_weights_that_training_starts_from(name, xavier):
    """Xavier heads have zero biases; MMDiT has torch's weights where adaLN-Zero has zeros."""
    path = ROOT / "configs" / f"{name}.py"
    model = build_model(cli.training_config(arguments(path, demo=True))["model"])
    layers = [m for m in model.alignments["main"].projector.modules() if hasattr(m, "bias")]
    assert layers and all(bool((layer.bias == 0).all()) == xavier for layer in layers)
    modulations = [p for n, p in model.backbone.named_parameters() if "adaLN_modulation.1" in n]
    assert all(bool((p == 0).all()) == ("mmdit" not in name) for p in modulations)


SMOOTH_L1 = dict(l1=dict(type="SmoothL1Loss", beta=0.05))
COSINE = dict(cosine=dict(type="CosineLoss", over="tokens"))


@pytest.mark.parametrize("backbone", ["sit", "dit"])
@pytest.mark.parametrize("size", ["b", "l", "xl"])
@pytest.mark.parametrize("knob", ["", "_cosine"])
def test_sras_recipe_is_that_of_its_code(backbone, size, knob):
    """Clipping at 1.0, no flips; smooth L1 of 0.2 (DiT: 0.04), or the later default, a cosine."""
    cfg = configs.load(ROOT / "configs" / f"sra_{backbone}-{size}{knob}.py")
    alignment = cfg["model"]["alignments"]["main"]
    assert alignment["criteria"] == (COSINE if knob else SMOOTH_L1)
    assert alignment["weight"] == (0.5 if knob else {"sit": 0.2, "dit": 0.04}[backbone])
    assert cfg["optim_wrapper"]["clip_grad"] == 1.0
    assert cfg["optim_wrapper"]["optimizer"]["lr"] == 1e-4
    assert cfg["train_dataloader"]["dataset"]["flip"] is False
    assert (cfg["model"]["priors"]["ema"].get("steps") == 1000) == (backbone == "dit")


def test_the_teachers_of_dit_draw_whole_steps():
    blocks = {"sra_dit-b": 8, "sra_dit-l": 16, "sra_dit-xl": 16, "sra_dit-xl_cosine": 16}
    for name, block in blocks.items():
        prior = configs.check_config(configs.load(ROOT / "configs" / f"{name}.py")).parts.priors[
            "ema"
        ]
        assert (prior.block, prior.offset, prior.steps, prior.least) == (block, 0.2, 1000, 0.001)


@pytest.mark.parametrize(
    "method, weight", [("irepa", 1.0), ("sara", 1.0), ("reg", 0.5), ("dupa", 0.5), ("sra", 0.2)]
)
def test_512px_targets_are_of_1024_tokens(method, weight):
    model = configs.check_config(configs.load(ROOT / "configs" / f"{method}_sit-xl_512px.py"))
    alignment = next(iter(model.alignments.values()))
    assert (
        model.backbone.grid == (32, 32)
        and alignment.tap == 8
        and alignment.weight(Progress()) == weight
    )
    priors = model.parts.priors.values()
    strides = {level.stride for prior in priors for level in prior.levels.values()}
    assert strides <= {
        0,
        16,
    }  # of the image's pixels: 512 / 16 = 32, so the target needs no resizing


def shown(value, scale, digits):
    """A number of the cost table; nothing for zero."""
    return f"{value / scale:.{digits}f}" if value else ""


def pair(both, products):
    """Multiply-accumulates with and without attention's products, in G."""
    return f"{both / 1e9:.2f} / {(both - products) / 1e9:.2f}" if both else ""


@pytest.mark.parametrize(
    "name",
    [
        "sit-xl",
        "sra_dit-xl",
        "reg_dit-xl",
        "dupa_dit-xl",
        "reg_mmdit",
        "dupa_mmdit",
        "dupa_sit-xl_512px",
    ],
)
def test_the_cost_table_of_the_docs(name):
    """docs/methods.md: parameters, multiply-accumulates with and without attention's products, and
    those of a training step."""
    lines = (ROOT / "docs" / "methods.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| `{name}` |") and " / " in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    model = configs.check_config(configs.load(ROOT / "configs" / f"{name}.py"))
    counts, (both, products), added = (
        parameter_counts(model),
        forward_macs(model.backbone),
        added_macs(model),
    )
    heads, teacher = (
        [sum(v[i] for part, v in added.items() if part.startswith(kind)) for i in (0, 1)]
        for kind in ("projector", "prior")
    )
    backbone = counts.pop("backbone")
    step = model.flow.views * (both - products + heads[0]) + teacher[0] - teacher[1]
    assert cells[:6] == [
        shown(backbone, 1e6, 1),
        shown(sum(counts.values()), 1e6, 2),
        pair(both, products),
        shown(heads[0], 1e9, 2),
        pair(*teacher),
        shown(step, 1e9, 2),
    ]


def test_the_control_learns_one_set_of_weights_for_all_t():
    """As `ahpa_sit-b` but for the router, whose only row is learned and the same at every t."""
    own, ahpa = (
        configs.load(ROOT / "configs" / f"{name}.py")["model"]
        for name in ("ahpa_sit-b_control-constant-weights", "ahpa_sit-b")
    )
    table = own["alignments"]["main"].pop("router")
    assert table == dict(type="LUTRouter", groups="4/4", bins=1)
    assert ahpa["alignments"]["main"].pop("router")["groups"] == table["groups"] and own == ahpa
    path = ROOT / "configs" / "ahpa_sit-b_control-constant-weights.py"
    router = build_model(cli.training_config(arguments(path, demo=True))["model"]).alignments
    router = router["main"].router
    assert {name: tuple(p.shape) for name, p in router.named_parameters()} == {
        "alpha_table": (1, 8),
        "beta_table": (1, 2),
    }
    torch.nn.init.normal_(router.alpha_table)
    torch.nn.init.normal_(router.beta_table)
    alpha, beta = router.weights(torch.linspace(0, 1, 11))
    for weights in (*alpha.values(), beta):
        assert torch.equal(weights, weights[:1].expand_as(weights))
        assert not torch.allclose(weights, weights.mean(-1, keepdim=True))  # not uniform


def test_sara_is_told_from_its_namesake():
    """SARA (arXiv:2503.08253) shares its name with a video method (arXiv:2605.07800)."""
    for file in ("configs/_base_/methods/sara.py", "docs/methods/sara.md"):
        text = (ROOT / file).read_text()
        assert "arXiv:2503.08253" in text and "arXiv:2605.07800" in text, file


def test_multi_is_three_alignments_of_a_third():
    model = configs.check_config(configs.load(ROOT / "configs" / "static-g4_sit-b_block-3-4-8.py"))
    assert sorted(a.tap for a in model.alignments.values()) == [3, 4, 8]
    assert (
        len(model.parts.priors) == 1
        and len({id(a.projector) for a in model.alignments.values()}) == 3
    )


HEADS = {  # METHODS section 12: parameters of the heads in millions
    "repa_sit-b": 7.35,
    "repa_sit-l": 7.87,
    "repa_sit-xl": 8.13,
    "irepa_sit-b": 5.31,
    "irepa_sit-l": 7.08,
    "irepa_sit-xl": 7.96,
    "sra_sit-b": 2.36,
    "sra_sit-l": 4.20,
    "sra_sit-xl": 5.31,
    "sra2_sit-b": 8.29,
    "sra2_sit-xl": 18.63,
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_have_the_published_size(name):
    model = configs.check_config(configs.load(ROOT / "configs" / f"{name}.py"))
    count = sum(p.numel() for p in model.alignments["main"].projector.parameters())
    assert round(count / 1e6, 2) == pytest.approx(HEADS[name], abs=0.011)


# METHODS section 12, forward GMAC of an image at XL: heads, teachers without attention's products
COSTS = {
    "repa_sit-xl": (2.080, 21.94),
    "irepa_sit-xl": (2.038, 21.94),
    "sra_sit-xl": (1.36, 81.70),
    "ahpa_sit-xl": (2.718, 0.0),
    "sra2_sit-xl": (4.77, 0.0),
}


@pytest.mark.parametrize("name", COSTS)
def test_what_alignment_adds_to_a_step(name):
    added = added_macs(configs.check_config(configs.load(ROOT / "configs" / f"{name}.py")))
    heads = sum(both for part, (both, _) in added.items() if part.startswith("projector")) / 1e9
    teachers = (
        sum(both - products for part, (both, products) in added.items() if part.startswith("prior"))
        / 1e9
    )
    assert (heads, teachers) == pytest.approx(COSTS[name], abs=0.02)
