"""Pair losses, flow losses and regularisers against written-out loops and functional references."""

import math
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from support.registered import shipped
from torch import nn

from ahpa.losses.attention import AttentionDistillation
from ahpa.losses.contrastive import draw_partners
from ahpa.losses.dispersive import DispersiveLoss
from ahpa.losses.flow import FlowMatchingLoss
from ahpa.losses.pairwise import FullPrecisionLoss
from ahpa.registry import (
    FLOW_LOSSES,
    FLOWS,
    PAIR_LOSSES,
    REGULARISERS,
    ConfigError,
    build,
)
from ahpa.registry.contracts import BackboneOutput, Losses, Regulariser, Tokens
from ahpa.registry.values import Condition, Term
from ahpa.testing.common import random_tensor, toy_geometry
from ahpa.testing.losses import check_flow_loss, check_pair_loss, check_regulariser, toy_view

B, N, C = 2, 9, 6
PER_TOKEN = ["CosineLoss", "L1Loss", "MSELoss", "SmoothL1Loss"]
GEOMETRY = toy_geometry()
STREAMS = toy_geometry(streams={"cls": (5,)})


def pair():
    values = torch.Generator().manual_seed(0)
    return torch.randn(B, N, C, generator=values), torch.randn(B, N, C, generator=values)


def loss_of(name, dim=C, **options):
    return build(PAIR_LOSSES, dict(type=name, **options), dim=dim)


def flow_of(geometry=GEOMETRY, **options):
    return build(FLOWS, {"type": "Flow", **options}, geometry=geometry)


def flow_loss(name="FlowMatchingLoss", flow=None, **options):
    flow = flow or flow_of()
    cfg = dict(type=name, **options)
    return build(FLOW_LOSSES, cfg, geometry=flow.geometry, flow=flow)


def values(losses):
    return {term.name: float(term.value) for term in losses.terms}


# ---- pair losses ------------------------------------------------------------------------------


def token_by_hand(name, p, t, beta=0.05):
    """The loss of one token."""
    if name == "CosineLoss":
        dot = sum(x * y for x, y in zip(p, t, strict=True))
        lengths = math.sqrt(sum(x * x for x in p)) * math.sqrt(sum(y * y for y in t))
        return 1 - dot / lengths
    total = 0.0
    for x, y in zip(p, t, strict=True):
        d = abs(x - y)
        smooth = d * d / (2 * beta) if d < beta else d - beta / 2
        total += {"L1Loss": d, "MSELoss": d * d, "SmoothL1Loss": smooth}[name]
    return total / len(p)


def by_hand(name, pred, target, weights=None):
    total = 0.0
    for b in range(B):
        for n in range(N):
            weight = 1.0 if weights is None else float(weights[b, n])
            total += weight * token_by_hand(name, pred[b, n].tolist(), target[b, n].tolist())
    return total / (B * N)


@pytest.mark.parametrize("name", shipped(PAIR_LOSSES))
def test_contract_of_every_pair_loss(name):
    kind = "attention" if name == "AttentionDistillation" else "tokens"
    check_pair_loss(dict(type=name), kind=kind)


class Similarity(FullPrecisionLoss):
    """A loss that is largest for equal tokens."""

    def compare(self, pred, target):
        return (pred * target).mean()


class Unstable(FullPrecisionLoss):
    """A loss without an eps."""

    def compare(self, pred, target):
        return 1 - (pred / pred.norm(dim=-1, keepdim=True) * target).mean()


class Deaf(FullPrecisionLoss):
    """A loss that ignores its token weights."""

    def compare(self, pred, target):
        return (pred - target).square().mean()

    def forward(self, pred, target, token_weights=None):
        return super().forward(pred, target)


@pytest.mark.parametrize(
    "broken, message", [(Similarity, "unrelated"), (Unstable, "finite"), (Deaf, "no effect")]
)
def test_the_check_of_pair_losses_finds_mistakes(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_pair_loss(broken(dim=16))


@pytest.mark.parametrize("name", PER_TOKEN)
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_written_out(name, scale):
    pred, target = (scale * x for x in pair())
    assert float(loss_of(name)(pred, target)) == pytest.approx(
        by_hand(name, pred, target), rel=1e-4
    )


@pytest.mark.parametrize("name", PER_TOKEN)
def test_token_weights_written_out(name):
    """mean_k w_k l_k, with weights of mean 1."""
    pred, target = pair()
    weights = torch.rand(B, N, generator=torch.Generator().manual_seed(1))
    weights = weights / weights.mean()
    found = float(loss_of(name)(pred, target, weights))
    assert found == pytest.approx(by_hand(name, pred, target, weights), rel=1e-4)
    assert found != pytest.approx(by_hand(name, pred, target), rel=1e-3)


@pytest.mark.parametrize(
    "cfg", [dict(name="CosineLoss", over="tokens"), dict(name="AutocorrelationLoss"),
            dict(name="AdversarialLoss", width=8)], ids=str)  # fmt: skip
def test_token_weights_are_refused_where_tokens_have_no_value(cfg):
    pred, target = pair()
    with pytest.raises(ValueError, match="token|weighted"):
        loss_of(**cfg)(pred, target, torch.ones(B, N))


@pytest.mark.parametrize(
    "over, dimension", [("channels", 2), (-1, 2), (2, 2), ("tokens", 1), (1, 1)]
)
def test_cosine_over_channels_or_tokens(over, dimension):
    """SRA's code calls the cosine of [B, N, C] with its default dimension, 1: over tokens."""
    pred, target = pair()
    wanted = 1 - F.cosine_similarity(pred, target, dim=dimension).mean()
    torch.testing.assert_close(loss_of("CosineLoss", over=over)(pred, target), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-7, 0.0])
def test_tiny_half_precision_vectors_are_finite(dtype, scale):
    """Where REPA's loss is NaN: F.normalize of a tiny fp16 vector."""
    pred = (scale * pair()[0]).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        value = loss_of("CosineLoss")(pred, pair()[1].to(dtype))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and pred.grad.isfinite().all()


@pytest.mark.parametrize("name", PER_TOKEN)
def test_autocast_is_off_within_a_loss(name, monkeypatch):
    loss, inside = loss_of(name), []
    compare = loss.compare

    def spy(pred, target):
        inside.append(torch.is_autocast_enabled("cpu"))
        return compare(pred, target)

    monkeypatch.setattr(loss, "compare", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(*pair())
    assert inside == [False]


@pytest.mark.parametrize("name", shipped(PAIR_LOSSES))
def test_pair_losses_on_the_meta_device(name):
    shape = (B, C, N, N) if name == "AttentionDistillation" else (B, N, C)
    x = torch.empty(shape, device="meta")
    with torch.device("meta"):
        out = loss_of(name)(x, x)
    assert all(value.shape == () for value in (out.values() if isinstance(out, dict) else [out]))


def test_tensors_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 9, 6\).*\(2, 8, 6\)"):
        loss_of("L1Loss")(pair()[0], pair()[1][:, 1:])


@pytest.mark.parametrize(
    "cfg",
    [
        dict(name="SmoothL1Loss", beta=0),
        dict(name="CosineLoss", over=0),
        dict(name="CosineLoss", over="batch"),
        dict(name="CosineLoss", over=True),
        dict(name="CosineLoss", over=None),
        dict(name="CosineLoss", eps=0),
        dict(name="AutocorrelationLoss", reduction="max"),
        dict(name="AttentionDistillation", heads=0),
    ],
    ids=str,
)
def test_pair_loss_mistakes(cfg):
    with pytest.raises(ConfigError, match=list(cfg)[1]):
        loss_of(**cfg)


# ---- distillation of attention (HASTE) ----------------------------------------------------------


def logits(heads, seed, batch=B):
    return 2 * random_tensor(batch, heads, N, N, seed=seed)


@pytest.mark.parametrize(
    "heads, teacher, given", [(4, 4, None), (6, 4, None), (3, 4, None), (6, 4, 2)]
)
def test_attention_distillation_written_out(heads, teacher, given):
    """Cross-entropy of the softmaxes, over the first heads that both have."""
    student, target = logits(heads, 1), logits(teacher, 2)
    used = given or min(heads, teacher)
    total = 0.0
    for b in range(B):
        for h in range(used):
            for q in range(N):
                s = [math.exp(x) for x in student[b, h, q].tolist()]
                t = [math.exp(x) for x in target[b, h, q].tolist()]
                for k in range(N):
                    total -= t[k] / sum(t) * math.log(s[k] / sum(s))
    found = AttentionDistillation(dim=teacher, heads=given)(student, target)
    assert float(found) == pytest.approx(total / (B * used * N), rel=1e-5)


def test_the_gradient_of_hastes_attention_term():
    """Over four pairs of blocks, each of a quarter of the weight, the gradient to a block's logits
    is (softmax S - softmax T) / (4 B 12 N) for 12 heads, and 0 for the student's other heads."""
    loss = AttentionDistillation(dim=12)
    students = [logits(16, 10 + i).requires_grad_() for i in range(4)]
    teachers = [logits(12, 20 + i) for i in range(4)]
    torch.stack([loss(s, t) for s, t in zip(students, teachers, strict=True)]).mean().backward()
    for student, teacher in zip(students, teachers, strict=True):
        first = student.detach()[:, :12]
        wanted = (first.softmax(-1) - teacher.softmax(-1)) / (4 * B * 12 * N)
        torch.testing.assert_close(student.grad[:, :12], wanted, rtol=1e-4, atol=1e-8)
        assert (student.grad[:, 12:] == 0).all()


def test_query_weights_of_attention():
    student, target = logits(4, 1), logits(4, 2)
    weights = torch.zeros(B, N)
    weights[:, 3] = N
    found = AttentionDistillation(dim=4)(student, target, weights)
    alone = -(target[:, :, 3].softmax(-1) * student[:, :, 3].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize(
    "student, teacher, message",
    [
        ((B, 4, N, N), (B, 4, N + 1, N + 1), r"\(2, 4, 9, 9\) and \(2, 4, 10, 10\)"),
        ((B, 4, N, N + 1), (B, 4, N, N + 1), "logits"),
        ((B, N, C), (B, N, C), "logits"),
        ((B, 4, N, N), (B, 2, N, N), "3 heads are compared, but only 2"),
    ],
)
def test_attention_that_cannot_be_compared(student, teacher, message):
    loss = AttentionDistillation(dim=4, heads=3)
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(student), torch.zeros(teacher))


# ---- flow losses ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FlowMatchingLoss", "ContrastiveFlowLoss"])
@pytest.mark.parametrize(
    "flow, geometry",
    [
        (dict(type="Flow"), STREAMS),
        (dict(type="Flow", prediction="data", views=2), STREAMS),
        (dict(type="DiscreteFlow"), STREAMS),
        (dict(type="TokenTimeFlow", prediction="noise"), GEOMETRY),
    ],
    ids=str,
)
def test_contract_of_flow_losses(name, flow, geometry):
    check_flow_loss(dict(type=name), flow=flow, geometry=geometry)


def test_every_flow_loss_has_its_contract_tested():
    tested_here, tested_with_ddpm = {"FlowMatchingLoss", "ContrastiveFlowLoss"}, {"HybridLoss"}
    assert set(shipped(FLOW_LOSSES)) == tested_here | tested_with_ddpm


class Unnamed(FlowMatchingLoss):
    """A flow loss whose term has another name."""

    def forward(self, view):
        return Losses((Term("velocity", super().forward(view).total),))


class Constant(FlowMatchingLoss):
    """A flow loss that ignores the prediction's error."""

    def forward(self, view):
        return Losses((Term("flow", 0 * super().forward(view).total),))


@pytest.mark.parametrize("broken, message", [(Unnamed, "'flow'"), (Constant, "gradient")])
def test_the_check_of_flow_losses_finds_mistakes(broken, message):
    flow = flow_of()
    with pytest.raises(AssertionError, match=message):
        check_flow_loss(broken(geometry=GEOMETRY, flow=flow), flow=flow)


def test_flow_loss_written_out():
    flow = flow_of(STREAMS)
    view = toy_view(flow, batch=3)
    losses = flow_loss(flow=flow, weights=dict(cls=0.03))(view)
    assert [(term.name, term.weight) for term in losses.terms] == [
        ("flow", 1.0),
        ("flow/cls", 0.03),
    ]
    wanted = 0.0
    for name, term in (("image", 0), ("cls", 1)):
        pred, target = view.out.pred[name], view.noised.target[name]
        errors = (pred - target).flatten().tolist()
        mean = sum(error**2 for error in errors) / len(errors)
        assert float(losses.terms[term].value) == pytest.approx(mean)
        wanted += mean * (1.0, 0.03)[term]
    assert float(losses.total) == pytest.approx(wanted)


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_other_predictions_have_a_velocity_loss(prediction):
    """mean |v^ - v|^2 with both sides over max(t, .05): (error of the data / max(t, .05))^2."""
    flow = flow_of(prediction=prediction)
    view = toy_view(flow)
    exact = view.noised.data if prediction == "data" else view.noised.noise
    error = 0.1 * random_tensor(4, 4, 8, 8, seed=4)
    view = replace(view, out=view.out._replace(pred={"image": exact["image"] + error}))
    t = view.noised.t if prediction == "data" else 1 - view.noised.t
    wanted = (error.square().flatten(1).mean(1) / t.clamp_min(0.05).square()).mean()
    torch.testing.assert_close(flow_loss(flow=flow)(view).total, wanted, rtol=1e-3, atol=1e-6)


def test_flow_loss_in_half_precision_and_of_another_shape():
    """A squared error of 640,000 is beyond fp16; a target of another shape must not broadcast."""
    view = toy_view(flow_of(), batch=2)
    pred = torch.full((2, 4, 8, 8), 400.0, dtype=torch.float16)

    def loss(target):
        noised = replace(view.noised, target={"image": target})
        out = BackboneOutput({"image": pred}, {}, 0, (4, 4))
        return flow_loss()(replace(view, noised=noised, out=out))

    assert float(loss(-pred).total) == 640000.0
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\).*\(2, 1, 8, 8\)"):
        loss(pred[:, :1])


@pytest.mark.parametrize(
    "geometry, options, message",
    [
        (toy_geometry(out_channels=8), {}, "learn_sigma=False"),
        (GEOMETRY, dict(weights=dict(cls=0.03)), "'cls' is not a stream"),
        (STREAMS, dict(weights=dict(cls=-1)), "weights.cls"),
    ],
    ids=["variance", "stream", "weight"],
)
def test_flow_loss_mistakes(geometry, options, message):
    with pytest.raises(ConfigError, match=message):
        flow_loss(flow=flow_of(geometry), **options)


# ---- contrastive flow matching -----------------------------------------------------------------


def expected_contrast(view, kept, allowed):
    """mean over the kept i of |v^_i - v_j|^2, with j replayed from the step's generator."""
    scores = torch.rand(len(kept), len(kept), generator=torch.Generator().manual_seed(3))
    total = 0.0
    for i in kept:
        j = max((j for j in range(len(scores)) if allowed(i, j)), key=lambda j: scores[i, j])
        pred, other = view.out.pred["image"][i], view.noised.target["image"][j]
        total += float((pred - other).square().mean())
    return total / len(kept)


def contrast_of(view, flow=None, **options):
    losses = flow_loss("ContrastiveFlowLoss", flow, **options)(view)
    assert losses.terms[-1].name == "flow/contrast"
    return losses


def test_the_contrastive_loss_written_out():
    """mean_i |v^_i - v_i|^2 - .05 mean_i |v^_i - v_j|^2, j another sample."""
    view = toy_view(flow_of(), batch=6)
    losses = contrast_of(view)
    first = float((view.out.pred["image"] - view.noised.target["image"]).square().mean())
    second = expected_contrast(view, range(6), lambda i, j: i != j)
    assert values(losses) == pytest.approx({"flow": first, "flow/contrast": second}, rel=1e-5)
    assert [term.weight for term in losses.terms] == [1.0, -0.05]
    assert float(losses.total) == pytest.approx(first - 0.05 * second, rel=1e-5)
    assert [term.weight for term in contrast_of(view, weight=0.2).terms] == [1.0, -0.2]


def test_null_rows_are_left_out_and_the_rest_rescaled():
    """(1/B) sum over the others, times B / #others."""
    view = toy_view(flow_of(), batch=6)  # rows 0 and 3 are dropped
    assert view.cond.dropped.tolist() == [True, False, False, True, False, False]
    found = values(contrast_of(view, skip_null=True))["flow/contrast"]
    scores = torch.rand(6, 6, generator=torch.Generator().manual_seed(3)).fill_diagonal_(-1)
    partner = scores.argmax(1)
    rows = [1, 2, 4, 5]
    distance = (view.out.pred["image"] - view.noised.target["image"][partner]).square()
    each = distance.flatten(1).mean(1)
    assert found == pytest.approx(float(each[rows].sum() / 6 * 6 / 4), rel=1e-5)
    kept_all = replace(view, rng=torch.Generator().manual_seed(3), cond=Condition(None))
    without = values(contrast_of(kept_all, skip_null=True))["flow/contrast"]
    assert without == pytest.approx(float(each.mean()), rel=1e-5)
    everybody = Condition(None, torch.ones(6, dtype=torch.bool))
    nobody = replace(view, rng=torch.Generator().manual_seed(3), cond=everybody)
    assert values(contrast_of(nobody, skip_null=True))["flow/contrast"] == 0


def test_partners_of_another_class():
    view = toy_view(flow_of(), batch=6)
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    view = replace(view, clean=replace(view.clean, labels=labels))
    found = values(contrast_of(view, other_class=True))["flow/contrast"]
    wanted = expected_contrast(view, range(6), lambda i, j: labels[i] != labels[j])
    assert found == pytest.approx(wanted, rel=1e-5)
    same = replace(view.clean, labels=torch.zeros(6, dtype=torch.long))
    alone = replace(view, rng=torch.Generator().manual_seed(3), clean=same)
    assert values(contrast_of(alone, other_class=True))["flow/contrast"] == 0


def test_partners_are_uniform_over_the_allowed():
    allowed = ~torch.eye(4, dtype=torch.bool)
    allowed[0, 1] = False
    rng = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_partners(allowed, rng) for _ in range(6000)])
    for i in range(4):
        others = allowed[i].sum()
        counts = torch.bincount(drawn[:, i], minlength=4)
        assert (counts[~allowed[i]] == 0).all()
        torch.testing.assert_close(
            counts[allowed[i]] / 6000, torch.full((others,), 1 / others), rtol=0.1, atol=0
        )


def test_another_view_of_the_same_image_is_no_partner():
    flow = flow_of(views=3)
    loss = flow_loss("ContrastiveFlowLoss", flow)
    allowed = loss.partners(toy_view(flow, batch=2))
    images = [0, 1, 0, 1, 0, 1]
    assert allowed.tolist() == [[images[i] != images[j] for j in range(6)] for i in range(6)]


def test_the_contrast_is_drawn_after_all_else_and_trains_the_prediction():
    flow = flow_of()
    view = toy_view(flow)
    pred = view.out.pred["image"].requires_grad_()
    losses = contrast_of(view)
    plain = flow_loss(flow=flow)(toy_view(flow))
    assert torch.equal(losses.terms[0].value, plain.total), "the first part must not change"
    rng = torch.Generator().manual_seed(3)
    torch.rand(4, 4, generator=rng)
    assert torch.equal(view.rng.get_state(), rng.get_state())
    losses.terms[1].value.backward()
    partner = draw_partners(~torch.eye(4, dtype=torch.bool), torch.Generator().manual_seed(3))
    wanted = 2 * (pred.detach() - view.noised.target["image"][partner]) / pred.numel()
    torch.testing.assert_close(pred.grad, wanted)


def test_contrastive_mistakes():
    with pytest.raises(ValueError, match="at least 2 images"):
        contrast_of(toy_view(flow_of(views=2), batch=1), flow_of(views=2))
    with pytest.raises(ConfigError, match="class labels"):
        flow = flow_of(toy_geometry(num_classes=None))
        flow_loss("ContrastiveFlowLoss", flow, other_class=True)
    with pytest.raises(ConfigError, match="weight"):
        flow_loss("ContrastiveFlowLoss", weight=-0.1)


# ---- the dispersive loss -----------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped(REGULARISERS))
def test_contract_of_every_regulariser(name):
    check_regulariser(dict(type=name))


class Detached(Regulariser):
    """A regulariser without a gradient."""

    def forward(self, tokens):
        return 0 * tokens.tokens.sum()


class PerSample(Regulariser):
    """A regulariser that returns one value per sample."""

    def forward(self, tokens):
        return tokens.tokens.float().square().mean((1, 2))


@pytest.mark.parametrize("broken, message", [(Detached, "gradient"), (PerSample, "0-d")])
def test_the_check_of_regularisers_finds_mistakes(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_regulariser(broken(dim=16))


def dispersion(z, tau):
    """log( 1/B^2 sum_ij exp(-|z_i - z_j|^2 / (N D tau)) ), sample by sample."""
    total = 0.0
    for a in z:
        for b in z:
            distance = sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))
            total += math.exp(-distance / a.numel() / tau)
    return math.log(total / len(z) ** 2)


def features(batch=8, prefix=1):
    return Tokens(random_tensor(batch, prefix + 4, 3, seed=2), prefix, (2, 2))


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_dispersive_loss_written_out(tau):
    tokens = features()
    z = tokens.tokens[:, 1:].flatten(1)
    found = DispersiveLoss(dim=3, tau=tau)(tokens)
    assert float(found) == pytest.approx(dispersion(z, tau), rel=1e-5)
    chunks = DispersiveLoss(dim=3, tau=tau, pool=4)(tokens)
    wanted = (dispersion(z[:4], tau) + dispersion(z[4:], tau)) / 2
    assert float(chunks) == pytest.approx(wanted, rel=1e-5)
    alone = DispersiveLoss(dim=3, tau=tau, pool="all_ranks")(tokens)
    assert torch.equal(alone, found), "without processes, all ranks are this one"


def test_the_gradient_of_the_dispersive_loss():
    """d L / d z_i = -4 / (N D tau) sum_j p_ij (z_i - z_j), p the softmax over all pairs."""
    tokens = features(prefix=0)
    x = tokens.tokens.double().requires_grad_()
    DispersiveLoss(dim=3)(tokens._replace(tokens=x)).backward()
    z = x.detach().flatten(1)
    difference = z[:, None] - z
    similarity = -difference.square().sum(-1) / 12 / 0.5
    p = similarity.flatten().softmax(0).reshape(8, 8)
    wanted = -4 / 12 / 0.5 * (p[..., None] * difference).sum(1)
    torch.testing.assert_close(x.grad.flatten(1), wanted, rtol=1e-4, atol=1e-7)


def test_equal_samples_cost_nothing_and_large_features_are_exact():
    same = Tokens(random_tensor(1, 4, 3).expand(5, -1, -1), 0, (2, 2))
    assert float(DispersiveLoss(dim=3)(same)) == pytest.approx(0, abs=1e-6)
    shifted = features()._replace(tokens=features().tokens + 300.0)  # an offset all samples share
    loss = DispersiveLoss(dim=3)
    assert float(loss(shifted)) == pytest.approx(float(loss(features())), rel=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [(dict(tau=0), "tau"), (dict(pool=0), "pool"), (dict(pool="world"), "pool"),
     (dict(pool=True), "pool"), (dict(pool=2.0), "pool")], ids=str)  # fmt: skip
def test_dispersive_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        build(REGULARISERS, dict(type="DispersiveLoss", **options), dim=3)


def test_a_batch_that_does_not_divide_into_the_pools():
    with pytest.raises(ValueError, match="8 is not a multiple of 3"):
        DispersiveLoss(dim=3, pool=3)(features())


def test_a_batch_smaller_than_the_pool_is_compared_as_a_whole_with_one_warning(caplog):
    loss = DispersiveLoss(dim=3, pool=16)
    assert torch.equal(loss(features()), DispersiveLoss(dim=3)(features()))
    loss(features())
    (record,) = caplog.records
    assert "8 samples is smaller than pool=16" in record.getMessage()


def rank_of_two(rank, address, found):
    """One of two processes: the gradient of a shared layer, averaged over the ranks as by DDP."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    layer = shared_layer()
    mine = features(prefix=0).tokens[4 * rank : 4 * rank + 4]
    value = DispersiveLoss(dim=3, pool="all_ranks")(Tokens(layer(mine), 0, (2, 2)))
    value.backward()
    torch.distributed.all_reduce(layer.weight.grad)
    found[rank] = (value.item(), (layer.weight.grad / 2).tolist())
    torch.distributed.destroy_process_group()


def shared_layer():
    torch.manual_seed(0)
    return nn.Linear(3, 3, bias=False)


def test_the_dispersive_loss_over_two_processes_is_that_of_the_whole_batch(tmp_path):
    layer, found = shared_layer(), mp.Manager().dict()
    value = DispersiveLoss(dim=3)(Tokens(layer(features(prefix=0).tokens), 0, (2, 2)))
    value.backward()
    mp.spawn(rank_of_two, (f"file://{tmp_path}/store", found), nprocs=2)
    for rank in (0, 1):
        total, gradient = found[rank]
        assert total == pytest.approx(value.item(), rel=1e-5)
        torch.testing.assert_close(torch.tensor(gradient), layer.weight.grad, rtol=1e-4, atol=1e-6)
