"""Speed on one GPU: training steps, autoencoder levels and sampling, in under nine minutes.

    python benchmarks/gpu.py --out docs/benchmarks/NAME.json [--toy] [--seconds 500]

First it checks that the fast code computes what slow, written-out code computes; then it measures,
most important first, until the time is used up. The JSON file is rewritten after every measurement.
The exit status is 1 if a check or a measurement failed. `--toy` runs everything at a tiny size on
the CPU; its figures mean nothing.

What is measured, at 256 px with random weights and fresh random inputs in every round:

- training steps of SiT-S/2, B/2 and XL/2 in bf16 autocast, eager and compiled (per block, as the
  runner does): bare, with AHPA and with REPA on given features, at the largest of the batches 256,
  128 and 64 that fits;
- the same REPA step as published training scripts write it (`PeerStep`), around the same network;
- utilisation: multiply-accumulates of the networks that are trained, forward times three, against
  a bf16 matrix product measured in the same run. Papers count with or without attention's two
  products; both are given (see `ahpa.analysis.cost`);
- the encoder levels of an autoencoder of Stable Diffusion's size, against diffusers;
- the Euler and the SDE sampler, against plain loops.

Times are those of device events (process time on the CPU). Clocks and power limits are untouched.

The script takes `ahpa` from its own checkout. Beside PyTorch and torchvision, of which it uses the
machine's own, it needs the packages below and what they in turn need. No weights are read.

    pip install mmengine diffusers timm einops safetensors huggingface_hub tqdm

For a machine without a network, collect the wheels where there is one, without PyTorch; bring the
folder, and install what the machine's image lacks:

    pip download --dest wheels --no-deps mmengine diffusers timm einops safetensors \\
        huggingface_hub tqdm addict termcolor yapf platformdirs rich markdown-it-py mdurl \\
        pygments opencv-python-headless numpy pillow pyyaml requests packaging filelock \\
        regex importlib_metadata zipp
    pip install --no-index --no-deps --find-links wheels mmengine addict ...

`huggingface_hub` has dependencies of its own, which change with its version; `pip show` names them.
"""

import argparse
import copy
import gc
import json
import math
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

try:
    from diffusers import AutoencoderKL

    import ahpa
    from ahpa.analysis.cost import Macs, added_macs, count_macs, forward_macs
    from ahpa.engine.assembly import build_model
    from ahpa.engine.denoiser import AlignedDenoiser
    from ahpa.engine.dryrun import train_step
    from ahpa.engine.optimiser import Optimiser, build_optimizer
    from ahpa.engine.run_log import peak_memory
    from ahpa.registry import TOKENIZERS, build
    from ahpa.registry.contracts import Losses, Progress, Streams, TargetView
    from ahpa.registry.files import write_file
    from ahpa.registry.precision import autocast
    from ahpa.registry.values import Tokens
    from ahpa.sampling.generator import Generator, SampleNoise
except ModuleNotFoundError as error:
    sys.exit(f"gpu.py needs the package {error.name!r}; its docstring says how to bring it.")

FORMAT = 1
GRACE = 25.0  # seconds after the budget at which a running measurement is stopped
METHODS = ("bare", "ahpa", "repa")
LEARNING_RATE = 1e-4
EMA_DECAY = 0.9999
CLIP = 1.0
LOW_PRECISION = 3e-2  # relative error that passes for a whole network in bf16
LATER = Progress(1, 400_000, False)  # a step that shows no diagnostics
DEEP_LEVELS = slice(7, 15)  # AHPA's groups G3 and G4 of the 15 encoder levels
EARLY_LEVELS = slice(7, 11)  # G3 alone, which ends before the middle block

NOTES = {
    "peer": (
        "A step as published REPA scripts write it, by us: the alignment loss loops over samples "
        "in Python, the EMA loops over parameters, AdamW is built with torch's defaults (not "
        "fused), gradients are clipped by clip_grad_norm_, and the two losses and the norm are "
        "read by the host in every step. Network, projector, flow, conditions and precision are "
        "those of the step that it is compared with, so that nothing but the step differs."
    ),
    "features": (
        "Latents (mean and std) and the priors' levels are given in the batch: bf16, at the size "
        "in which the autoencoder or DINOv2-B gives them. No prior runs in a training step."
    ),
    "flops": (
        "FLOPs are 2 x multiply-accumulates; a training step counts 3 x the forward pass of the "
        "backbone and the projector. Utilisation is that over the rate of the matrix product."
    ),
    "weights": (
        "Random; layers that start at zero are N(0, 0.02), so that every layer has an effect."
    ),
    "order": (
        "Cases run one after the other, not interleaved, since the largest need the whole memory; "
        "the matrix product is measured again before each."
    ),
}


# ---- what is measured at which size ---------------------------------------------------------


class Size(NamedTuple):
    """A transformer, and the blocks that AHPA and REPA align in it."""

    depth: int
    width: int
    heads: int
    ahpa_tap: int
    repa_tap: int


@dataclass(frozen=True)
class Plan:
    """Sizes of everything.

    Attributes:
        resolution: Pixels of a side.
        classes: Number of class labels.
        sizes: {name: transformer}, the most important first.
        batches: Batches of a training step, tried in this order.
        check_batch: Batch of the first checks.
        vae_widths: Widths of the autoencoder's blocks.
        vae_norm_groups: Groups of its norms.
        vae_batches: Batches of its encoder, tried in this order.
        teacher: timm's name of REPA's teacher; only its sizes are used.
        projector_width: Hidden width of REPA's projector.
        matmul: Side of the matrices of the product.
        sampled: {size: whether to measure the slower ways of sampling too}.
        sample_batch: Samples drawn at once.
        sample_steps: Steps of a sampler.
        backend: Compiler backend.
        warmup: Rounds before the first timed one.
        rounds: Least and most timed rounds.
        seconds_each: Time for the timed rounds of a measurement, within those bounds.
        patience: Factor on the time that a measurement must have left to be started.
    """

    resolution: int
    classes: int
    sizes: dict[str, Size]
    batches: tuple[int, ...]
    check_batch: int
    vae_widths: tuple[int, ...]
    vae_norm_groups: int
    vae_batches: tuple[int, ...]
    teacher: str
    projector_width: int
    matmul: int
    sampled: dict[str, bool]
    sample_batch: int
    sample_steps: int
    backend: str
    warmup: int
    rounds: tuple[int, int]
    seconds_each: float
    patience: float


FULL = Plan(
    resolution=256,
    classes=1000,
    sizes={
        "B": Size(12, 768, 12, ahpa_tap=3, repa_tap=4),
        "XL": Size(28, 1152, 16, ahpa_tap=7, repa_tap=8),
        "S": Size(12, 384, 6, ahpa_tap=3, repa_tap=4),
    },
    batches=(256, 128, 64),
    check_batch=4,
    vae_widths=(128, 256, 512, 512),
    vae_norm_groups=32,
    vae_batches=(64, 32, 16),
    teacher="vit_base_patch14_dinov2.lvd142m",
    projector_width=2048,
    matmul=8192,
    sampled={"B": True, "XL": False},
    sample_batch=64,
    sample_steps=50,
    backend="inductor",
    warmup=3,
    rounds=(5, 30),
    seconds_each=3.0,
    patience=1.0,
)

TOY = Plan(
    resolution=32,
    classes=10,
    sizes={
        "B": Size(3, 32, 2, ahpa_tap=1, repa_tap=2),
        "XL": Size(4, 48, 2, ahpa_tap=2, repa_tap=2),
        "S": Size(2, 16, 2, ahpa_tap=1, repa_tap=1),
    },
    batches=(4, 2, 1),
    check_batch=2,
    vae_widths=(8, 8, 16, 16),
    vae_norm_groups=4,
    vae_batches=(2, 1),
    teacher="bundled",
    projector_width=32,
    matmul=128,
    sampled={"B": True, "XL": False},
    sample_batch=2,
    sample_steps=3,
    backend="eager",
    warmup=1,
    rounds=(3, 3),
    seconds_each=0.0,
    patience=0.0,
)


# ---- results --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A comparison with slower or more precise code.

    Attributes:
        name: What is checked.
        against: What it is compared with.
        error: The difference, in the measure that `against` names.
        tolerance: The largest error that passes.
    """

    name: str
    against: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is finite and within the tolerance."""
        return math.isfinite(self.error) and self.error <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """Return plain data; an error that is not finite becomes None, as JSON has no NaN."""
        error = self.error if math.isfinite(self.error) else None
        return {**asdict(self), "error": error, "passed": self.passed}


@dataclass
class Measurement:
    """One row of the table.

    Attributes:
        name: Unique.
        kind: "matmul", "train", "operators", "vae" or "sample".
        status: "measured", "skipped" or "failed".
        reason: Why it was skipped or failed.
        batch: Images (samples) of a round.
        out_of_memory: Larger batches that did not fit.
        seconds: Median, quartiles and least of the rounds.
        rounds: Number of timed rounds.
        took_s: Seconds that the whole measurement took, with building and compiling.
        images_per_s: Batch over the median.
        gmac_per_image: Multiply-accumulates an image, with and without attention's products.
        tflops: Rate that follows from them, likewise.
        utilisation: That over the matrix product's rate, likewise.
        matmul_tflops: Rate of the matrix product just before.
        peak_memory_gib: Peak memory of the device's allocator, or of the process on the CPU.
        details: Further figures.
        checks: The checks beside it.
    """

    name: str
    kind: str
    status: str = "skipped"
    reason: str | None = None
    batch: int | None = None
    out_of_memory: list[int] = field(default_factory=list)
    seconds: dict[str, float] | None = None
    rounds: int = 0
    took_s: float = 0.0
    images_per_s: float | None = None
    gmac_per_image: dict[str, float] | None = None
    tflops: dict[str, float] | None = None
    utilisation: dict[str, float] | None = None
    matmul_tflops: float | None = None
    peak_memory_gib: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def set_times(self, times: Sequence[float], batch: int | None) -> None:
        """Set the quartiles and the images per second from the seconds of each round."""
        first, median, third = statistics.quantiles(times, n=4, method="inclusive")
        self.seconds = {"median": median, "q1": first, "q3": third, "least": min(times)}
        self.rounds = len(times)
        self.batch = batch
        self.images_per_s = batch / median if batch else None

    def set_work(self, macs: Macs, *, factor: int, matmul_tflops: float) -> None:
        """Set rates and utilisation.

        Args:
            macs: Multiply-accumulates of a forward pass of one image.
            factor: Forward passes that a round is worth for each image: 3 for a training step.
            matmul_tflops: Rate of the matrix product.
        """
        assert self.images_per_s is not None, "set the times first"
        counts = {"with_attention": macs.total, "without_attention": macs.without_attention}
        self.matmul_tflops = matmul_tflops
        self.gmac_per_image = {name: count / 1e9 for name, count in counts.items()}
        self.tflops = {
            name: 2e-12 * factor * count * self.images_per_s for name, count in counts.items()
        }
        self.utilisation = {name: rate / matmul_tflops for name, rate in self.tflops.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "checks": [check.as_dict() for check in self.checks]}


class OutOfTime(BaseException):
    """Raised by the timer; no Exception, so that no compiler catches it on the way."""


class Budget:
    """The time of the whole run, from its start.

    Args:
        seconds: The time within which measurements are started.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = time.monotonic()

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds left for measurements."""
        return self.seconds - self.used

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise OutOfTime inside the block once the time and the grace period are over."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 0.0) + GRACE)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


# ---- devices and clocks ---------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Return unused memory to the device, and start to watch its peak anew."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def time_once(device: torch.device, call: Callable[[], Any]) -> Callable[[], float]:
    """Run a call between two clocks; the returned function waits and gives its seconds."""
    if device.type != "cuda":
        began = time.process_time()
        call()
        seconds = time.process_time() - began
        return lambda: seconds
    first = torch.cuda.Event(enable_timing=True)
    last = torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()

    def read() -> float:
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    return read


def time_rounds(
    plan: Plan, device: torch.device, step: Callable[[int], Any], refresh: Callable[[int], None]
) -> list[float]:
    """Time a step, with fresh inputs in every round and without waiting between rounds.

    Args:
        plan: How many rounds.
        device: Where it runs.
        step: What is timed; gets the number of the round.
        refresh: Makes the inputs of a round; not timed.

    Returns:
        Seconds of each timed round.
    """
    for number in range(plan.warmup):
        refresh(number)
        step(number)
    refresh(plan.warmup)
    synchronise(device)
    trial = time_once(device, lambda: step(plan.warmup))()
    least, most = plan.rounds
    rounds = min(max(int(plan.seconds_each / max(trial, 1e-6)), least), most)
    readers = []
    for number in range(plan.warmup + 1, plan.warmup + 1 + rounds):
        refresh(number)
        readers.append(time_once(device, partial(step, number)))
    return [read() for read in readers]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 products in float32, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return |value - reference| / |reference|, computed in float64."""
    reference = reference.detach().double()
    difference = (value.detach().double() - reference).norm()
    return float(difference / reference.norm().clamp_min(1e-300))


def environment(device: torch.device) -> dict[str, Any]:
    """Describe machine and software. Settings of the device are read, never changed."""
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "driver": None,
        "memory_gib": None,
        "state": None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "ahpa": ahpa.__version__,
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "clocks": "not touched",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["memory_gib"] = properties.total_memory / 2**30
        found["driver"] = query_driver("driver_version")
        found["state"] = query_driver("clocks.sm,clocks.mem,power.limit,temperature.gpu")
    return found


def query_driver(fields: str) -> str | None:
    """Ask nvidia-smi for some fields; None where it is missing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip() or None


# ---- the models -----------------------------------------------------------------------------


def vae_config(plan: Plan) -> dict[str, Any]:
    """Return the options of diffusers' AutoencoderKL in Stable Diffusion's layout."""
    blocks = len(plan.vae_widths)
    return {
        "block_out_channels": plan.vae_widths,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": plan.vae_norm_groups,
        "scaling_factor": 0.18215,
    }


def model_config(plan: Plan, size: Size, method: str, vae_folder: Path) -> dict[str, Any]:
    """Return the model section of a config for a size and one of `METHODS`."""
    cfg: dict[str, Any] = {
        "resolution": plan.resolution,
        "tokenizer": {"type": "KLAutoencoder", "source": str(vae_folder), "precision": "bf16"},
        "backbone": {
            "type": "SiT",
            "depth": size.depth,
            "hidden_size": size.width,
            "num_heads": size.heads,
            "num_classes": plan.classes,
        },
        "ema": EMA_DECAY,
    }
    if method == "ahpa":
        cfg["priors"] = {"vae": {"type": "VAETaps"}}
        main: dict[str, Any] = {
            "tap": size.ahpa_tap,
            "source": "vae",
            "router": {"type": "MLPRouter", "groups": "4/4"},
        }
        cfg["alignments"] = {"main": main}
    if method == "repa":
        cfg["priors"] = {"dino": {"type": "TimmEncoder", "model": plan.teacher}}
        main = {
            "tap": size.repa_tap,
            "source": "dino",
            "router": {"type": "StaticRouter", "groups": {"patch": ["patch"]}},
            "projector": {
                "type": "MLPProjector",
                "depth": 3,
                "hidden_dim": plan.projector_width,
            },
            "weight": 0.5,
        }
        cfg["alignments"] = {"main": main}
    return cfg


@torch.no_grad()
def fill_zeros(module: nn.Module) -> None:
    """Draw parameters that are all zero from N(0, 0.02), so that every layer has an effect."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)


def optimiser_of(model: AlignedDenoiser, precision: str) -> Optimiser:
    """Build the library's optimiser with the options of REPA's recipe."""
    options = {"type": "AdamW", "lr": LEARNING_RATE, "weight_decay": 0.0}
    optimizer = build_optimizer(options, model)
    return Optimiser(optimizer=optimizer, precision=precision, clip_grad=CLIP)


def make_batch(
    model: AlignedDenoiser, count: int, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Make room for a batch with latents, labels and features; `refresh` fills it."""
    geometry, device = model.geometry, model.parts.device
    shape = (count, *geometry.streams["image"])
    features: dict[str, dict[str, Tensor]] = {}
    for name, prior in model.parts.priors.items():
        features[name] = {}
        for level in model.parts.wanted[name]:
            spec = prior.levels[level]
            side = geometry.resolution // spec.stride
            size = (count, spec.channels, side, side)
            features[name][level] = torch.empty(size, dtype=dtype, device=device)
    return {
        "latent": {
            "mean": torch.empty(shape, device=device),
            "std": torch.full(shape, 0.1, device=device),
        },
        "features": features,
        "label": torch.empty(count, dtype=torch.long, device=device),
    }


def refresh(model: AlignedDenoiser, batch: dict[str, Any], seed: int) -> None:
    """Fill a batch with new random values."""
    rng = torch.Generator(model.parts.device).manual_seed(seed)
    batch["latent"]["mean"].normal_(generator=rng)
    batch["label"].random_(0, model.geometry.num_classes or 1, generator=rng)
    for levels in batch["features"].values():
        for value in levels.values():
            value.normal_(generator=rng)


def fresh_batch(
    model: AlignedDenoiser, count: int, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Make a batch of random values."""
    batch = make_batch(model, count, dtype)
    refresh(model, batch, seed)
    return batch


def view_of(model: AlignedDenoiser, batch: dict[str, Any], seed: int) -> TargetView:
    """Compute the network's output for a batch, with the randomness of `train_step`."""
    rng = torch.Generator(model.parts.device).manual_seed(seed)
    clean = model.parts.encode(batch, rng)
    noised = model.flow.sample(clean.streams, rng)
    cond = model.parts.conditioner(clean, rng)
    out = model.backbone(noised.x, noised.t, cond.value, taps=model.taps)
    return TargetView(clean, noised, cond, out, rng, LATER)


@torch.no_grad()
def reference_loss(model: AlignedDenoiser, batch: dict[str, Any], seed: int) -> float:
    """Return the loss of a batch in float32, eager, with the randomness of `train_step`."""
    rng = torch.Generator(model.parts.device).manual_seed(seed)
    with exact_float32(), torch.compiler.set_stance("force_eager"):
        losses: Losses = model(model.parts.encode(batch, rng), rng, LATER)
    return float(losses.total)


class PeerStep:
    """A training step of REPA in the manner of published scripts; see `NOTES["peer"]`.

    Args:
        model: A model with one alignment, "main", on one level of a prior.
        precision: Autocast precision.
    """

    def __init__(self, model: AlignedDenoiser, precision: str) -> None:
        self.model = model
        self.precision = precision
        self.alignment: Any = model.alignments["main"]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self.ema = model.parts.ema.backbone

    def losses(self, batch: dict[str, Any], seed: int) -> tuple[Tensor, Tensor]:
        """Return the flow loss and the alignment loss."""
        view = view_of(self.model, batch, seed)
        error = view.out.pred["image"] - view.noised.target["image"]
        flow = error.square().mean(dim=(1, 2, 3)).mean()
        return flow, self.alignment_loss(view, batch)

    def alignment_loss(self, view: TargetView, batch: dict[str, Any]) -> Tensor:
        """Return minus the mean cosine, by a loop over the samples."""
        (features,) = batch["features"].values()
        (target,) = features.values()
        projected = self.alignment.projector(view.out.tokens(self.alignment.tap))
        align = projected.new_zeros(())
        for mine, theirs in zip(projected, target.flatten(2).transpose(1, 2), strict=True):
            mine = F.normalize(mine, dim=-1)
            theirs = F.normalize(theirs, dim=-1)
            align = align + (-(mine * theirs).sum(dim=-1)).mean()
        return align / len(projected)

    def __call__(self, batch: dict[str, Any], seed: int) -> float:
        """Take a step. Returns the total loss plus the weight, which makes it equal to ours."""
        weight = self.alignment.weight(LATER)
        with autocast(self.model.parts.device, self.precision):
            flow, align = self.losses(batch, seed)
            loss = flow + weight * align
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.update_ema()
        logged = {"flow": flow.item(), "align": align.item(), "norm": norm.item()}
        return logged["flow"] + float(weight) * (logged["align"] + 1)

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move each averaged parameter towards its trained one."""
        averages = dict(self.ema.named_parameters())
        for name, parameter in self.model.backbone.named_parameters():
            averages[name].mul_(EMA_DECAY).add_(parameter.data, alpha=1 - EMA_DECAY)


def slow_alignment_loss(model: AlignedDenoiser, view: TargetView) -> float:
    """Return 1 - mean cosine of the alignment "main", by loops over samples, levels and tokens in
    float64 (AHPA, eq. 3 to 5; with one level it is REPA's loss)."""
    alignment: Any = model.alignments["main"]
    router = alignment.router
    tokens: Tokens = view.out.tokens(alignment.tap)
    projected = alignment.projector(tokens).double().cpu()  # [B, N, C]
    intra, inter = router.weights(view.noised.sample_t, tokens.tokens)
    features = view.clean.features[alignment.source]
    total, count = 0.0, 0
    for sample, prediction in enumerate(projected):
        groups = []
        for column, (group, levels) in enumerate(router.groups.items()):
            mixed = torch.zeros((), dtype=torch.float64)
            for row, level in enumerate(levels):
                image = features[level][sample : sample + 1].double().cpu()
                small = F.interpolate(image, size=tokens.grid, mode="bilinear")[0]
                mixed = mixed + float(intra[group][sample, row]) * small
            groups.append(float(inter[sample, column]) * mixed)
        target = torch.cat(groups).flatten(1).T  # [N, C]
        for mine, theirs in zip(prediction, target, strict=True):
            total += 1 - float(mine @ theirs / (mine.norm() * theirs.norm()))
            count += 1
    return total / count


@torch.no_grad()
def plain_sample(
    generator: Generator, labels: Tensor, sampler: str, steps: int, noise: SampleNoise | None = None
) -> Tensor:
    """Sample by a plain loop, as REPA's scripts do (Euler; Euler-Maruyama with w = 2t).

    Args:
        generator: The parts; only its backbone is used.
        labels: Class labels [B].
        sampler: "euler" or "sde".
        steps: Number of model calls.
        noise: Where normals come from; from the device if it is not given.

    Returns:
        Latents [B, C, h, w] at t = 0.
    """
    device, backbone = labels.device, generator.backbone
    shape = backbone.streams["image"]

    def draw() -> Tensor:
        if noise is None:
            return torch.randn((len(labels), *shape), device=device)
        return noise.draw(shape, device)

    x = draw()
    if sampler == "euler":
        times = [1 - step / steps for step in range(steps)] + [0.0]
    else:
        times = [1 - 0.96 * step / (steps - 1) for step in range(steps)] + [0.0]
    for t, following in zip(times[:-1], times[1:], strict=True):
        v = backbone({"image": x}, torch.full((len(x),), t, device=device), labels).pred["image"]
        if sampler == "euler":
            x = x + (following - t) * v
            continue
        score = -(x + (1 - t) * v) / t
        x = x + (v - t * score) * (following - t)
        if following > 0:
            x = x + math.sqrt(2 * t * (t - following)) * draw()
    return x


class OperatorCounter(TorchDispatchMode):
    """Counts operators that compute something, and values of a device that the host reads.

    Args:
        device: Whose values are counted.

    Attributes:
        operators: Operators that are no views.
        host_reads: Tensors of the device whose value was read (`.item()`, `bool(...)`).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.operators = 0
        self.host_reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operator and run it."""
        if func is torch.ops.aten._local_scalar_dense.default:
            self.host_reads += int(args[0].device.type == self.device.type)
        elif not func.is_view:
            self.operators += 1
        return func(*args, **(kwargs or {}))


def count_waits(device: torch.device, call: Callable[[], Any]) -> dict[str, int | None]:
    """Count how often a call reads a value from the device, and how often CUDA makes it wait."""
    with OperatorCounter(device) as counter:
        call()
    found: dict[str, int | None] = {"host_reads": counter.host_reads, "cuda_waits": None}
    if device.type == "cuda":
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        found["cuda_waits"] = sum("synchronizing CUDA" in str(each.message) for each in told)
    return found


# ---- the workbench: what the measurements share ----------------------------------------------


class Workbench:
    """Holds the autoencoder and one model at a time, and measures.

    Args:
        plan: Sizes of everything.
        device: Where it runs.
        folder: A temporary folder for the autoencoder's weights.
    """

    def __init__(self, plan: Plan, device: torch.device, folder: Path) -> None:
        self.plan = plan
        self.device = device
        self.vae_folder = folder
        torch.manual_seed(0)
        own_vae: Any = AutoencoderKL(**vae_config(plan))
        own_vae.save_pretrained(folder)
        self.own_vae = own_vae.to(device).eval().requires_grad_(False)
        self._model: AlignedDenoiser | None = None
        self._key = ("", "", False)
        self._macs: dict[tuple[str, str], Macs] = {}
        self._matrices: list[tuple[Tensor, Tensor]] = []

    # ---- models ----

    def build_model(self, size: str, method: str) -> AlignedDenoiser:
        """Build a model on the device, in training mode."""
        torch.manual_seed(0)
        cfg = model_config(self.plan, self.plan.sizes[size], method, self.vae_folder)
        model = build_model(cfg)
        fill_zeros(model)
        model.to(self.device)
        model.parts.to(self.device)
        return model.train()

    def model(self, size: str, method: str, *, compiled: bool) -> AlignedDenoiser:
        """Return the model of a measurement: the last one if it fits, else a new one."""
        reusable = (size, method, compiled), (size, method, False)
        if self._model is None or self._key not in reusable:
            self.drop_model()
            self._model = self.build_model(size, method)
            self._key = (size, method, False)
            if (size, method) not in self._macs:
                self._macs[size, method] = training_macs(self._model)
        if compiled and not self._key[2]:
            self.compile_blocks(self._model.backbone)
            self._key = (size, method, True)
        self._model.train()
        return self._model

    def drop_model(self) -> None:
        """Free the memory of the last model."""
        self._model = None
        release(self.device)

    def compile_blocks(self, backbone: nn.Module) -> None:
        """Compile each block as `AlignmentRunner` does."""
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        for block in backbone.blocks:  # type: ignore[union-attr]
            block.compile(dynamic=False, backend=self.plan.backend)  # type: ignore[operator]

    # ---- the matrix product ----

    def matmul_times(self) -> list[float]:
        """Time products of two square bf16 matrices; the inputs alternate and are drawn anew."""
        side, device = self.plan.matmul, self.device
        if not self._matrices:
            shape = (side, side)
            for _ in range(3):
                pair = [torch.empty(shape, dtype=torch.bfloat16, device=device) for _ in range(2)]
                self._matrices.append((pair[0], pair[1]))

        def renew(number: int) -> None:
            for matrix in self._matrices[number % 3]:
                matrix.normal_()

        def multiply(number: int) -> Tensor:
            first, second = self._matrices[number % 3]
            return first @ second

        return time_rounds(self.plan, device, multiply, renew)

    def matmul_rate(self) -> float:
        """Measure the rate of the matrix product in TFLOP/s."""
        return self.rate_of(self.matmul_times())

    def rate_of(self, times: Sequence[float]) -> float:
        """Return the rate in TFLOP/s at the median of some products' times."""
        return 2e-12 * self.plan.matmul**3 / statistics.median(times)

    # ---- measurements ----

    def measure_matmul(self, row: Measurement) -> None:
        """Measure the matrix product alone."""
        times = self.matmul_times()
        row.set_times(times, batch=None)
        row.matmul_tflops = self.rate_of(times)
        row.details = {"side": self.plan.matmul, "dtype": "bfloat16"}
        row.checks.append(self.check_matmul())

    def measure_training(self, row: Measurement, size: str, method: str, mode: str) -> None:
        """Measure a training step at the largest batch that fits.

        Args:
            row: Where the figures go.
            size: One of the plan's sizes.
            method: One of `METHODS`.
            mode: "eager", "compiled", "peer" or "peer compiled".
        """
        compiled = mode.endswith("compiled")
        model = self.model(size, method, compiled=compiled)
        rate = self.matmul_rate()
        for batch in self.plan.batches:
            try:
                times, check = self.time_training(model, mode, batch)
            except torch.OutOfMemoryError:
                row.out_of_memory.append(batch)
            else:
                break
            model.zero_grad(set_to_none=True)  # outside the handler, whose traceback holds tensors
            release(self.device)
        else:
            raise MemoryError(f"not even batch {self.plan.batches[-1]} fits")
        row.peak_memory_gib = peak_memory()
        row.set_times(times, batch)
        row.set_work(self._macs[size, method], factor=3, matmul_tflops=rate)
        row.checks.append(check)
        if method != "bare":
            row.checks.append(self.check_alignment(model, method))
        if compiled:
            row.details["compiled_graphs"] = compiled_graphs()

    def time_training(
        self, model: AlignedDenoiser, mode: str, count: int
    ) -> tuple[list[float], Check]:
        """Time training steps of one batch size; the first step's loss is checked."""
        release(self.device)
        batch = fresh_batch(model, count, seed=1)
        wanted = reference_loss(model, batch, seed=0)
        release(self.device)
        step = self.training_step(model, mode)
        found = float(step(batch, 0))
        check = Check(
            "loss of the first step",
            "float32, eager (relative)",
            abs(found - wanted) / abs(wanted),
            1e-2,
        )
        times = time_rounds(
            self.plan,
            self.device,
            lambda number: step(batch, number),
            lambda number: refresh(model, batch, number),
        )
        return times, check

    def training_step(
        self, model: AlignedDenoiser, mode: str, precision: str = "bf16"
    ) -> Callable[[dict[str, Any], int], float | Tensor]:
        """Return (batch, seed) -> total loss: one optimiser step, ours or a peer's."""
        if mode.startswith("peer"):
            return PeerStep(model, precision)
        optimiser = optimiser_of(model, precision)

        def step(batch: dict[str, Any], seed: int) -> Tensor:
            losses = train_step(model, optimiser, batch, seed=seed, progress=LATER)
            return losses.total.detach()

        return step

    def measure_operators(self, row: Measurement, size: str) -> None:
        """Count the operators of REPA's alignment loss and what makes the host wait in a step, for
        our step and a peer's."""
        model = self.model(size, "repa", compiled=False)
        count = self.plan.batches[0]
        batch = fresh_batch(model, count)
        peer = PeerStep(model, "bf16")
        with torch.no_grad(), autocast(self.device, "bf16"):
            view = view_of(model, batch, seed=0)
            features = model.parts.features(view)
            with OperatorCounter(self.device) as ours:
                model.alignments["main"](view, features, LATER)
            with OperatorCounter(self.device) as theirs:
                peer.alignment_loss(view, batch)
        row.batch = count
        row.details = {
            "alignment_operators": ours.operators,
            "peer_alignment_operators": theirs.operators,
        }
        steps: dict[str, Callable[[dict[str, Any], int], Any]] = {
            "step": self.training_step(model, "eager"),
            "peer_step": peer,
        }
        for name, step in steps.items():
            step(batch, 0)  # the first step verifies shapes and makes the optimiser's state
            row.details[name] = count_waits(self.device, partial(step, batch, 1))
        waits = row.details["step"]
        if self.device.type == "cuda":
            error = float(waits["host_reads"] + waits["cuda_waits"])
            row.checks.append(Check("waits of a step", "none (their number)", error, 0.0))
        else:  # on the CPU alone, the conditioner reads the range of the labels
            error = float(waits["host_reads"])
            row.checks.append(Check("waits of a step", "the labels' range (number)", error, 2.0))

    def measure_vae(self, row: Measurement, way: str) -> None:
        """Measure the encoder's levels.

        Args:
            row: Where the figures go.
            way: "diffusers fp32", "diffusers bf16", "latents and levels", "levels" or
                "early levels".
        """
        self.drop_model()
        rate = self.matmul_rate()
        tokenizer = self.tokenizer("bf16")
        names = list(tokenizer.levels)
        wanted = names[EARLY_LEVELS if way == "early levels" else DEEP_LEVELS]

        def run(images: Tensor) -> dict[str, Tensor]:
            if way.startswith("diffusers"):
                with autocast(self.device, way.removeprefix("diffusers ")):
                    return self.own_levels(images, wanted)
            found = tokenizer.encode(images, wanted, latent=way == "latents and levels")
            return dict(found.levels)

        for batch in self.plan.vae_batches:
            try:
                times = self.time_encoder(run, batch)
            except torch.OutOfMemoryError:
                row.out_of_memory.append(batch)
            else:
                break
            release(self.device)
        else:
            raise MemoryError(f"not even batch {self.plan.vae_batches[-1]} fits")
        row.peak_memory_gib = peak_memory()
        row.set_times(times, batch)
        row.matmul_tflops = rate
        if way in ("diffusers fp32", "diffusers bf16", "latents and levels"):
            row.set_work(self.encoder_macs(), factor=1, matmul_tflops=rate)
        row.details = {"levels": wanted}
        row.checks.append(self.check_levels(run, wanted, f"{way}: levels", LOW_PRECISION))

    def time_encoder(self, run: Callable[[Tensor], dict[str, Tensor]], batch: int) -> list[float]:
        """Time an encoder on batches of random images."""
        release(self.device)
        side = self.plan.resolution
        images = torch.empty(batch, 3, side, side, device=self.device)

        def step(number: int) -> None:
            with torch.no_grad():
                run(images)

        return time_rounds(self.plan, self.device, step, lambda number: fill(images, number))

    def tokenizer(self, precision: str) -> Any:
        """Build the library's autoencoder with the weights of diffusers'."""
        options = {
            "type": "KLAutoencoder",
            "source": str(self.vae_folder),
            "precision": precision,
        }
        tokenizer = build(TOKENIZERS, options)
        tokenizer.load()
        return tokenizer.to(self.device)

    @torch.no_grad()
    def own_levels(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return levels of diffusers' own encoder, recorded by hooks during a whole pass."""
        found: dict[str, Tensor] = {}

        def recorder(name: str) -> Callable[..., None]:
            def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
                found[name] = output

            return record

        handles = []
        for name, module in encoder_layers(self.own_vae.encoder).items():
            if name in names:
                handles.append(module.register_forward_hook(recorder(name)))
        try:
            self.own_vae.encode(2 * images - 1)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def encoder_macs(self) -> Macs:
        """Count the multiply-accumulates of diffusers' encoder for one image."""
        encoder = copy.deepcopy(self.own_vae.encoder).to("meta")
        side = self.plan.resolution
        return count_macs(lambda: encoder(torch.zeros(1, 3, side, side, device="meta")))

    def generator(self, model: AlignedDenoiser) -> Generator:
        """Return the library's generator for a model's backbone, in eval mode."""
        model.eval()
        return Generator(
            tokenizer=model.parts.tokenizer,
            backbone=model.backbone,
            flow=model.flow,
            conditioner=model.parts.conditioner,
        )

    def measure_sampling(self, row: Measurement, size: str, sampler: str, mode: str) -> None:
        """Measure a sampler without guidance and without the decoder.

        Args:
            row: Where the figures go.
            size: One of the plan's sizes.
            sampler: "euler" or "sde".
            mode: "plain" (a loop, float32 with TF32), "eager" or "compiled" (the library, bf16).
        """
        plan = self.plan
        model = self.model(size, "bare", compiled=mode == "compiled")
        generator = self.generator(model)
        rate = self.matmul_rate()
        count, steps = plan.sample_batch, plan.sample_steps
        labels = [index % plan.classes for index in range(count)]

        def sample(number: int) -> None:
            if mode == "plain":
                given = torch.tensor(labels, device=self.device)
                plain_sample(generator, given, sampler, steps)
            else:
                generator.latents(
                    labels, sampler=sampler, steps=steps, seed=number, precision="bf16"
                )

        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if mode == "plain" else before)
        try:
            release(self.device)
            times = time_rounds(plan, self.device, sample, lambda number: None)
        finally:
            torch.set_float32_matmul_precision(before)
        row.peak_memory_gib = peak_memory()
        row.set_times(times, count)
        macs = self._macs[size, "bare"]
        row.set_work(macs, factor=steps, matmul_tflops=rate)
        row.details = {"steps": steps, "guidance": None, "decoded": False}
        precision = "fp32" if mode == "plain" else "bf16"
        row.checks.append(self.check_sampler(generator, sampler, precision, count))
        if mode == "compiled":
            row.details["compiled_graphs"] = compiled_graphs()

    # ---- checks ----

    def first_checks(self) -> list[Callable[[], Check]]:
        """List the checks of the first part; each builds what it needs when it is called."""
        size = "S"
        return [
            self.check_matmul,
            partial(self.check_alignment_of, size, "ahpa"),
            partial(self.check_alignment_of, size, "repa"),
            partial(self.check_peer, size),
            partial(self.check_tail, size),
            self.check_exact_levels,
            partial(self.check_exact_sampler, size, "euler"),
            partial(self.check_exact_sampler, size, "sde"),
            partial(self.check_compiled, size, "prediction"),
            partial(self.check_compiled, size, "gradient"),
        ]

    def check_alignment_of(self, size: str, method: str) -> Check:
        """Make `check_alignment` for a size."""
        return self.check_alignment(self.model(size, method, compiled=False), method)

    def check_exact_levels(self) -> Check:
        """Make `check_levels` for the library's encoder in float32."""
        names = self.deep_names()
        tokenizer = self.tokenizer("fp32")

        def run(images: Tensor) -> dict[str, Tensor]:
            return dict(tokenizer.encode(images, names, latent=False).levels)

        return self.check_levels(run, names, "levels in float32", 5e-4)

    def check_exact_sampler(self, size: str, sampler: str) -> Check:
        """Make `check_sampler` for a size in float32."""
        generator = self.generator(self.model(size, "bare", compiled=False))
        return self.check_sampler(generator, sampler, "fp32", self.plan.check_batch)

    def deep_names(self) -> list[str]:
        """Return the names of AHPA's levels."""
        return list(encoder_layers(self.own_vae.encoder))[DEEP_LEVELS]

    def check_matmul(self) -> Check:
        """Compare a bf16 product with one in float64."""
        shape = (256, 256)
        first, second = (torch.randn(shape, device=self.device).bfloat16() for _ in range(2))
        error = relative_error(first @ second, first.double() @ second.double())
        return Check("bf16 product", "float64 (relative)", error, 1e-2)

    @torch.no_grad()
    def check_alignment(self, model: AlignedDenoiser, method: str) -> Check:
        """Compare an alignment's loss on two samples with loops in float64."""
        batch = fresh_batch(model, 2, seed=3, dtype=torch.float32)
        with exact_float32(), torch.compiler.set_stance("force_eager"):
            view = view_of(model, batch, seed=0)
            losses = model.alignments["main"](view, model.parts.features(view), LATER)
            (term,) = losses.terms
            wanted = slow_alignment_loss(model, view)
        error = abs(float(term.value) - wanted) / abs(wanted)
        return Check(f"{method} loss", "loops in float64 (relative)", error, 1e-5)

    def check_peer(self, size: str) -> Check:
        """Compare the losses of four float32 steps with those of the peer's step."""
        curves = []
        for mode in ("eager", "peer"):
            model = self.build_model(size, "repa")
            step = self.training_step(model, mode, precision="fp32")
            with exact_float32():
                curves.append(
                    [
                        float(step(fresh_batch(model, self.plan.check_batch, seed=seed), seed))
                        for seed in range(4)
                    ]
                )
        ours, theirs = (torch.tensor(curve) for curve in curves)
        error = float(((ours - theirs).abs() / theirs.abs()).max())
        return Check("losses of four steps", "the peer's step (largest relative)", error, 1e-3)

    def check_tail(self, size: str) -> Check:
        """Compare clip, AdamW and EMA with the peer's, for the same gradients."""
        results = []
        for mode in ("eager", "peer"):
            model = self.build_model(size, "repa")
            average = model.parts.ema
            average.decay = 0.5  # visible after two steps
            rng = torch.Generator(self.device).manual_seed(0)
            optimiser = optimiser_of(model, "fp32")
            peer = PeerStep(model, "fp32")
            for _ in range(2):
                for parameter in model.parameters():
                    parameter.grad = torch.empty_like(parameter).normal_(generator=rng)
                if mode == "eager":
                    optimiser.step()
                    average.update(model.backbone)
                else:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                    peer.optimizer.step()
                    with torch.no_grad():
                        pairs = zip(
                            average.backbone.parameters(), model.backbone.parameters(), strict=True
                        )
                        for old, new in pairs:
                            old.mul_(0.5).add_(new.data, alpha=0.5)
            weights = [*model.parameters(), *average.backbone.parameters()]
            results.append(torch.cat([weight.detach().flatten() for weight in weights]))
        error = float((results[0] - results[1]).abs().max()) / LEARNING_RATE
        return Check("clip, AdamW and EMA", "the peer's (largest, in learning rates)", error, 1e-2)

    @torch.no_grad()
    def check_levels(
        self,
        run: Callable[[Tensor], dict[str, Tensor]],
        names: Sequence[str],
        what: str,
        tolerance: float,
    ) -> Check:
        """Compare levels on two images with those that hooks on diffusers' encoder record."""
        side = self.plan.resolution
        images = torch.empty(2, 3, side, side, device=self.device)
        fill(images, 5)
        with exact_float32():
            wanted = self.own_levels(images, names)
            found = run(images)
        error = max(relative_error(found[name], wanted[name]) for name in names)
        against = "diffusers' encoder in float32 (largest relative)"
        return Check(what, against, error, tolerance)

    @torch.no_grad()
    def check_sampler(
        self, generator: Generator, sampler: str, precision: str, count: int
    ) -> Check:
        """Compare samples of a few steps with those of a plain float32 loop, for the same noise."""
        steps = 4
        labels = [index % self.plan.classes for index in range(count)]
        with exact_float32():
            found: Streams = generator.latents(
                labels, sampler=sampler, steps=steps, seed=7, precision=precision
            )
            with torch.compiler.set_stance("force_eager"):
                noise = SampleNoise(7, range(count))
                given = torch.tensor(labels, device=self.device)
                wanted = plain_sample(generator, given, sampler, steps, noise)
        error = relative_error(found["image"], wanted)
        against = "a plain loop in float32 (relative)"
        tolerance = 1e-4 if precision == "fp32" else LOW_PRECISION
        return Check(f"{sampler} samples in {precision}", against, error, tolerance)

    def check_compiled(self, size: str, what: str) -> Check:
        """Compare the compiled model in bf16 with the eager one in float32.

        Args:
            size: One of the plan's sizes.
            what: "prediction" or "gradient" (of the total loss with AHPA).
        """
        model = self.model(size, "ahpa", compiled=True)
        batch = fresh_batch(model, self.plan.check_batch, seed=2)
        results = []
        for compiled in (True, False):
            model.zero_grad(set_to_none=True)
            stance = nullcontext() if compiled else torch.compiler.set_stance("force_eager")
            with exact_float32(), stance:
                results.append(self.forward_backward(model, batch, compiled, what))
        model.zero_grad(set_to_none=True)
        error = relative_error(results[0], results[1])
        tolerance = LOW_PRECISION if what == "prediction" else 2 * LOW_PRECISION
        return Check(f"compiled {what} in bf16", "eager in float32 (relative)", error, tolerance)

    def forward_backward(
        self, model: AlignedDenoiser, batch: dict[str, Any], low: bool, what: str
    ) -> Tensor:
        """Return the prediction, or all gradients of the total loss, as one tensor."""
        with autocast(self.device, "bf16" if low else "fp32"):
            view = view_of(model, batch, seed=0)
            if what == "prediction":
                return view.out.pred["image"]
            losses = model.flow_loss(view)
            features = model.parts.features(view)
            losses += model.alignments["main"](view, features, LATER)
        losses.total.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(gradients)


def training_macs(model: AlignedDenoiser) -> Macs:
    """Count the forward pass of one image through all that is trained; no prior's network."""
    macs = [forward_macs(model.backbone)]
    added = added_macs(model)
    macs += [count for name, count in added.items() if not name.startswith("prior ")]
    return Macs(sum(count.total for count in macs), sum(count.attention for count in macs))


def compiled_graphs() -> int:
    """Return how many graphs were compiled since the blocks were."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def fill(images: Tensor, seed: int) -> None:
    """Fill images with values in [0, 1]."""
    rng = torch.Generator(images.device).manual_seed(seed)
    images.uniform_(generator=rng)


def encoder_layers(encoder: Any) -> dict[str, nn.Module]:
    """List the layers of diffusers' encoder by the library's names of their outputs."""
    layers: dict[str, nn.Module] = {"conv_in": encoder.conv_in}
    for number, block in enumerate(encoder.down_blocks):
        for index, layer in enumerate(block.resnets):
            layers[f"down{number}.res{index}"] = layer
        for layer in block.downsamplers or ():
            layers[f"down{number}.down"] = layer
    layers["mid.res0"] = encoder.mid_block.resnets[0]
    layers["mid.attn"] = encoder.mid_block.attentions[0]
    layers["mid.res1"] = encoder.mid_block.resnets[1]
    return layers


# ---- the run --------------------------------------------------------------------------------


class Job(NamedTuple):
    """A measurement to be made.

    Attributes:
        name: Its name in the report.
        kind: Its kind.
        needs: Seconds that must be left to start it, roughly what it takes on an H200.
        run: Fills in the figures.
    """

    name: str
    kind: str
    needs: float
    run: Callable[[Measurement], None]


def training_jobs(bench: Workbench, size: str) -> list[Job]:
    """List the training steps of a size; a model's eager measurements come before its compiled."""
    slow = {"S": 1.0, "B": 1.0, "XL": 2.0}[size]
    modes = {method: ["eager", "compiled"] for method in METHODS}
    modes["repa"] = ["eager", "peer", "compiled", "peer compiled"]
    jobs = []
    for method in ("repa", "ahpa", "bare"):
        for mode in modes[method]:
            needs = slow * (25 if mode.endswith("compiled") else 15)
            run = partial(bench.measure_training, size=size, method=method, mode=mode)
            jobs.append(Job(f"train {size} {method} {mode}", "train", needs, run))
    return jobs


def vae_jobs(bench: Workbench) -> list[Job]:
    """List the ways of computing encoder levels."""
    ways = ("diffusers fp32", "diffusers bf16", "levels", "latents and levels", "early levels")
    return [Job(f"vae {way}", "vae", 10, partial(bench.measure_vae, way=way)) for way in ways]


def sampling_jobs(bench: Workbench, size: str) -> list[Job]:
    """List the ways of sampling from a size."""
    modes = ("plain", "eager", "compiled") if bench.plan.sampled[size] else ("compiled",)
    jobs = []
    for mode in modes:
        for sampler in ("euler", "sde"):
            run = partial(bench.measure_sampling, size=size, sampler=sampler, mode=mode)
            jobs.append(Job(f"sample {size} {sampler} {mode}", "sample", 40, run))
    return jobs


def all_jobs(bench: Workbench) -> list[Job]:
    """List all measurements, the most important first."""
    return [
        Job("matmul", "matmul", 5, bench.measure_matmul),
        *training_jobs(bench, "B"),
        *training_jobs(bench, "XL"),
        *vae_jobs(bench),
        *sampling_jobs(bench, "B"),
        Job("operators B repa", "operators", 15, partial(bench.measure_operators, size="B")),
        *training_jobs(bench, "S"),
        *sampling_jobs(bench, "XL"),
    ]


RATIOS = {  # name -> (case, what it is compared with): images/s of the first over the second
    **{
        f"{size}: {name}": (f"train {size} {first}", f"train {size} {second}")
        for size in FULL.sizes
        for name, first, second in (
            ("our REPA step, compiled, to the peer's", "repa compiled", "repa peer"),
            ("our REPA step to the peer's, both compiled", "repa compiled", "repa peer compiled"),
            ("our REPA step to the peer's, both eager", "repa eager", "repa peer"),
            ("AHPA to bare, compiled", "ahpa compiled", "bare compiled"),
            ("AHPA to bare, eager", "ahpa eager", "bare eager"),
            ("compiled to eager, bare", "bare compiled", "bare eager"),
        )
    },
    "levels to diffusers in fp32": ("vae levels", "vae diffusers fp32"),
    "levels to diffusers in bf16": ("vae levels", "vae diffusers bf16"),
    "Euler, compiled bf16, to a plain loop": ("sample B euler compiled", "sample B euler plain"),
    "SDE, compiled bf16, to a plain loop": ("sample B sde compiled", "sample B sde plain"),
}


class Report:
    """Everything that was found, and the file that it is written to.

    Args:
        path: The JSON file.
        plan: Sizes of everything.
        device: Where it ran.
        budget: The time.
    """

    def __init__(self, path: Path, plan: Plan, device: torch.device, budget: Budget) -> None:
        self.path = path
        self.plan = plan
        self.device = device
        self.budget = budget
        self.environment = environment(device)
        self.checks: list[Check] = []
        self.errors: list[str] = []  # of checks that could not be made
        self.rows: list[Measurement] = []
        self.finished = False

    @property
    def passed(self) -> bool:
        """Whether every check passed and no measurement failed."""
        beside = [check for row in self.rows for check in row.checks]
        failed = any(row.status == "failed" for row in self.rows)
        return all(check.passed for check in [*self.checks, *beside]) and not (
            failed or self.errors
        )

    def ratios(self) -> list[dict[str, Any]]:
        """Return the ratios of images per second whose two cases were measured."""
        measured = {row.name: row for row in self.rows if row.images_per_s is not None}
        found = []
        for name, (first, second) in RATIOS.items():
            if first not in measured or second not in measured:
                continue
            a, b = measured[first], measured[second]
            assert a.images_per_s is not None and b.images_per_s is not None
            found.append(
                {
                    "name": name,
                    "ratio": a.images_per_s / b.images_per_s,
                    "of": [first, second],
                    "batches": [a.batch, b.batch],
                }
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "format": FORMAT,
            "toy": self.plan is TOY,
            "finished": self.finished,
            "passed": self.passed,
            "elapsed_s": self.budget.used,
            "seconds": self.budget.seconds,
            "environment": self.environment,
            "plan": asdict(self.plan),
            "notes": NOTES,
            "checks": [check.as_dict() for check in self.checks],
            "errors": self.errors,
            "measurements": [row.as_dict() for row in self.rows],
            "ratios": self.ratios(),
        }

    def write(self) -> None:
        """Write the JSON file: the old one stays until the new one is complete."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False)
        write_file(self.path, text.encode() + b"\n")

    def run_checks(self, bench: Workbench) -> None:
        """Make the first checks; one that raises is an error."""
        for number, check in enumerate(bench.first_checks(), start=1):
            try:
                found = check()
            except Exception as error:
                self.errors.append(f"check {number}: {describe(error)}")
                print(f"check   ERROR   {self.errors[-1]}", flush=True)
            else:
                self.checks.append(found)
                print(f"check   {check_line(found)}", flush=True)
            self.write()

    def run_job(self, job: Job) -> None:
        """Make a measurement, or note why not."""
        row = Measurement(job.name, job.kind)
        began, left = self.budget.used, self.budget.left
        if left <= 0 or left < job.needs * self.plan.patience:
            row.reason = f"the budget is used: {max(left, 0):.0f} s left, needs about {job.needs} s"
        else:
            try:
                job.run(row)
                row.status = "measured"
            except OutOfTime:
                row.reason = "stopped: the budget was used up while it ran"
            except Exception as error:
                row.status = "failed"
                row.reason = describe(error)
        row.took_s = self.budget.used - began
        self.rows.append(row)
        self.write()
        print(row_line(row), flush=True)


def describe(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def check_line(check: Check) -> str:
    """Return a check as a line of text."""
    verdict = "ok    " if check.passed else "FAILED"
    return f"{verdict}  {check.name}: {check.error:.2g} <= {check.tolerance:g} ({check.against})"


COLUMNS = (
    f"{'measurement':28} {'batch':>5} {'median ms':>10} {'quartiles':>19} {'images/s':>10} "
    f"{'util.':>6} {'no attn':>7} {'GiB':>6}  checks"
)


def row_line(row: Measurement) -> str:
    """Return a measurement as a line of the table."""
    if row.status != "measured":
        return f"{row.name:28} {row.status}: {row.reason}"
    passed = "ok" if all(check.passed for check in row.checks) else "FAILED"
    if row.seconds is None:
        shown = ", ".join(f"{name} {value}" for name, value in row.details.items())
        return f"{row.name:28} {shown}  {passed}"
    median, first, third = (1e3 * row.seconds[name] for name in ("median", "q1", "q3"))
    quartiles = f"{first:.2f} - {third:.2f}"
    used = row.utilisation or {}
    shares = [f"{100 * value:.1f}%" for value in used.values()] or ["", ""]
    rate = f"{row.images_per_s:.1f}" if row.kind != "matmul" else f"{row.matmul_tflops:.1f} TF"
    memory = "" if row.peak_memory_gib is None else f"{row.peak_memory_gib:.1f}"
    return (
        f"{row.name:28} {row.batch or '':>5} {median:>10.2f} {quartiles:>19} {rate:>10} "
        f"{shares[0]:>6} {shares[1]:>7} {memory:>6}  {passed}"
    )


def print_table(report: Report) -> None:
    """Print the whole table, the ratios and every check that failed."""
    print(f"\n{COLUMNS}")
    for row in report.rows:
        print(row_line(row))
    for ratio in report.ratios():
        batches = " and ".join(map(str, ratio["batches"]))
        print(f"{ratio['ratio']:7.3f}x  {ratio['name']} (batches {batches})")
    beside = [check for row in report.rows for check in row.checks]
    for check in [*report.checks, *beside]:
        if not check.passed:
            print(check_line(check))
    verdict = "all checks passed" if report.passed else "NOT all checks passed"
    print(f"{verdict}; {report.budget.used:.0f} s; {report.path}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Speed on one GPU; see the file's docstring.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--toy", action="store_true", help="tiny sizes on the CPU, for a test")
    parser.add_argument(
        "--seconds", type=float, default=500.0, help="time within which measurements start"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure and report. Returns the exit status."""
    args = parse(arguments)
    budget = Budget(args.seconds)
    plan = TOY if args.toy else FULL
    if not args.toy and not torch.cuda.is_available():
        print("gpu.py: no CUDA device was found; --toy runs a tiny version on the CPU.")
        return 2
    device = torch.device("cpu" if args.toy else "cuda")
    report = Report(args.out, plan, device, budget)
    with tempfile.TemporaryDirectory() as folder, budget.enforced():
        bench = Workbench(plan, device, Path(folder))
        jobs = all_jobs(bench)
        try:
            report.run_checks(bench)
        except OutOfTime:
            report.errors.append("the first checks were not finished in time")
        print(f"\n{COLUMNS}")
        for job in jobs:
            try:
                report.run_job(job)
            except OutOfTime:  # between two measurements
                report.rows.append(Measurement(job.name, job.kind, reason="the budget is used"))
        report.finished = True
        report.write()
    print_table(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
