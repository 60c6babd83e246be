"""Compute FID and other metrics: ahpa evaluate SOURCE --reference REF.npz --protocol adm-50k-sde250

SOURCE is a model (a checkpoint, a run's work dir, a published folder or a Hub id), of which samples
are drawn, or a set of images (ADM's .npz, a .npy, a folder or a .zip of pictures, or the folder of
an earlier evaluation's samples). The samples of a model are kept, so that a command that was killed
goes on where it was, and more metrics cost no more samples.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..registry.errors import ConfigError, UserError
from ..registry.validation import integer, positive_int
from .common import make_parser, refuse_empty, run_command

if TYPE_CHECKING:
    import torch

    from ..analysis.protocols import SamplingProtocol
    from ..analysis.provenance import Trained
    from ..analysis.sample_set import Drawing
    from ..engine.distributed import Processes
    from ..evaluation.images import ImageSet
    from ..evaluation.protocol import EvaluationResult
    from ..evaluation.reference import Reference
    from ..registry.contracts import Metric

PROTOCOL = "adm-50k-sde250"
BATCH = 64
SAMPLING = (  # options of a protocol that the command line can replace
    "count",
    "sampler",
    "steps",
    "cfg_scale",
    "cfg_interval",
    "cfg_channels",
    "cls_cfg_scale",
    "balance",
    "tile",
    "uint8",
    "precision",
)
ARRAYS = (".npz", ".npy", ".zip")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__ or "", "evaluate")
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a model, or a set of images")
    add(
        "--reference",
        metavar="REF",
        help="an .npz (ADM's, or of ahpa reference), a folder or .zip of pictures, or 'train': the "
        "model's own training data",
    )
    add(
        "--reference-count",
        type=int,
        default=10_000,
        metavar="N",
        help="with --reference train: images, spread evenly over the data (default 10000)",
    )
    add(
        "--protocol",
        metavar="NAME",
        help=f"a shipped one (demo, adm-50k-sde250, adm-50k-ode250) or a .json file; default "
        f"{PROTOCOL}; the options below replace single values",
    )
    add("--metrics", metavar="A,B", help="such as fid,sfid,is,precision,recall or fd:tiny-vit")
    add("--extractor", metavar="NAME", help="features for --metrics that name none, as in kid")
    sampling = parser.add_argument_group("sampling of a model")
    add = sampling.add_argument
    add("--count", type=int, metavar="N", help="how many samples")
    add("--sampler", help="such as sde, euler (see ahpa list samplers)")
    add("--steps", type=int, metavar="N")
    add("--cfg-scale", type=float, metavar="W", help="guidance scale; 1 disables it")
    add("--cfg-interval", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of t")
    add("--cfg-channels", type=int, metavar="N", help="guide the first N latent channels only")
    add("--cls-cfg-scale", type=float, metavar="W", help="guidance scale of REG's class token")
    add("--balance", choices=("balanced", "drawn"), help="classes in turn, or drawn at random")
    add("--tile", type=int, metavar="T", help="images of a forward pass; part of the protocol")
    add("--uint8", metavar="RULE", help="round, half-up, truncate or 256")
    add("--precision", choices=("fp32", "bf16", "fp16"))
    add("--seed", type=int, default=0, help="sample i is a function of (seed, i)")
    add("--weights", choices=("ema", "model"), default="ema", help="averaged or trained weights")
    add("--prompts", metavar="FILE", help="one prompt a line, used in turn; of images: of each one")
    source = sampling.add_mutually_exclusive_group()
    source.add_argument("--demo", action="store_true", help="the bundled autoencoder")
    source.add_argument("--vae", metavar="ID_OR_PATH", help="replaces the run's autoencoder")
    add("--config", help="import the custom components that this config names (trusted code)")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--out", metavar="FILE.json", help="the result, besides WORK_DIR/evaluations/")
    add("--samples", metavar="DIR", help="where samples are kept; default in WORK_DIR/evaluations/")
    add("--save", metavar="PATH", help="also write the samples as ADM's .npz, or a folder of PNGs")
    add("--dry-run", action="store_true", help="say what would be done and what it would cost")
    work = parser.add_argument_group("how it is computed")
    add = work.add_argument
    add("--batch", type=int, default=BATCH, help="images in memory at once; changes no sample")
    add("--resolution", type=int, metavar="PX", help="crop pictures to this side as ADM does")
    add("--device", help="cpu or cuda; default a GPU if there is one")
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a user's mistake, 130 after Ctrl-C."""
    return run_command(run, arguments)


class Job(NamedTuple):
    """What all steps of the command share.

    Attributes:
        args: The command line.
        protocol: How samples are drawn and judged.
        name: Name of the protocol.
        metrics: {name: metric}.
        processes: The processes that share the work.
        device: Where everything runs.
    """

    args: argparse.Namespace
    protocol: "SamplingProtocol"
    name: str
    metrics: "dict[str, Metric]"
    processes: "Processes"
    device: "torch.device"

    def say(self, text: str) -> None:
        """Print a line on the first process."""
        if self.processes.rank == 0:
            print(text, flush=True)


def run(arguments: Sequence[str] | None) -> int:
    """Run the command. Raises UserError for a mistake."""
    args = parse(arguments)
    check_options(args)
    from ..analysis.protocols import load_protocol
    from ..engine import config as configs
    from ..engine.distributed import Processes
    from ..engine.inference import device_of

    name = args.protocol or PROTOCOL
    protocol = load_protocol(name).changed(replaced(args))
    if args.config:
        configs.load(args.config)
    metrics = wanted_metrics(args, protocol.metrics)
    processes = Processes.start(args.launcher)
    job = Job(args, protocol, name, metrics, processes, device_of(args.device or default_device()))
    if is_images(Path(args.source).expanduser()):
        evaluate_given(job)
    else:
        evaluate_model(job)
    return 0


def default_device() -> str:
    """Return "cuda" with the current GPU if there is one, else "cpu"."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def check_options(args: argparse.Namespace) -> None:
    """Check what needs no file. Raises UserError that names the option."""
    refuse_empty(
        source=args.source,
        reference=args.reference,
        protocol=args.protocol,
        metrics=args.metrics,
        extractor=args.extractor,
        sampler=args.sampler,
        vae=args.vae,
        config=args.config,
        out=args.out,
        samples=args.samples,
        save=args.save,
        prompts=args.prompts,
    )
    positive_int("--batch", args.batch)
    positive_int("--reference-count", args.reference_count)
    integer("--seed", args.seed)
    if args.resolution is not None:
        positive_int("--resolution", args.resolution)
    if args.out is not None and Path(args.out).suffix != ".json":
        raise UserError(f"--out: must end in .json, got {args.out!r}.")
    if args.save is not None and Path(args.save).suffix not in ("", ".npz"):
        raise UserError(f"--save: must end in .npz, or be a folder; got {args.save!r}.")


def replaced(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the protocol that the command line replaces."""
    given = vars(args)
    found = {name: given[name] for name in SAMPLING if given[name] is not None}
    if "cfg_interval" in found:
        found["cfg_interval"] = tuple(found["cfg_interval"])
    return found


def wanted_metrics(
    args: argparse.Namespace, default: Sequence[str | Mapping[str, Any]]
) -> "dict[str, Metric]":
    """Build the metrics that are asked for; without --reference, those that need none.

    Args:
        args: The command line.
        default: The protocol's metrics, names or configs.

    Raises:
        UserError: For an unknown name, or if nothing is left without a reference.
    """
    from ..evaluation.metrics import build_metrics

    names = list(default)
    if args.metrics is not None:
        names = [name.strip() for name in args.metrics.split(",") if name.strip()]
    if args.extractor is not None:
        names = [
            name if not isinstance(name, str) or ":" in name else f"{name}:{args.extractor}"
            for name in names
        ]
    if not names:
        raise ConfigError("--metrics: name at least one, such as fid or fd:tiny-vit.")
    metrics = build_metrics(names)
    if args.reference is not None:
        return metrics
    alone = {name: metric for name, metric in metrics.items() if not metric.reference_needs}
    if not alone:
        raise UserError(
            f"--reference: {', '.join(metrics)} compare with real images; give ADM's .npz, a "
            "folder of pictures, what `ahpa reference` made of one, or 'train' for the model's "
            "own training data."
        )
    return alone


def is_images(path: Path) -> bool:
    """Whether a source is a set of images rather than a model."""
    from ..analysis.sample_set import is_sample_set
    from ..engine.checkpoint import list_checkpoints
    from ..engine.weights import is_published

    if path.suffix.lower() in ARRAYS:
        return True
    if not path.is_dir():
        return False
    model = is_published(path) or list_checkpoints(path) or (path / "checkpoints").is_dir()
    return is_sample_set(path) or not model


# ---- given images -----------------------------------------------------------------------------


def evaluate_given(job: Job) -> None:
    """Evaluate images that are there. Raises UserError for a mistake."""
    from ..analysis.evaluate import check_weights, evaluate, unknown_protocol
    from ..analysis.sample_set import SampleSet, is_sample_set, recorded
    from ..evaluation.images import open_images

    args = job.args
    path = Path(args.source).expanduser()
    refuse_sampling(args)
    images: ImageSet
    if is_sample_set(path):
        images = SampleSet(path)
        protocol, provenance = images.protocol, images.provenance
    else:
        images = open_images(path, resolution=args.resolution, prompts=args.prompts)
        protocol, provenance = recorded(path) or (unknown_protocol(images), {"samples": str(path)})
    reference = open_reference(job, None, images.size[0])
    job.say(f"samples: {path} ({len(images)} images of {images.size[0]} px)")
    say_left_out(job)
    check_weights(job.metrics, job.device)
    if args.dry_run:
        return
    result = evaluate(
        images,
        reference,
        job.metrics,
        protocol=protocol,
        provenance=provenance,
        device=job.device,
        batch=args.batch,
        processes=job.processes,
    )
    finish(job, result, [Path(args.out)] if args.out else [])


def refuse_sampling(args: argparse.Namespace) -> None:
    """Refuse options of sampling for images that are there. Raises UserError."""
    given = [*replaced(args), *[name for name in ("samples", "save", "vae") if vars(args)[name]]]
    if args.demo:
        given.append("demo")
    if given:
        option = given[0].replace("_", "-")
        raise UserError(f"--{option}: {args.source} is a set of images, which are drawn already.")


def say_left_out(job: Job) -> None:
    """Say which metrics are left out without a reference."""
    if job.args.reference is None:
        names = ", ".join(job.metrics)
        job.say(f"without --reference only {names} can be computed; the others compare with one")


# ---- a model ----------------------------------------------------------------------------------


def evaluate_model(job: Job) -> None:
    """Draw samples of a model and evaluate them. Raises UserError for a mistake."""
    from ..analysis.evaluate import check_weights, evaluate
    from ..analysis.provenance import find_trained
    from ..analysis.sample_set import draw_set, export

    args = job.args
    trained = job.processes.on_first(lambda: find_trained(args.source, args.weights))
    drawing = make_drawing(job, trained)
    side = drawing.side
    reference = open_reference(job, trained, side)
    check_weights(job.metrics, job.device)
    folder = samples_folder(job, trained, drawing)
    say_plan(job, trained, drawing, folder)
    say_left_out(job)
    if args.dry_run:
        job.say(cost_of(job, drawing))
        return
    provenance = {
        **trained.provenance,
        "named_protocol": job.name,
        "replaced": {**replaced(args)},
    }
    images = draw_set(
        folder,
        drawing,
        protocol=trained.protocol,
        provenance=provenance,
        processes=job.processes,
        batch=args.batch,
        progress=True,
    )
    if args.save and job.processes.rank == 0:
        export(images, Path(args.save))
    result = evaluate(
        images,
        reference,
        job.metrics,
        protocol=images.protocol,
        provenance=images.provenance | provenance,
        device=job.device,
        batch=job.protocol.tile,
        processes=job.processes,
    )
    stem = f"{trained.name}_{Path(job.name).stem}_seed{args.seed}_{result.protocol_hash}"
    paths = [results_folder(trained) / f"{stem}.json"]
    finish(job, result, [*paths, *([Path(args.out)] if args.out else [])])


def make_drawing(job: Job, trained: "Trained") -> "Drawing":
    """Load the model. Raises UserError if it does not fit the protocol."""
    from ..analysis.sample_set import Drawing
    from ..engine.inference import load_generator
    from ..evaluation.images import read_prompts

    args, protocol = job.args, job.protocol
    vae = "bundled" if args.demo else args.vae
    generator = load_generator(trained.source, vae=vae, device=job.device, weights=args.weights)
    generator.check(protocol.sampler, protocol.cfg_channels, protocol.cls_cfg_scale)
    takes = generator.conditioner.takes
    if args.prompts and takes != "prompts":
        raise UserError(f"--prompts: this model takes {takes}; leave it out.")
    prompts = None
    if takes == "prompts":
        prompts = read_prompts(args.prompts) if args.prompts else generator.conditioner.all()
    return Drawing(generator, protocol, args.seed, prompts)


def open_reference(job: Job, trained: "Trained | None", side: int) -> "Reference | None":
    """Open the reference and check that it holds what the metrics need. Raises UserError."""
    from ..analysis.evaluate import TRAIN, TrainingReference, check_reference
    from ..evaluation.reference import Reference

    given = job.args.reference
    if given is None:
        return None
    found: Reference
    if given == TRAIN and not Path(given).exists():
        if trained is None:
            raise UserError(
                "--reference train: is for a model, which knows its training data; give an .npz or "
                "a folder."
            )
        found = TrainingReference(trained.config, most=job.args.reference_count)
    else:
        stored = Path(given).suffix.lower() in (".npz", ".npy")
        found = Reference(given, resolution=None if stored else job.args.resolution or side)
    check_reference(found, job.metrics)
    return found


def results_folder(trained: "Trained") -> Path:
    """Return where the results of a model are written."""
    if trained.work_dir is not None:
        return trained.work_dir / "evaluations"
    return Path("evaluations") / Path(trained.source).name


def samples_folder(job: Job, trained: "Trained", drawing: "Drawing") -> Path:
    """Return the folder of the samples: --samples, or one named after what decides them."""
    from ..analysis.protocols import sha256_of

    if job.args.samples:
        return Path(job.args.samples).expanduser()
    digest = job.processes.on_first(lambda: sha256_of(drawing.identity()))
    return results_folder(trained) / "samples" / f"{trained.name}_{digest}"


def say_plan(job: Job, trained: "Trained", drawing: "Drawing", folder: Path) -> None:
    """Say what will be drawn."""
    from ..analysis.sample_set import missing_tiles, tiles_of

    protocol = drawing.protocol
    tiles = tiles_of(protocol.count, protocol.tile)
    there = tiles - len(missing_tiles(folder, protocol.count, protocol.tile))
    guidance = "no guidance"
    if protocol.cfg_scale != 1:
        low, high = protocol.cfg_interval
        guidance = f"guidance {protocol.cfg_scale} for t in [{low}, {high}]"
    changed = ", ".join(f"{name} {value}" for name, value in replaced(job.args).items())
    sampler = protocol.sampler or drawing.generator.flow.default_sampler
    job.say(f"model: {trained.source} ({protocol_text(trained)})")
    job.say(f"protocol: {job.name}{f' with {changed}' if changed else ''}")
    job.say(
        f"samples: {folder} ({protocol.count} images of {drawing.side} px in {tiles} tiles of "
        f"{protocol.tile}, {there} there already; {sampler}, {protocol.steps} steps, {guidance}; "
        f"classes {protocol.balance}; seed {drawing.seed})"
    )


def protocol_text(trained: "Trained") -> str:
    """Describe the weights in a few words."""
    kind = "EMA" if trained.protocol["weights"] == "ema" else "raw weights"
    return f"{kind}, iteration {trained.protocol['iteration']}"


def cost_of(job: Job, drawing: "Drawing") -> str:
    """Return what drawing would cost: measured on one forward pass and one decoded tile."""
    from ..analysis.sample_set import measured_cost
    from ..engine.run_log import human_time

    cost = measured_cost(drawing)
    count = drawing.protocol.count
    seconds = cost.seconds * count / job.processes.world
    disk = 3 * drawing.side**2 * count / 2**30
    calls = "as many calls as the sampler chooses" if cost.calls is None else f"{cost.calls} calls"
    gmacs = f"{cost.macs / 1e9:.4g} GMACs of the network an image"
    return (
        f"cost: {calls} of the network for each tile, {gmacs}; about {human_time(seconds)} for "
        f"{count} images here, by one call that took {cost.call_seconds:.3g} s; {disk:.2g} GiB of "
        "disk. Nothing was drawn or written (--dry-run)."
    )


# ---- the result -------------------------------------------------------------------------------


def finish(job: Job, result: "EvaluationResult", paths: Sequence[Path]) -> None:
    """Print the table, and write the result. Raises UserError if it cannot be written."""
    if job.processes.rank != 0:
        return
    print(table(result, job.metrics))
    for path in paths:
        result.save(path)
        print(f"result: {path}")


def table(result: "EvaluationResult", metrics: "dict[str, Metric]") -> str:
    """Return a result as text: the figures, and the protocol with its hash."""
    from ..evaluation.protocol import UNKNOWN

    better = {name: up for metric in metrics.values() for name, up in metric.figures.items()}
    width = max(map(len, result.figures))
    lines = [""]
    for name, value in result.figures.items():
        lines.append(f"{name:{width}s}  {value:12.6g}  {'higher' if better[name] else 'lower'}")
    lines[1:] = [f"{line} is better" for line in lines[1:]]
    protocol = result.protocol
    reference = protocol["reference"]
    compared = "none"
    if reference is not None:
        compared = f"sha256 {reference['sha256'][:12]} ({reference['images']} images)"
    guidance = protocol["guidance"]
    if isinstance(guidance, dict):
        guidance = "none" if guidance["scale"] == 1 else guidance
    sampler = protocol["sampler"]
    kind = sampler["type"] if isinstance(sampler, dict) else sampler
    shown = {
        "images": protocol["images"],
        "sampler": f"{kind}, {protocol['evaluations']} evaluations",
        "guidance": guidance,
        "weights": f"{protocol['weights']}, iteration {protocol['iteration']}",
        "8 bits": protocol["uint8"],
        "reference": compared,
    }
    if kind == UNKNOWN:
        drawn = "not recorded, so it counts as unlike every other protocol"
        shown = {"images": protocol["images"], "drawn": drawn, "reference": compared}
    lines += ["", f"protocol {result.protocol_hash}"]
    lines += [f"  {name:10s}{value}" for name, value in shown.items()]
    return "\n".join(lines)
