"""What every stage shares: its folder, what it was made from, and whether it is done."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from dist_train.config import STAGES, Config, digest, to_yaml
from dist_train.data.loading.order import Order, rank_slice
from dist_train.data.shards.index import ShardSet, open_shards
from dist_train.data.splits import Split, View, load_split, make_view
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.fewshot import methods
from dist_train.files import write_text
from dist_train.runs.inputs import check_checkpoint, check_inputs, inputs, same_options
from dist_train.runs.provenance import git_commit, provenance
from dist_train.training import checkpoint, precision
from dist_train.training.finite import NonFinite
from dist_train.training.strategies.deepspeed import deepspeed_options
from dist_train.training.strategies.strategy import Strategy

log = logging.getLogger("dist_train")


@dataclass(frozen=True)
class Run:
    """A run's inputs, opened and checked."""

    config: Config
    shards: ShardSet
    split: Split
    base: tuple[str, ...]
    novel: tuple[str, ...]
    _views: dict[tuple[str, str], View] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def dir(self) -> Path:
        return self.config.run_dir

    @property
    def scored(self) -> tuple[str, ...]:
        """The base classes that are scored beside the novel ones: all, but in a split by halves."""
        return self.split.scored(self.config.data.holdout)

    @property
    def kept(self) -> list[int]:
        """Positions of ``scored`` in ``base``."""
        return self.split.kept(self.config.data.holdout)

    def view(self, subset: str, role: str) -> View:
        """The images of the ``base``, ``scored`` or ``novel`` classes in ``train`` or ``val``; made once."""
        if (subset, role) not in self._views:
            classes = {"base": self.base, "scored": self.scored, "novel": self.novel}[role]
            view = make_view(self.shards[subset], self.shards.classes, classes, self.config.data.split)
            self._views[subset, role] = view
        return self._views[subset, role]


def open_run(config: Config, world: int = 1) -> Run:
    """Open shards and split.

    Raises:
        UserError: missing or unfit shards or split, or options that do not fit them or ``world`` ranks.
    """
    git_commit()  # now, while it is the code that runs
    split = load_split(config.data.split)
    base, novel = split.roles(config.data.holdout)
    shards = open_shards(config.data.shards, config.cache, config.data.block_shards)
    run = Run(config, shards, split, base, novel)
    sizes = {(subset, role): run.view(subset, role) for subset in ("train", "val") for role in ("base", "novel")}
    # What would only fail hours later, or after a stage has begun, fails here.
    Order(len(sizes["train", "base"]), config.pretrain.global_batch, config.seed)  # refuses too few images
    check_options(config, world)
    fewest = int(np.diff(sizes["train", "novel"].bounds).min())
    if config.evaluate.images > fewest:
        more = "" if config.evaluate.protocol == "joint" else f", {config.evaluate.images} needed with the queries"
        raise UserError(
            f"evaluate.shots={config.evaluate.shots}: a novel class has only {fewest} training images{more}"
        )
    if config.evaluate.protocol != "joint" and config.evaluate.ways > len(novel):
        raise UserError(f"evaluate.ways={config.evaluate.ways}: there are only {len(novel)} novel classes")
    return run


def check_options(config: Config, world: int) -> None:
    """What does not fit together, whatever the machine and the images.

    Raises:
        UserError: it names the key.
    """
    methods.check(config.learn.methods, config.evaluate.methods, config.evaluate.options)
    for name in config.evaluate.methods:
        if config.evaluate.protocol != "joint" and methods.METHODS[name].oracle:
            raise UserError(f"evaluate.methods: {name} is shown all images; it needs evaluate.protocol=joint")
    share = rank_slice(np.arange(config.pretrain.global_batch), 0, world * config.pretrain.accumulate)
    if len(share) < 2:
        raise UserError(
            "pretrain.global_batch: leaves 1 image a rank and pass, batch norm needs 2; choose a larger one"
        )
    if config.pretrain.strategy != "ddp":
        deepspeed_options(config.pretrain, world)


def check_device(config: Config) -> None:
    """What this machine cannot do, in a later stage too.

    Raises:
        UserError: it names the key.
    """
    if torch.cuda.is_available():
        return
    for section in ("pretrain", "extract", "learn"):
        if getattr(config, section).precision == "fp16" and not precision.cpu_has("fp16"):
            raise UserError(f"{section}.precision=fp16: this CPU has no fp16 instructions; use bf16 or fp32")
    if config.pretrain.sync_batchnorm:
        raise UserError("pretrain.sync_batchnorm: PyTorch has it for GPUs only; leave it out on CPUs")


class RunLock:
    """Keeps a second start of the same run out as long as this one lives (a lock of the kernel: a killed
    process holds none). Rank 0 holds it for all."""

    def __init__(self, folder: Path, context: Context) -> None:
        self.folder, self.context = folder, context
        self._lock: FileLock | None = None

    def acquire(self) -> None:
        """Once is enough; again does nothing. Makes the folder.

        Raises:
            UserError: another process is at work.
        """
        if not self.context.main or self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.folder}: another process is at work on this run; wait for it, or take another --name"
            ) from None
        except (OSError, NotImplementedError) as error:
            log.warning("%s: this file system has no locks (%s); start a run once at a time", self.folder, error)
        self._lock = lock

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()


class Stage:
    """One stage's folder. Use: ``if stage.done: return stage.rest()``, work, ``stage.finish()``; ``stage.reopen()``
    before the work where a stage that is done can be asked for more.

    A stage that was started or finished from other inputs stops and says what changed; ``redo``
    deletes it, and the stages after it, first.

    Raises:
        UserError: inputs changed since the stage was started.
    """

    def __init__(self, run: Run, name: str, context: Context, redo: bool = False) -> None:
        self.run, self.folder = run, run.dir / name
        self.name = name
        self.context = context
        self.inputs = inputs(run, name)
        if context.main:
            self._check(run, redo)
            if redo:  # what was made from this stage's results goes with them
                for later in STAGES[STAGES.index(name) :]:
                    shutil.rmtree(run.dir / later, ignore_errors=True)
            if not (self.folder / "done.json").is_file():
                self._record()
        context.barrier(f"{name}-open")
        self.done = (self.folder / "done.json").is_file()

    def _check(self, run: Run, redo: bool) -> None:
        for stage in STAGES[: STAGES.index(self.name)]:
            if not (run.dir / stage / "done.json").is_file():
                raise UserError(f"{run.dir / stage}: {stage} is not finished; first: {same_options(stage).rstrip(',')}")
        if not redo:
            check_inputs(run, self.name)

    def rest(self) -> None:
        """All is there."""
        if self.context.main:
            log.info("%s: done already (%s)", self.name, self.folder)

    def reopen(self) -> None:
        """There is more to make than when it was finished, if it was: it is not done now, for later stages either, and
        notes anew what it is made from. All ranks call it."""
        if self.context.main and self.done:
            log.info("%s: done (%s), but not all that is asked for now", self.name, self.folder)
            (self.folder / "done.json").unlink()
            self._record()
        self.done = False
        self.context.barrier(f"{self.name}-reopen")

    def _record(self) -> None:
        """What this stage, and with it the run, is made from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "inputs.json").is_file():  # the same but for neutral keys, or of an older version
            _write(self.folder / "inputs.json", self.inputs)
        write_text(self.run.dir / "config.yaml", to_yaml(self.run.config))
        _write(self.run.dir / "provenance.json", provenance(self.run, self.context))

    def finish(self, **facts: Any) -> None:
        """All ranks are through: mark the stage as done."""
        self.context.barrier(f"{self.name}-finish")
        if self.context.main:
            _write(self.folder / "done.json", {"inputs": digest(self.inputs), **facts})
        self.context.barrier(f"{self.name}-finished")


def facts_of(folder: Path) -> dict[str, Any]:
    """What ``Stage.finish`` has left in a stage's folder; nothing where it is not finished, or the file is damaged."""
    try:
        found: dict[str, Any] = json.loads((folder / "done.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def continue_training(
    folder: Path, inputs: dict[str, Any], context: Context, strategy: Strategy
) -> dict[str, Any] | None:
    """Load the newest checkpoint of ``folder`` into what is trained; its state, or None where there is none.

    Raises:
        UserError: it is of other ``inputs``, all are damaged, or ranks found different ones: a network
            file system may show some nodes an old state for a while.
    """
    saved = checkpoint.load_latest(folder, strategy.loads_on)
    if saved:
        check_checkpoint(saved, inputs, folder)
    found = context.gather(saved.state["step"] if saved else 0)
    if len(set(found)) > 1:
        raise UserError(
            f"{folder}: ranks see different newest checkpoints (steps {sorted(set(found))}): the file system shows "
            f"some nodes an old state; wait a minute and start again"
        )
    if saved:
        strategy.load(saved.tensors)
    return saved.state if saved else None


def diverged(error: NonFinite, stage: str, folder: Path, writer: checkpoint.Writer, keys: str) -> UserError:
    """What to tell where the loss is not finite: the step, the last good checkpoint, what to change."""
    writer.finish()
    good = checkpoint.steps(folder)
    last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
    again = f"start again with {keys}, and --redo or another --name"
    return UserError(f"{stage}: loss or weights are not finite at step {error.step}; {last}; {again}")


def finish_writes(writer: checkpoint.Writer, context: Context, stage: str) -> None:
    """Everything that rank 0 saved is on disk; all ranks know."""
    if context.main:
        writer.finish()
    context.barrier(f"{stage}-saved")


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")
