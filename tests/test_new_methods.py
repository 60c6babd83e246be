"""LayerSync, Dispersive Loss, Delta-FM, HASTE and Self-Flow: their whole objectives, written out.

Each test builds the demo of a shipped config, lets the model compute one micro-batch, and repeats
its total with plain tensor operations on the noised batch, predictions and taps of that pass.
"""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.runs import ROOT, scalars
from test_configs import arguments
from torch import Tensor

from ahpa.cli import train as cli
from ahpa.engine import config as configs
from ahpa.engine.assembly import build_model
from ahpa.engine.denoiser import AlignedDenoiser
from ahpa.engine.dryrun import synthetic_batch
from ahpa.losses.contrastive import draw_partners
from ahpa.registry.contracts import BackboneOutput, Losses, Noised, Progress, Tap

BATCH = 4
SMALL = ["model.backbone.hidden_size=48", "model.backbone.num_heads=4"]


@dataclass
class Step:
    """What one forward pass of the model saw and computed, in the graph of its total."""

    model: AlignedDenoiser
    losses: Losses
    noised: Noised
    out: BackboneOutput
    calls: int  # of the trained backbone
    teacher: list[tuple[dict[str, Tensor], Tensor, Any]]  # x, t, condition of the averaged model
    images: Tensor
    before_flow: Tensor  # states of the step's generator
    after_backbone: Tensor

    def tokens(self, block: int) -> Tensor:
        """Output of a tapped block [B, N, D]."""
        return self.out.taps[Tap(block)]

    def flow_term(self) -> Tensor:
        """mean |v^ - v|^2, with v = eps - z."""
        velocity = self.noised.noise["image"] - self.noised.data["image"]
        return (self.out.pred["image"] - velocity).square().mean()


def demo_model(config: str, *options: str) -> AlignedDenoiser:
    """The demo of a shipped config, with all weights away from zero; the average has others."""
    path = ROOT / "configs" / f"{config}.py"
    cfg = cli.training_config(arguments(path, demo=True, cfg_options=[*SMALL, *options]))
    torch.manual_seed(0)
    model = build_model(cfg["model"])
    model.parts.load()
    with torch.no_grad():
        for network in (model, model.parts.ema.backbone):
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def run(model: AlignedDenoiser, progress: Progress | None = None, seed: int = 0) -> Step:
    """Compute the losses of one synthetic micro-batch and record the pass."""
    rng = torch.Generator().manual_seed(seed)
    batch = synthetic_batch(model, batch=BATCH, seed=seed)
    clean = model.parts.encode(batch, rng)
    before_flow = rng.get_state()
    seen: dict[str, Any] = {"noised": [], "out": [], "teacher": [], "state": []}
    sample = model.flow.sample

    def record_noised(*given):
        seen["noised"].append(sample(*given))
        return seen["noised"][-1]

    def record_out(module, given, output):
        seen["out"].append(output)
        seen["state"].append(rng.get_state())

    model.flow.sample = record_noised
    hooks = [
        model.backbone.register_forward_hook(record_out),
        model.parts.ema.backbone.register_forward_pre_hook(
            lambda module, given: seen["teacher"].append(given)
        ),
    ]
    losses = model(clean, rng, progress or Progress())
    for hook in hooks:
        hook.remove()
    model.flow.sample = sample
    return Step(
        model=model,
        losses=losses,
        noised=seen["noised"][0],
        out=seen["out"][0],
        calls=len(seen["out"]),
        teacher=seen["teacher"],
        images=clean.images,
        before_flow=before_flow,
        after_backbone=seen["state"][0],
    )


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()


def silu_mlp(model: AlignedDenoiser, x: Tensor) -> Tensor:
    """The head of the alignment "main": linear layers with SiLU between them."""
    weights = dict(model.alignments["main"].projector.named_parameters())
    numbers = sorted({int(name.split(".")[1]) for name in weights})
    for number in numbers:
        x = x @ weights[f"mlp.{number}.weight"].T + weights[f"mlp.{number}.bias"]
        if number != numbers[-1]:
            x = x * x.sigmoid()
    return x


def assert_same_objective(step: Step, expected: Tensor, constant: float = 0.0) -> None:
    """The engine's total is `expected` plus a constant, and both have the same gradients."""
    torch.testing.assert_close(step.losses.total, expected + constant, rtol=1e-5, atol=1e-6)
    parameters = list(step.model.parameters())
    found, wanted = (
        torch.autograd.grad(total, parameters, retain_graph=True, materialize_grads=True)
        for total in (step.losses.total, expected)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert sum(float(gradient.abs().sum()) for gradient in wanted) > 0


# ---- LayerSync ----


@pytest.mark.parametrize("config", ["layersync_sit-b", "layersync_sit-xl"])
def test_layersync(config):
    """L_v - .2 mean cos(h_early, sg h_late), from one forward pass; the criterion adds .2."""
    step = run(demo_model(config))
    early = step.model.alignments["main"].tap
    late = step.model.parts.priors["later"].block
    assert early < late and step.calls == 1 and not step.teacher
    target = step.tokens(late).detach()
    expected = step.flow_term() - 0.2 * mean_cosine(step.tokens(early), target)
    assert_same_objective(step, expected, constant=0.2)


def test_layersyncs_target_is_detached():
    step = run(demo_model("layersync_sit-xl"))
    early = step.model.alignments["main"].tap
    late = step.model.parts.priors["later"].block
    (term,) = [term for term in step.losses.terms if term.name == "main/cosine"]
    taps = (step.tokens(early), step.tokens(late))
    learning, target = torch.autograd.grad(term.value, taps, allow_unused=True)
    assert learning.abs().sum() > 0 and target is None


def test_layersync_trains_no_head():
    model = demo_model("layersync_sit-b")
    assert not list(model.alignments.parameters())
    full = configs.check_config(configs.load(ROOT / "configs" / "layersync_sit-xl.py"))
    assert (full.alignments["main"].tap, full.parts.priors["later"].block) == (8, 16)


# ---- Dispersive Loss ----


def disperse(h: Tensor, tau: float) -> Tensor:
    """log( 1/B^2 sum_{i,j} exp(-|z_i - z_j|^2 / (N D) / tau) ), in loops."""
    z = h.flatten(1)
    total = sum(
        torch.exp(-(z[i] - z[j]).square().mean() / tau)
        for i in range(len(z))
        for j in range(len(z))
    )
    return torch.log(total / len(z) ** 2)


@pytest.mark.parametrize(
    ("config", "block", "weight", "tau"),
    [
        ("dispersive_sit-b", 2, 0.5, 0.5),
        ("dispersive_sit-xl", 2, 0.5, 0.5),
        ("dispersive_sit-b_port-pytorch", 6, 0.25, 1.0),
    ],
)
def test_dispersive(config, block, weight, tau):
    """L_v + weight log(...), over a whole micro-batch of four, which is smaller than the pool."""
    step = run(demo_model(config))
    assert step.out.taps.keys() == {Tap(block)}
    expected = step.flow_term() + weight * disperse(step.tokens(block), tau)
    assert_same_objective(step, expected)


def test_a_dispersive_pool_of_two_is_the_mean_over_chunks():
    step = run(demo_model("dispersive_sit-b", "model.alignments.main.regulariser.pool=2"))
    first, second = step.tokens(2).split(2)
    mean = (disperse(first, 0.5) + disperse(second, 0.5)) / 2
    assert_same_objective(step, step.flow_term() + 0.5 * mean)


@pytest.mark.parametrize(
    ("config", "block", "pool"),
    [
        ("dispersive_sit-b", 3, 16),
        ("dispersive_sit-xl", 7, 16),
        ("dispersive_sit-b_port-pytorch", 12, 32),
    ],
)
def test_settings_of_the_dispersive_loss(config, block, pool):
    model = configs.check_config(configs.load(ROOT / "configs" / f"{config}.py"))
    alignment = model.alignments["main"]
    assert (alignment.tap, alignment.regulariser.pool) == (block, pool)


# ---- Delta-FM ----


def draws(step: Step) -> Tensor:
    """The B x B uniform numbers that the loss draws after the backbone's pass."""
    rng = torch.Generator()
    rng.set_state(step.after_backbone)
    return torch.rand(BATCH, BATCH, generator=rng)


@pytest.mark.parametrize("config", ["deltafm_sit-b", "deltafm_sit-xl"])
def test_deltafm(config):
    """mean |v^ - v_i|^2 - .05 mean |v^ - v_j|^2; row i's largest number, i left out, gives j."""
    step = run(demo_model(config))
    velocity = step.noised.noise["image"] - step.noised.data["image"]
    uniform = draws(step)
    pushed = []
    for i in range(BATCH):
        j = max((j for j in range(BATCH) if j != i), key=lambda j: float(uniform[i, j]))
        pushed.append((step.out.pred["image"][i] - velocity[j]).square().mean())
    expected = step.flow_term() - 0.05 * sum(pushed) / BATCH
    assert_same_objective(step, expected)


def test_deltafms_negative_is_never_the_sample_itself():
    model = demo_model("deltafm_sit-b")
    seen = {}
    model.flow_loss.register_forward_pre_hook(lambda module, given: seen.update(view=given[0]))
    run(model)
    allowed = model.flow_loss.partners(seen["view"])
    rng = torch.Generator().manual_seed(1)
    found = torch.stack([draw_partners(allowed, rng) for _ in range(300)])  # [300, B]
    for i in range(BATCH):
        counts = found[:, i].bincount(minlength=BATCH)
        assert counts[i] == 0 and all(counts[j] > 60 for j in range(BATCH) if j != i)


def test_deltafm_without_dropped_labels():
    """`skip_null` rescales the second term by B over the number of samples with a label."""
    options = ["model.flow_loss.skip_null=True", "model.conditioner.dropout=0.5"]
    model, seen = demo_model("deltafm_sit-b", *options), {}
    model.flow_loss.register_forward_pre_hook(lambda module, given: seen.update(view=given[0]))
    step = run(model, seed=3)
    dropped = seen["view"].cond.dropped
    assert 0 < int(dropped.sum()) < BATCH
    velocity = step.noised.noise["image"] - step.noised.data["image"]
    uniform = draws(step).fill_diagonal_(-1)
    errors = [
        (step.out.pred["image"][i] - velocity[int(uniform[i].argmax())]).square().mean()
        for i in range(BATCH)
        if not dropped[i]
    ]
    expected = step.flow_term() - 0.05 * sum(errors) / len(errors)
    assert_same_objective(step, expected)


# ---- HASTE ----


def teacher_of(step: Step, levels: list[int]) -> tuple[Tensor, list[Tensor]]:
    """The bundled teacher's patch tokens [B, N, C] and attention logits [B, H, N, N], its blocks
    computed one by one; `levels` are block numbers from 1."""
    prior = step.model.parts.priors["dino"]
    network: Any = prior.network
    x = (step.images - prior.mean) / prior.std
    x = network.norm_pre(network._pos_embed(network.patch_embed(x)))
    logits = {}
    for number, block in enumerate(network.blocks, start=1):
        heads = block.attn.num_heads
        packed = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1))
        query, key = packed[:, :, 0].transpose(1, 2), packed[:, :, 1].transpose(1, 2)
        scaled = query @ key.mT / math.sqrt(query.shape[-1])
        logits[number] = scaled[:, :, 1:, 1:]  # without the class token
        x = block(x)
    return network.norm(x)[:, 1:], [logits[number] for number in levels]


def distil(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_{b,h,q} [ - sum_k softmax(T) log softmax(S) ] over the heads that both have."""
    heads = min(student.shape[1], teacher.shape[1])
    own, theirs = student[:, :heads], teacher[:, :heads]
    log_own = own - own.exp().sum(-1, keepdim=True).log()
    shares = theirs.exp() / theirs.exp().sum(-1, keepdim=True)
    return -(shares * log_own).sum(-1).mean()


@pytest.mark.parametrize("config", ["haste_sit-b", "haste_sit-l", "haste_sit-xl"])
def test_haste(config):
    """L_v + .5 REPA + .5 mean over the pairs of blocks of L_attn; REPA's criterion adds .5."""
    step = run(demo_model(config))
    assert step.model.alignments["attention"].blocks == (1, 2)
    with torch.no_grad():
        patches, attention = teacher_of(step, [3, 4])
    tap = step.model.alignments["main"].tap
    pairs = zip((1, 2), attention, strict=True)
    distilled = [distil(step.out.taps[Tap(block, "attention")], t) for block, t in pairs]
    expected = (
        step.flow_term()
        - 0.5 * mean_cosine(silu_mlp(step.model, step.tokens(tap)), patches)
        + 0.5 * sum(distilled) / 2
    )
    assert_same_objective(step, expected, constant=0.5)


def test_hastes_gradient_to_the_attention_logits():
    """(softmax S - softmax T) / (pairs B H N) times the weight .5; no gradient to further heads."""
    step = run(demo_model("haste_sit-xl"))
    with torch.no_grad():
        _, attention = teacher_of(step, [3, 4])
    for block, teacher in zip((1, 2), attention, strict=True):
        student = step.out.taps[Tap(block, "attention")]
        (found,) = torch.autograd.grad(step.losses.total, student, retain_graph=True)
        heads, tokens = teacher.shape[1], teacher.shape[-1]
        assert student.shape[1] > heads
        oracle = (student[:, :heads].softmax(-1) - teacher.softmax(-1)) / (
            2 * BATCH * heads * tokens
        )
        torch.testing.assert_close(found[:, :heads], 0.5 * oracle, rtol=1e-4, atol=1e-8)
        assert torch.equal(found[:, heads:], torch.zeros_like(found[:, heads:]))


@pytest.mark.parametrize(
    ("config", "stop"),
    [("haste_sit-b", 100_000), ("haste_sit-l", 250_000), ("haste_sit-xl", 250_000)],
)
def test_haste_stops_both_terms_at_once(config, stop):
    model = demo_model(config)
    for iteration, weight in ((0, 0.5), (stop - 1, 0.5), (stop, 0.0), (399_999, 0.0)):
        losses = run(model, Progress(iteration, 400_000)).losses
        weights = {term.name: term.weight for term in losses.terms if term.name != "flow"}
        if weight:
            assert weights == {"main/cosine": weight, "attention/distillation": weight}
        else:
            assert not weights and torch.equal(losses.total, losses.terms[0].value)


@pytest.mark.parametrize("config", ["haste_sit-b", "haste_sit-l", "haste_sit-xl"])
def test_hastes_pairs_of_blocks(config):
    """Student blocks 4..7 and teacher blocks 8..11, counted from 0, and the first 12 heads."""
    model = configs.check_config(configs.load(ROOT / "configs" / f"{config}.py"))
    alignment = model.alignments["attention"]
    assert alignment.blocks == (5, 6, 7, 8) and model.alignments["main"].tap == 8
    assert alignment.levels == tuple(f"attention{block}" for block in (9, 10, 11, 12))
    levels = model.parts.priors["dino"].levels
    assert {levels[name].channels for name in alignment.levels} == {12}
    assert model.backbone.num_heads >= 12


# ---- Self-Flow ----


def pixels(tau: Tensor, noised: Noised) -> Tensor:
    """Times of tokens [B, N] as times of latent pixels [B, 1, h, w]."""
    side = noised.data["image"].shape[-1]
    grid = int(tau.shape[1] ** 0.5)
    every = side // grid
    spread = tau.new_zeros(len(tau), 1, side, side)
    for y in range(side):
        for x in range(side):
            spread[:, 0, y, x] = tau[:, (y // every) * grid + x // every]
    return spread


@pytest.mark.parametrize("config", ["selfflow_sit-b", "selfflow_sit-xl"])
def test_selfflow(config):
    """L_v - .8 mean cos(head(h), sg h'), h' of the average at min(t, s); the criterion adds .8."""
    step = run(demo_model(config))
    model, noised = step.model, step.noised
    student, teacher = model.alignments["main"].tap, model.parts.priors["ema"].block
    assert student < teacher
    z, eps = noised.data["image"], noised.noise["image"]
    cleaner = noised.t.min(1).values
    at = cleaner[:, None, None, None]
    (seen,) = step.teacher
    with torch.no_grad():
        out = model.parts.ema.backbone(
            {"image": (1 - at) * z + at * eps}, cleaner, seen[2], taps=frozenset({Tap(teacher)})
        )
    target = out.taps[Tap(teacher)]
    projected = silu_mlp(model, step.tokens(student))
    expected = step.flow_term() - 0.8 * mean_cosine(projected, target)
    assert_same_objective(step, expected, constant=0.8)


def test_selfflows_teacher_sees_the_cleaner_time_and_the_same_noise():
    step = run(demo_model("selfflow_sit-xl"))
    z, eps, tau = step.noised.data["image"], step.noised.noise["image"], step.noised.t
    ((x, t, _),) = step.teacher
    assert t.shape == (BATCH,) and torch.equal(t, tau.amin(1))
    at = t[:, None, None, None]
    torch.testing.assert_close(x["image"], (1 - at) * z + at * eps)
    at = pixels(tau, step.noised)
    torch.testing.assert_close(step.noised.x["image"], (1 - at) * z + at * eps)


def test_selfflows_untouched_tokens_keep_t():
    """A quarter of the tokens has s, the others t: t, s and the mask are drawn in this order."""
    step = run(demo_model("selfflow_sit-b"))
    rng = torch.Generator()
    rng.set_state(step.before_flow)
    count = step.noised.t.shape[1]
    t, s = torch.rand(BATCH, generator=rng), torch.rand(BATCH, generator=rng)
    uniform = torch.rand(BATCH, count, generator=rng)
    eps = torch.randn(step.noised.data["image"].shape, generator=rng)
    assert torch.equal(eps, step.noised.noise["image"])
    for i in range(BATCH):
        masked = set(uniform[i].argsort()[: count // 4].tolist())
        for n in range(count):
            assert step.noised.t[i, n] == (s[i] if n in masked else t[i])


@pytest.mark.parametrize(
    ("config", "student", "teacher"), [("selfflow_sit-b", 4, 8), ("selfflow_sit-xl", 8, 20)]
)
def test_selfflows_blocks_are_shares_of_the_depth(config, student, teacher):
    model = configs.check_config(configs.load(ROOT / "configs" / f"{config}.py"))
    depth, width = model.backbone.depth, model.backbone.hidden_size
    assert (student, teacher) == (round(0.3 * depth), round(0.7 * depth))
    assert (model.alignments["main"].tap, model.parts.priors["ema"].block) == (student, teacher)
    sizes = [p.shape for p in model.alignments["main"].projector.parameters() if p.ndim == 2]
    assert sizes == [(2 * width, width), (width, 2 * width)]
    assert model.parts.ema.decay == 0.9999


# ---- all of them train ----

METHODS = (
    "layersync",
    "dispersive",
    "deltafm",
    "haste",
    "selfflow",
    "dtsas",
    pytest.param("tread", marks=pytest.mark.slow),
    "tread-repa",
)


@pytest.mark.parametrize("method", METHODS)
def test_thirty_steps_of_the_demo(method, tmp_path):
    """`tools/train.py configs/<method>_sit-b.py --demo`, made smaller: finite, and falling."""
    options = [
        *SMALL,
        "train_dataloader.global_batch_size=8",
        "train_cfg.log_interval=5",
        "checkpoints.interval=1000",
        "hooks.samples=None",
        "optim_wrapper.optimizer.lr=5e-3",
    ]
    config = str(ROOT / "configs" / f"{method}_sit-b.py")
    command = [config, "--demo", "--work-dir", str(tmp_path), "--max-iters", "30"]
    assert cli.main([*command, "--cfg-options", *options]) == 0
    log = scalars(tmp_path)
    assert [record["iteration"] for record in log] == [5, 10, 15, 20, 25, 30]
    assert all(math.isfinite(value) for record in log for value in record.values())
    assert all(record["skipped_steps"] == 0 for record in log)
    assert log[-1]["loss"] < log[0]["loss"] - 0.05
