"""AlignmentRunner: mmengine's Runner with its weak parts replaced (checkpoints, resume, wrapping, logging of itself).

`from_config` reads a checked config, builds every part through the registries, and returns a runner to `train()`.
"""

import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner

from ..registry import (
    BACKBONES,
    DATASETS,
    HOOKS,
    LOADERS,
    MODELS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    RUNNERS,
    UserError,
    build,
)
from ..registry.registry import parameters
from . import checkpoint, signals
from .optim import build_optimizer
from .plain import to_plain
from .resume import changes, check_resumable, find_resumable, keep_earlier, refuse, renew_options, tell


def rng_state() -> dict:
    """This process's global random states as tensors and plain numbers (safe to load)."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = dict(python=(version, list(words), gauss), torch=torch.get_rng_state())
    state["numpy"] = (name, torch.from_numpy(keys.astype(np.int64)), *[float(x) for x in rest])
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def start_processes(launcher: str) -> tuple[int, int]:
    """Joins the process group of torchrun or slurm -> (rank, world size); gloo where there is no GPU."""
    if launcher == "none":
        return 0, 1
    if not dist.is_initialized():
        if torch.cuda.is_available() or launcher == "slurm":
            from mmengine.dist import init_dist

            init_dist(launcher, backend="nccl" if torch.cuda.is_available() else "gloo")
        else:
            if "RANK" not in os.environ:
                raise UserError("--launcher pytorch is for torchrun: torchrun --nproc-per-node N tools/train.py ...")
            dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


@RUNNERS.register_module()
class AlignmentRunner(Runner):
    """See the module. Attributes beside mmengine's: `global_batch_size`, `plain_model`, `say`."""

    @classmethod
    def from_config(cls, cfg, *, resume: bool = False, fit_classes: bool = False) -> "AlignmentRunner":
        """cfg: a config that `ahpa.engine.config.load` returned. fit_classes: the backbone gets as many classes as the
        data set has. Raises UserError for data or weights not found."""
        launcher = cfg.get("launcher", "none")
        rank, world = start_processes(launcher)
        seed = (cfg.get("randomness") or {}).get("seed", 0)
        loader_cfg = dict(cfg["train_dataloader"])
        dataset = build(DATASETS, loader_cfg.pop("dataset"), where="train_dataloader.dataset")
        if fit_classes and hasattr(dataset, "classes") and takes_classes(cfg["model"]["backbone"]):
            set_classes(cfg["model"]["backbone"], dataset, quiet=rank > 0)
        torch.manual_seed(seed)
        model = build(MODELS, cfg["model"], where="model")
        check_classes(model, dataset)
        model.load_weights()
        work_dir, found, state, changed = Path(cfg["work_dir"]), None, None, {}
        if resume and (found := find_resumable(work_dir, rank)):
            state = checkpoint.load(found)
            changed = changes(state["meta"]["config"], to_plain(cfg))
            check_resumable(found, changed, scheduled=bool(cfg.get("param_scheduler")))
        accumulate = cfg["optim_wrapper"].get("accumulative_counts", 1)
        batch, rest = divmod(loader_cfg["global_batch_size"], world * accumulate)
        if rest or not batch:
            raise UserError(f"train_dataloader.global_batch_size: {loader_cfg['global_batch_size']} cannot be divided "
                            f"by {world} processes x {accumulate} accumulated batches.")  # fmt: skip
        start = state["data"]["consumed"] if state else 0
        del loader_cfg["global_batch_size"]
        loader = build(LOADERS, {"type": "CursorLoader", **loader_cfg}, where="train_dataloader",
                       dataset=dataset, batch=batch, seed=seed, rank=rank, world=world, start=start)  # fmt: skip
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        model.to(device)
        wrapper_cfg = dict(cfg["optim_wrapper"])
        wrapper_cfg["optimizer"] = build_optimizer(wrapper_cfg["optimizer"], model)
        wrapper = build(OPTIM_WRAPPERS, wrapper_cfg, where="optim_wrapper")
        earlier = keep_earlier(work_dir) if rank == 0 and state is None else None
        runner = cls(
            model=model, work_dir=cfg["work_dir"], train_dataloader=loader, optim_wrapper=wrapper,
            train_cfg={"type": "AlignmentTrainLoop", **cfg["train_cfg"]}, param_scheduler=cfg.get("param_scheduler"),
            default_hooks=empty_default_hooks(), custom_hooks=list_hooks(cfg), visualizer=cfg.get("visualizer"),
            randomness={"diff_rank_seed": True, **(cfg.get("randomness") or {}), "seed": seed}, launcher=launcher,
            default_scope="ahpa", log_level="ERROR", experiment_name=f"ahpa_{os.getpid()}_{time.time_ns()}",
            cfg=Config(to_plain(cfg)),
        )  # fmt: skip
        runner.plain_config, runner.resume_state, runner.resume_path = to_plain(cfg), state, found
        runner.changed = changed
        if earlier:
            runner.say(f"an earlier run lay in {work_dir}: it is kept in {earlier} (--resume goes on with a run)")
        return runner

    # ---- what mmengine does otherwise ----

    def wrap_model(self, model_wrapper_cfg, model):
        """Compiles each block where asked for, then wraps for several processes."""
        self.plain_model, self.global_batch_size = model, self.cfg["train_dataloader"]["global_batch_size"]
        self.bad_steps_told, self.last_indices, self.last_batch = 0, [], {}
        if self.cfg.get("compile", False):
            for block in model.backbone.blocks:
                block.compile(dynamic=False)
        if not self.distributed:
            return model
        self.control = dist.new_group(backend="gloo")
        device_ids = [torch.cuda.current_device()] if torch.cuda.is_available() else None
        return MMDistributedDataParallel(module=model, device_ids=device_ids, broadcast_buffers=False)

    def setup_env(self, env_cfg) -> None:
        super().setup_env(env_cfg)
        self._timestamp = "logs"  # mmengine's own folder, in place of one named after the time of each start

    def build_param_scheduler(self, scheduler) -> list:
        """Schedulers count optimiser steps (`by_epoch=False`): the stream of samples has no epochs of its own."""
        schedulers = scheduler if isinstance(scheduler, (list, tuple)) else [scheduler]
        return [
            build(
                PARAM_SCHEDULERS,
                {"by_epoch": False, **cfg},
                where=f"param_scheduler[{i}]",
                optimizer=self.optim_wrapper,
            )
            for i, cfg in enumerate(schedulers)
        ]

    def _maybe_compile(self, target: str) -> None:
        """mmengine would compile the whole of train_step; the blocks are compiled in `wrap_model`."""

    def _init_model_weights(self) -> None:
        """The parts initialise themselves."""

    def _log_env(self, env_cfg) -> None:
        """Told shortly by the progress hook."""

    def dump_config(self) -> None:
        """Kept as plain data in each checkpoint, and as config.json beside them."""

    def call_hook(self, fn_name: str, **kwargs) -> None:
        for hook in self._hooks:  # mmengine hides the traceback of a TypeError inside a hook
            if hasattr(hook, fn_name):
                getattr(hook, fn_name)(self, **kwargs)

    def say(self, message: str) -> None:
        """One line for a person: to the screen and to train.log; only the first process speaks."""
        if self.rank == 0:
            print(message, flush=True)
            with open(Path(self.work_dir) / "train.log", "a") as file:
                file.write(f"{message}\n")

    def stop_agreed(self) -> bool:
        """Whether any process was asked to stop; all processes get the same answer at the same boundary."""
        asked = signals.asked()
        if self.distributed:
            flag = torch.tensor([int(asked is not None)])
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.control)
            asked = asked or ("another process" if int(flag) else None)
        if asked and not self.train_loop.stop_training:
            self.train_loop.stop_training = True
            self.say(f"{asked} at iteration {self.iter}: saving a checkpoint and ending; go on with --resume.")
        return self.train_loop.stop_training

    # ---- checkpoints ----

    @property
    def checkpoint_dir(self) -> Path:
        return Path(self.work_dir) / "checkpoints"

    def state(self) -> dict:
        """All that a checkpoint holds; gathers the random states of all processes."""
        states = [rng_state()]
        if self.distributed:
            states = [None] * self.world_size
            dist.all_gather_object(states, rng_state(), group=self.control)
        schedulers = self.param_schedulers or []
        return dict(
            model=self.plain_model.state_dict(), ema=self.plain_model.ema.state_dict(),
            optimizer=self.optim_wrapper.state_dict(), rng=states, data=self.train_loop.state_dict(),
            schedulers=[scheduler.state_dict() for scheduler in schedulers],
            hooks={type(hook).__name__: hook.state_dict() for hook in self._hooks if hasattr(hook, "state_dict")},
            meta=dict(iteration=self.iter, config=self.plain_config, seed=self.seed),
        )  # fmt: skip

    def save(self) -> Path:
        """Writes a checkpoint of this boundary -> its path."""
        path, state = self.checkpoint_dir / checkpoint.NAME.format(self.iter), self.state()
        if self.rank == 0:
            checkpoint.save(state, path)
        if self.distributed:
            dist.barrier(group=self.control)
        return path

    def load_or_resume(self) -> None:
        state = self.resume_state
        if state is None:
            return
        try:
            self._load(state)
        except (RuntimeError, ValueError, KeyError) as error:  # whichever part of the state does not fit
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise refuse(self.resume_path, self.changed, f"its state does not fit ({reason})") from error
        self.bad_steps_told = int(self.optim_wrapper.bad_total)
        self.say(f"resumed from {self.resume_path} at iteration {self.iter}")
        if self.changed:
            self.say(f"changed since that checkpoint: {tell(self.changed)}")

    def _load(self, state: dict) -> None:
        self.plain_model.load_state_dict(state["model"])
        self.plain_model.ema.load_state_dict(state["ema"])
        optimizer = self.optim_wrapper.optimizer
        fresh = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        self.optim_wrapper.load_state_dict(state["optimizer"])
        renew_options(optimizer, fresh, self.changed)
        self.train_loop.load_state_dict(state["data"])
        for scheduler, values in zip(self.param_schedulers or [], state["schedulers"], strict=True):
            scheduler.load_state_dict(values)
        for hook in self._hooks:
            if type(hook).__name__ in state["hooks"]:
                hook.load_state_dict(state["hooks"][type(hook).__name__])

    def restore_rng(self) -> None:
        """After a resume: this process's global random states as they were; the read state is let go."""
        state, self.resume_state = self.resume_state, None
        if state is not None and self.rank < len(state["rng"]):
            set_rng_state(state["rng"][self.rank])


def empty_default_hooks() -> dict:
    """mmengine's default hooks, off but for the parameter scheduler's: ours stand in the config's `hooks`."""
    names = ("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")
    return {**dict.fromkeys(names), "param_scheduler": dict(type="ParamSchedulerHook")}


def list_hooks(cfg) -> list:
    """The config's hooks, built; a hook that is set to None is off."""
    hooks = cfg.get("hooks", {}).items()
    return [build(HOOKS, hook, where=f"hooks.{name}") for name, hook in hooks if hook is not None]


def takes_classes(backbone: dict) -> bool:
    return "num_classes" in parameters(BACKBONES.get(backbone["type"]))[0]


def set_classes(backbone: dict, dataset, *, quiet: bool) -> None:
    """Makes the backbone's config fit the data set's classes, and says so."""
    count, known = len(dataset.classes), backbone.get("num_classes")
    if count != known and not quiet:
        print(f"the data set has {count} classes: model.backbone.num_classes is {count} instead of {known}", flush=True)
    backbone["num_classes"] = count


def check_classes(model, dataset) -> None:
    """UserError unless the data set gives what the model is conditioned on, and its labels fit the backbone's classes.

    A data set says by `captioned` whether it has captions; one that does not say is taken as it comes.
    """
    takes, captioned = getattr(model.conditioner, "takes", None), getattr(dataset, "captioned", None)
    if takes == "prompts" and captioned is False:
        raise UserError(f"the model is conditioned on text, and a {type(dataset).__name__} gives no captions: use "
                        "CocoCaptions or the drawn set, or a config of classes.")  # fmt: skip
    if takes == "classes" and captioned and not hasattr(dataset, "classes"):
        raise UserError(f"the model is conditioned on classes, and a {type(dataset).__name__} gives captions only: use a "
                        "text config such as configs/mmdit.py.")  # fmt: skip
    names, known = getattr(dataset, "classes", None), getattr(model.backbone, "num_classes", None)
    if names is not None and known is not None and len(names) > known:
        raise UserError(f"the data set has {len(names)} classes, the backbone {known}: set "
                        f"--cfg-options model.backbone.num_classes={len(names)}.")  # fmt: skip
