"""Checkpoints: a directory that is complete or not there, checked by hash when it is read.

    step-00001234/  tensors.pt  state.json  manifest.json

``tensors.pt`` holds full, unsharded tensors, so any number of ranks and either strategy can read
it; it loads with ``weights_only=True``. The manifest has each file's size and sha256 and is
written last, in a temporary directory that is then renamed.
"""

from __future__ import annotations

import json
import logging
import os
import pickle  # for the name of an error only
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.files import damaged_file, file_sha256, read_manifest

log = logging.getLogger(__name__)
_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """Hold a checkpoint's nested tensors, and the plain JSON beside them (the step, the best accuracy)."""

    tensors: dict[str, Any]
    state: dict[str, Any]


def save(path: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a checkpoint directory, in place of one of the same name.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind, and older checkpoints are untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with (temporary / "tensors.pt").open("wb") as file:
            try:
                torch.save(tensors, file)
            except RuntimeError as error:  # torch's form of a full disk
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
            _flush(file)
        with (temporary / "state.json").open("w") as file:
            json.dump(state, file)
            _flush(file)
        manifest = {
            name: {"bytes": (temporary / name).stat().st_size, "sha256": file_sha256(temporary / name)}
            for name in ("tensors.pt", "state.json")
        }
        with (temporary / "manifest.json").open("w") as file:
            json.dump(manifest, file, indent=1)
            _flush(file)
        if path.exists():  # a directory cannot be renamed over another
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        _flush_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint directory.

    Raises:
        UserError: a file is missing, short or changed; names it.
    """
    try:
        manifest = read_manifest(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a complete checkpoint ({error}); use another one") from None
    if damaged := damaged_file(path, manifest):
        raise UserError(f"{damaged}: missing or damaged (its hash is not the manifest's); use another checkpoint")
    try:
        tensors = torch.load(path / "tensors.pt", map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path / 'tensors.pt'}: holds not only tensors; it is not loaded, use another one") from None
    return Checkpoint(tensors, json.loads((path / "state.json").read_text()))


def step_checkpoints(folder: Path) -> list[Path]:
    """Return the step checkpoints of a folder, oldest first."""
    paths = folder.glob(f"{_PREFIX}*") if folder.is_dir() else ()
    return sorted(path for path in paths if path.is_dir())


def step_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of ``step`` lies."""
    return folder / f"{_PREFIX}{step:08d}"


def load_latest(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """Return the newest good checkpoint, or None where there is none. A damaged checkpoint is logged, and the
    checkpoint before it is used.

    Raises:
        UserError: there are checkpoints and all are damaged, which is no reason to start at step 0 unasked.
    """
    for path in reversed(step_checkpoints(folder)):
        try:
            return load(path, device)
        except UserError as error:
            log.warning("%s; falling back to the one before", error)
    if step_checkpoints(folder):
        raise UserError(f"{folder}: every checkpoint is damaged; restore one, or start again with --redo")
    return None


def load_agreed(folder: Path, context: Context, device: torch.device | str) -> Checkpoint | None:
    """Return the newest good checkpoint, the same on every rank, or None. All ranks call it.

    Raises:
        UserError: all are damaged, or ranks see different ones: a network file system may show some nodes an old
            state for a while.
    """
    newest = load_latest(folder, device)
    steps = context.gather(newest.state["step"] if newest else 0)
    if len(set(steps)) > 1:
        raise UserError(
            f"{folder}: ranks see different newest checkpoints (steps {sorted(set(steps))}): the file system shows "
            f"some nodes an old state; wait a minute and start again"
        )
    return newest


def retain(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Delete all step checkpoints but the newest ``keep`` and those at multiples of ``keep_every``."""
    for path in step_checkpoints(folder)[:-keep]:
        if not keep_every or int(path.name.removeprefix(_PREFIX)) % keep_every:
            shutil.rmtree(path)


class CheckpointSaver:
    """Save a training's checkpoints beside its steps: a step waits for the copy of the tensors to the CPU, and for the
    write before this one where that still goes on, but not for the disk.

    A write that fails (a full disk) is logged as an error and counted. The training goes on, and the checkpoints that
    are there stay.

    Args:
        folder: the training's folder; its checkpoints go to ``checkpoints/`` and its best weights to ``best/``.
        keep, keep_every: as in ``retain``.

    Attributes:
        folder: ``checkpoints/``.
        failures: number of writes that failed.
        blocked_ms: milliseconds that the training waited in the last call.
        write_seconds: seconds that the last finished write took.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0) -> None:
        self.folder, self._best = folder / "checkpoints", folder / "best"
        self._keep, self._keep_every = keep, keep_every
        self.failures, self.blocked_ms, self.write_seconds = 0, 0.0, 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._error: OSError | None = None

    def save(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """Save the checkpoint of ``step``, and delete those that need not be kept."""
        self._submit(step_path(self.folder, step), tensors, state, retain_after=True)

    def save_best(self, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """Save the best weights so far in place of those before."""
        self._submit(self._best, tensors, state, retain_after=False)

    def finish(self) -> None:
        """Wait for the last write.

        Raises:
            UserError: it failed, so the newest checkpoint is older than it should be.
        """
        self._wait()
        if self._error is not None:
            raise UserError(f"the last checkpoint could not be written ({self._error}); make room and start again")

    def timings(self) -> dict[str, float]:
        """Return the metrics of saving."""
        return {
            "checkpoint/blocked(ms)": self.blocked_ms,
            "checkpoint/write(s)": self.write_seconds,
            "checkpoint/failures": float(self.failures),
        }

    def close(self) -> None:
        """Wait for the last write, whatever becomes of it, and end the thread."""
        self._pool.shutdown()

    def _submit(self, path: Path, tensors: dict[str, Any], state: dict[str, Any], retain_after: bool) -> None:
        began = time.perf_counter()
        self._wait()
        copied = _copy(tensors)
        self._pending = self._pool.submit(self._write, path, copied, state, retain_after)
        self.blocked_ms = 1000 * (time.perf_counter() - began)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, path: Path, tensors: dict[str, Any], state: dict[str, Any], retain_after: bool) -> None:
        began = time.perf_counter()
        try:
            save(path, tensors, state)
            if retain_after:
                retain(self.folder, self._keep, self._keep_every)
            self._error = None
        except OSError as error:
            self.failures += 1
            self._error = error
            log.error("%s: CHECKPOINT NOT WRITTEN (%s); training goes on, make room on the disk", path, error.strerror)
        self.write_seconds = time.perf_counter() - began


def _copy(value: Any) -> Any:
    """Return nested tensors copied to the CPU, in the same structure."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(item) for item in value)
    return value


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
