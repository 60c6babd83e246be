"""What the tools do, as functions: assemble a config from the command line, train, dry-run, sample."""

import math
from pathlib import Path

import torch

from . import demo
from .analysis.cost import cost_report
from .engine import config as configs
from .engine.plain import to_plain
from .registry import UserError


def training_config(args):
    """The checked config of tools/train.py's arguments. Raises ConfigError before data or weights are touched."""
    cfg = configs.load(args.config)
    if args.data:
        cfg["train_dataloader"]["dataset"] = data_set(cfg, args.data)
    if args.demo:
        configs.check_keys(cfg)
        demo.overlay(cfg, keep_data=bool(args.data))
    if args.vae:
        cfg["model"]["tokenizer"] = dict(type="KLAutoencoder", source=args.vae)
    if args.max_iters is not None:
        cfg["train_cfg"]["max_iters"] = args.max_iters
    if args.seed is not None:
        cfg["randomness"] = {**(cfg.get("randomness") or {}), "seed": args.seed}
    for option in args.cfg_options:
        configs.set_option(cfg, option)
    cfg["launcher"] = args.launcher
    name = Path(args.config).stem + ("_demo" if args.demo else "")
    cfg["work_dir"] = args.work_dir or cfg.get("work_dir") or f"work_dirs/{name}"
    configs.check_config(cfg)
    return cfg


def data_set(cfg, root):
    """What --data names, with the resolution of the model: an ImageFolder, or COCO's 2014 training set where the config
    has captions of COCO."""
    own, resolution = cfg["train_dataloader"]["dataset"], cfg["model"].get("resolution", 256)
    if own.get("type") == "CocoCaptions":
        places = dict(images=f"{root}/train2014", annotations=f"{root}/annotations/captions_train2014.json")
        return {**own, **places, "resolution": resolution}
    return dict(type="ImageFolder", root=root, resolution=resolution, flip=own.get("flip", False))


def train(cfg, *, resume: bool, fit_classes: bool = False) -> int:
    """Trains to the end. fit_classes: the backbone gets as many classes as the data set has (for --data)."""
    from .engine.runner import AlignmentRunner

    runner = AlignmentRunner.from_config(cfg, resume=resume, fit_classes=fit_classes)
    runner.say(f"ahpa: {cost_report(runner.plain_model, short=True)}")
    runner.say(f"data: {describe(runner.train_dataloader.dataset)}")
    runner.say(f"work dir: {cfg['work_dir']}  device: {runner.optim_wrapper.device}  processes: {runner.world_size}")
    runner.train()
    if runner.distributed:
        torch.distributed.barrier(group=runner.control)  # nobody leaves while another is still at work
        del runner
        torch.distributed.destroy_process_group()
    return 0


def describe(dataset) -> str:
    names = getattr(dataset, "classes", ())
    if not names:
        return f"{len(dataset)} images"
    return (
        f"{len(dataset)} images, {len(names)} classes ({', '.join(map(str, names[:10]))}{', ...' * (len(names) > 10)})"
    )


def dry_run(cfg) -> int:
    """Builds everything, runs one step on synthetic images, prints sizes, cost and the resolved config."""
    from .engine.dryrun import one_step

    model, seconds, memory = one_step(cfg)
    print(cost_report(model))
    print(f"one step of batch 2 on synthetic data: {seconds:.2f} s, peak memory {memory:.2f} GiB")
    print("resolved config:")
    print(configs.Config(to_plain(cfg)).pretty_text)
    return 0


def sample(args) -> int:
    """Draws what tools/sample.py's arguments ask for and writes a grid, PNGs or an .npz."""
    from .engine.inference import Generator

    out = Path(args.out)
    if args.num < 1:
        raise UserError(f"--num: must be at least 1, got {args.num}.")
    if out.suffix not in ("", ".png", ".npz"):
        raise UserError(f"--out: {args.out!r} must end in .png (a grid) or .npz (ADM's format), or be a folder.")
    if args.config:
        configs.load(args.config)
    vae = dict(type="KLAutoencoder", source="bundled" if args.demo else args.vae) if args.demo or args.vae else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = Generator.load(args.checkpoint, vae=vae, device=device, weights=args.weights)
    wanted = wanted_conditions(args, generator.conditioner)
    images = generator.batches(
        wanted, sampler=args.sampler, steps=args.steps, cfg_scale=args.cfg_scale, cfg_interval=args.cfg_interval,
        cfg_channels=args.cfg_channels, seed=args.seed, batch=args.batch, precision=args.precision)  # fmt: skip
    write_samples(images, wanted, out)
    print(f"{args.num} samples: {out}")
    return 0


def wanted_conditions(args, conditioner) -> list:
    """For each sample its class or prompt: those asked for, or the conditioner's own, in turn, then put together.
    UserError for classes where the model takes prompts, and the other way round."""
    for option in ("classes", "prompts"):
        if getattr(args, option) and option != conditioner.takes:
            raise UserError(f"--{option}: this checkpoint takes {conditioner.takes}; give --{conditioner.takes}, or "
                            "neither for its own.")  # fmt: skip
    kinds = args.classes or args.prompts or conditioner.all()
    used = [kinds[i % len(kinds)] for i in range(args.num)]
    return sorted(used, key=kinds.index) if conditioner.takes == "prompts" else sorted(used)


def write_samples(images, wanted, out: Path) -> None:
    """Batches of uint8 [b, 3, H, W] to a grid (.png; a row a condition where that fits), an .npz, or a folder of PNGs.
    wanted: each sample's class, or prompt: then files number the prompts and hold their list."""
    from .engine.pictures import save_grid, save_npz, save_pngs

    kinds = list(dict.fromkeys(wanted))
    prompts = kinds if isinstance(kinds[0], str) else None
    labels = [kinds.index(prompt) for prompt in wanted] if prompts else wanted
    if out.suffix == ".npz":
        save_npz(list(images), labels, out, prompts=prompts)
    elif out.suffix == ".png":
        per_kind = len(labels) // len(kinds) if len(labels) % len(kinds) == 0 else 0
        rows = 2 <= per_kind <= 16 or (prompts and per_kind == 1)
        columns = per_kind if rows else max(1, round(math.sqrt(len(labels))))
        save_grid(torch.cat(list(images)), out, columns=columns, captions=prompts if rows else None)
    else:
        save_pngs(images, labels, out, prompts=prompts)
