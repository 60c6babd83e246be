"""Several noisings of each image through the whole engine: one draw of the label dropout for all
views, the losses written out, and priors of the images beside them (DUPA)."""

import pytest
import torch
import torch.nn.functional as F
from support.models import WORDS, compute, small_model

from ahpa.engine.dryrun import synthetic_batch, train_step
from ahpa.engine.optimiser import Optimiser, build_optimizer
from ahpa.registry import ConfigError
from ahpa.registry.contracts import Progress, Tap, TextCond

SIZES = dict(depth=5, encoder_depth=2, hidden_size=48, num_heads=4)
DDT = dict(type="DDT", num_classes=10, **SIZES)
DIT = {**DDT, "type": "DDTDiT"}
MMDIT = dict(type="DDTMMDiT", text_dim=20, **SIZES)
PROJECTOR = dict(type="MLPProjector", hidden_dim=24, gain=0.5)
VIEWS = dict(type="ViewAlignment", tap=2, out_dim=12, weight=0.5, projector=PROJECTOR)
ON_DIT = dict(flow=dict(type="DiscreteFlow", views=2), flow_loss=dict(type="HybridLoss"))


def model(*, views=2, **changes):
    cfg = dict(backbone=DDT, flow=dict(type="Flow", views=views), alignments=dict(views=VIEWS))
    return small_model(**{**cfg, **changes})


@pytest.mark.parametrize("views", [2, 3])
def test_the_losses_written_out(views):
    own = model(views=views, conditioner=dict(type="ClassLabels", dropout=0.5))
    given = []
    own.backbone.register_forward_hook(lambda module, args, out: given.append(args))
    seen = compute(own, synthetic_batch(own, batch=8), seed=4)
    noised, out, label = seen.view.noised, seen.view.out, given[0][2]
    assert label.shape == (8 * views,) and 0 < (label[:8] == 10).sum() < 8
    assert torch.equal(label, label[:8].repeat(views))  # one draw of the dropout for all views
    assert torch.equal(seen.view.cond.dropped, (label == 10))
    assert torch.equal(noised.data["image"], noised.data["image"][:8].repeat(views, 1, 1, 1))
    z = [own.alignments["views"].projector.mlp(part) for part in out.taps[Tap(2)].chunk(views)]
    cosines = [F.cosine_similarity(z[i], z[j], -1).mean() for i in range(views) for j in range(i)]
    wanted = 0.5 * (1 - torch.stack(cosines).mean())
    torch.testing.assert_close(seen.weighted()["views/cosine"], wanted, rtol=1e-4, atol=1e-6)
    pairs = zip(out.pred["image"].chunk(views), noised.target["image"].chunk(views), strict=True)
    each = [(a - b).square().mean() for a, b in pairs]
    torch.testing.assert_close(seen.weighted()["flow"], torch.stack(each).mean())


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [(DIT, ON_DIT), (MMDIT, dict(conditioner=WORDS))],
    ids=["DDTDiT", "DDTMMDiT"],
)
def test_views_on_the_other_transformers(backbone, changes):
    own = model(backbone=backbone, **changes)
    seen = compute(own, synthetic_batch(own), seed=4)
    tokens = seen.view.out.taps[Tap(2)]
    a, b = (own.alignments["views"].projector.mlp(part) for part in tokens.chunk(2))
    wanted = 0.5 * (1 - F.cosine_similarity(a, b, dim=-1).mean())
    torch.testing.assert_close(seen.weighted()["views/cosine"], wanted, rtol=1e-4, atol=1e-6)
    seen.losses.total.backward()
    trained = [p for p in own.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_captions_are_repeated_for_the_views():
    own = model(backbone=MMDIT, conditioner=WORDS, views=3)
    cond = compute(own, synthetic_batch(own)).view.cond.value
    assert isinstance(cond, TextCond) and cond.tokens.shape == (6, 6, 20)
    assert torch.equal(cond.tokens, cond.tokens[:2].repeat(3, 1, 1))


def test_both_sides_learn():
    """No stop-gradient: holding the other view fixed gives another gradient."""
    own = model()
    seen = compute(own, synthetic_batch(own), seed=4)
    projector = own.alignments["views"].projector
    seen.weighted()["views/cosine"].backward()
    grads = [p.grad.clone() for p in projector.parameters()]
    own.zero_grad(set_to_none=True)
    a, b = projector.mlp(seen.view.out.taps[Tap(2)].detach()).chunk(2)
    (0.5 * (1 - F.cosine_similarity(a, b.detach(), dim=-1).mean())).backward()
    held = [p.grad for p in projector.parameters()]
    assert any(not torch.allclose(x, y, rtol=1e-3) for x, y in zip(grads, held, strict=True))


def test_priors_of_the_images_serve_all_views():
    """A level of 2 images is computed once, and repeated for the 4 views."""
    ahpa = dict(tap=1, source="vae", router=dict(type="MLPRouter"))
    own = model(priors=dict(vae=dict(type="VAETaps")), alignments=dict(views=VIEWS, ahpa=ahpa))
    encoded = []
    encode = own.parts.tokenizer.encode
    own.parts.tokenizer.encode = lambda images, *rest, **more: (
        encoded.append(len(images)) or encode(images, *rest, **more)
    )
    seen = compute(own, synthetic_batch(own), progress=Progress(diagnose=True))
    assert encoded == [2]
    assert all(value.isfinite() for value in seen.losses.scalars().values())
    assert {"views/cosine", "ahpa/cosine"} <= set(seen.weighted())
    for level, x in seen.features["vae"].items():
        assert len(x) == 4 and torch.equal(x[:2], x[2:]), level


def test_a_teacher_sees_each_view_with_its_own_time():
    """A level that is made of the noised batch has a row for each view, and is not repeated."""
    teacher = dict(type="TeacherPrior", block=2, offset=0.0)
    router = dict(type="StaticRouter", groups=dict(teacher=["teacher"]))
    aligned = dict(views=VIEWS, own=dict(tap=1, source="ema", router=router))
    own = model(priors=dict(ema=teacher), alignments=aligned)
    seen = compute(own, synthetic_batch(own))
    noised, cond = seen.view.noised, seen.view.cond.value
    with torch.no_grad():
        wanted = own.parts.ema.backbone(noised.x, noised.t, cond, frozenset({Tap(2)}))
    found = seen.features["ema"]["teacher"]
    torch.testing.assert_close(found, wanted.tokens(2).as_map())


@pytest.mark.parametrize("backbone", [DDT, DIT, MMDIT], ids=lambda cfg: cfg["type"])
def test_a_training_step_moves_every_part(backbone):
    changes = {"DDTDiT": ON_DIT, "DDTMMDiT": dict(conditioner=WORDS)}.get(backbone["type"], {})
    own = model(backbone=backbone, **changes)
    before = {name: p.detach().clone() for name, p in own.named_parameters()}
    optimiser = Optimiser(optimizer=build_optimizer(dict(type="AdamW", lr=1e-3), own))
    losses = train_step(own, optimiser, synthetic_batch(own))
    assert losses.total.isfinite() and not optimiser.bad
    trained = {name: p for name, p in own.named_parameters() if p.requires_grad}
    same = [name for name, p in trained.items() if torch.equal(before[name], p)]
    assert not [name for name in same if "y_embedder" not in name]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (dict(backbone={**DDT, "encoder_depth": 5}), r"1\.\.4"),
        (dict(alignments=dict(views={**VIEWS, "tap": 6})), r"1\.\.5"),
        (dict(views=0), "model.flow.views"),
        (dict(alignments=dict(views={**VIEWS, "source": "vae"})), "source"),
        (dict(alignments=dict(views={**VIEWS, "criteria": {}})), "criteria"),
        (dict(views=1), "model.alignments.views: .*model.flow.views"),
    ],
    ids=str,
)
def test_mistakes(changes, word):
    with pytest.raises(ConfigError, match=word):
        model(**changes)
