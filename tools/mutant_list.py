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
DENOISER = "ahpa/engine/denoiser.py"
HOOKS = "ahpa/engine/hooks.py"
INFERENCE = "ahpa/engine/inference.py"
LOOP = "ahpa/engine/loop.py"
OPTIM = "ahpa/engine/optim.py"
PROGRESS = "ahpa/engine/progress.py"
RUNNER = "ahpa/engine/runner.py"
SHARED = "ahpa/engine/shared.py"

SAMPLER = "ahpa/data/sampler.py"
SHAPES = "ahpa/data/shapes.py"
IMAGES = "ahpa/data/images.py"
CROPS = "ahpa/data/transforms.py"

PATHS = "ahpa/flow/paths.py"
TIMESTEPS = "ahpa/flow/timesteps.py"
DISCRETE = "ahpa/flow/discrete.py"
GUIDANCE = "ahpa/flow/guidance.py"
SAMPLERS = "ahpa/flow/samplers.py"
DDPM = "ahpa/flow/ddpm.py"

FLOW_LOSS = "ahpa/losses/flow.py"
HYBRID = "ahpa/losses/hybrid.py"
PAIRWISE = "ahpa/losses/pairwise.py"
ALIGNMENT = "ahpa/losses/alignment.py"
ADVERSARIAL = "ahpa/losses/adversarial.py"
COLLAPSE = "ahpa/losses/collapse.py"
SCHEDULES = "ahpa/losses/schedules.py"
VIEWS = "ahpa/losses/views.py"

ROUTER = "ahpa/routers/base.py"
LEARNED = "ahpa/routers/learned.py"
STATIC = "ahpa/routers/static.py"
GROUPING = "ahpa/routers/grouping.py"
PARTITION = "ahpa/routers/partition.py"

AUTOENCODER = "ahpa/priors/autoencoder.py"
INTERNAL = "ahpa/priors/internal.py"
NORMS = "ahpa/priors/transforms.py"
VISION = "ahpa/priors/vision.py"

BACKBONE = "ahpa/backbones/base.py"
CONDITIONING = "ahpa/backbones/conditioning.py"
LAYERS = "ahpa/backbones/layers.py"

FORMULAS = tests("engine_formulas")

# ---- the engine ----

ENGINE = (
    Mutant(
        "ema-decay-swapped",
        DENOISER,
        "torch._foreach_lerp_(average, weights, 1 - self.ema_decay)",
        "torch._foreach_lerp_(average, weights, self.ema_decay)",
        FORMULAS,
    ),
    Mutant("ema-never-updated", LOOP, "runner.plain_model.update_ema()", "pass", FORMULAS),
    Mutant(
        "accumulated-loss-not-divided",
        OPTIM,
        "loss = loss / self._accumulative_counts",
        "loss = loss * 1",
        FORMULAS,
    ),
    Mutant(
        "logged-loss-not-divided",
        LOOP,
        "value = value.detach() if count == 1 else value.detach() / count",
        "value = value.detach()",
        FORMULAS,
    ),
    Mutant(
        "micro-batches-share-noise",
        LOOP,
        "noise_seed(self.runner.seed, self.runner.rank, self._iter, micro)",
        "noise_seed(self.runner.seed, self.runner.rank, self._iter, 0)",
        FORMULAS,
    ),
    Mutant(
        "iterations-share-noise",
        LOOP,
        "noise_seed(self.runner.seed, self.runner.rank, self._iter, micro)",
        "noise_seed(self.runner.seed, self.runner.rank, 0, micro)",
        FORMULAS,
    ),
    Mutant("gradients-pile-up", LOOP, "wrapper.zero_grad()", "pass", FORMULAS),
    Mutant(
        "decay-of-biases-and-norms",
        OPTIM,
        'if cfg.get("weight_decay"):',
        "if False:",
        FORMULAS,
    ),
    Mutant("gradients-not-clipped", OPTIM, "if self.max_norm is not None:", "if False:", FORMULAS),
    Mutant(
        "guard-ignores-the-loss",
        OPTIM,
        "bad = (~(sum(norms).isfinite() & self._loss_ok)).float()",
        "bad = (~sum(norms).isfinite()).float()",
        FORMULAS,
    ),
    Mutant(
        "guard-ignores-gradients",
        OPTIM,
        "bad = (~(sum(norms).isfinite() & self._loss_ok)).float()",
        "bad = (~self._loss_ok).float()",
        FORMULAS,
    ),
    Mutant(
        "guard-sees-the-last-micro-batch",
        OPTIM,
        "finite if self._loss_ok is None else self._loss_ok & finite",
        "finite",
        FORMULAS,
    ),
    Mutant(
        "bad-steps-in-a-row-never-reset",
        OPTIM,
        "self.bad_in_row = (self.bad_in_row + bad) * bad",
        "self.bad_in_row = self.bad_in_row + bad",
        FORMULAS,
    ),
    Mutant(
        "log-includes-skipped-steps",
        PROGRESS,
        "if row.pop(SKIPPED):",
        "if row.pop(SKIPPED) > 1:",
        FORMULAS,
    ),
    Mutant(
        "log-line-lost-on-resume",
        PROGRESS,
        'json.loads(line)["iteration"] > runner.iter',
        'json.loads(line)["iteration"] >= runner.iter',
        FORMULAS,
    ),
    Mutant(
        "progress-one-step-ahead",
        LOOP,
        '"progress": self._iter / self._max_iters,',
        '"progress": (self._iter + 1) / self._max_iters,',
        FORMULAS,
    ),
    Mutant(
        "resume-cursor-off-by-one",
        RUNNER,
        'start = state["data"]["consumed"] if state else 0',
        'start = state["data"]["consumed"] + 1 if state else 0',
        FORMULAS,
    ),
    Mutant(
        "consumed-counts-steps",
        LOOP,
        "self.consumed += runner.global_batch_size",
        "self.consumed += 1",
        FORMULAS,
    ),
    Mutant(
        "resume-without-the-ema",
        RUNNER,
        'self.plain_model.ema.load_state_dict(state["ema"])',
        "pass",
        FORMULAS,
    ),
    Mutant(
        "resume-without-the-moments",
        RUNNER,
        'self.optim_wrapper.load_state_dict(state["optimizer"])',
        "pass",
        FORMULAS,
    ),
    Mutant(
        "sample-grids-of-raw-weights",
        HOOKS,
        "backbone=model.ema",
        "backbone=model.backbone",
        FORMULAS,
    ),
    Mutant(
        "sampling-of-raw-weights",
        SHARED,
        'if weights == "ema":',
        'if weights == "never":',
        FORMULAS,
    ),
    Mutant(
        "images-beyond-one",
        DENOISER,
        "images.float() / 255 if",
        "images.float() / 256 if",
        FORMULAS,
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
        "list_checkpoints(folder)[:-keep]",
        "list_checkpoints(folder)[:-1]",
        tests("checkpoint", "engine_formulas"),
    ),
    Mutant(
        "samples-repeat-in-each-batch",
        INFERENCE,
        "range(first + begin, first + begin + len(part))",
        "range(first, first + len(part))",
        tests("sampling"),
    ),
    Mutant(
        "sampled-pixels-cut-not-rounded",
        INFERENCE,
        "(images.clamp(0, 1) * 255).round()",
        "(images.clamp(0, 1) * 255)",
        tests("sampling"),
    ),
)

# ---- data ----

DATA = (
    Mutant(
        "every-epoch-in-one-order",
        SAMPLER,
        "permutation(self.size, self.seed, epoch), epoch",
        "permutation(self.size, self.seed, 0), epoch",
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
        "position += self.world * self.batch",
        "position += self.batch",
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
        "((side - resolution) // 2 for side in image.size)",
        "(0 for side in image.size)",
        tests("images"),
    ),
)

# ---- flow: paths, times, guidance, samplers ----

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
        "return (ds * x - s * v) / (a * ds - da * s)",
        "return (ds * x + s * v) / (a * ds - da * s)",
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
        tests("dit"),
    ),
    Mutant(
        "posterior-mean-of-data",
        DISCRETE,
        "from_data=before.sqrt() * betas / (1 - abar)",
        "from_data=before * betas / (1 - abar)",
        tests("dit"),
    ),
    Mutant("learned-variance-range", DISCRETE, "share = (v + 1) / 2", "share = v", tests("dit")),
    Mutant(
        "guidance-from-the-conditional",
        GUIDANCE,
        "return null_v + scale * (v - null_v)",
        "return v + scale * (v - null_v)",
        tests("samplers"),
    ),
    Mutant(
        "guidance-outside-its-interval",
        GUIDANCE,
        "if scale == 1 or not low <= float(t.float()) <= high:",
        "if scale == 1:",
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
        "x = advance(x, velocity(x, t), following - t)",
        "x = advance(x, velocity(x, t), t - following)",
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
        tests("dit"),
    ),
)

# ---- losses ----

LOSSES = (
    Mutant(
        "flow-loss-summed",
        FLOW_LOSS,
        "(v - wanted).square().flatten(1).mean(1)",
        "(v - wanted).square().flatten(1).sum(1)",
        tests("losses"),
    ),
    Mutant(
        "bound-trains-the-noise",
        HYBRID,
        "eps.detach().float(), v.float()",
        "eps.float(), v.float()",
        tests("dit"),
    ),
    Mutant(
        "cosine-over-tokens",
        PAIRWISE,
        "dim: int, over: int = -1",
        "dim: int, over: int = 1",
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
        ALIGNMENT,
        "self.scale(key, weight) * value",
        "value",
        tests("alignment"),
    ),
    Mutant(
        "router-weight-ignored",
        ALIGNMENT,
        "weight * self.router_weight * total",
        "weight * total",
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
        "(floor * math.log(row.shape[-1]) - entropy(row)).relu()",
        "(entropy(row) - floor * math.log(row.shape[-1])).relu()",
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
        "(step.progress - self.begin) / span",
        "step.progress / span",
        tests("losses"),
    ),
    Mutant(
        "early-stop-one-step-late",
        SCHEDULES,
        "if step.progress < self.until else",
        "if step.progress <= self.until else",
        tests("losses"),
    ),
    Mutant(
        "views-compared-with-themselves",
        VIEWS,
        "combinations(parts, 2)",
        "zip(parts, parts)",
        tests("views"),
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
        ROUTER,
        "align_corners=False, antialias=False",
        "align_corners=True, antialias=False",
        tests("routers"),
    ),
    Mutant(
        "widened-level-loses-scale",
        ROUTER,
        "(width / channels) ** 0.5 * x",
        "x",
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
        "self.keys.T / query.shape[-1] ** 0.5)",
        "self.keys.T)",
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
        "start, found = len(maps) - sum(sizes), {}",
        "start, found = 0, {}",
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
        AUTOENCODER,
        "torch.exp(0.5 * logvar",
        "torch.exp(logvar",
        tests("autoencoder"),
    ),
    Mutant(
        "latent-shifted-after-scaling",
        AUTOENCODER,
        "(raw - self.offset) * self.factor",
        "raw * self.factor - self.offset",
        tests("autoencoder"),
    ),
    Mutant(
        "encoder-sees-half-the-range",
        AUTOENCODER,
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
        "return (t - back).clamp(",
        "return (t + back).clamp(",
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
        "enumerate(self.walk(x, t, cond), start=1)",
        "enumerate(self.walk(x, t, cond), start=0)",
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
        "self.final_layer.zero()",
        "pass",
        tests("sit"),
    ),
    Mutant(
        "reversed-time-keeps-its-sign",
        BACKBONE,
        "return {name: -v for name, v in pred.items()} if self.reversed_time else pred",
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
        "dropout-to-the-last-class",
        CONDITIONING,
        "torch.where(drop, self.num_classes, label)",
        "torch.where(drop, self.num_classes - 1, label)",
        tests("sit", "backbones"),
    ),
    Mutant(
        "dropout-of-the-others",
        CONDITIONING,
        "device=label.device) < self.dropout",
        "device=label.device) > self.dropout",
        tests("sit", "backbones"),
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
