"""The bugs of `tools/mutants.py`, by area. An entry names one line, or part of one, of one file."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A bug: `old` occurs exactly once in `file`; with `new` in its place a test of `tests` fails.

    Tests are named by file, the one that should notice first.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def tests(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_{name}.py" for name in names)


# ---- where things are ----

CHECKPOINT = "ahpa/engine/checkpoint.py"
EMA = "ahpa/engine/ema.py"
HOOKS = "ahpa/engine/hooks.py"
METRICS = "ahpa/engine/metrics.py"
OPTIMISER = "ahpa/engine/optimiser.py"
PARTS = "ahpa/engine/parts.py"
RUN_LOG = "ahpa/engine/run_log.py"
RUNNER = "ahpa/engine/runner.py"
TRAINER = "ahpa/engine/trainer.py"
WEIGHTS = "ahpa/engine/weights.py"

SAMPLER = "ahpa/data/sampler.py"
SHAPES = "ahpa/data/shapes.py"
IMAGES = "ahpa/data/images.py"
CROPS = "ahpa/data/transforms.py"

PATHS = "ahpa/flow/paths.py"
TIMESTEPS = "ahpa/flow/timesteps.py"
DISCRETE = "ahpa/flow/discrete.py"

GENERATOR = "ahpa/sampling/generator.py"
GUIDANCE = "ahpa/sampling/guidance.py"
SAMPLERS = "ahpa/sampling/samplers.py"
DDPM = "ahpa/sampling/ddpm.py"

FLOW_LOSS = "ahpa/losses/flow.py"
HYBRID = "ahpa/losses/hybrid.py"
PAIRWISE = "ahpa/losses/pairwise.py"
ADVERSARIAL = "ahpa/losses/adversarial.py"
ATTENTION = "ahpa/losses/attention.py"

ALIGNMENT = "ahpa/alignment/routed.py"
COLLAPSE = "ahpa/alignment/collapse.py"
CRITERIA = "ahpa/alignment/criteria.py"
SCHEDULES = "ahpa/alignment/schedules.py"
VIEWS = "ahpa/alignment/views.py"

ROUTER = "ahpa/routers/base.py"
LEARNED = "ahpa/routers/learned.py"
MIXING = "ahpa/routers/mixing.py"
STATIC = "ahpa/routers/static.py"
GROUPING = "ahpa/routers/grouping.py"
PARTITION = "ahpa/routers/partition.py"

TOKENIZER = "ahpa/tokenizers/autoencoder_kl.py"
INTERNAL = "ahpa/priors/internal.py"
NORMS = "ahpa/priors/transforms.py"
VISION = "ahpa/priors/vision.py"

BACKBONE = "ahpa/backbones/base.py"
LABELS = "ahpa/conditioning/labels.py"
LAYERS = "ahpa/backbones/layers.py"
LANES = "ahpa/backbones/lanes.py"
ROUTING = "ahpa/backbones/token_routing.py"
DENOISER = "ahpa/engine/denoiser.py"
TOKEN_TIME = "ahpa/flow/token_time.py"

FORMULAS = tests("engine_formulas")

# ---- the engine ----

ENGINE = (
    Mutant(
        "ema-decay-swapped",
        EMA,
        "self._averages, self._weights, 1 - self.decay",
        "self._averages, self._weights, self.decay",
        FORMULAS,
    ),
    Mutant(
        "ema-never-updated",
        TRAINER,
        "self.parts.ema.update(self.model.backbone)",
        "pass",
        FORMULAS,
    ),
    Mutant(
        "accumulated-loss-not-divided",
        TRAINER,
        "losses.total / optimiser.accumulate",
        "losses.total * 1",
        FORMULAS,
    ),
    Mutant(
        "logged-loss-not-divided",
        METRICS,
        "share = value if micro_batches == 1 else value / micro_batches",
        "share = value",
        FORMULAS,
    ),
    Mutant(
        "micro-batches-share-noise",
        TRAINER,
        "self.run.rank, iteration, micro)",
        "self.run.rank, iteration, 0)",
        FORMULAS,
    ),
    Mutant(
        "iterations-share-noise",
        TRAINER,
        "self.run.rank, iteration, micro)",
        "self.run.rank, 0, micro)",
        FORMULAS,
    ),
    Mutant(
        "gradients-pile-up",
        OPTIMISER,
        "self.optimizer.zero_grad()",
        "pass",
        FORMULAS,
    ),
    Mutant(
        "decay-of-biases-and-norms",
        OPTIMISER,
        "if weight_decay(cfg):",
        "if False:",
        FORMULAS,
    ),
    Mutant(
        "gradients-not-clipped",
        OPTIMISER,
        "if self.clip_grad is not None:",
        "if False:",
        FORMULAS,
    ),
    Mutant(
        "guard-ignores-the-loss",
        OPTIMISER,
        "finite if self._finite is None else finite & self._finite)",
        "finite)",
        FORMULAS,
    ),
    Mutant(
        "guard-ignores-gradients",
        OPTIMISER,
        "finite = sum(norms[1:], norms[0]).isfinite()",
        "finite = torch.ones_like(norms[0]).isfinite()",
        FORMULAS,
    ),
    Mutant(
        "guard-sees-the-last-micro-batch",
        OPTIMISER,
        "finite if self._finite is None else self._finite & finite",
        "finite",
        FORMULAS,
    ),
    Mutant(
        "bad-steps-in-a-row-never-reset",
        OPTIMISER,
        "self.bad_in_row = (self.bad_in_row + bad) * bad",
        "self.bad_in_row = self.bad_in_row + bad",
        FORMULAS,
    ),
    Mutant(
        "log-includes-skipped-steps",
        METRICS,
        "if row.pop(SKIPPED):",
        "if row.pop(SKIPPED) > 1:",
        FORMULAS,
    ),
    Mutant(
        "log-of-one-rank-only",
        METRICS,
        "self.processes.sum(table.reshape(len(names), 2))",
        "table.reshape(len(names), 2)",
        tests("metrics"),
    ),
    Mutant(
        "log-of-sums-over-ranks",
        METRICS,
        "float(row[0] / row[1])",
        "float(row[0])",
        tests("metrics"),
    ),
    Mutant(
        "log-line-lost-on-resume",
        RUN_LOG,
        "kept += encode(self.record)",
        'kept += b""',
        tests("runner"),
    ),
    Mutant(
        "progress-one-step-ahead",
        TRAINER,
        "Progress(iteration, options.max_iters, diagnose)",
        "Progress(iteration + 1, options.max_iters, diagnose)",
        FORMULAS,
    ),
    Mutant(
        "resume-cursor-off-by-one",
        RUNNER,
        'start=saved.state["data"]["consumed"] if saved else 0',
        'start=saved.state["data"]["consumed"] + 1 if saved else 0',
        FORMULAS,
    ),
    Mutant(
        "consumed-counts-steps",
        TRAINER,
        "self.consumed += self.options.global_batch_size",
        "self.consumed += 1",
        FORMULAS,
    ),
    Mutant(
        "resume-without-the-ema",
        RUNNER,
        'self.parts.ema.backbone.load_state_dict(state["ema"])',
        "pass",
        FORMULAS,
    ),
    Mutant(
        "resume-without-the-moments",
        OPTIMISER,
        'self.optimizer.load_state_dict(state["optimizer"])',
        "pass",
        FORMULAS,
    ),
    Mutant(
        "sample-grids-of-raw-weights",
        HOOKS,
        "backbone=net.parts.ema.backbone",
        "backbone=net.backbone",
        FORMULAS,
    ),
    Mutant(
        "sampling-of-raw-weights",
        WEIGHTS,
        'if weights == "ema":',
        'if weights == "never":',
        FORMULAS,
    ),
    Mutant(
        "images-beyond-one",
        PARTS,
        "images = images.float() / 255",
        "images = images.float() / 256",
        FORMULAS,
    ),
    Mutant(
        "frozen-features-not-detached",
        PARTS,
        "{level: x.detach() for level, x in features.items()}",
        "dict(features)",
        tests("parts"),
    ),
    Mutant(
        "frozen-parts-not-frozen",
        PARTS,
        "part.eval().requires_grad_(False)",
        "part.eval()",
        tests("parts"),
    ),
    Mutant(
        "wrong-levels-accepted",
        PARTS,
        "if place not in self._verified:",
        "if False:",
        tests("parts"),
    ),
    Mutant(
        "levels-of-images-not-repeated-for-views",
        PARTS,
        "x if len(x) == count else repeat(x, noised.views)",
        "x",
        tests("views_run"),
    ),
    Mutant(
        "encoder-runs-twice-for-a-stored-latent",
        PARTS,
        "self.tokenizer.encode(images, levels, latent=False)",
        "self.tokenizer.encode(images, levels)",
        tests("priors_run"),
    ),
    Mutant(
        "checkpoint-before-the-step-is-counted",
        TRAINER,
        "self.iteration = iteration + 1",
        "self.iteration = iteration",
        tests("runner"),
    ),
    Mutant(
        "hooks-count-off-by-one",
        RUNNER,
        "self._hook_iteration = iteration\n",
        "self._hook_iteration = iteration + 1\n",
        tests("runner"),
    ),
    Mutant(
        "hook-state-not-restored",
        RUNNER,
        'hook.load_state_dict(state["hooks"][name])',
        "pass",
        tests("runner"),
    ),
    Mutant(
        "checkpoint-checksum-not-verified",
        CHECKPOINT,
        'if comment[len(MARK) :].decode("ascii", "replace") != digest.hexdigest():',
        "if False:",
        tests("checkpoint"),
    ),
    Mutant(
        "checkpoints-pruned-to-one",
        CHECKPOINT,
        "own[:-keep]",
        "own[:-1]",
        tests("checkpoint", "engine_formulas"),
    ),
)

# ---- data ----

DATA = (
    Mutant(
        "every-epoch-in-one-order",
        SAMPLER,
        "permutation(self.size, self.seed, epoch)",
        "permutation(self.size, self.seed, 0)",
        FORMULAS,
    ),
    Mutant(
        "processes-share-samples",
        SAMPLER,
        "self.start + self.rank * self.batch",
        "self.start",
        tests("sampler"),
    ),
    Mutant(
        "processes-read-again-what-others-read",
        SAMPLER,
        "first += self.world * self.batch",
        "first += self.batch",
        tests("sampler"),
    ),
    Mutant(
        "shapes-flipped-upside-down",
        SHAPES,
        "image = image[:, ::-1]",
        "image = image[::-1]",
        tests("shapes"),
    ),
    Mutant(
        "pictures-flipped-upside-down",
        IMAGES,
        "image = image[:, ::-1]",
        "image = image[::-1]",
        tests("images"),
    ),
    Mutant(
        "crop-of-the-corner",
        CROPS,
        "left = (width - resolution) // 2",
        "left = 0",
        tests("images"),
    ),
)

# ---- flow and sampling: paths, times, guidance, samplers ----

FLOW = (
    Mutant(
        "velocity-sign",
        PATHS,
        "return -torch.ones_like(t)",
        "return torch.ones_like(t)",
        tests("flow"),
    ),
    Mutant(
        "cosine-velocity-without-pi",
        PATHS,
        "return math.pi / 2 * torch.cos(t * math.pi / 2)",
        "return torch.cos(t * math.pi / 2)",
        tests("flow"),
    ),
    Mutant(
        "data-from-velocity-sign",
        PATHS,
        "return (d_sigma * x - sigma * pred) / (",
        "return (d_sigma * x + sigma * pred) / (",
        tests("flow"),
    ),
    Mutant("score-sign", PATHS, "return -self.to_noise(", "return self.to_noise(", tests("flow")),
    Mutant(
        "logit-normal-without-std",
        TIMESTEPS,
        "self.mean + self.std * normal",
        "self.mean + normal",
        tests("flow"),
    ),
    Mutant(
        "discrete-step-rounded-down",
        DISCRETE,
        "(t * self.steps).round().long()",
        "(t * self.steps).floor().long()",
        tests("discrete_flow"),
    ),
    Mutant(
        "posterior-mean-of-data",
        DISCRETE,
        '"from_data": before.sqrt() * betas',
        '"from_data": before * betas',
        tests("discrete_flow"),
    ),
    Mutant(
        "learned-variance-range",
        DISCRETE,
        "share = (v + 1) / 2",
        "share = v",
        tests("discrete_flow"),
    ),
    Mutant(
        "guidance-from-the-conditional",
        GUIDANCE,
        "return null + scale * (pred - null)",
        "return pred + scale * (pred - null)",
        tests("samplers"),
    ),
    Mutant(
        "guidance-outside-its-interval",
        GUIDANCE,
        "if self.scale == 1 or not self.low <= float(t.float()) <= self.high:",
        "if self.scale == 1:",
        tests("samplers"),
    ),
    Mutant(
        "guidance-branches-swapped",
        GUIDANCE,
        "t.expand(2 * count), joined(cond, null))",
        "t.expand(2 * count), joined(null, cond))",
        tests("samplers"),
    ),
    Mutant(
        "euler-goes-backwards",
        SAMPLERS,
        "advance(x, model(x, t), following - t)",
        "advance(x, model(x, t), t - following)",
        tests("samplers"),
    ),
    Mutant(
        "heun-without-its-mean",
        SAMPLERS,
        "(v[name] + w[name]) / 2",
        "w[name]",
        tests("samplers"),
    ),
    Mutant(
        "sde-drift-doubled",
        SAMPLERS,
        "v[name] - 0.5 * diffusion",
        "v[name] - diffusion",
        tests("samplers"),
    ),
    Mutant(
        "sde-noise-not-scaled-by-the-root",
        SAMPLERS,
        "(diffusion * dt.abs()).sqrt()",
        "(diffusion * dt.abs())",
        tests("samplers"),
    ),
    Mutant(
        "ddim-noise-without-the-root",
        DDPM,
        "(1 - before).sqrt() * eps",
        "(1 - before) * eps",
        tests("discrete_flow"),
    ),
    Mutant(
        "samples-repeat-in-each-batch",
        GENERATOR,
        "first=first + begin,",
        "first=first,",
        tests("generator"),
    ),
    Mutant(
        "sampled-pixels-cut-not-rounded",
        GENERATOR,
        "(images.clamp(0, 1) * 255).round()",
        "(images.clamp(0, 1) * 255)",
        tests("generator"),
    ),
)

# ---- losses ----

LOSSES = (
    Mutant(
        "flow-loss-summed",
        FLOW_LOSS,
        "(first - second).square().flatten(1).mean(1)",
        "(first - second).square().flatten(1).sum(1)",
        tests("losses"),
    ),
    Mutant(
        "bound-trains-the-noise",
        HYBRID,
        "eps.detach().float(), v.float()",
        "eps.float(), v.float()",
        tests("discrete_flow"),
    ),
    Mutant(
        "cosine-over-tokens",
        PAIRWISE,
        'over: str | int = "channels",',
        'over: str | int = "tokens",',
        tests("losses"),
    ),
    Mutant(
        "cosine-of-longer-vectors",
        PAIRWISE,
        "x.square().sum(over, keepdim=True)",
        "x.square().mean(over, keepdim=True)",
        tests("losses"),
    ),
    Mutant(
        "smooth-l1-ignores-beta",
        PAIRWISE,
        "F.smooth_l1_loss(pred, target, beta=self.beta)",
        "F.smooth_l1_loss(pred, target)",
        tests("losses"),
    ),
    Mutant("autocorrelation-of-channels", PAIRWISE, "x @ x.mT", "x.mT @ x", tests("adversarial")),
    Mutant(
        "target-not-detached",
        ALIGNMENT,
        'target if self.router_grad == "target" else target.detach()',
        "target",
        tests("alignment"),
    ),
    Mutant(
        "alignment-weight-ignored",
        CRITERIA,
        "weight * self.share",
        "self.share",
        tests("alignment"),
    ),
    Mutant(
        "router-weight-ignored",
        ALIGNMENT,
        "total, weight * self.router_weight)",
        "total, weight)",
        tests("alignment"),
    ),
    Mutant(
        "entropy-bonus-sign",
        COLLAPSE,
        "return -(entropy(inter).mean()",
        "return (entropy(inter).mean()",
        tests("collapse", "alignment"),
    ),
    Mutant(
        "entropy-floor-from-above",
        COLLAPSE,
        "(least - entropy(row)).relu()",
        "(entropy(row) - least).relu()",
        tests("collapse"),
    ),
    Mutant(
        "critic-trains-the-backbone",
        ADVERSARIAL,
        "self.critic(pred.detach())",
        "self.critic(pred)",
        tests("adversarial"),
    ),
    Mutant(
        "fooling-sign",
        ADVERSARIAL,
        "F.softplus(-functional_call(",
        "F.softplus(functional_call(",
        tests("adversarial"),
    ),
    Mutant(
        "ramp-ignores-its-begin",
        SCHEDULES,
        "(progress.share - self.begin) / span",
        "progress.share / span",
        tests("schedules"),
    ),
    Mutant(
        "early-stop-one-step-late",
        SCHEDULES,
        "            return progress.share >= self.until\n",
        "            return progress.share > self.until\n",
        tests("schedules"),
    ),
    Mutant(
        "views-compared-with-themselves",
        VIEWS,
        "combinations(parts, 2)",
        "zip(parts, parts)",
        tests("views"),
    ),
    Mutant(
        "attention-of-the-student-as-the-teacher",
        ATTENTION,
        "entropy = -(teacher * student).sum(-1)",
        "entropy = -(teacher * student).sum(-2)",
        tests("losses"),
    ),
)

# ---- routers ----

ROUTERS = (
    Mutant(
        "alphas-normalised-over-the-batch",
        ROUTER,
        "group: alpha.softmax(-1)",
        "group: alpha.softmax(0)",
        tests("router_weights"),
    ),
    Mutant(
        "betas-normalised-over-the-batch",
        ROUTER,
        "beta.softmax(-1) if",
        "beta.softmax(0) if",
        tests("router_weights"),
    ),
    Mutant(
        "tokens-in-column-order",
        ROUTER,
        "torch.cat(parts, dim=1).flatten(2)",
        "torch.cat(parts, dim=1).mT.flatten(2)",
        tests("routers"),
    ),
    Mutant(
        "resize-aligns-corners",
        MIXING,
        "align_corners=False, antialias=False",
        "align_corners=True, antialias=False",
        tests("routers"),
    ),
    Mutant(
        "widened-level-loses-scale",
        MIXING,
        "scale = (width / channels) ** 0.5",
        "scale = 1.0",
        tests("partition", "routers"),
    ),
    Mutant(
        "lookup-row-rounded",
        LEARNED,
        "(t * self.bins).floor()",
        "(t * self.bins).round()",
        tests("router_weights"),
    ),
    Mutant(
        "router-attention-without-scale",
        LEARNED,
        "query @ self.keys.T / query.shape[-1] ** 0.5",
        "query @ self.keys.T",
        tests("router_weights"),
    ),
    Mutant(
        "deep-guides-at-low-noise",
        STATIC,
        'deep if group == "deep" else 1 - deep',
        'deep if group == "mid" else 1 - deep',
        tests("router_weights"),
    ),
    Mutant(
        "groups-of-the-first-levels",
        GROUPING,
        "start = len(maps) - total",
        "start = 0",
        tests("grouping"),
    ),
    Mutant("third-group-cut", GROUPING, '("mid", 7, 11)', '("mid", 8, 11)', tests("grouping")),
    Mutant(
        "membership-shared-over-levels",
        PARTITION,
        ".log_softmax(-1).T",
        ".log_softmax(0).T",
        tests("partition"),
    ),
)

# ---- priors ----

PRIORS = (
    Mutant(
        "posterior-variance-for-deviation",
        TOKENIZER,
        "torch.exp(0.5 * logvar",
        "torch.exp(logvar",
        tests("autoencoder"),
    ),
    Mutant(
        "latent-shifted-after-scaling",
        TOKENIZER,
        "(mean - self.offset) * self.factor",
        "mean * self.factor - self.offset",
        tests("autoencoder"),
    ),
    Mutant(
        "encoder-sees-half-the-range",
        TOKENIZER,
        "self._enter(2 * images - 1)",
        "self._enter(images)",
        tests("autoencoder"),
    ),
    Mutant(
        "latent-channels-transposed",
        INTERNAL,
        "b c (h p) (w q) -> b (p q c) h w",
        "b c (h p) (w q) -> b (q p c) h w",
        tests("internal"),
    ),
    Mutant(
        "teacher-at-a-noisier-time",
        INTERNAL,
        "return (t - self.step_back(t, rng)).clamp(",
        "return (t + self.step_back(t, rng)).clamp(",
        tests("internal"),
    ),
    Mutant(
        "spatial-norm-ignores-gamma",
        NORMS,
        "(x - self.gamma * mean)",
        "(x - mean)",
        tests("prior_transforms"),
    ),
    Mutant(
        "channel-norm-over-places",
        NORMS,
        "x - x.mean(1, keepdim=True)",
        "x - x.mean((2, 3), keepdim=True)",
        tests("prior_transforms"),
    ),
    Mutant(
        "images-not-centred-for-the-encoder",
        VISION,
        "x = (images - self.mean) / self.std",
        "x = images / self.std",
        tests("vision"),
    ),
)

# ---- backbones ----

BACKBONES = (
    Mutant(
        "tap-off-by-one",
        BACKBONE,
        "enumerate(self.walk(x, t, cond, keep, lanes), start=1)",
        "enumerate(self.walk(x, t, cond, keep, lanes), start=0)",
        tests("backbones"),
    ),
    Mutant(
        "patches-put-back-transposed",
        BACKBONE,
        "x.permute(0, 5, 1, 3, 2, 4)",
        "x.permute(0, 5, 1, 4, 2, 3)",
        tests("sit"),
    ),
    Mutant(
        "output-starts-at-random",
        BACKBONE,
        "self.final_layer.initialise()",
        "pass",
        tests("sit"),
    ),
    Mutant(
        "reversed-time-keeps-its-sign",
        BACKBONE,
        "return {name: -velocity for name, velocity in pred.items()}",
        "return pred",
        tests("sit"),
    ),
    Mutant(
        "reversed-time-not-mirrored",
        BACKBONE,
        "t = 1 - t if self.reversed_time else t",
        "t = t * 1",
        tests("sit"),
    ),
    Mutant(
        "skipped-tokens-are-lost",
        LANES,
        "return self.waiting.to(h.dtype).scatter(1, index, h)",
        "return torch.zeros_like(self.waiting).scatter(1, index, h)",
        tests("token_routes"),
    ),
    Mutant(
        "route-entered-too-late",
        LANES,
        "block != self.route.first:",
        "block != self.route.first + 1:",
        tests("token_routes"),
    ),
    Mutant(
        "condition-not-gathered",
        LANES,
        "return gather_tokens(c, self.route.kept, self.prefix)",
        "return c[:, : self.prefix + self.route.kept.shape[1]]",
        tests("token_routes"),
    ),
    Mutant(
        "groups-attend-to-each-other",
        LANES,
        "(groups[:, :, None] == groups[:, None, :])",
        "(groups[:, :, None] == groups[:, :, None])",
        tests("token_routes"),
    ),
    Mutant(
        "kept-tokens-not-drawn",
        ROUTING,
        "uniform.argsort(1)[:, : self.count]",
        "uniform.argsort(1)[:1, : self.count].expand(len(t), -1)",
        tests("token_routes"),
    ),
    Mutant(
        "target-of-other-tokens",
        ALIGNMENT,
        "target = tokens.gather_from(target)",
        "target = target[:, : tokens.tokens.shape[1]]",
        tests("token_routes"),
    ),
    Mutant(
        "route-while-sampling",
        DENOISER,
        "routing = self.token_routing if self.training else None",
        "routing = self.token_routing",
        tests("token_routes"),
    ),
    Mutant(
        "one-time-for-all-groups",
        TOKEN_TIME,
        ".gather(1, groups), groups",
        ".gather(1, 0 * groups), groups",
        tests("token_routes"),
    ),
    Mutant(
        "teacher-without-groups",
        INTERNAL,
        'groups = view.plan.groups if self.token_times == "groups" else None',
        "groups = None",
        tests("token_routes"),
    ),
    Mutant(
        "one-step-back-per-token",
        INTERNAL,
        "self.step_back(t, rng).gather(1, groups)",
        "self.step_back(t, rng)",
        tests("token_routes"),
    ),
    Mutant(
        "dropout-to-the-last-class",
        LABELS,
        "torch.where(dropped, self.num_classes, labels)",
        "torch.where(dropped, self.num_classes - 1, labels)",
        tests("conditioning"),
    ),
    Mutant(
        "dropout-of-the-others",
        LABELS,
        "device=labels.device) < self.dropout",
        "device=labels.device) > self.dropout",
        tests("conditioning"),
    ),
    Mutant(
        "modulation-without-the-identity",
        LAYERS,
        "* (1 + scale) + shift",
        "* scale + shift",
        tests("sit"),
    ),
    Mutant(
        "positions-transposed",
        LAYERS,
        "for axis in (columns, rows)",
        "for axis in (rows, columns)",
        tests("sit"),
    ),
    Mutant(
        "time-sines-before-cosines",
        LAYERS,
        "torch.cat([angle.cos(), angle.sin()], dim=-1)",
        "torch.cat([angle.sin(), angle.cos()], dim=-1)",
        tests("sit"),
    ),
    Mutant(
        "gelu-without-tanh",
        LAYERS,
        'approximate="tanh"',
        'approximate="none"',
        tests("sit"),
    ),
)

MUTANTS = (*ENGINE, *DATA, *FLOW, *LOSSES, *ROUTERS, *PRIORS, *BACKBONES)
