"""Plans of tokens, against passes image by image and group by group.

Routes past a stretch of blocks (TREAD, MaskAlign), and groups that attend only to themselves
(DTS-AS).
"""

import dataclasses
import math

import pytest
import torch
from support.backbones import SMALL, moved, small_inputs
from test_new_methods import (
    BATCH,
    assert_same_objective,
    demo_model,
    mean_cosine,
    pixels,
    run,
    silu_mlp,
)

from ahpa.analysis.cost import forward_macs, route_macs
from ahpa.backbones.layers import per_token
from ahpa.cli import demo
from ahpa.engine import config as configs
from ahpa.engine.assembly import build_model
from ahpa.registry import FLOWS, PRIORS, TOKEN_ROUTINGS, ConfigError, build
from ahpa.registry.contracts import Tap, TokenPlan, TokenRoute, Tokens
from ahpa.registry.locations import find_config
from ahpa.registry.numerics import per_pixel
from ahpa.testing import check_backbone, check_token_routing, toy_geometry

PREFIXED = [name for name in SMALL if name.startswith("ClassStream")]
CLASSES = ["SiT", "DiT", "DDT", "DDTDiT"]  # without a prefix and without text
DEEP = dict(depth=5)
KEPT = torch.tensor([[0, 3, 5, 6, 12], [1, 2, 9, 14, 15]])
GEOMETRY = toy_geometry(depth=12)


def route(kept=KEPT, first=2, last=3):
    return TokenPlan(TokenRoute(kept, first, last))


def deep(name, **options):
    """A model of five blocks; a decoupled one has a decoder of four."""
    return moved(name, **DEEP, **options)


def blocks_one_by_one(model, x, t, cond, kept, first, last):
    """A pass of one image, written out with the model's own blocks: rows that skip are copied."""
    rows = list(range(model.prefix)) + [model.prefix + i for i in kept]
    h = model.embed(x)
    text = None
    if model.takes == "prompts":
        text, time, text_c, c = model.conditions(t, cond)
    else:
        time = model.t_embedder(model.time_input(t))
        c = time + model.y_embedder(cond)
    for number, block in enumerate(model.blocks, start=1):
        inside = first <= number <= last
        part = h[:, rows] if inside else h
        own = c[:, rows] if inside and c.ndim == 3 else c
        if text is None:
            part, _ = block(part, own)
        else:
            text, part, _ = block(text, part, text_c, own)
        if inside:
            h = h.clone()
            h[:, rows] = part
        else:
            h = part
        if "DDT" in type(model).__name__ and number == model.encoder_depth:
            c = per_token(time) + h
            h = model.embed_for_decoder(x)
    return model.in_project_time(model.predict(h, c))


def one_image(value, i):
    if isinstance(value, torch.Tensor):
        return value[i : i + 1]
    return type(value)(*(None if part is None else part[i : i + 1] for part in value))


# ---- routes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), [(2, 2), (2, 3), (2, 4)])
@pytest.mark.parametrize("name", SMALL)
def test_a_route_is_what_a_pass_image_by_image_gives(name, first, last):
    """Prediction and gradients of every weight: blocks first..last see the kept rows alone."""
    model = deep(name)
    x, t, cond = small_inputs(model)
    out = model(x, t, cond, plan=route(first=first, last=last))
    wanted = [
        blocks_one_by_one(
            model,
            {stream: part[i : i + 1] for stream, part in x.items()},
            t[i : i + 1],
            one_image(cond, i),
            KEPT[i].tolist(),
            first,
            last,
        )
        for i in range(2)
    ]
    for stream, pred in out.pred.items():
        by_hand = torch.cat([part[stream] for part in wanted])
        torch.testing.assert_close(pred, by_hand, rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    ours = sum(pred.square().mean() for pred in out.pred.values())
    theirs = sum(
        torch.cat([part[stream] for part in wanted]).square().mean() for stream in out.pred
    )
    found, slow = (
        torch.autograd.grad(total, parameters, materialize_grads=True) for total in (ours, theirs)
    )
    for a, b in zip(found, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_taps_on_a_route_hold_the_kept_tokens_and_their_ids(name):
    model = deep(name)
    given = small_inputs(model)
    taps = frozenset(Tap(block) for block in (1, 2, 3, 4))
    out = model(*given, taps=taps, plan=route())
    bare = model(*given, taps=taps)
    count = 16 + model.prefix
    for block, tokens in ((1, count), (2, 5 + model.prefix), (3, 5 + model.prefix), (4, count)):
        found = out.tokens(block)
        assert found.tokens.shape == (2, tokens, 48) and found.prefix == model.prefix
        assert (found.ids is None) == (tokens == count)
    assert torch.equal(out.taps[Tap(1)], bare.taps[Tap(1)])  # before the route
    rows = out.tokens(2).gather_from(bare.taps[Tap(1)])
    assert rows.shape == (2, 5 + model.prefix, 48)
    for i in range(2):
        picked = [*range(model.prefix), *(model.prefix + k for k in KEPT[i].tolist())]
        assert torch.equal(rows[i], bare.taps[Tap(1)][i, picked])


@pytest.mark.parametrize("name", SMALL)
def test_tokens_that_skip_come_back_unchanged(name):
    """The tap of block 2 and the rows that skip it are all that block 3 sees."""
    model = deep(name)
    seen = {}

    def keep_input(number):
        def hook(module, given):
            seen[number] = given[1 if model.takes == "prompts" else 0]

        return hook

    hooks = [model.blocks[i].register_forward_pre_hook(keep_input(i + 1)) for i in (1, 2)]
    out = model(*small_inputs(model), taps=frozenset({Tap(1), Tap(2)}), plan=route(last=2))
    for hook in hooks:
        hook.remove()
    before = out.taps[Tap(1)] if not hasattr(model, "encoder_depth") else None
    for i in range(2):
        for n in range(16):
            row = seen[3][i, model.prefix + n]
            if n in KEPT[i].tolist():
                place = KEPT[i].tolist().index(n)
                assert torch.equal(row, out.taps[Tap(2)][i, model.prefix + place])
            elif before is not None:
                assert torch.equal(row, before[i, model.prefix + n])


@pytest.mark.parametrize("name", SMALL)
def test_a_route_that_nobody_takes_changes_nothing(name):
    model = deep(name)
    given = small_inputs(model)
    everyone = torch.arange(16).expand(2, 16)
    found, bare = model(*given, plan=route(everyone)).pred, model(*given).pred
    for stream, pred in bare.items():
        torch.testing.assert_close(found[stream], pred, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_a_route_with_a_time_for_each_token(name):
    """The condition of a token follows it: equal times of all tokens are one time per sample."""
    model = deep(name)
    x, t, cond = small_inputs(model)
    one = model(x, t, cond, plan=route()).pred["image"]
    each = model(x, t[:, None].repeat(1, 16), cond, plan=route()).pred["image"]
    torch.testing.assert_close(each, one, rtol=1e-4, atol=1e-5)
    mixed = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    found = model(x, mixed, cond, plan=route()).pred["image"]
    for i in range(2):
        slow = blocks_one_by_one(
            model, {"image": x["image"][i : i + 1]}, mixed[i : i + 1], cond[i : i + 1], [], 9, 9
        )
        assert slow.keys() == {"image"}
        assert not torch.allclose(found[i : i + 1], slow["image"], atol=1e-4)


def test_gradient_checkpointing_and_half_precision_follow_a_route():
    plain, saving = deep("SiT"), deep("SiT", gradient_checkpointing=True).train()
    given = small_inputs(plain)
    grads = []
    for model in (plain, saving):
        model.zero_grad()
        model(*given, plan=route()).pred["image"].square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain(*given, plan=route()).pred["image"].isfinite().all()


@pytest.mark.parametrize(
    ("name", "plan", "taps", "message"),
    [
        ("SiT", route(first=2, last=5), [], "before the last block 5"),
        ("SiT", route(first=3, last=2), [], "before the last block 5"),
        ("SiT", route(), [Tap(2, "attention")], "no taps of attention of block 2"),
        ("SiT", route(), [Tap(3, "keys")], "no taps of keys of block 3"),
        ("DDT", route(first=1, last=2), [], "cannot pass block 1"),
        ("MMDiT", TokenPlan(groups=torch.zeros(2, 16).long()), [], "within groups only"),
        ("ClassStreamSiT", TokenPlan(groups=torch.zeros(2, 16).long()), [], "no group of tokens"),
        ("SiT", TokenPlan(groups=torch.zeros(2, 16).long()), [Tap(1, "attention")], "no taps of"),
    ],
)
def test_plans_that_a_backbone_refuses(name, plan, taps, message):
    model = deep(name)
    with pytest.raises(ConfigError, match=message):
        model(*small_inputs(model), taps=frozenset(taps), plan=plan)


# ---- groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SiT", "DiT"])
def test_groups_are_passes_of_their_own(name):
    """Attention within a group: what each group gives as a sequence of its own, each token with its
    own time; so with a route through the blocks 2 and 3 as well."""
    model = deep(name)
    x, _, cond = small_inputs(model)
    rng = torch.Generator().manual_seed(2)
    groups = torch.rand(2, 16, generator=rng).argsort(1) % 3
    t = torch.rand(2, 16, generator=rng)
    for plan in (TokenPlan(groups=groups), TokenPlan(route().route, groups)):
        out = model(x, t, cond, plan=plan)
        c = model.t_embedder(model.time_input(t)) + model.y_embedder(cond)[:, None]
        wanted = model.embed(x).clone()
        for i in range(2):
            for g in range(3):
                rows = [n for n in range(16) if groups[i, n] == g]
                kept = set(range(16)) if plan.route is None else set(KEPT[i].tolist())
                h = {n: wanted[i : i + 1, n : n + 1] for n in rows}
                for number, block in enumerate(model.blocks, start=1):
                    there = [n for n in rows if number not in (2, 3) or n in kept]
                    if not there:
                        continue
                    part = torch.cat([h[n] for n in there], 1)
                    part, _ = block(part, c[i : i + 1, there])
                    h |= {n: part[:, k : k + 1] for k, n in enumerate(there)}
                for n in rows:
                    wanted[i, n] = h[n][0, 0]
        by_hand = model.predict(wanted, c)["image"]
        torch.testing.assert_close(out.pred["image"], by_hand, rtol=1e-4, atol=1e-5)


def test_the_checks_find_a_backbone_that_ignores_its_plan():
    model = deep("SiT")

    class IgnoresRoutes(type(model)):
        def forward(self, *given, plan=None, **options):
            return super().forward(*given, **options)

    class IgnoresGroups(type(model)):
        def forward(self, *given, plan=None, **options):
            kept = TokenPlan() if plan is None else plan._replace(groups=None)
            return super().forward(*given, plan=kept, **options)

    for broken, message in ((IgnoresRoutes, "on a route"), (IgnoresGroups, "another group")):
        model.__class__ = broken
        with pytest.raises(AssertionError, match=message):
            check_backbone(model)


# ---- what draws them ------------------------------------------------------------------------


def routing(**options):
    return build(TOKEN_ROUTINGS, dict(type="RandomRouting", **options), geometry=GEOMETRY)


def flow_of(geometry=GEOMETRY, **options):
    return build(FLOWS, options, geometry=geometry)


def noised_of(count=4, seed=5, **options):
    flow = flow_of(**options)
    data = {"image": torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    return flow.sample(data, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kept", [0.1, 0.5, 1.0])
def test_random_routing(kept):
    check_token_routing(dict(type="RandomRouting", kept=kept))
    noised = noised_of(2000, type="Flow")
    drawn = routing(kept=kept).draw(noised, torch.Generator().manual_seed(0))
    count = round(16 * kept)
    uniform = torch.rand(2000, 16, generator=torch.Generator().manual_seed(0))
    for i in range(50):
        smallest = sorted(range(16), key=lambda n: uniform[i, n])[:count]
        assert drawn.kept[i].tolist() == sorted(smallest)
    share = torch.zeros(2000, 16).scatter(1, drawn.kept, 1).mean(0)  # every token alike
    assert float((share - count / 16).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(first_block=0), "first_block: 0 is not a block"),
        (dict(last_block=12), "before the backbone's last block 12, got 12"),
        (dict(first_block=9, last_block=8), "at least first_block = 9"),
        (dict(kept=1.5), "kept"),
        (dict(kept=0.01), "at least one of 16 tokens"),
        (dict(first=2), "no option 'first'"),
    ],
    ids=str,
)
def test_routing_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        routing(**options)


def test_groups_and_their_times():
    """Groups, then times, then the noise; one noise, and every pixel at its token's time."""
    noised = noised_of(6, type="TokenGroupFlow", shares=(0.25, 0.5, 0.25))
    rng = torch.Generator().manual_seed(5)
    order = torch.rand(6, 16, generator=rng).argsort(1)
    t = torch.rand(6 * 3, generator=rng).reshape(6, 3)
    noise = torch.randn(6, 4, 8, 8, generator=rng)
    assert torch.equal(noised.noise["image"], noise) and noised.separate
    assert torch.equal(noised.attention_groups, noised.groups)
    for i in range(6):
        sizes = noised.groups[i].bincount(minlength=3).tolist()
        assert sizes == [4, 8, 4]
        for n in range(16):
            position = int(order[i, n])
            group = 0 if position < 4 else 1 if position < 12 else 2
            assert noised.groups[i, n] == group and noised.t[i, n] == t[i, group]
    at = pixels(noised.t, noised)
    x0 = noised.data["image"]
    torch.testing.assert_close(noised.x["image"], (1 - at) * x0 + at * noise)


def test_two_times_without_separation():
    noised = noised_of(type="TokenGroupFlow", separate=False)
    assert noised.groups is not None and noised.attention_groups is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(shares=[0.5, 0.6]), "add up to 1"),
        (dict(shares=0.5), "a list of shares"),
        (dict(shares=[]), "a list of shares"),
        (dict(shares=[0.01, 0.99]), "without tokens"),
        (dict(shares=[1.5, -0.5]), "shares"),
        (dict(separate="yes"), "separate"),
    ],
    ids=str,
)
def test_group_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        flow_of(type="TokenGroupFlow", **options)


def test_the_teachers_times_of_groups():
    """t'_g = clamp(t_g - .2 u_g, 0, 1), one u for all tokens of a group."""
    noised = noised_of(500, type="TokenGroupFlow")
    prior = build(
        PRIORS, dict(type="TeacherPrior", block=2, token_times="groups"), geometry=GEOMETRY
    )
    found = prior.time(noised.t, torch.Generator().manual_seed(7), noised.groups)
    u = torch.rand(500, 16, generator=torch.Generator().manual_seed(7))
    for i in range(500):
        for n in range(16):
            wanted = min(max(float(noised.t[i, n] - 0.2 * u[i, noised.groups[i, n]]), 0.0), 1.0)
            assert math.isclose(float(found[i, n]), wanted, abs_tol=1e-6)
    with pytest.raises(ConfigError, match="TokenGroupFlow"):
        prior.time(noised.t, None, None)


# ---- alignments of kept tokens --------------------------------------------------------------


def test_parts_that_need_every_token_say_so():
    tokens = Tokens(torch.zeros(2, 5, 8), 0, (4, 4), KEPT)
    with pytest.raises(ConfigError, match="needs all 16 grid tokens, but 11 of them skip"):
        tokens.as_map()
    assert tokens.without_prefix().ids is KEPT


ROUTE = "{'type': 'RandomRouting', 'first_block': 1, 'last_block': 4}"


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("ahpa_sit-b", [], "a feature map needs all 16 grid tokens"),
        ("dispersive_sit-b", [], "DispersiveLoss needs all"),
        ("haste_sit-b", [], "no taps of attention"),
        ("layersync_sit-b", ["model.alignments.main.tap=5"], "a feature map needs all"),
        ("dupa_sit-b", [], "cannot pass block 4"),
    ],
)
def test_whole_maps_are_refused_on_a_route(config, options, message):
    with pytest.raises(ConfigError, match=message):
        run(demo_model(config, *options, f"model.token_routing={ROUTE}"))


# ---- whole objectives -----------------------------------------------------------------------


def kept_rows(step, x, prefix=0):
    """Rows of [B, P+N, C] that the step's route kept, one by one."""
    kept = step.out.route.kept
    return torch.stack(
        [
            torch.stack([x[i, k] for k in [*range(prefix), *(prefix + kept[i]).tolist()]])
            for i in range(BATCH)
        ]
    )


def test_tread():
    """L_v over all tokens; nothing else."""
    step = run(demo_model("tread_sit-b"))
    assert step.out.route.kept.shape == (BATCH, 8)
    assert (step.out.route.first, step.out.route.last) == (1, 4)  # 2..8 of 12 blocks, in 6
    assert_same_objective(step, step.flow_term())


@pytest.mark.parametrize("config", ["tread-repa_sit-b", "tread-reg_sit-xl"])
def test_only_kept_tokens_are_aligned(config):
    """L_v - .5 mean cos(head(h_n), y_n) over the kept tokens n (and the class token)."""
    model = demo_model(config)
    step = run(model)
    prefix = model.geometry.prefix
    tap = model.alignments["main"].tap
    features = model.parts.priors["dino"]
    with torch.no_grad():
        levels = features.from_clean(
            type("Clean", (), {"images": step.images, "levels": {}, "streams": {}})(),
            tuple(features.levels),
        )
    patch = levels["patch"].flatten(2).transpose(1, 2)
    target = patch if not prefix else torch.cat([levels["cls"][:, None], patch], 1)
    target = kept_rows(step, target, prefix)
    h = step.tokens(tap)
    assert h.shape[1] == 8 + prefix
    projected = silu_mlp(model, h)
    expected = step.flow_term() - 0.5 * mean_cosine(projected, target)
    if prefix:
        noised = step.noised
        velocity = noised.noise["cls"] - noised.data["cls"]
        expected = expected + 0.03 * (step.out.pred["cls"] - velocity).square().mean()
    assert_same_objective(step, expected, constant=0.5)


def test_a_tap_behind_the_route_is_aligned_whole():
    model = demo_model("tread-repa_sit-b", "model.alignments.main.tap=5")
    step = run(model)
    assert step.tokens(5).shape[1] == 16 and step.out.tokens(5).ids is None


def test_dtsas():
    """L_v + .5 (1 - mean cos(head(h), sg h')), h' of the average with the same groups, each at
    clip(t_g - .2 u_g, 0, 1) with the same noise."""
    step = run(demo_model("dtsas_sit-b"))
    model, noised = step.model, step.noised
    student, teacher = model.alignments["main"].tap, model.parts.priors["ema"].block
    rng = torch.Generator()
    rng.set_state(step.after_backbone)
    u = torch.rand(noised.t.shape, generator=rng)
    back = torch.stack([u[i, noised.groups[i]] for i in range(BATCH)])
    cleaner = (noised.t - 0.2 * back).clamp(0, 1)
    at = pixels(cleaner, noised)
    x = {"image": (1 - at) * noised.data["image"] + at * noised.noise["image"]}
    (seen,) = step.teacher
    torch.testing.assert_close(seen[0]["image"], x["image"])
    with torch.no_grad():
        plan = TokenPlan(groups=noised.groups)
        out = model.parts.ema.backbone(
            x, cleaner, seen[2], taps=frozenset({Tap(teacher)}), plan=plan
        )
        alone = model.parts.ema.backbone(x, cleaner, seen[2], taps=frozenset({Tap(teacher)}))
    assert not torch.allclose(out.taps[Tap(teacher)], alone.taps[Tap(teacher)], atol=1e-3)
    projected = silu_mlp(model, step.tokens(student))
    expected = step.flow_term() - 0.5 * mean_cosine(projected, out.taps[Tap(teacher)])
    assert_same_objective(step, expected, constant=0.5)


def test_dtsas_sizes():
    model = configs.check_config(configs.load(find_config("dtsas_sit-b")))
    assert (model.alignments["main"].tap, model.parts.priors["ema"].block) == (3, 8)
    assert model.flow.sizes == (64, 192) and model.parts.ema.decay == 0.9999


# ---- the engine -----------------------------------------------------------------------------


def test_routes_are_for_training_only():
    model = demo_model("tread_sit-b")
    assert run(model).out.route is not None
    assert run(model.eval()).out.route is None


def test_without_a_route_and_groups_nothing_is_drawn_for_them():
    model = demo_model("sit-b")
    step = run(model)
    assert step.out.route is None and step.noised.groups is None
    noised = dataclasses.replace(step.noised, groups=None)
    state = torch.Generator().manual_seed(3)
    before = state.get_state()
    assert model.plan(noised, state) == TokenPlan()
    assert torch.equal(before, state.get_state())


def test_a_route_saves_what_it_skips():
    """Seven of 28 blocks with half of the tokens: MaskAlign's stretch, about an eighth of XL."""
    model = configs.check_config(configs.load(find_config("tread-reg_sit-xl")))
    whole = forward_macs(model.backbone).without_attention
    routed = route_macs(model, model.token_routing).without_attention
    assert 1 - routed / whole == pytest.approx(0.5 * 7 / 28, abs=0.005)


@pytest.mark.parametrize("config", ["dtsas_sit-b", "dit-b"])
def test_the_cost_of_a_route_with_any_flow(config):
    """Groups of tokens and discrete steps too; torch's own generator is left alone."""
    cfg = configs.load(find_config(config))
    cfg["model"]["token_routing"] = dict(type="RandomRouting")
    model = configs.check_config(cfg)
    state = torch.get_rng_state()
    routed = route_macs(model, model.token_routing)
    assert routed.total < forward_macs(model.backbone).total
    assert torch.equal(state, torch.get_rng_state())


def test_backbones_that_cannot_follow_are_refused():
    cfg = configs.load(find_config("mmdit"))
    demo.make_small(cfg)
    model = cfg["model"]
    with pytest.raises(ConfigError, match="MMDiT cannot do"):
        build_model({**model, "flow": dict(type="TokenGroupFlow")})
    build_model({**model, "flow": dict(type="TokenGroupFlow", separate=False)})
    with pytest.raises(ConfigError, match="model.token_routing.*RandomRout"):
        build_model({**model, "token_routing": dict(type="RandomRoute")})


def test_times_of_pixels():
    t = torch.arange(6.0).reshape(1, 6)
    spread = per_pixel(t, (2, 3), torch.zeros(1, 4, 4, 12))
    wanted = [[(row // 2) * 3 + column // 4 for column in range(12)] for row in range(4)]
    assert spread[0, 0].tolist() == wanted
    assert torch.equal(per_pixel(t[0], (2, 3), torch.zeros(6, 4, 4, 12)), t[0])  # one per sample
