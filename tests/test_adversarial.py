"""SARA's terms: the autocorrelation written out, and a critic whose one backward equals two alternating optimisers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ahpa.engine.optim import AlignmentOptimWrapper, build_optimizer
from ahpa.losses.adversarial import AdversarialLoss
from ahpa.registry import LOSSES, ConfigError, build
from ahpa.registry.contracts import Denoised, LevelSpec, Step, Tokens


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
    found = build(LOSSES, dict(type="AutocorrelationLoss", reduction=reduction), dim=5)(pred, target)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_autocorrelation_sees_structure_and_not_the_basis():
    loss = build(LOSSES, dict(type="AutocorrelationLoss"), dim=6)
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
    # Without a large eps Adam turns the rounding of the smallest gradients into steps of full length.
    cfg = dict(type=kind, lr=0.05, **(dict(momentum=0.9) if kind == "SGD" else dict(eps=1e-2)))
    del ours.loss.optimizer_options["betas"], theirs.loss.optimizer_options["betas"]
    wrapper = AlignmentOptimWrapper(optimizer=build_optimizer(cfg, ours), clip_grad=None)
    make = getattr(torch.optim, kind)
    options = {k: v for k, v in cfg.items() if k not in ("type", "lr")} | dict(weight_decay=0.0)
    generator, judge = (
        make(theirs.net.parameters(), lr=0.05, **options),
        make(theirs.loss.parameters(), lr=0.02, **options),
    )
    if kind == "AdamW":
        generator.param_groups[0]["weight_decay"] = 0.01  # AdamW's default, which build_optimizer leaves
    for step in range(5):
        terms = ours.terms(step)
        wrapper.update_params(terms["fool"] + terms["judge"])
        wrapper.zero_grad()

        x, real = theirs.net(tokens(4, 16, 6, seed=step)), tokens(4, 16, 8, seed=100 + step)
        maps = [y.mT.unflatten(2, (4, 4)) for y in (x, real)]
        fool = bce(theirs.loss.critic(maps[0]), 1.0)
        grads = torch.autograd.grad(fool, list(theirs.net.parameters()), retain_graph=True)
        said = 0.5 * (bce(theirs.loss.critic(maps[0].detach()), 0.0) + bce(theirs.loss.critic(maps[1]), 1.0))
        judging = torch.autograd.grad(said, list(theirs.loss.parameters()))
        torch.testing.assert_close(terms["fool"], fool)
        torch.testing.assert_close(terms["judge"], said)
        for p, g in zip([*theirs.net.parameters(), *theirs.loss.parameters()], [*grads, *judging], strict=True):
            p.grad = g
        generator.step(), judge.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-5)


def test_each_group_is_clipped_by_itself():
    player = Player()
    wrapper = AlignmentOptimWrapper(optimizer=build_optimizer(dict(type="SGD", lr=0.0), player), clip_grad=1e-3)
    assert [group.get("apart", False) for group in wrapper.optimizer.param_groups] == [False, True]
    assert wrapper.optimizer.param_groups[1]["lr"] == 2e-4
    wrapper.update_params(sum(1e3 * value for value in player.terms(0).values()))
    for parameters in (player.net.parameters(), player.loss.parameters()):
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-3, atol=0)
    assert wrapper.grad_norm > 1e-2  # of the model's own gradients, before clipping


def test_a_critic_that_is_not_finite_stops_the_whole_step():
    player = Player()
    wrapper = AlignmentOptimWrapper(optimizer=build_optimizer(dict(type="AdamW", lr=0.1), player), clip_grad=1.0)
    before = [p.clone() for p in player.parameters()]
    player.loss.critic.head.weight.register_hook(lambda g: g * float("nan"))
    wrapper.update_params(sum(player.terms(0).values()))
    assert int(wrapper.bad_total) == 1 and all(
        torch.equal(a, b) for a, b in zip(before, player.parameters(), strict=True)
    )


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
    from ahpa.losses.alignment import Alignment

    class Backbone:
        depth, hidden_size, grid = 2, 6, (4, 4)

    alignment = Alignment(
        name="main", spec={"a": LevelSpec(8, 16)}, backbone=Backbone, tap=1, source="p", weight=0.5,
        router=dict(type="StaticRouter", groups=dict(a=["a"])), projector=dict(type="LinearProjector"),
        criteria=dict(cosine=dict(type="CosineLoss", weight=0.5), adv=dict(type="AdversarialLoss", width=8, warmup=0, every=1, weight=0.1)))  # fmt: skip
    out = Denoised({}, {1: Tokens(tokens(2, 16, 6), 0, (4, 4))})
    step = Step(batch={}, out=out, features={"p": {"a": tokens(2, 8, 4, 4, seed=5)}})
    step.noisy = type("N", (), dict(t=torch.tensor([0.1, 0.9])))
    terms = alignment(step)
    scales = {
        key: float(terms[f"loss_main_{key}"].detach() / terms[f"main/{key}"])
        for key in ("cosine", "adv_fool", "adv_judge")
    }
    assert scales == pytest.approx({"cosine": 0.25, "adv_fool": 0.05, "adv_judge": 1.0})
    sum(value for name, value in terms.items() if name.startswith("loss")).backward()
    assert all(p.grad is not None for p in alignment.parameters())


@pytest.mark.parametrize("wrong", [dict(width=0), dict(warmup=-1), dict(every=0), dict(lr=0)], ids=str)
def test_mistakes(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build(LOSSES, dict(type="AdversarialLoss", **wrong), dim=4)
    with pytest.raises(ValueError, match="no square"):
        AdversarialLoss(dim=4, width=8)(tokens(1, 5, 4), tokens(1, 5, 4))
