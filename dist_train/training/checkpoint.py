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
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_train.errors import UserError
from dist_train.files import file_sha256

log = logging.getLogger(__name__)
_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: nested tensors, and plain JSON beside them (the step, the best accuracy)."""

    tensors: dict[str, Any]
    state: dict[str, Any]


def save(path: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
    """Write one checkpoint directory, replacing one of the same name.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind, older ones are untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with (temporary / "tensors.pt").open("wb") as file:
            try:
                torch.save(tensors, file)
            except RuntimeError as error:  # what torch makes of a full disk
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
        UserError: a file is missing, short or changed; it says which.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a complete checkpoint ({error}); use another one") from None
    for name, entry in manifest.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"] or file_sha256(file) != entry["sha256"]:
            raise UserError(f"{file}: missing or damaged (its hash is not the manifest's); use another checkpoint")
    try:
        tensors = torch.load(path / "tensors.pt", map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path / 'tensors.pt'}: holds not only tensors; it is not loaded, use another one") from None
    return Checkpoint(tensors, json.loads((path / "state.json").read_text()))


def step_checkpoints(folder: Path) -> list[Path]:
    """Step checkpoints, oldest first."""
    found = folder.glob(f"{_PREFIX}*") if folder.is_dir() else ()
    return sorted(path for path in found if path.is_dir())


def step_path(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step:08d}"


def load_latest(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """The newest good checkpoint, or None; a damaged one is named and the one before it used.

    Raises:
        UserError: there are checkpoints, and all are damaged: not a reason to start at step 0 unasked.
    """
    for path in reversed(step_checkpoints(folder)):
        try:
            return load(path, device)
        except UserError as error:
            log.warning("%s; falling back to the one before", error)
    if step_checkpoints(folder):
        raise UserError(f"{folder}: every checkpoint is damaged; restore one, or start again with --redo")
    return None


def retain(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Delete all step checkpoints but the newest ``keep`` and those at multiples of ``keep_every``."""
    for path in step_checkpoints(folder)[:-keep]:
        if not keep_every or int(path.name.removeprefix(_PREFIX)) % keep_every:
            shutil.rmtree(path)


class Writer:
    """Writes checkpoints beside the training: the step waits for the copy of the tensors, and for the
    write before this one where that is still going on, but not for the disk.

    A write that fails (a full disk) is told aloud and counted; the training goes on, and the
    checkpoints that are there stay.

    Attributes:
        failures: writes that failed.
        blocked: milliseconds that the training waited in the last ``save``.
        wrote: seconds that the last finished write took.
    """

    def __init__(self) -> None:
        self.failures, self.blocked, self.wrote = 0, 0.0, 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._error: OSError | None = None

    def save(
        self, path: Path, tensors: dict[str, Any], state: dict[str, Any], then: Callable[[], None] | None = None
    ) -> None:
        """As ``checkpoint.save``; ``then`` runs once it is written."""
        began = time.perf_counter()
        self._wait()
        copied = _copy(tensors)
        self._pending = self._pool.submit(self._write, path, copied, state, then)
        self.blocked = 1000 * (time.perf_counter() - began)

    def finish(self) -> None:
        """Wait for the last write.

        Raises:
            UserError: it failed; what the run leaves with is older than it should be.
        """
        self._wait()
        if self._error is not None:
            raise UserError(f"the last checkpoint could not be written ({self._error}); make room and start again")

    def close(self) -> None:
        self._pool.shutdown()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, path: Path, tensors: Any, state: dict[str, Any], then: Callable[[], None] | None) -> None:
        began = time.perf_counter()
        try:
            save(path, tensors, state)
            if then is not None:
                then()
            self._error = None
        except OSError as error:
            self.failures += 1
            self._error = error
            log.error("%s: CHECKPOINT NOT WRITTEN (%s); training goes on, make room on the disk", path, error.strerror)
        self.wrote = time.perf_counter() - began


def _copy(value: Any) -> Any:
    """Nested tensors, copied to the CPU; equal structure."""
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
