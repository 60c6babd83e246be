"""What a model costs, counted for any alignment; and when the routing policy is written."""

import csv
from types import SimpleNamespace

import pytest
import torch
from support.registered import shipped
from torch import nn

from ahpa.analysis.cost import (
    Macs,
    added_macs,
    cost_report,
    count_macs,
    forward_macs,
    human,
    parameter_counts,
)
from ahpa.analysis.policy import RoutingPolicy, policy_table, routers_of, save_csv
from ahpa.registry import BACKBONES, HOOKS, ConfigError, build
from ahpa.registry.contracts import Alignment, LevelSpec, Prior, Projector, Router
from ahpa.registry.values import Losses, Tap
from ahpa.testing.common import toy_geometry

DEPTH, WIDTH, SIDE, PATCH = 3, 48, 8, 2
N = (SIDE // PATCH) ** 2


def backbone(name="SiT", **options):
    sizes = dict(depth=DEPTH, hidden_size=WIDTH, num_heads=4, num_classes=10)
    cfg = dict(type=name, **sizes, **options)
    return build(BACKBONES, cfg, input_size=SIDE, in_channels=4)


def expected_macs():
    """A SiT's multiply-accumulates by hand: (all, attention's two products)."""
    attention = DEPTH * 2 * N * N * WIDTH
    block = 4 * N * WIDTH**2 + 8 * N * WIDTH**2 + 6 * WIDTH**2  # attention, MLP, modulation
    patches = N * WIDTH * 4 * PATCH**2
    time = 256 * WIDTH + WIDTH**2
    final = 2 * WIDTH**2 + N * WIDTH * 4 * PATCH**2
    return DEPTH * block + attention + patches + time + final, attention


class TwoLevels(Router):
    """Weighs two levels: the first by t, the second by 1 - t; or by trained logits."""

    out_dim = 6
    used_levels = ("a", "b")

    def __init__(self, *, levels, geometry, groups=None, trained=False):
        super().__init__(levels=levels, geometry=geometry)
        self.groups = groups or {"g": ("a", "b")}
        if trained:
            self.logits = nn.Parameter(torch.zeros(5))

    def weights(self, t, content):
        assert content is None
        both = torch.stack([t, 1 - t], -1)
        intra = {group: both[:, : len(names)] for group, names in self.groups.items()}
        return intra, torch.full((len(t), len(self.groups)), 1 / len(self.groups))

    def mix(self, features, intra, inter):
        raise AssertionError("no target is needed")


class Head(Projector):
    def __init__(self, *, dim, out_dim):
        super().__init__()
        self.linear = nn.Linear(dim, out_dim)

    def forward(self, tokens):
        return self.linear(tokens.tokens)


class Theirs(Alignment):
    """An alignment of an outside package: parts of other names, two heads, no projector."""

    def __init__(self, *, router=None, own=0, **derived):
        super().__init__(**derived)
        self.taps = frozenset({Tap(2), Tap(3, "attention")})
        self.teacher_head = Head(dim=WIDTH, out_dim=7)
        self.small = nn.Linear(2, 2, bias=False)
        if router is not None:
            self.router = router
        if own:
            self.temperature = nn.Parameter(torch.zeros(own))

    def forward(self, view, features, progress):
        return Losses()

    def summary(self):
        return "blocks 2 and 3 <- somewhere else"

    def probes(self):
        head = Head(dim=WIDTH, out_dim=7).to("meta")
        return {
            "teacher head": lambda: head.linear(torch.zeros(1, N, WIDTH, device="meta")),
            "nothing": lambda: None,
        }


class Network(Prior):
    levels = {"a": LevelSpec(6, 8)}

    def forward(self, view, levels):
        return {}

    def probe(self, backbone):
        network = nn.Linear(backbone.hidden_size, 11, device="meta")
        return lambda: network(torch.zeros(3, backbone.hidden_size, device="meta"))


class Cheap(Network):
    def probe(self, backbone):
        return None


GEOMETRY = toy_geometry(width=WIDTH, depth=DEPTH)
LEVELS = {"a": LevelSpec(6, 8), "b": LevelSpec(6, 8)}


def router(**options):
    return TwoLevels(levels=LEVELS, geometry=GEOMETRY, **options)


def model(**alignments):
    """A model of hand-made alignments, with the attributes that the cost is counted from."""
    from ahpa.engine.denoiser import AlignedDenoiser

    derived = dict(geometry=GEOMETRY, flow=None, priors={})
    built = {name: Theirs(name=name, **derived, **own) for name, own in alignments.items()}
    priors = {"net": Network(geometry=GEOMETRY), "cheap": Cheap(geometry=GEOMETRY)}
    return AlignedDenoiser(
        geometry=GEOMETRY,
        backbone=backbone(),
        flow=SimpleNamespace(),
        flow_loss=nn.Identity(),
        alignments=built,
        parts=SimpleNamespace(
            priors=priors, wanted={name: tuple(priors[name].levels) for name in priors}
        ),
    )


# ---- cost -----------------------------------------------------------------------------------


def test_a_forward_pass_is_the_formula():
    total, attention = expected_macs()
    counted = forward_macs(backbone())
    assert counted == (total, attention) and counted.without_attention == total - attention


def test_the_published_counts_of_sit_xl():
    """118.6 GMAC an image of 256 px with attention's products; 114.46 without them in the papers,
    of which 0.07 are fvcore's LayerNorms."""
    cfg = dict(type="SiT", depth=28, hidden_size=1152, num_heads=16)
    with torch.device("meta"):
        network = build(BACKBONES, cfg, input_size=32, in_channels=4)
    counted = forward_macs(network)
    assert counted.total / 1e9 == pytest.approx(118.6, abs=0.05)
    assert counted.without_attention / 1e9 == pytest.approx(114.46 - 0.07, abs=0.01)


@pytest.mark.parametrize("name", shipped(BACKBONES))
def test_every_backbone_is_counted_and_left_unchanged(name):
    from support.backbones import moved

    network = moved(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    counted = forward_macs(network)
    assert 0 < counted.attention < counted.total
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_batched_products_are_attentions():
    x = torch.zeros(2, 3, 5, device="meta")
    weight = torch.zeros(5, 7, device="meta")
    assert count_macs(lambda: x @ weight) == Macs(2 * 3 * 5 * 7, 0)
    assert count_macs(lambda: x @ x.mT) == Macs(2 * 3 * 3 * 5, 2 * 3 * 3 * 5)


def test_parameters_by_the_names_of_the_parts():
    counts = parameter_counts(model(one=dict(router=router(trained=True)), two=dict(own=3)))
    assert counts.pop("backbone") == sum(p.numel() for p in backbone().parameters())
    head = 7 * WIDTH + 7
    assert counts == dict(teacher_head=2 * head, small=8, router=5, alignment=3)


def test_a_router_without_parameters_is_listed():
    assert parameter_counts(model(one=dict(router=router())))["router"] == 0


def test_what_an_outside_package_adds_is_counted():
    assert added_macs(model(one={})) == {
        "teacher head of one": (N * WIDTH * 7, 0),
        "nothing of one": (0, 0),
        "prior net": (3 * WIDTH * 11, 0),
    }


def test_the_report():
    total, attention = (value / 1e9 for value in expected_macs())
    shown = model(one=dict(router=router()))
    rows = [(line[:24].strip(), line[24:]) for line in cost_report(shown).splitlines()]
    size = sum(p.numel() for p in backbone().parameters())
    assert rows == [
        ("backbone parameters", human(size)),
        ("teacher_head parameters", str(7 * WIDTH + 7)),
        ("small parameters", "4"),
        ("router parameters", "0"),
        (
            "forward GMAC an image",
            f"{total:.3f} with attention's products, {total - attention:.3f} without",
        ),
        ("+ teacher head of one", "0.000 and 0.000 in training"),
        ("+ nothing of one", "0.000 and 0.000 in training"),
        ("+ prior net", "0.000 and 0.000 in training"),
        ("taps", "2, 3 (attention) of 3"),
        ("alignment one", "blocks 2 and 3 <- somewhere else"),
    ]


def test_the_short_report_is_one_line():
    shown = cost_report(model(one=dict(router=router())), short=True)
    total, attention = (value / 1e9 for value in expected_macs())
    assert shown.startswith("backbone ") and ", router 0 parameters; " in shown
    assert shown.endswith(
        f" {total:.4g} GMAC an image ({total - attention:.4g} without attention products)"
    )


@pytest.mark.parametrize("number, shown", [(100, "100"), (9999, "9999"), (130_501_000, "130.50 M")])
def test_counts_for_people(number, shown):
    assert human(number) == shown


def test_a_built_model_is_counted():
    """The paper's alignment: a router, a convolutional projector, and a prior without a network."""
    from ahpa.engine.assembly import build_model

    sizes = dict(depth=DEPTH, hidden_size=WIDTH, num_heads=4, num_classes=10)
    main = dict(tap=2, source="vae", router=dict(type="MLPRouter", groups="4/4"))
    net = build_model(
        dict(
            resolution=64,
            tokenizer=dict(type="KLAutoencoder", source="bundled"),
            backbone=dict(type="SiT", **sizes),
            priors=dict(vae=dict(type="VAETaps")),
            alignments=dict(main=main),
        )
    )
    assert list(added_macs(net)) == ["projector of main"]
    counts = parameter_counts(net)
    assert list(counts) == ["backbone", "router", "projector"]
    assert sum(counts.values()) == sum(p.numel() for p in net.parameters())
    assert "block 2 <- vae (" in cost_report(net)


# ---- policy ---------------------------------------------------------------------------------


def test_the_table_is_the_routers_weights():
    table = policy_table(router(), points=5)
    t = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert list(table) == ["t", "beta_g", "alpha_g_a", "alpha_g_b", "entropy_beta", "entropy_g"]
    assert table["t"] == t == table["alpha_g_a"]
    assert table["alpha_g_b"] == t[::-1]
    assert table["entropy_beta"] == pytest.approx([0.0] * 5, abs=1e-6)
    wanted = [0.0, 0.5623, 0.6931, 0.5623, 0.0]  # -p log p - (1 - p) log(1 - p)
    assert table["entropy_g"] == pytest.approx(wanted, abs=1e-4)


def test_the_csv_has_a_row_for_each_time(tmp_path):
    table = policy_table(router(), points=5)
    save_csv(table, tmp_path / "deep" / "p.csv")
    with open(tmp_path / "deep" / "p.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(table) and len(rows) == 5
    assert [float(row["alpha_g_a"]) for row in rows] == table["alpha_g_a"]


class Log:
    def __init__(self):
        self.lines = []

    def info(self, message, *values):
        self.lines.append(("info", message % values))

    def warning(self, message, *values):
        self.lines.append(("warning", message % values))


def run(work_dir, hook, *, iterations=10, rank=0, **alignments):
    """Call a hook as mmengine does: `iter` is the number before the increment."""
    net = model(**alignments)
    runner = SimpleNamespace(
        iter=0, max_iters=iterations, rank=rank, work_dir=str(work_dir), net=net, logger=Log()
    )
    for runner.iter in range(iterations):
        hook.after_train_iter(runner, batch_idx=runner.iter)
    return runner.logger.lines


def test_it_is_written_every_interval_and_at_the_end(tmp_path):
    hook = build(HOOKS, dict(type="RoutingPolicy", interval=4))
    lines = run(tmp_path, hook, main=dict(router=router()), plain={})
    names = sorted(path.name for path in (tmp_path / "policy").iterdir())
    iterations = [f"main_iter_{i:09d}" for i in (4, 8, 10)]
    assert names == [f"{name}{suffix}" for name in iterations for suffix in (".csv", ".png")]
    assert lines == [
        ("info", f"routing policy: {tmp_path}/policy/main_iter_000000010.png and .csv")
    ]


def test_other_ranks_write_nothing(tmp_path):
    assert run(tmp_path, RoutingPolicy(interval=1), rank=1, main=dict(router=router())) == []
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_does_not_stop_the_run(tmp_path):
    (tmp_path / "policy").write_text("a file where a folder should be")
    lines = run(tmp_path, RoutingPolicy(interval=5), main=dict(router=router()))
    assert [kind for kind, _ in lines] == ["warning", "warning"]
    assert all("routing policy was not written" in line for _, line in lines)


def test_routers_with_nothing_to_weigh_are_left_out():
    single = router(groups={"g": ("a",)})
    nets = model(one=dict(router=single), two=dict(router=router()), three={})
    assert list(routers_of(nets.alignments)) == ["two"]


def test_several_routers_of_one_alignment_have_names_of_their_own():
    net = model(one=dict(router=router()))
    net.alignments["one"].second = router()
    assert list(routers_of(net.alignments)) == ["one_router", "one_second"]


@pytest.mark.parametrize("interval", [0, -1, 2.5, "10", True])
def test_a_wrong_interval_is_refused(interval):
    with pytest.raises(ConfigError, match=r"^interval: must be a positive integer"):
        build(HOOKS, dict(type="RoutingPolicy", interval=interval))
