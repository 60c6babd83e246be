"""AlignmentRunner: the adapter between the training loop and mmengine's Runner.

`from_config` builds every part through the registries. mmengine's hooks, parameter schedulers,
visualisers and config files work as mmengine documents them; the loop itself is `Trainer`.
"""

import copy
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..data.sampler import CursorLoader
from ..registry import BACKBONES, DATASETS, PARAM_SCHEDULERS, UserError, build, signals
from ..registry.contracts import Dataset
from ..registry.files import CannotWrite, write_file
from ..registry.locations import command_line
from . import checkpoint, lock, resume
from .assembly import build_model
from .config import CHECKPOINTS, batch_per_process, build_hooks
from .denoiser import AlignedDenoiser
from .distributed import Processes
from .metrics import Metrics
from .nonfinite import NonFinite, bad_weight
from .optimiser import Optimiser, build_optimizer
from .plain import to_plain
from .random_state import random_state, set_random_state
from .resume import keep_earlier
from .run_log import LeftOut, RunLog, start_logging, warned
from .trainer import Run, Trainer, TrainOptions

logger = logging.getLogger("ahpa")

MMENGINE_HOOKS = (  # mmengine's default hooks; the loop, or our hooks, do their work
    "runtime_info",
    "timer",
    "sampler_seed",
    "logger",
    "param_scheduler",
    "checkpoint",
)


class TrainerLoop(BaseLoop):
    """Shows the trainer to mmengine's hooks as `runner.train_loop`."""

    def __init__(self, runner: "AlignmentRunner", trainer: Trainer) -> None:
        super().__init__(runner, trainer.loader)
        self.trainer = trainer
        self.stop_training = False

    @property
    def iter(self) -> int:
        """Number of the current step, from 0, as mmengine counts: raised after the hooks ran."""
        return self.runner.iter

    @property
    def max_iters(self) -> int:
        """Optimiser steps of the run."""
        return self.trainer.options.max_iters

    @property
    def epoch(self) -> int:
        """Always 0: the stream of samples has no epochs of its own."""
        return 0

    @property
    def max_epochs(self) -> int:
        """Always 1."""
        return 1

    def run(self) -> nn.Module:
        """Train to the end."""
        self.trainer.train()
        return self.runner.model


class AlignmentRunner(Runner, Run):
    """mmengine's Runner around a `Trainer`: checkpoints, resume, log, hooks and signals.

    Build it with `from_config`. Beside mmengine's attributes it has `net` (the trained model),
    `parts` (the frozen ones), `trainer`, `processes` and `logger` (to the screen and train.log).
    """

    trainer: Trainer

    @classmethod
    def from_config(
        cls,
        cfg: dict[str, Any],
        *,
        resume: bool = False,
        fit_classes: bool = False,
        accept_changed_data: bool = False,
    ) -> "AlignmentRunner":
        """Build a run from a checked config.

        Args:
            cfg: A config as `ahpa.engine.config.load` returns it.
            resume: Continue from the newest valid checkpoint of the work dir.
            fit_classes: Set the backbone's number of classes to the data set's.
            accept_changed_data: Resume although the data set is not the checkpoint's.

        Raises:
            UserError: If data or weights are missing, the config does not fit the checkpoint, or
                another process trains in the work dir.
        """
        processes = Processes.start(cfg.get("launcher", "none"))
        start_logging(rank=processes.rank)
        work_dir = Path(cfg["work_dir"])
        processes.on_first(lambda: lock.refuse_if_held(work_dir))
        seed = (cfg.get("randomness") or {}).get("seed", 0)
        dataset = build_dataset(cfg)
        if fit_classes:
            set_classes(cfg["model"]["backbone"], dataset)
        name_classes(cfg["model"], dataset)
        torch.manual_seed(seed)
        net = build_model(cfg["model"])
        check_conditions(net, dataset)
        net.parts.load()
        batch = batch_per_process(cfg, processes.world)
        gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        left = processes.on_first(lambda: lock.take(work_dir))
        try:
            continues = open_work_dir(work_dir, processes, resume=resume, left=left)
            fingerprint = dataset.fingerprint()
            saved = None
            if continues:
                saved = SavedRun.find(
                    work_dir, cfg, fingerprint, processes, accept_changed_data=accept_changed_data
                )
            net.to(device)
            net.parts.to(device)
            runner = cls(cfg=cfg, net=net, processes=processes, seed=seed)
            runner._attach_trainer(dataset, batch, saved, fingerprint)
        except BaseException:
            lock.release(work_dir)
            raise
        return runner

    def __init__(
        self, *, cfg: dict[str, Any], net: AlignedDenoiser, processes: Processes, seed: int
    ) -> None:
        self.settings = cfg
        self.net = net
        self.parts = net.parts
        self.processes = processes
        self.run_seed = seed  # of every rank; mmengine's `seed` has the rank added to it
        self.checkpoints = {**CHECKPOINTS, **(cfg.get("checkpoints") or {})}
        self._hook_iteration = 0
        self._figures: dict[str, float] = {}
        self._kept_names: list[str] = []
        self.own_hooks = build_hooks(cfg)
        optimizer = build_optimizer(cfg["optim_wrapper"]["optimizer"], net)
        super().__init__(
            model=net,
            work_dir=cfg["work_dir"],
            train_dataloader={},
            optim_wrapper=OptimWrapper(optimizer),
            train_cfg={},
            default_hooks=dict.fromkeys(MMENGINE_HOOKS),
            custom_hooks=list(self.own_hooks.values()),
            visualizer=copy.deepcopy(cfg.get("visualizer")),  # mmengine adds this run's folder
            randomness={"diff_rank_seed": True, **(cfg.get("randomness") or {}), "seed": seed},
            launcher=cfg.get("launcher", "none"),
            default_scope="ahpa",
            experiment_name=f"ahpa_{os.getpid()}_{time.time_ns()}",
            cfg=Config(to_plain(cfg)),
        )

    def _attach_trainer(
        self,
        dataset: Dataset,
        batch: int,
        saved: "SavedRun | None",
        fingerprint: Mapping[str, Any],
    ) -> None:
        """Build the loader, the optimiser and the trainer, which will restore the saved state."""
        cfg, processes = self.settings, self.processes
        wrapper = {key: value for key, value in cfg["optim_wrapper"].items() if key != "optimizer"}
        optimiser = Optimiser(optimizer=self.optim_wrapper.optimizer, **wrapper)
        options = TrainOptions(
            **cfg["train_cfg"],
            seed=self.run_seed,
            global_batch_size=cfg["train_dataloader"]["global_batch_size"],
        )
        loader = CursorLoader(
            dataset=dataset,
            batch=batch,
            seed=self.run_seed,
            rank=processes.rank,
            world=processes.world,
            start=saved.state["data"]["consumed"] if saved else 0,
            num_workers=cfg["train_dataloader"].get("num_workers", 0),
            tell=LeftOut(Path(self.work_dir)).tell,
        )
        self.trainer = Trainer(
            net=self.model,
            model=self.net,
            optimiser=optimiser,
            loader=loader,
            options=options,
            metrics=Metrics(processes),
            schedulers=build_schedulers(cfg, optimiser.optimizer),
            run=self,
        )
        self.param_schedulers = self.trainer.schedulers
        self._train_loop = TrainerLoop(self, self.trainer)
        self.run_log = RunLog(Path(self.work_dir))
        self._fingerprint = fingerprint
        self._saved = saved
        self._saved_at = -1

    # ---- what mmengine does otherwise -------------------------------------------------------

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        """Return our own logger, to the screen and train.log; quiet while the Runner is built."""
        logger.setLevel(logging.WARNING)
        return logger

    def wrap_model(self, model_wrapper_cfg: Any, model: AlignedDenoiser) -> nn.Module:
        """Compile each block if the config asks for it, then wrap for several processes."""
        if self.settings.get("compile", False):
            for block in model.backbone.blocks:
                block.compile(dynamic=False)
        if not self.processes.several:
            return model
        device_ids = [torch.cuda.current_device()] if torch.cuda.is_available() else None
        return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Set up mmengine's environment; its own files go to `logs/` in the work dir."""
        super().setup_env(env_cfg)
        self._timestamp = "logs"
        with warned(f"the folder {self.work_dir}/logs"):
            (Path(self.work_dir) / "logs").mkdir(parents=True, exist_ok=True)
            return
        self._timestamp = ""  # mmengine needs a folder: the work dir itself

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Log nothing; the first lines of a run say what matters."""

    def dump_config(self) -> None:
        """Write nothing; the config is plain data in each checkpoint and in config.json."""
        logger.setLevel(logging.INFO if self.processes.rank == 0 else logging.WARNING)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call a hook point of all hooks; a TypeError inside a hook keeps its traceback."""
        call_hooks(self._hooks, self, fn_name, **kwargs)

    def train(self) -> nn.Module:
        """Train to the end and return the model."""
        try:
            self.trainer.train()
        finally:
            lock.release(Path(self.work_dir))
        return self.model

    @property
    def iter(self) -> int:
        """Number of the current step from 0, as mmengine counts: raised after the hooks ran."""
        return self._hook_iteration

    @property
    def max_iters(self) -> int:
        """Optimiser steps of the run."""
        return self.trainer.options.max_iters

    @property
    def epoch(self) -> int:
        """Always 0: the stream of samples has no epochs of its own."""
        return 0

    @property
    def train_dataloader(self) -> DataLoader:
        """The endless data loader."""
        return self.trainer.loader

    # ---- what happens around the loop (see Run) ---------------------------------------------

    def say(self, message: str) -> None:
        """Log a message, to the screen and train.log."""
        logger.info(message)

    def note_step(self, iteration: int, kind: str, samples: Sequence[str]) -> None:
        """Append a bad step with all its samples to bad_steps.json."""
        if self.rank == 0:
            self.run_log.note_step({"iteration": iteration, "kind": kind, "samples": [*samples]})

    def saved(self) -> str:
        """Return the path of the newest checkpoint, or ""."""
        found = checkpoint.list_checkpoints(Path(self.work_dir) / "checkpoints")
        return str(found[-1][1]) if found else ""

    def before_train(self) -> None:
        """Restore the saved state, write config.json, start the log and call the hooks."""
        self.call_hook("before_run")
        if self._saved:
            self._restore(self._saved)
        self._hook_iteration = self.trainer.iteration
        self._with_state = [hook for hook in self._hooks if isinstance(hook, StatefulHook)]
        self._without_state = [hook for hook in self._hooks if hook not in self._with_state]
        if self.rank == 0:
            config = json.dumps(to_plain(self.settings), indent=2).encode()
            with warned("config.json"):
                write_file(Path(self.work_dir) / "config.json", config + b"\n")
            self.run_log.start(self.trainer.iteration)
        self.call_hook("before_train")
        self.call_hook("before_train_epoch")  # as mmengine: the whole run is one big epoch

    def restore_random_state(self) -> None:
        """Restore this process's global random state; the read checkpoint is released."""
        if self._saved and self.rank < len(self._saved.state["rng"]):
            set_random_state(self._saved.state["rng"][self.rank])
        self._saved = None

    def stop_requested(self) -> bool:
        """Whether any process received a signal; all get the same answer at the same step."""
        asked = signals.asked() or (self.trainer.data_error and "the data cannot be read")
        loop = self._train_loop
        if self.processes.any(asked is not None) and not loop.stop_training:
            loop.stop_training = True
            self.say(
                f"{asked or 'another process was asked to stop'} at iteration "
                f"{self.trainer.iteration}: saving a checkpoint and ending; continue with --resume."
            )
        return loop.stop_training

    def before_step(self, iteration: int) -> None:
        """Call the hooks."""
        self._hook_iteration = iteration
        self.call_hook("before_train_iter", batch_idx=iteration, data_batch=None)

    def after_step(self, iteration: int, values: Mapping[str, Tensor]) -> None:
        """Save, log and call the hooks: the checkpoint comes before pictures and log lines.

        Hooks with state are called first, so that the checkpoint holds their state after this step.
        """
        trainer, done = self.trainer, iteration + 1
        step = {"batch_idx": iteration, "data_batch": None, "outputs": dict(values)}
        call_hooks(self._with_state, self, "after_train_iter", **step)
        log_due = trainer.options.log_due(done)
        if log_due:
            self._make_record(done)
        due = done % self.checkpoints["interval"] == 0 or done == self.max_iters
        if due or self._kept_names:
            self.save()
        if log_due and self.rank == 0:
            self._write_record()
        for hook in self._without_state:
            with warned(f"what {type(hook).__name__} writes"):
                call_hooks([hook], self, "after_train_iter", **step)
        self._hook_iteration = done

    def after_train(self) -> None:
        """Save unless the last step did, call the hooks, say how to go on, and wait for all."""
        if self._saved_at != self.trainer.iteration:
            self.save()
        self.call_hook("after_train_epoch")
        self.call_hook("after_train")
        last = self.checkpoint_path(self.trainer.iteration)
        self.say(f"checkpoint: {last}")
        if not self._train_loop.stop_training:
            self.say(f"sample from it: {self._sample_command(last)}")
        self.call_hook("after_run")
        self.processes.wait()
        lock.release(Path(self.work_dir))

    def _sample_command(self, path: Path) -> str:
        """Return the command that samples as the run's own grids were sampled."""
        from .hooks import SampleGrids

        guidance = "".join(h.guidance_options() for h in self._hooks if isinstance(h, SampleGrids))
        imports = self.settings.get("custom_imports")
        own = f" --config {self.work_dir}/config.json" if imports else ""
        out = f"{self.work_dir}/samples.png"
        return f"{command_line('sample')} {path} --num 64{guidance}{own} --out {out}"

    def add_figures(self, figures: Mapping[str, float]) -> None:
        """Add figures to the next log line. For hooks with state: those of the step itself.

        Args:
            figures: {name: value}, equal on every process.
        """
        self._figures |= figures

    def keep_checkpoint(self, name: str) -> None:
        """Keep the checkpoint of this step as `checkpoints/<name>.pth` too, which is never deleted.

        A hook with state that calls it on every process causes a checkpoint of its step. Called
        before training, it keeps the checkpoint that is resumed from.

        Args:
            name: Any but "iter_..." of the checkpoints themselves.
        """
        self._kept_names.append(name)
        if self._saved:
            self._keep(self._saved.path)

    def _keep(self, path: Path) -> None:
        """Give a checkpoint the names that were asked for; a failure is a warning."""
        for name in self._kept_names:
            kept = path.with_name(f"{name}.pth")
            with warned(str(kept)):
                checkpoint.link(path, kept)
        self._kept_names = []

    def _make_record(self, done: int) -> None:
        """Take the means over steps and ranks since the last line."""
        optimiser = self.trainer.optimiser
        figures, self._figures = self._figures, {}
        self.run_log.make_record(
            done,
            {**self.trainer.metrics.reduce(), **figures},
            lr=float(optimiser.lr),
            skipped=int(optimiser.bad_total),
            batch=self.trainer.options.global_batch_size,
        )

    def _write_record(self) -> None:
        """Write the last record to scalars.json, the visualisers, the screen and train.log."""
        self.run_log.write()
        record = self.run_log.record or {}
        scalars = {key: value for key, value in record.items() if key != "iteration"}
        with warned("what the visualizer writes"):
            self.visualizer.add_scalars(scalars, step=record["iteration"])
        batch = self.trainer.options.global_batch_size
        self.say(self.run_log.line(self.max_iters, batch))

    # ---- checkpoints ------------------------------------------------------------------------

    def checkpoint_path(self, iteration: int) -> Path:
        """Return the path of the checkpoint after this many steps."""
        return Path(self.work_dir) / "checkpoints" / checkpoint.NAME.format(iteration)

    def stateful_hooks(self) -> dict[str, "StatefulHook"]:
        """Return the hooks with state by their names in the config, else by their types."""
        named = {id(hook): name for name, hook in self.own_hooks.items()}
        hooks = [hook for hook in self._hooks if isinstance(hook, StatefulHook)]
        return {named.get(id(hook), type(hook).__name__): hook for hook in hooks}

    def state(self) -> dict[str, Any]:
        """Collect what a checkpoint holds, with the random states of all processes."""
        trainer = self.trainer
        hooks = self.stateful_hooks()
        return {
            "model": self.net.state_dict(),
            "ema": self.parts.ema.backbone.state_dict(),
            "optimizer": trainer.optimiser.state_dict(),
            "rng": self.processes.gather(random_state()),
            "data": trainer.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in trainer.schedulers],
            "metrics": self.processes.gather(trainer.metrics.state_dict()),
            "record": self.run_log.record,
            "hooks": {name: hook.state_dict() for name, hook in hooks.items()},
            "meta": {
                "iteration": trainer.iteration,
                "config": to_plain(self.settings),
                "seed": self.run_seed,
                "dataset": self._fingerprint,
                "finite": True,  # or it is not written
            },
        }

    def save(self) -> Path:
        """Write a checkpoint of this step, prune older ones, and return its path.

        None is pruned in a row of bad steps: the weights that led to it may be the cause.

        Raises:
            NonFinite: If a weight or an average is not finite: that is never saved.
            WorkDirInUse: If the lock was removed and another process trains in the folder.
            CannotWrite: If it cannot be written.
        """
        iteration = self.trainer.iteration
        path = self.checkpoint_path(iteration)
        state = self.state()
        self.processes.on_first(lambda: self._write_checkpoint(state, path))
        if self.rank == 0:
            self._keep(path)
        if self.rank == 0 and not int(self.trainer.optimiser.bad_in_row):
            checkpoint.prune(path.parent, keep=self.checkpoints["keep"], last=iteration)
        self._kept_names = []
        self._saved_at = iteration
        return path

    def _write_checkpoint(self, state: dict[str, Any], path: Path) -> None:
        name = checkpoint.not_finite(state)
        if name is not None:
            part, key = name.split(": ")
            raise NonFinite(
                bad_weight(name, state[part][key], self.trainer.iteration, self.saved())
            )
        lock.keep(Path(self.work_dir))
        try:
            checkpoint.save(state, path)
        except CannotWrite as error:
            raise CannotWrite(f"{error} Then continue with --resume.") from error

    def _restore(self, saved: "SavedRun") -> None:
        """Load a saved run's state. Raises UserError if it does not fit."""
        try:
            self._load(saved)
        except (RuntimeError, ValueError, KeyError) as error:  # whichever part does not fit
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise resume.cannot_resume(
                saved.path, saved.changed, f"its state does not fit ({reason})"
            ) from error
        self.say(f"resumed from {saved.path} at iteration {self.trainer.iteration}")
        if self.trainer.iteration >= self.max_iters:
            self.say(
                f"nothing is left to train: the run has {self.max_iters} iterations. A larger "
                "--max-iters goes on."
            )
        if saved.changed:
            self.say(f"changed since that checkpoint: {resume.describe(saved.changed)}")

    def _load(self, saved: "SavedRun") -> None:
        state, trainer = saved.state, self.trainer
        self.net.load_state_dict(state["model"])
        self.parts.ema.backbone.load_state_dict(state["ema"])
        optimizer = trainer.optimiser.optimizer
        fresh = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        trainer.optimiser.load_state_dict(state["optimizer"])
        resume.apply_changed_options(optimizer, fresh, saved.changed)
        trainer.load_state_dict(state["data"])
        for scheduler, values in zip(trainer.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(values)
        metrics = state.get("metrics", [])  # absent in checkpoints of ahpa before 0.2
        if self.rank < len(metrics):
            trainer.metrics.load_state_dict(metrics[self.rank])
        self.run_log.record = state.get("record")
        for name, hook in self.stateful_hooks().items():
            if name in state["hooks"]:
                hook.load_state_dict(state["hooks"][name])


class StatefulHook(Hook):
    """An mmengine hook whose state is saved in checkpoints and restored at a resume."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as tensors and plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class SavedRun:
    """A checkpoint to continue from, and how this config differs from its own."""

    def __init__(self, path: Path, state: dict[str, Any], changed: resume.Changes) -> None:
        self.path = path
        self.state = state
        self.changed = changed

    @classmethod
    def find(
        cls,
        work_dir: Path,
        cfg: Mapping[str, Any],
        fingerprint: Mapping[str, Any],
        processes: Processes,
        *,
        accept_changed_data: bool,
    ) -> "SavedRun":
        """Read the newest valid checkpoint of a work dir.

        Raises:
            UserError: If there is none, or this config or data set cannot continue it.
        """
        path = processes.on_first(lambda: resume.find_resumable(work_dir))
        state = checkpoint.load(path)
        before = state["meta"].get("dataset")
        resume.check_data(path, before, fingerprint, accept=accept_changed_data)
        changed = resume.changes(state["meta"]["config"], to_plain(cfg))
        world = len(state["rng"])
        if world and world != processes.world:  # an imported run has none
            changed = {"number of processes": (world, processes.world), **changed}
        resume.check_resumable(path, changed, scheduled=bool(cfg.get("param_scheduler")))
        return cls(path, state, changed)


def call_hooks(hooks: Iterable[Hook], runner: AlignmentRunner, point: str, **kwargs: Any) -> None:
    """Call one of mmengine's hook points, such as "after_train_iter", of some hooks."""
    for hook in hooks:
        method = getattr(hook, point, None)
        if method is not None:
            method(runner, **kwargs)


def open_work_dir(
    work_dir: Path, processes: Processes, *, resume: bool, left: Mapping[str, Any] | None
) -> bool:
    """Start train.log and check that checkpoints can be written; the lock is held.

    Args:
        work_dir: The folder. A start that resumes nothing first moves an earlier run aside.
        processes: This run's processes.
        resume: Whether to continue the run that is there.
        left: What a process that has died had written to the lock.

    Returns:
        Whether there is something to continue.

    Raises:
        UserError: If the folder cannot be used.
    """
    folder = work_dir / "checkpoints"
    continues = resume and processes.on_first(lambda: checkpoint.any_left(folder))
    earlier = None
    if not continues:
        earlier = processes.on_first(lambda: keep_earlier(work_dir))
    processes.on_first(lambda: checkpoint.check_writable(folder))
    start_logging(work_dir, rank=processes.rank)
    if left:
        logger.info("process %(process)s on %(host)s, which trained here, has ended.", dict(left))
    if earlier:
        logger.info(
            "an earlier run in %s was moved to %s (--resume continues a run)", work_dir, earlier
        )
    if resume and not continues:
        logger.info("--resume: there is no checkpoint in %s; starting from the beginning.", folder)
    return continues


def build_schedulers(cfg: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> list[Any]:
    """Build mmengine's parameter schedulers; they count optimiser steps."""
    schedulers = cfg.get("param_scheduler") or []
    if isinstance(schedulers, Mapping):
        schedulers = [schedulers]
    return [
        build(
            PARAM_SCHEDULERS,
            {"by_epoch": False, **scheduler},
            where=f"param_scheduler[{number}]",
            optimizer=optimizer,
        )
        for number, scheduler in enumerate(schedulers)
    ]


def build_dataset(cfg: Mapping[str, Any]) -> Dataset:
    """Build the data set at the model's resolution."""
    resolution = cfg["model"].get("resolution", 256)
    dataset = dict(cfg["train_dataloader"]["dataset"])
    return build(DATASETS, dataset, where="train_dataloader.dataset", resolution=resolution)


def set_classes(backbone: dict[str, Any], dataset: Dataset) -> None:
    """Set the number of classes in a backbone's config to the data set's, and say so."""
    if dataset.classes is None or BACKBONES.get(backbone["type"]).takes != "classes":
        return
    count, known = len(dataset.classes), backbone.get("num_classes")
    if count != known:
        logger.info(
            "the data set has %d classes: model.backbone.num_classes is %d instead of %s",
            count,
            count,
            known,
        )
    backbone["num_classes"] = count


def name_classes(model: dict[str, Any], dataset: Dataset) -> None:
    """Let the names of the classes travel with the model: into checkpoints and config.json.

    More classes than the backbone has labels are left to `check_conditions`.
    """
    model.pop("classes", None)
    if dataset.classes is None or BACKBONES.get(model["backbone"]["type"]).takes != "classes":
        return
    known = model["backbone"].get("num_classes")
    if known is None or len(dataset.classes) <= known:
        model["classes"] = list(dataset.classes)


def check_conditions(model: AlignedDenoiser, dataset: Dataset) -> None:
    """Check that the data set gives what the model is conditioned on.

    Raises:
        UserError: If captions or classes are missing, or there are more classes than labels.
    """
    takes = model.parts.conditioner.takes
    kind = type(dataset).__name__
    if takes == "prompts" and not dataset.captioned:
        raise UserError(
            f"the model is conditioned on text, but {kind} has no captions: use CocoCaptions or "
            "the drawn set, or a class-conditional config."
        )
    if takes == "classes" and dataset.classes is None and dataset.captioned:
        raise UserError(
            f"the model is conditioned on classes, but {kind} has captions only: use a text config "
            "such as configs/mmdit.py."
        )
    known = model.geometry.num_classes
    if dataset.classes is not None and known is not None and len(dataset.classes) > known:
        count = len(dataset.classes)
        raise UserError(
            f"the data set has {count} classes, but the backbone only {known}: set "
            f"--cfg-options model.backbone.num_classes={count}."
        )
