"""A lock on a run's folder, so that two processes never work on the same run at the same time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.files import remove_empty

log = logging.getLogger("dist_train")

_OF_A_START = (".lock", "heartbeat.json", "error.json", "config.yaml", "provenance.json", "inputs.json")
"""Files that a start leaves before a stage has done anything."""


class RunLock:
    """Keep other starts of the same run out while this process lives; rank 0 holds the lock for all ranks.

    It is a lock of the kernel, which a killed process does not leave behind.

    Attributes:
        made: the outermost folder that this start makes for the run; None where the run was there before.
        of_share: whether the folder is that of a share of a table's draws (stages/share.py).
    """

    def __init__(self, folder: Path, context: Context, made: Path | None, of_share: bool = False) -> None:
        self.folder, self.context, self.made, self.of_share = folder, context, made, of_share
        self._lock: FileLock | None = None

    def acquire(self) -> None:
        """Take the lock, and make the folder; does nothing where this process has the lock already.

        Raises:
            UserError: another process has it.
        """
        if not self.context.main or self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            what, other = ("share", "find another share") if self.of_share else ("run", "take another --name")
            raise UserError(
                f"{self.folder}: another process is at work on this {what}; wait for it, or {other}"
            ) from None
        except (OSError, NotImplementedError) as error:
            log.warning(
                "%s: this file system has no locks (%s); never start a run twice at the same time", self.folder, error
            )
        self._lock = lock

    def discard(self, more: Collection[str] = ()) -> None:
        """Remove the run's folder where this start made it and no stage has begun its work: its input was refused.

        Args:
            more: as ``_discard_unstarted`` takes it.
        """
        if self.made and self.context.main and self.folder.is_dir():
            with suppress(UserError, OSError):  # another process may be at work in it by now, or have removed it
                self.acquire()
                _discard_unstarted(self.folder.resolve(), self.made, more)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()


def _discard_unstarted(run: Path, made: Path, more: Collection[str]) -> None:
    """Remove a run's folder, unless it holds more than what a start leaves before a stage has begun its work.

    Args:
        run: resolved.
        made: the outermost folder to remove: ``run``, or one that it lies in, where nothing else is in that.
        more: names of folders in ``run`` that may be removed with all that they hold.
    """
    for _ in range(3):  # another rank may note its error in between
        files = [path.relative_to(run) for path in run.rglob("*") if not path.is_dir()]
        if any(file.name not in _OF_A_START and file.parts[0] not in more for file in files):
            return
        shutil.rmtree(run, ignore_errors=True)
        if not run.exists():
            break
    remove_empty(run.parent, made)
