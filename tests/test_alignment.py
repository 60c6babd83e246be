"""AHPA's alignment end to end at toy size: eq. 3-5 written out, gradients by autograd of the
written-out formula; every alignment against the contract; the names and weights of terms."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.backbones import moved, small_inputs
from support.registered import shipped
from support.values import make_view

from ahpa.alignment.routed import RoutedAlignment
from ahpa.registry import ALIGNMENTS, PAIR_LOSSES, REGULARISERS, ConfigError, build
from ahpa.registry.contracts import (
    Alignment,
    LevelSpec,
    Losses,
    PairLoss,
    Progress,
    Regulariser,
    Schedule,
    Tap,
)
from ahpa.registry.values import Term
from ahpa.testing.alignment import check_alignment
from ahpa.testing.common import toy_geometry

SPEC = {f"level{i}": LevelSpec(6, 4 if i < 2 else 8) for i in range(8)}
GEOMETRY = toy_geometry(resolution=16, downsample=4, width=5, depth=4)  # a token grid of 2 x 2
B, N, D = 3, 4, 5
START = Progress()
HALVES = (torch.bfloat16, torch.float16)


def parts(name="main", geometry=GEOMETRY, priors=None):
    return dict(name=name, geometry=geometry, flow=None, priors=priors or {"vae": SPEC})


def make(name="main", **options):
    torch.manual_seed(0)
    router = dict(type="MLPRouter", hidden_dim=16)
    cfg = dict(dict(type="Alignment", tap=2, source="vae", router=router), **options)
    return build(ALIGNMENTS, cfg, where=f"model.alignments.{name}", **parts(name))


def make_step():
    """(view, features) and the tapped tokens h [B, N, D]."""
    values = torch.Generator().manual_seed(1)
    h = torch.randn(B, N, D, generator=values).requires_grad_()
    levels = {}
    for name, level in SPEC.items():
        side = 16 // level.stride
        levels[name] = 2 + torch.randn(B, 6, side, side, generator=values)
    t = torch.tensor([0.1, 0.5, 0.9])
    return (make_view({2: h}, grid=(2, 2), t=t), {"vae": levels}), h


def run(alignment, progress=START):
    step, _ = make_step()
    return alignment(*step, progress)


def weighted(losses):
    """{term: weight * value}"""
    return {term.name: term.weight * term.value for term in losses.terms}


def bare(losses):
    """{term: value}"""
    return {term.name: term.value for term in losses.terms}


def written_out(alignment, step, h):
    """eq. 3: F_g = sum_l alpha_l F_l; eq. 4: T = concat(beta_g F_g); eq. 5: 1 - mean cos(P(h), T);
    for each sample."""
    (view, features), w = step, alignment.state_dict(keep_vars=True)
    names = list(SPEC)
    total = 0
    for b in range(B):
        time = view.noised.t[b]
        e = w["router.encoding.linear.weight"][:, 0] * time + w["router.encoding.linear.bias"]
        for i in (0, 2, 4, 6):
            e = w[f"router.mlp.{i}.weight"] @ e + w[f"router.mlp.{i}.bias"]
            e = e * torch.sigmoid(e) if i < 6 else e
        alphas = [e[:4].exp() / e[:4].exp().sum(), e[4:8].exp() / e[4:8].exp().sum()]
        betas = e[8:].exp() / e[8:].exp().sum()
        groups = []
        for g, levels in enumerate((names[:4], names[4:])):
            mixed = 0
            for a, level in zip(alphas[g], levels, strict=True):
                x = features["vae"][level][b]  # 4 x 4 or 2 x 2; bilinear by 2 is the mean of 2 x 2
                mixed = mixed + a * (x if x.shape[-1] == 2 else x.view(6, 2, 2, 2, 2).mean((2, 4)))
            groups.append(betas[g] * mixed)
        target = torch.cat(groups).flatten(1).T  # [N, 12]
        image = h[b].T.reshape(1, D, 2, 2)
        kernel, bias = w["projector.out.weight"], w["projector.out.bias"]
        pred = F.conv2d(image, kernel, bias, padding=1)[0].flatten(1).T
        for n in range(N):
            total = total + 1 - (pred[n] @ target[n]) / (pred[n].norm() * target[n].norm())
    return total / (B * N)


def test_equation_5_with_its_gradients():
    alignment, (step, h) = make(), make_step()
    ours = alignment(*step, Progress()).total
    parameters = [h, *alignment.parameters()]
    grads = torch.autograd.grad(ours, parameters)
    wanted = written_out(alignment, step, h)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_keys_of_the_state_dict():
    keys = make(criteria=dict(cosine=dict(type="CosineLoss"))).state_dict().keys()
    assert {key.split(".")[0] for key in keys} == {"router", "projector"}
    order = [name for name, _ in make().named_parameters()]
    assert order[0].startswith("router.encoding") and order[-1].startswith("projector.out")


# ---- the router's gradient ----


def gradients(alignment):
    step, h = make_step()
    losses = alignment(*step, Progress())
    losses.total.backward()
    found = []
    for part in (alignment.projector, alignment.router):
        found.append([None if p.grad is None else p.grad.clone() for p in part.parameters()])
    return h.grad, *found, losses


def test_router_grad():
    """'aux' is 'target' with the router's term separate: equal at equal weights; 'none' freezes
    the router."""
    h1, p1, r1, _ = gradients(make())
    h2, p2, r2, losses = gradients(make(router_grad="aux"))
    h3, p3, r3, _ = gradients(make(router_grad="none"))
    assert [term.name for term in losses.terms] == ["main/cosine", "main/router"]
    for a, b, c in zip([h1, *p1], [h2, *p2], [h3, *p3], strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    for a, b, c in zip(r1, r2, r3, strict=True):
        torch.testing.assert_close(a, b)
        assert c is None and a.abs().sum() > 0
    _, p4, r4, _ = gradients(make(router_grad="aux", router_weight=0.5))
    for a, b in zip(r1, r4, strict=True):
        torch.testing.assert_close(a, 2 * b)
    torch.testing.assert_close(p1, p4)


def test_aux_carries_the_weights_of_the_alignment_and_its_criteria():
    two = dict(cosine=dict(type="CosineLoss", weight=0.7), near=dict(type="L1Loss", weight=0.2))
    _, _, r1, _ = gradients(make(weight=0.5, criteria=two))
    _, _, r2, losses = gradients(make(weight=0.5, criteria=two, router_grad="aux"))
    for a, b in zip(r1, r2, strict=True):
        torch.testing.assert_close(a, b)
    values = bare(losses)
    wanted = 0.7 * values["main/cosine"] + 0.2 * values["main/near"]
    torch.testing.assert_close(values["main/router"], wanted)


def test_none_freezes_the_router():
    assert not any(p.requires_grad for p in make(router_grad="none").router.parameters())


@pytest.mark.parametrize(
    "options", [dict(), dict(router_weight=100.0), dict(entropy_weight=5.0)], ids=str
)
def test_the_routers_own_term_does_not_reach_the_backbone_through_the_content(options):
    content = dict(type="ContentRouter")
    frozen, *_ = gradients(make(router=content, router_grad="none"))
    h, _, router, _ = gradients(make(router=content, router_grad="aux", **options))
    torch.testing.assert_close(h, frozen, rtol=0, atol=0)
    assert all(p is not None and p.abs().sum() > 0 for p in router)


def test_a_router_without_parameters_has_no_term_of_its_own():
    alignment = make(router=None, router_grad="aux")
    losses = run(alignment)
    assert [term.name for term in losses.terms] == ["main/cosine"]
    assert not losses.diagnostics, "diagnostics that nobody asked for"
    assert alignment.reads == {"vae": alignment.router.used_levels}
    assert len(alignment.reads["vae"]) == 8 and alignment.taps == {Tap(2)}


def test_prefix_tokens_are_no_content_and_are_left_out_where_they_have_no_target():
    alignment = make(projector=dict(type="MLPProjector", hidden_dim=4))
    (view, features), h = make_step()
    seen = []
    weights = alignment.router.weights
    alignment.router.weights = lambda t, content: seen.append(content) or weights(t, content)
    without = alignment(view, features, Progress())
    longer = torch.cat([torch.ones(B, 1, D), h], 1)
    with_prefix = make_view({2: longer}, grid=(2, 2), prefix=1, t=view.noised.t)
    found = alignment(with_prefix, features, Progress())
    assert torch.equal(seen[1], h) and torch.equal(found.total, without.total)


def test_a_prefix_with_a_target_is_projected_and_compared():
    geometry = toy_geometry(resolution=16, downsample=4, width=5, prefix=1)
    levels = {"map": LevelSpec(6, 8), "cls": LevelSpec(6, 0)}
    router = dict(type="StaticRouter", groups="1", prefix="cls")
    projector = dict(type="LinearProjector")
    cfg = dict(type="Alignment", tap=1, source="p", router=router, projector=projector)
    alignment = build(ALIGNMENTS, cfg, **parts(geometry=geometry, priors={"p": levels}))
    h = torch.randn(B, 1 + N, D)
    features = {"map": torch.randn(B, 6, 2, 2), "cls": torch.randn(B, 6)}
    view = make_view({1: h}, grid=(2, 2), prefix=1)
    ours = alignment(view, {"p": features}, Progress()).total
    goal = torch.cat([features["cls"][:, None], features["map"].flatten(2).mT], 1)
    pred = h @ alignment.projector.linear.weight.T + alignment.projector.linear.bias
    wanted = 1 - F.cosine_similarity(pred, goal, dim=-1).mean()
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match=r"router.prefix: 1 levels.* 0 prefix tokens"):
        build(ALIGNMENTS, cfg, **parts(priors={"p": levels}))


def test_time_per_token_reaches_the_router_as_its_mean():
    alignment, ((view, features), _) = make(), make_step()
    t = torch.rand(B, N)
    tokens = {2: view.out.taps[Tap(2)]}
    each = alignment(make_view(tokens, grid=(2, 2), t=t), features, Progress())
    mean = alignment(make_view(tokens, grid=(2, 2), t=t.mean(1)), features, Progress())
    assert torch.equal(each.total, mean.total)


# ---- weights and names ----


def test_weights_and_schedules():
    plain = bare(run(make()))["main/cosine"]
    halved = run(make(weight=0.5))
    torch.testing.assert_close(weighted(halved)["main/cosine"], 0.5 * plain)
    torch.testing.assert_close(bare(halved)["main/cosine"], plain)
    scheduled = make(weight=dict(type="LinearSchedule", start=1.0, end=0.0))
    late = weighted(run(scheduled, Progress(75, 100)))
    torch.testing.assert_close(late["main/cosine"], 0.25 * plain)
    criteria = dict(cosine=dict(type="CosineLoss"), near=dict(type="L1Loss", weight=0.1))
    two = run(make(criteria=criteria))
    torch.testing.assert_close(weighted(two)["main/near"], 0.1 * bare(two)["main/near"])
    torch.testing.assert_close(weighted(two)["main/cosine"], plain)


@PAIR_LOSSES.register_module()
class TwoItems(PairLoss):
    """Returns two items, of which no weight scales the second."""

    unweighted = ("judge",)

    def forward(self, pred, target, token_weights=None):
        self.seen = token_weights
        gap = (pred - target).square()
        return {"fool": gap.mean(), "judge": gap.detach().max()}


@PAIR_LOSSES.register_module()
class NearPair(PairLoss):
    """The mean absolute difference."""

    def forward(self, pred, target, token_weights=None):
        return (pred - target).abs().mean()


def test_weights_are_products_in_a_fixed_order():
    """(weight * share) * value and (weight * router_weight) * value, to the bit."""
    weight, share, own = 0.3, 0.7, 1.7
    criteria = dict(near=dict(type="NearPair", weight=share), two=dict(type="TwoItems", weight=0.9))
    losses = run(make(weight=weight, criteria=criteria, router_grad="aux", router_weight=own))
    names = ["main/near", "main/two/fool", "main/two/judge", "main/router"]
    assert [term.name for term in losses.terms] == names
    assert [term.weight for term in losses.terms] == [weight * share, weight * 0.9, 1, weight * own]
    near, fool, judge, router = (term.value for term in losses.terms)
    total = (weight * share) * near + (weight * 0.9) * fool + 1.0 * judge + (weight * own) * router
    assert torch.equal(losses.total, total)
    assert torch.equal(router, share * near + 0.9 * fool), "the judge's objective is left out"


def test_a_criterion_whose_name_begins_with_anothers_keeps_its_terms():
    """`adv` with an item `fool` and `adv_fool` are two criteria: the second overwrote the first."""
    criteria = dict(adv=dict(type="TwoItems"), adv_fool=dict(type="NearPair", weight=0.25))
    losses = run(make(criteria=criteria))
    weights = {term.name: term.weight for term in losses.terms}
    assert weights == {"main/adv/fool": 1, "main/adv/judge": 1, "main/adv_fool": 0.25}
    logged = losses.scalars()
    assert {"main/adv/fool", "main/adv_fool"} <= set(logged)
    wanted = sum(weights[term.name] * term.value for term in losses.terms)
    torch.testing.assert_close(losses.total, wanted)
    reverse = run(make(criteria=dict(adv_fool=criteria["adv_fool"], adv=criteria["adv"])))
    torch.testing.assert_close(reverse.total, losses.total)


def test_a_criterion_called_like_another_ones_item():
    criteria = dict(judge=dict(type="NearPair", weight=0.5), two=dict(type="TwoItems", weight=0.5))
    weights = {term.name: term.weight for term in run(make(criteria=criteria)).terms}
    assert weights == {"main/judge": 0.5, "main/two/fool": 0.5, "main/two/judge": 1}


def test_names_may_hold_the_word_loss():
    """Of alignments, criteria and groups: nothing depends on the word in a key."""
    groups = {"my_loss": ["level0"], "loss": ["level7"]}
    router = dict(type="MLPRouter", groups=groups, hidden_dim=16)
    criteria = {"loss": dict(type="NearPair"), "near loss": dict(type="NearPair")}
    alignment = make("loss_main", router=router, criteria=criteria)
    losses = run(alignment, Progress(diagnose=True))
    assert [term.name for term in losses.terms] == ["loss_main/loss", "loss_main/near loss"]
    figures = {"loss_main/beta_my_loss", "loss_main/beta_loss", "loss_main/entropy_loss"}
    assert figures <= set(losses.diagnostics)
    torch.testing.assert_close(losses.total, 2 * losses.terms[0].value)
    logged = losses.scalars()
    assert len(logged) == 1 + 2 * len(losses.terms) + len(losses.diagnostics)


@pytest.mark.parametrize("name", ["a.b", "a/b", ""])
def test_names_with_dots_and_slashes_are_refused(name):
    with pytest.raises(ConfigError, match="without dots or slashes"):
        build(ALIGNMENTS, dict(type="Alignment", tap=2, source="vae"), **parts(name))
    with pytest.raises(ConfigError, match="without dots or slashes"):
        make(criteria={name: dict(type="NearPair")})


RESERVED = ["router", "entropy", "evenness", "constant_cosine", "beta_mid", "alpha_top_deep"]


@pytest.mark.parametrize("name", RESERVED)
def test_names_of_the_alignments_own_terms_and_figures_are_refused(name):
    with pytest.raises(ConfigError, match="own term"):
        make(criteria={name: dict(type="NearPair")})


@pytest.mark.parametrize("name", ["inter", "membership"])
def test_groups_cannot_take_the_names_of_figures(name):
    router = dict(type="MLPRouter", groups={name: ["level7"]})
    with pytest.raises(ConfigError, match="names of diagnostics"):
        make(router=router)


@pytest.mark.parametrize("name", ["type", "keys", "training"])
def test_names_that_pytorch_cannot_hold_are_refused(name):
    with pytest.raises(ConfigError, match="reserved by PyTorch"):
        make(criteria={name: dict(type="NearPair")})


class TokenWeighing(RoutedAlignment):
    """Weighs the first token twice as much as the others."""

    def token_weights(self, pred, target):
        weights = torch.ones(pred.shape[:2])
        weights[:, 0] = 2
        return weights / weights.mean()


def test_token_weights_reach_the_criteria():
    options = dict(tap=2, source="vae", criteria=dict(two=dict(type="TwoItems")))
    plain = RoutedAlignment(**parts(), **options)
    run(plain)
    assert plain.criteria["two"].seen is None
    weighing = TokenWeighing(**parts(), **options)
    run(weighing)
    torch.testing.assert_close(weighing.criteria["two"].seen[0], torch.tensor([1.6, 0.8, 0.8, 0.8]))


class Recording(Schedule):
    """Keeps what it observes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, progress):
        return 0.5

    def observe(self, losses, progress):
        self.seen.append((losses, progress))


def test_the_schedule_observes_the_losses_of_training_steps():
    alignment = make(weight=Recording())
    losses = run(alignment, Progress(3, 10))
    ((seen, progress),) = alignment.weight.seen
    assert seen is losses and progress == Progress(3, 10)
    run(alignment.eval())
    assert len(alignment.weight.seen) == 1


# ---- properties and figures ----


def test_only_the_ratio_of_beta_matters_under_cosine():
    alignment, (step, _) = make(), make_step()
    intra, inter = alignment.router.weights(step[0].noised.t)

    def total(betas):
        alignment.router.weights = lambda t, content: (intra, betas)
        return alignment(*step, Progress()).total

    torch.testing.assert_close(total(7 * inter), total(inter))
    assert not torch.isclose(total(inter.flip(-1)), total(inter))


FIGURES = [
    "constant_cosine",
    "target_rms",
    "entropy_inter",
    "entropy_mid",
    "entropy_deep",
    "beta_mid",
    "beta_deep",
    "evenness",
    "evenness_inter",
    "evenness_mid",
    "evenness_deep",
    "alpha_max_mid",
    "alpha_max_deep",
    "alpha_top_mid",
    "alpha_top_deep",
]


def test_diagnostics():
    alignment = make()
    losses = run(alignment, Progress(diagnose=True))
    assert [term.name for term in losses.terms] == ["main/cosine"]
    out = {name.removeprefix("main/"): value for name, value in losses.diagnostics.items()}
    assert set(out) == set(FIGURES)
    assert not any(value.requires_grad for value in out.values())
    (view, features), _ = make_step()
    target = alignment.router(features["vae"], view.noised.t).detach()
    mean_square = sum(x * x for x in target.flatten().tolist()) / target.numel()
    assert float(out["target_rms"]) == pytest.approx(mean_square**0.5)
    assert 0 < float(out["constant_cosine"]) <= 1
    assert 0 < float(out["entropy_inter"]) <= math.log(2) + 1e-6
    assert float(out["beta_mid"] + out["beta_deep"]) == pytest.approx(1, abs=1e-5)


def test_constant_cosine_is_what_the_best_constant_reaches():
    alignment = make()
    shown = float(run(alignment, Progress(diagnose=True)).diagnostics["main/constant_cosine"])
    (view, features), _ = make_step()
    target = alignment.router(features["vae"], view.noised.t).detach()
    torch.manual_seed(0)
    constant = torch.randn(12, requires_grad=True)
    optimiser = torch.optim.Adam([constant], lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        best = F.cosine_similarity(constant.expand_as(target), target, dim=-1).mean()
        (-best).backward()
        optimiser.step()
    assert float(best.detach()) == pytest.approx(shown, abs=1e-3)


def test_an_entropy_bonus_works_against_collapse():
    losses = run(make(entropy_weight=0.3), Progress(diagnose=True))
    rows = ("inter", "mid", "deep")
    total = sum(float(losses.diagnostics[f"main/entropy_{row}"]) for row in rows)
    term = weighted(losses)["main/entropy"]
    assert float(term.detach()) == pytest.approx(-0.3 * total, rel=1e-5)
    assert term.requires_grad


ROUTERS_TRIED = ["MLPRouter", "LUTRouter", "AttentionRouter", "ContentRouter", "StaticRouter"]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("router", ROUTERS_TRIED)
def test_half_precision(dtype, router):
    alignment = make(router=dict(type=router))
    (view, features), h = make_step()
    features = {"vae": {name: x.to(dtype) for name, x in features["vae"].items()}}
    with torch.autocast("cpu", dtype=dtype):
        loss = alignment(view, features, Progress()).total
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and h.grad.isfinite().all()


def test_summary_and_probes():
    alignment = make(router=dict(type="StaticRouter", groups="1/1"))
    assert alignment.summary() == "block 2 <- vae (mid: level6; deep: level7)"
    (call,) = alignment.probes().values()
    assert call().shape == (1, N, 12) and call().is_meta
    assert not any(p.is_meta for p in alignment.parameters())


# ---- attention and regularisers ----

HEADS = {f"attn{i}": LevelSpec(2, 8, attention=True) for i in (9, 10, 11)}


@PAIR_LOSSES.register_module()
class LogitGap(PairLoss):
    """The mean square of the difference of the first `dim` heads."""

    def forward(self, pred, target, token_weights=None):
        return (pred[:, : self.dim] - target).square().mean()


@REGULARISERS.register_module()
class MeanSquare(Regulariser):
    """The mean square of all tokens."""

    def forward(self, tokens):
        return tokens.tokens.square().mean()


def make_attention(**options):
    cfg = dict(
        type="AttentionAlignment",
        blocks=[1, 3],
        source="dino",
        levels=["attn9", "attn11"],
        criteria=dict(logits=dict(type="LogitGap", weight=0.5)),
    )
    priors = {"dino": {"patch": LevelSpec(6, 8), **HEADS}}
    return build(ALIGNMENTS, {**cfg, **options}, where="here", **parts(priors=priors))


@pytest.mark.parametrize("prefix", [0, 1])
def test_attention_is_compared_pair_by_pair(prefix):
    """Mean over the pairs (block 1, level attn9) and (block 3, level attn11); prefix tokens have
    no target."""
    alignment = make_attention(weight=dict(type="EarlyStop", value=0.4, until_step=10))
    assert alignment.taps == {Tap(1, "attention"), Tap(3, "attention")}
    assert alignment.reads == {"dino": ("attn9", "attn11")}
    size = prefix + N
    taps = {tap: torch.randn(B, 4, size, size).requires_grad_() for tap in alignment.taps}
    features = {name: torch.randn(B, 2, N, N) for name in HEADS}
    view = make_view(taps, grid=(2, 2), prefix=prefix)
    losses = alignment(view, {"dino": features}, Progress(9, 10))
    wanted = 0
    for block, level in ((1, "attn9"), (3, "attn11")):
        student = taps[Tap(block, "attention")][:, :2, prefix:, prefix:]
        wanted = wanted + (student - features[level]).square().mean() / 2
    assert [term.name for term in losses.terms] == ["main/logits"]
    torch.testing.assert_close(bare(losses)["main/logits"], wanted)
    torch.testing.assert_close(losses.total, 0.4 * 0.5 * wanted)
    losses.total.backward()
    assert all(value.grad.abs().sum() > 0 for value in taps.values())
    stopped = alignment(view, {"dino": features}, Progress(10, 10))
    assert stopped.total.item() == 0


def test_attention_of_another_grid_is_refused():
    alignment = make_attention()
    taps = {tap: torch.randn(B, 4, N, N) for tap in alignment.taps}
    features = {name: torch.randn(B, 2, 9, 9) for name in HEADS}
    with pytest.raises(ValueError, match=r"'attn9' has logits over \(9, 9\) tokens, block 1"):
        alignment(make_view(taps, grid=(2, 2)), {"dino": features}, Progress())


def test_hastes_formula():
    """1/4 sum_i mean_bhq [- sum_k softmax(T)_k log_softmax(S)_k] and its gradient,
    (softmax S - softmax T) / (4 B H N)."""
    criteria = dict(attention=dict(type="AttentionDistillation"))
    alignment = make_attention(criteria=criteria)
    taps = {tap: torch.randn(B, 2, N, N).requires_grad_() for tap in sorted(alignment.taps)}
    features = {name: torch.randn(B, 2, N, N) for name in HEADS}
    alignment(make_view(taps, grid=(2, 2)), {"dino": features}, Progress()).total.backward()
    for student, level in zip(taps.values(), ("attn9", "attn11"), strict=True):
        gap = student.detach().softmax(-1) - features[level].softmax(-1)
        torch.testing.assert_close(student.grad, gap / (2 * B * 2 * N))


def test_attention_of_a_real_backbone():
    """The gradient reaches the queries and keys of the tapped blocks, and nothing behind them."""
    net = moved("SiT")
    geometry = toy_geometry(width=48, depth=3)
    levels = {"attn": LevelSpec(4, 16, attention=True)}
    cfg = dict(type="AttentionAlignment", blocks=[2], source="dino", levels=["attn"])
    alignment = build(ALIGNMENTS, cfg, **parts(geometry=geometry, priors={"dino": levels}))
    x, t, label = small_inputs(net)
    out = net(x, t, label, taps=alignment.taps)
    view = make_view(out.taps, grid=out.grid, prefix=out.prefix, t=t)
    features = {"dino": {"attn": torch.randn(2, 4, 16, 16)}}
    losses = alignment(view, features, Progress())
    assert [term.name for term in losses.terms] == ["main/attention"]
    losses.total.backward()
    reached = {name for name, p in net.blocks[1].attn.named_parameters() if p.grad is not None}
    assert any(name.startswith("qkv") for name in reached)
    assert all(p.grad is None for p in net.blocks[2].parameters())


def test_attention_summary():
    assert make_attention().summary() == "attention of blocks 1, 3 <- dino (attn9, attn11)"
    assert make_attention().probes() == {}


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_dispersive_loss_of_a_block(tau):
    """weight log(1/B^2 sum_ij exp(-|z_i - z_j|^2 / (N D tau))), arXiv:2506.09027."""
    regulariser = dict(type="DispersiveLoss", tau=tau)
    cfg = dict(type="Regularisation", tap=1, regulariser=regulariser, weight=0.25)
    alignment = build(ALIGNMENTS, cfg, **parts(priors={}))
    h = torch.randn(B, N, D)
    total = 0.0
    for i in range(B):
        for j in range(B):
            distance = float((h[i] - h[j]).square().sum()) / (N * D)
            total += math.exp(-distance / tau) / B**2
    losses = alignment(make_view({1: h}, grid=(2, 2)), {}, Progress())
    assert losses.total.item() == pytest.approx(0.25 * math.log(total), rel=1e-5)


MISTAKES_OF_ATTENTION = [
    (dict(blocks=[1]), "one for each of the 1 blocks is needed, got 2"),
    (dict(blocks=[1, 5]), r"blocks: 5 is not a block.*1\.\.4"),
    (dict(blocks=[1, 1]), "once only"),
    (dict(blocks=[]), "a list of block numbers"),
    (dict(blocks=3), "a list of block numbers"),
    (dict(levels=["attn9", "attn12"]), "no level 'attn12'; did you mean .*'attn11'"),
    (dict(levels=["attn9", "patch"]), "'patch' does not hold attention logits"),
    (dict(levels="attn9"), "a list of level names"),
    (dict(source="dine"), "here.*source: no prior is called 'dine'; did you mean 'dino'"),
    (dict(criteria={}), "at least one"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES_OF_ATTENTION, ids=str)
def test_mistakes_of_attention(options, message):
    with pytest.raises(ConfigError, match=message):
        make_attention(**options)


def test_a_regulariser_sees_the_tapped_tokens():
    cfg = dict(type="Regularisation", tap=2, regulariser=dict(type="MeanSquare"), weight=0.25)
    alignment = build(ALIGNMENTS, cfg, **parts(priors={}))
    h = torch.randn(B, 1 + N, D)
    losses = alignment(make_view({2: h}, grid=(2, 2), prefix=1), {}, Progress())
    assert alignment.reads == {} and alignment.taps == {Tap(2)}
    assert [(term.name, term.weight) for term in losses.terms] == [("main/regulariser", 0.25)]
    torch.testing.assert_close(losses.total, 0.25 * (h * h).mean())
    assert alignment.summary() == "block 2 <- MeanSquare, without a prior"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tap=9), r"tap: 9 is not a block.*1\.\.4"),
        (dict(weight=-1), "weight: must be a finite number of at least 0"),
        (dict(regulariser=dict(type="MeanSquares")), "did you mean 'MeanSquare'"),
    ],
    ids=str,
)
def test_mistakes_of_a_regularisation(options, message):
    cfg = dict(type="Regularisation", tap=2, regulariser=dict(type="MeanSquare"))
    with pytest.raises(ConfigError, match=message):
        build(ALIGNMENTS, {**cfg, **options}, **parts())


# ---- the contract, over every registered alignment ----

CONFIGS = {
    "Alignment": dict(tap=2, source="prior", router=dict(type="MLPRouter")),
    "ViewAlignment": dict(tap=2, out_dim=12),
    "Regularisation": dict(tap=2, regulariser=dict(type="MeanSquare")),
    "AttentionAlignment": dict(
        blocks=[1, 4],
        source="prior",
        levels=["attention2", "attention3"],
        criteria=dict(logits=dict(type="LogitGap")),
    ),
}


@pytest.mark.parametrize("name", shipped(ALIGNMENTS))
@pytest.mark.parametrize("views", [1, 2])
def test_contract(name, views):
    if name == "ViewAlignment" and views == 1:
        pytest.skip("it compares views; one is not enough")
    if name in CONFIGS:
        check_alignment(dict(type=name, **CONFIGS[name]), views=views)
    else:
        assert not ALIGNMENTS.get(name).__module__.startswith("ahpa."), "give it a config above"


class Broken(Alignment):
    """An alignment that is correct; its subclasses break one thing each."""

    def __init__(self, **options):
        super().__init__(**options)
        self.taps = frozenset({Tap(1)})
        self.scale = torch.nn.Parameter(torch.ones(()))

    def terms(self, h):
        return (Term("main/size", self.scale * h.square().mean()),)

    def figures(self, h, progress):
        return {"main/rms": h.detach().square().mean()} if progress.diagnose else {}

    def forward(self, view, features, progress):
        h = view.out.tokens(1).tokens
        return Losses(self.terms(h), self.figures(h, progress))

    def summary(self):
        return "block 1"


class WrongName(Broken):
    def terms(self, h):
        return (Term("size", self.scale * h.square().mean()),)


class SameNameTwice(Broken):
    def terms(self, h):
        return 2 * super().terms(h)


class NotAScalar(Broken):
    def terms(self, h):
        return (Term("main/size", self.scale * h.square().mean((1, 2))),)


class NotFinite(Broken):
    def terms(self, h):
        return (Term("main/size", self.scale * h.square().mean() / 0),)


class NoTerms(Broken):
    def terms(self, h):
        return ()


class DeafToTaps(Broken):
    def terms(self, h):
        return (Term("main/size", self.scale * h.detach().square().mean()),)


class Untrained(Broken):
    def terms(self, h):
        return (Term("main/size", h.square().mean()),)


class LearnedWeight(Broken):
    def terms(self, h):
        return (Term("main/size", h.square().mean(), self.scale),)


class Chatty(Broken):
    def figures(self, h, progress):
        return {"main/rms": h.detach().square().mean()}


class FigureLikeATerm(Broken):
    def figures(self, h, progress):
        return {"main/size": h.detach().mean()} if progress.diagnose else {}


class FigureWithGradient(Broken):
    def figures(self, h, progress):
        return {"main/rms": h.square().mean()} if progress.diagnose else {}


class DeepTap(Broken):
    def __init__(self, **options):
        super().__init__(**options)
        self.taps = frozenset({Tap(99)})


class UnknownLevel(Broken):
    def __init__(self, **options):
        super().__init__(**options)
        self.reads = {"prior": ("level99",)}


class LongSummary(Broken):
    def summary(self):
        return "block 1\nand more"


class RealProbe(Broken):
    def probes(self):
        return {"head": lambda: torch.zeros(1)}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongName, "does not begin with 'main/'"),
        (SameNameTwice, "same name"),
        (NotAScalar, "0-d float32"),
        (NotFinite, "not finite"),
        (NoTerms, "at least one term"),
        (DeafToTaps, "no gradient reaches Tap"),
        (Untrained, r"no gradient reaches \['scale'\]"),
        (LearnedWeight, "weight of 'main/size' carries a gradient"),
        (Chatty, "progress.diagnose is False"),
        (FigureLikeATerm, "a diagnostic and a term have the same name"),
        (FigureWithGradient, "'main/rms' carries a gradient"),
        (DeepTap, r"not a tap of blocks 1\.\.4"),
        (UnknownLevel, "levels that 'prior' does not have"),
        (LongSummary, "not one line"),
        (RealProbe, "meta device"),
    ],
)
def test_the_check_finds_a_broken_alignment(broken, message):
    options = parts(geometry=toy_geometry())
    check_alignment(Broken(**options))
    with pytest.raises(AssertionError, match=message):
        check_alignment(broken(**options))


# ---- mistakes ----

NEAR = dict(type="L1Loss")
MISTAKES = [
    (dict(tap=5), r"1\.\.4"),
    (dict(tap=0), r"1\.\.4"),
    (dict(tap=2.0), "block"),
    (dict(weight=-1), "weight"),
    (dict(weight=True), "weight"),
    (dict(weight="1"), "weight"),
    (dict(router_grad="tagret"), "target"),
    (dict(criteria={}), "at least one"),
    (dict(criteria=[NEAR]), "at least one"),
    (dict(criteria=dict(router=NEAR)), "own term"),
    (dict(criteria=dict(a=dict(type="L1Loss", weight=-1))), "criteria.a.weight"),
    (dict(criteria=dict(a=dict(type="L2Loss"))), "criteria.a.type.*L1Loss"),
    (dict(entropy_weight=-0.1), "entropy_weight"),
    (dict(source="vea"), "model.alignments.main.source: no prior is called 'vea'.*'vae'"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=str)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
