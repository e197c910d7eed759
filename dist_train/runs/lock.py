"""A lock on a run's folder, so that two processes never work on the same run at the same time."""

from __future__ import annotations

import logging
from pathlib import Path

from filelock import FileLock, Timeout

from dist_train.distributed.context import Context
from dist_train.errors import UserError

log = logging.getLogger("dist_train")


class RunLock:
    """Keep other starts of the same run out while this process lives; rank 0 holds the lock for all ranks.

    It is a lock of the kernel, which a killed process does not leave behind.
    """

    def __init__(self, folder: Path, context: Context) -> None:
        self.folder, self.context = folder, context
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
            raise UserError(
                f"{self.folder}: another process is at work on this run; wait for it, or take another --name"
            ) from None
        except (OSError, NotImplementedError) as error:
            log.warning(
                "%s: this file system has no locks (%s); never start a run twice at the same time", self.folder, error
            )
        self._lock = lock

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
