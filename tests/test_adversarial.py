"""SARA's terms: the autocorrelation written out, and a critic whose one backward pass equals two
alternating optimisers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.values import make_view
from torch import nn

from ahpa.engine.optimiser import Optimiser, build_optimizer
from ahpa.losses.adversarial import AdversarialLoss
from ahpa.registry import ALIGNMENTS, FLOWS, PAIR_LOSSES, ConfigError, build
from ahpa.registry.contracts import LevelSpec, Progress
from ahpa.testing.common import toy_geometry


def tokens(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_autocorrelation_written_out(reduction):
    pred, target = tokens(2, 9, 5), tokens(2, 9, 7, seed=1)[..., :5]
    total = 0.0
    for b in range(2):
        for i in range(9):
            for j in range(9):
                a = F.cosine_similarity(pred[b, i], pred[b, j], dim=0)
                total += (a - F.cosine_similarity(target[b, i], target[b, j], dim=0)) ** 2
    wanted = total / 2 / (81 if reduction == "mean" else 1)
    cfg = dict(type="AutocorrelationLoss", reduction=reduction)
    found = build(PAIR_LOSSES, cfg, dim=5)(pred, target)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_autocorrelation_sees_structure_and_not_the_basis():
    loss = build(PAIR_LOSSES, dict(type="AutocorrelationLoss"), dim=6)
    target, rotation = tokens(2, 16, 6), torch.linalg.qr(tokens(6, 6, seed=2))[0]
    assert float(loss(target @ rotation, target)) < 1e-10 < float(loss(target.flip(1), target))


class Player(nn.Module):
    """A generator of token maps with a frozen target, and the loss between them."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, 8)
        self.loss = AdversarialLoss(dim=8, width=8, warmup=0, every=1, **options)

    def terms(self, seed):
        return self.loss(self.net(tokens(4, 16, 6, seed=seed)), tokens(4, 16, 8, seed=100 + seed))


def bce(logits, label):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_one_backward_equals_two_alternating_optimisers(kind):
    ours = Player(lr=0.02)
    theirs = copy.deepcopy(ours)
    # Without a large eps, Adam turns the rounding of the smallest gradients into full-length steps.
    cfg = dict(type=kind, lr=0.05)
    cfg |= dict(momentum=0.9) if kind == "SGD" else dict(eps=1e-2, weight_decay=0.0, fused=False)
    del ours.loss.optimizer_options["betas"], theirs.loss.optimizer_options["betas"]
    optimiser = Optimiser(optimizer=build_optimizer(cfg, ours), clip_grad=None)
    make = getattr(torch.optim, kind)
    options = {k: v for k, v in cfg.items() if k not in ("type", "lr")} | dict(weight_decay=0.0)
    judge = make(theirs.loss.parameters(), lr=0.02, **options)
    generator = make(theirs.net.parameters(), lr=0.05, **options)
    for step in range(5):
        terms = ours.terms(step)
        optimiser.backward(terms["fool"] + terms["judge"])
        optimiser.step()

        x, real = theirs.net(tokens(4, 16, 6, seed=step)), tokens(4, 16, 8, seed=100 + step)
        maps = [y.mT.unflatten(2, (4, 4)) for y in (x, real)]
        fool = bce(theirs.loss.critic(maps[0]), 1.0)
        grads = torch.autograd.grad(fool, list(theirs.net.parameters()), retain_graph=True)
        fake, true = theirs.loss.critic(maps[0].detach()), theirs.loss.critic(maps[1])
        said = 0.5 * (bce(fake, 0.0) + bce(true, 1.0))
        judging = torch.autograd.grad(said, list(theirs.loss.parameters()))
        torch.testing.assert_close(terms["fool"], fool)
        torch.testing.assert_close(terms["judge"], said)
        both = [*theirs.net.parameters(), *theirs.loss.parameters()]
        for p, g in zip(both, [*grads, *judging], strict=True):
            p.grad = g
        for player in (generator, judge):
            player.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-5)


def test_each_group_is_clipped_by_itself():
    player = Player()
    optimizer = build_optimizer(dict(type="SGD", lr=0.0), player)
    optimiser = Optimiser(optimizer=optimizer, clip_grad=1e-3)
    assert [group.get("apart", False) for group in optimizer.param_groups] == [False, True]
    assert optimizer.param_groups[1]["lr"] == 2e-4
    clipped = {}
    optimizer.register_step_pre_hook(
        lambda *_: clipped.update({p: p.grad.clone() for p in player.parameters()})
    )
    optimiser.backward(sum(1e3 * value for value in player.terms(0).values()))
    optimiser.step()
    for parameters in (player.net.parameters(), player.loss.parameters()):
        norm = torch.stack([clipped[p].norm() for p in parameters]).norm()
        torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-3, atol=0)
    assert optimiser.grad_norm > 1e-2  # of the model's own gradients, before clipping


def test_a_critic_that_is_not_finite_stops_the_whole_step():
    player = Player()
    optimizer = build_optimizer(dict(type="AdamW", lr=0.1), player)
    optimiser = Optimiser(optimizer=optimizer, clip_grad=1.0)
    before = [p.clone() for p in player.parameters()]
    player.loss.critic.head.weight.register_hook(lambda g: g * float("nan"))
    optimiser.backward(sum(player.terms(0).values()))
    optimiser.step()
    assert int(optimiser.bad_total) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, player.parameters(), strict=True))


def test_warm_up_and_turns_are_counted_and_saved():
    loss = AdversarialLoss(dim=8, width=8, warmup=3, every=2)
    seen = []
    for step in range(5):
        terms = loss(tokens(2, 16, 8, seed=step), tokens(2, 16, 8, seed=9))
        seen.append((bool(terms["fool"] > 0), bool(terms["judge"] > 0)))
    assert seen == [(False, True), (False, False), (False, True), (True, False), (True, True)]
    other = AdversarialLoss(dim=8, width=8, warmup=3, every=2)
    other.load_state_dict(loss.state_dict())
    assert int(other.calls) == 5
    with torch.no_grad():
        loss(tokens(2, 16, 8), tokens(2, 16, 8))
    assert int(loss.calls) == 5  # a look at the loss is no step


def test_the_alignments_weights_do_not_scale_the_critics_objective():
    geometry = toy_geometry(width=6)
    alignment = build(
        ALIGNMENTS,
        dict(
            type="Alignment",
            tap=1,
            source="p",
            weight=0.5,
            router=dict(type="StaticRouter", groups=dict(a=["a"])),
            projector=dict(type="LinearProjector"),
            criteria=dict(
                cosine=dict(type="CosineLoss", weight=0.5),
                adv=dict(type="AdversarialLoss", width=8, warmup=0, every=1, weight=0.1),
            ),
        ),
        name="main",
        geometry=geometry,
        flow=build(FLOWS, dict(type="Flow"), geometry=geometry),
        priors={"p": {"a": LevelSpec(8, 16)}},
    )
    view = make_view({1: tokens(2, 16, 6)}, grid=(4, 4), t=torch.tensor([0.1, 0.9]))
    losses = alignment(view, {"p": {"a": tokens(2, 8, 4, 4, seed=5)}}, Progress())
    weights = [float(term.weight) for term in losses.terms]
    assert weights == pytest.approx([0.25, 0.05, 1.0])
    judge = losses.terms[2]
    assert "judge" in judge.name and "fool" in losses.terms[1].name
    losses.total.backward()
    assert all(p.grad is not None for p in alignment.parameters())


@pytest.mark.parametrize(
    "wrong", [dict(width=0), dict(warmup=-1), dict(every=0), dict(lr=0)], ids=str
)
def test_mistakes(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(PAIR_LOSSES, dict(type="AdversarialLoss", **wrong), dim=4)


def test_a_grid_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="square token grid, got 5"):
        AdversarialLoss(dim=4, width=8)(tokens(1, 5, 4), tokens(1, 5, 4))
