"""Share large arrays and checks between the ranks of a node: the first that asks does the work, all map the result.

    TMPDIR/dist_train-UID/START/NAME.npy      an array; its pages are in memory once, however many ranks map it
    TMPDIR/dist_train-UID/START/NAME.checked  a check was passed
    TMPDIR/dist_train-UID/START/NAME.lock     held while a rank is at work (by the kernel: a killed process holds none)

START names the process that started the ranks, so that a new start makes and checks all of it anew. Nothing depends on
these files: each is a pure function of its name, and a rank that cannot use them makes a copy of its own. A file is
complete or not there (rename), is never written again, and may be removed at any time: what is mapped stays mapped.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from dist_train.rendezvous import read_environment

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

LARGE = 2**20
"""Items from which an array is worth a file: ImageNet has more, a small data set and every test have fewer."""

_PATIENCE = 60.0  # seconds to wait for another rank's work; after that, this rank does it as well


def shared(name: str, items: int, make: Callable[[], Array]) -> Array:
    """Return ``make()``; where it has ``LARGE`` items, mapped read-only from a file that all ranks of this node map.

    Args:
        name: file name; the array must be a pure function of it.
        items: how many the array has, nearly.
    """
    folder = _folder() if items >= LARGE else None
    if folder is None:
        return make()
    path = folder / f"{name}.npy"
    with _lock(path):
        found = _mapped(path)
        if found is None:
            array = make()
            _publish(path, array)
            found = _mapped(path)
            if found is None:  # no room, or the folder went with a rank that has ended
                found = array
        return found


def discard(name: str) -> None:
    """Remove a shared array's file. Whoever has mapped it keeps it."""
    if (folder := _folder()) is not None:
        with suppress(OSError):
            (folder / f"{name}.npy").unlink(missing_ok=True)


def once(name: str, check: Callable[[], None]) -> None:
    """Run a check that raises what is wrong; where another rank of this node and start has passed it, do nothing.

    Args:
        name: file name; must change with what is checked.
    """
    folder = _folder()
    if folder is None:
        return check()
    mark = folder / f"{name}.checked"
    with _lock(mark):
        if not mark.exists():
            check()
            with suppress(OSError):
                mark.touch()


def _mapped(path: Path) -> Array | None:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))  # the array below np.memmap, whose indexing is slower
    except (OSError, ValueError):
        return None


def _publish(path: Path, array: Array) -> None:
    """Write the array, whole or not at all; without fsync, for it need not survive the machine."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("%s: %s; each rank keeps its own copy (TMPDIR names another folder)", path, error.strerror)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _lock(path: Path) -> AbstractContextManager[Any]:
    """Return the held lock; or nothing where there are none, or its holder is too slow: then two do the same work."""
    try:
        return FileLock(path.with_suffix(".lock")).acquire(timeout=_PATIENCE)
    except (OSError, NotImplementedError):
        return nullcontext()


@functools.cache
def _folder() -> Path | None:
    """Return this start's folder on this node; None for a rank that is alone here, or where there can be none."""
    place = read_environment(os.environ)
    if place.local_world == 1:
        return None
    try:
        root = Path(tempfile.gettempdir()) / f"dist_train-{os.getuid()}"
        root.mkdir(mode=0o700, exist_ok=True)
        about = root.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            return None  # another user's: not to be trusted
        for left in root.iterdir():
            if not _starter_lives(left.name):
                shutil.rmtree(left, ignore_errors=True)
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        folder = root / f"{os.getppid()}-{_born(os.getppid())}-{restart}"
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _starter_lives(name: str) -> bool:
    pid, _, rest = name.partition("-")
    try:
        return _born(int(pid)) == rest.partition("-")[0]
    except (OSError, ValueError):
        return False


def _born(pid: int) -> str:
    """Return when a process started, in ticks since boot: field 22 of proc_pid_stat(5). With it, a number that is used
    again is another process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
