"""AHPA's alignment end to end at toy size: eq. 3-5 written out, gradients by autograd of the written-out formula."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ahpa.registry import ALIGNMENTS, ConfigError, build
from ahpa.registry.contracts import Denoised, LevelSpec, Noisy, Step, Tokens

SPEC = {f"level{i}": LevelSpec(6, 4 if i < 2 else 8) for i in range(8)}
BACKBONE = SimpleNamespace(depth=4, hidden_size=5, grid=(2, 2), prefix=0)
B, N, D = 3, 4, 5


def make(**options):
    torch.manual_seed(0)
    cfg = dict(type="Alignment", tap=2, source="vae", router=dict(type="MLPRouter", hidden_dim=16), **options)
    return build(ALIGNMENTS, cfg, where="model.alignments.main", name="main", spec=SPEC, backbone=BACKBONE)


def make_step(diagnose=False, progress=0.0):
    values = torch.Generator().manual_seed(1)
    h = torch.randn(B, N, D, generator=values).requires_grad_()
    features = {n: 2 + torch.randn(B, 6, 16 // s.stride, 16 // s.stride, generator=values) for n, s in SPEC.items()}
    step = Step(batch={}, diagnose=diagnose, progress=progress, features={"vae": features})
    step.noisy = Noisy(x={}, t=torch.tensor([0.1, 0.5, 0.9]), target={}, data={}, noise={})
    step.out = Denoised({}, {2: Tokens(h, 0, (2, 2))})
    return step, h


def written_out(alignment, step, h):
    """eq. 3: F_g = sum_l alpha_l F_l; eq. 4: T = concat(beta_g F_g); eq. 5: 1 - mean cos(P(h), T); for each sample."""
    w, total = alignment.state_dict(keep_vars=True), 0
    names = list(SPEC)
    for b in range(B):
        e = w["router.encoding.linear.weight"][:, 0] * step.noisy.t[b] + w["router.encoding.linear.bias"] if (
            "router.encoding.linear.weight" in w) else alignment.router.encoding(step.noisy.t[b : b + 1])[0]  # fmt: skip
        for i in (0, 2, 4, 6):
            e = w[f"router.mlp.{i}.weight"] @ e + w[f"router.mlp.{i}.bias"]
            e = e * torch.sigmoid(e) if i < 6 else e
        alphas, betas = (
            [e[:4].exp() / e[:4].exp().sum(), e[4:8].exp() / e[4:8].exp().sum()],
            e[8:].exp() / e[8:].exp().sum(),
        )
        groups = []
        for g, levels in enumerate((names[:4], names[4:])):
            mixed = 0
            for a, level in zip(alphas[g], levels, strict=True):
                x = step.features["vae"][level][b]  # 4 x 4 or 2 x 2; bilinear by 2 is the mean of 2 x 2
                mixed = mixed + a * (x if x.shape[-1] == 2 else x.view(6, 2, 2, 2, 2).mean((2, 4)))
            groups.append(betas[g] * mixed)
        target = torch.cat(groups).flatten(1).T  # [N, 12]
        image = h[b].T.reshape(1, D, 2, 2)
        pred = F.conv2d(image, w["projector.out.weight"], w["projector.out.bias"], padding=1)[0].flatten(1).T
        for n in range(N):
            total = total + 1 - (pred[n] @ target[n]) / (pred[n].norm() * target[n].norm())
    return total / (B * N)


def test_equation_5_with_its_gradients():
    alignment, (step, h) = make(), make_step()
    ours = alignment(step)["loss_main_cosine"]
    parameters = [h, *alignment.parameters()]
    grads = torch.autograd.grad(ours, parameters)
    wanted = written_out(alignment, step, h)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def gradients(alignment):
    step, h = make_step()
    out = alignment(step)
    sum(value for name, value in out.items() if name.startswith("loss_")).backward()
    part = lambda module: [None if p.grad is None else p.grad.clone() for p in module.parameters()]  # noqa: E731
    return h.grad, part(alignment.projector), part(alignment.router), out


def test_router_grad():
    """'aux' is 'target' with the router's term apart: equal at equal weights; 'none' freezes the router."""
    h1, p1, r1, _ = gradients(make())
    h2, p2, r2, out = gradients(make(router_grad="aux"))
    h3, p3, r3, _ = gradients(make(router_grad="none"))
    assert "loss_main_router" in out
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
    _, _, r2, _ = gradients(make(weight=0.5, criteria=two, router_grad="aux"))
    for a, b in zip(r1, r2, strict=True):
        torch.testing.assert_close(a, b)


def test_none_freezes_the_router():
    assert not any(p.requires_grad for p in make(router_grad="none").router.parameters())


def test_the_routers_own_term_does_not_reach_the_backbone_through_the_content():
    def backbone_gradient(**options):
        torch.manual_seed(0)
        alignment = build(ALIGNMENTS, dict(type="Alignment", tap=2, source="vae", router=dict(type="ContentRouter"), **options),
                          name="main", spec=SPEC, backbone=BACKBONE)  # fmt: skip
        h, _, router, _ = gradients(alignment)
        return h, router

    frozen, _ = backbone_gradient(router_grad="none")
    for options in (dict(), dict(router_weight=100.0), dict(entropy_weight=5.0)):
        h, router = backbone_gradient(router_grad="aux", **options)
        torch.testing.assert_close(h, frozen, rtol=0, atol=0)
        assert all(p is not None and p.abs().sum() > 0 for p in router)


def test_a_router_without_parameters_has_no_term_of_its_own():
    static = dict(type="Alignment", tap=2, source="vae", router_grad="aux")
    alignment = build(ALIGNMENTS, static, name="main", spec=SPEC, backbone=BACKBONE)
    out = alignment(make_step()[0])
    assert set(out) == {"loss_main_cosine", "main/cosine"}, "nothing else, and no diagnostics that nobody asked for"
    assert alignment.levels == alignment.router.used_levels and len(alignment.levels) == 8


def test_prefix_tokens_are_no_content_and_are_left_out_where_they_have_no_target():
    alignment, (step, h) = make(projector=dict(type="MLPProjector", hidden_dim=4)), make_step()
    seen, weights = [], alignment.router.weights
    alignment.router.weights = lambda t, content: seen.append(content) or weights(t, content)
    bare = alignment(step)
    step.out.taps[2] = Tokens(torch.cat([torch.ones(B, 1, D), h], 1), 1, (2, 2))
    found = alignment(step)
    assert torch.equal(seen[1], h) and all(torch.equal(bare[name], found[name]) for name in bare)


def test_weights_and_schedules():
    bare = make()(make_step()[0])
    halved = make(weight=0.5)(make_step()[0])
    torch.testing.assert_close(halved["loss_main_cosine"], 0.5 * bare["loss_main_cosine"])
    torch.testing.assert_close(halved["main/cosine"], bare["main/cosine"])
    scheduled = make(weight=dict(type="LinearSchedule", start=1.0, end=0.0))
    torch.testing.assert_close(
        scheduled(make_step(progress=0.75)[0])["loss_main_cosine"], 0.25 * bare["loss_main_cosine"]
    )
    two = make(criteria=dict(cosine=dict(type="CosineLoss"), near=dict(type="L1Loss", weight=0.1)))(make_step()[0])
    torch.testing.assert_close(two["loss_main_near"], 0.1 * two["main/near"])
    torch.testing.assert_close(two["loss_main_cosine"], bare["loss_main_cosine"])


def test_only_the_ratio_of_beta_matters_under_cosine():
    alignment, (step, _) = make(), make_step()
    intra, inter = alignment.router.weights(step.noisy.t)
    alignment.router.weights = lambda t, content: (intra, inter)
    first = alignment(step)["loss_main_cosine"]
    alignment.router.weights = lambda t, content: (intra, 7 * inter)
    torch.testing.assert_close(alignment(step)["loss_main_cosine"], first)
    alignment.router.weights = lambda t, content: (intra, inter.flip(-1))
    assert not torch.isclose(alignment(step)["loss_main_cosine"], first)


def test_diagnostics():
    alignment = make()
    out = alignment(make_step(diagnose=True)[0])
    terms = {name for name in out if "loss" in name}
    assert terms == {"loss_main_cosine"}, "a diagnostic with 'loss' in its name would be optimised"
    assert set(out) - terms == {f"main/{n}" for n in (
        "cosine", "constant_cosine", "target_rms", "entropy_inter", "entropy_mid", "entropy_deep", "beta_mid", "beta_deep",
        "evenness", "evenness_inter", "evenness_mid", "evenness_deep", "alpha_max_mid", "alpha_max_deep", "alpha_top_mid", "alpha_top_deep")}  # fmt: skip
    assert not any(out[name].requires_grad for name in set(out) - terms)
    step = make_step()[0]
    target = alignment.router(step.features["vae"], step.noisy.t).detach()
    assert float(out["main/target_rms"]) == pytest.approx(
        (sum(x * x for x in target.flatten().tolist()) / target.numel()) ** 0.5
    )
    assert 0 < float(out["main/constant_cosine"]) <= 1 and 0 < float(out["main/entropy_inter"]) <= math.log(2) + 1e-6
    assert float(out["main/beta_mid"] + out["main/beta_deep"]) == pytest.approx(1, abs=1e-5)


def test_constant_cosine_is_what_the_best_constant_reaches():
    alignment, (step, _) = make(), make_step(diagnose=True)
    shown = float(alignment(step)["main/constant_cosine"])
    target = alignment.router(step.features["vae"], step.noisy.t).detach()
    constant = torch.randn(12, requires_grad=True)
    optimiser = torch.optim.Adam([constant], lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        best = F.cosine_similarity(constant.expand_as(target), target, dim=-1).mean()
        (-best).backward()
        optimiser.step()
    assert float(best.detach()) == pytest.approx(shown, abs=1e-3)


def test_an_entropy_bonus_works_against_collapse():
    alignment = make(entropy_weight=0.3)
    out = alignment(make_step(diagnose=True)[0])
    total = sum(float(out[f"main/entropy_{n}"]) for n in ("inter", "mid", "deep"))
    assert float(out["loss_main_entropy"].detach()) == pytest.approx(-0.3 * total, rel=1e-5)
    assert out["loss_main_entropy"].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("router", ["MLPRouter", "LUTRouter", "AttentionRouter", "ContentRouter", "StaticRouter"])
def test_half_precision(dtype, router):
    alignment = build(ALIGNMENTS, dict(type="Alignment", tap=2, source="vae", router=dict(type=router)),
                      name="main", spec=SPEC, backbone=BACKBONE)  # fmt: skip
    step, h = make_step()
    step.features["vae"] = {name: x.to(dtype) for name, x in step.features["vae"].items()}
    with torch.autocast("cpu", dtype=dtype):
        loss = alignment(step)["loss_main_cosine"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and h.grad.isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [(dict(tap=5), r"1\.\.4"), (dict(tap=0), r"1\.\.4"), (dict(tap=2.0), "block"), (dict(weight=-1), "weight"),
     (dict(router_grad="tagret"), "target"), (dict(criteria={}), "at least one"), (dict(criteria=[dict(type="L1Loss")]), "at least one"),
     (dict(criteria=dict(router=dict(type="L1Loss"))), "own term"), (dict(criteria=dict(my_loss=dict(type="L1Loss"))), "summed"),
     (dict(criteria=dict(a=dict(type="L1Loss", weight=-1))), "criteria.a.weight"),
     (dict(criteria=dict(a=dict(type="L2Loss"))), "L1Loss"), (dict(entropy_weight=-0.1), "entropy_weight")], ids=str)  # fmt: skip
def test_mistakes(options, message):
    cfg = {**dict(type="Alignment", tap=2, source="vae"), **options}
    with pytest.raises(ConfigError, match=message):
        build(ALIGNMENTS, cfg, where="model.alignments.main", name="main", spec=SPEC, backbone=BACKBONE)
