"""Share large arrays and checks between the ranks of a node: the first that asks does the work, all map the result.

    TMPDIR/dist_train-UID/HOST/START/NAME.npy      an array; its pages are in memory once, however many ranks map it
    TMPDIR/dist_train-UID/HOST/START/NAME.checked  a check was passed
    TMPDIR/dist_train-UID/HOST/START/NAME.lock     held while a rank is at work
    TMPDIR/dist_train-UID/HOST/START/alive         held, together, by all ranks that live

Locks are the kernel's: a killed process holds none. START is a step of a SLURM job, or the process that started the
ranks, so that a new start makes and checks all of it anew. Nothing depends on these files: each is a pure function of
its name, and a rank that cannot use them makes a copy of its own. A file is complete or not there (rename), is never
written again, and may be removed by this node at any time: what is mapped stays mapped. HOST is for a TMPDIR that nodes
share: what another node removes from a network file system is gone for who has mapped it (SIGBUS).
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import logging
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from dist_train.distributed.rendezvous import Place, read_environment

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
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}")
    try:
        with temporary.open("wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("%s: %s; each rank keeps its own copy (TMPDIR names another folder)", path, error.strerror or error)
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
        own = Path(tempfile.gettempdir()) / f"dist_train-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        about = own.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            return None  # another user's: not to be trusted
        root = own / socket.gethostname()
        root.mkdir(exist_ok=True)
        for left in root.iterdir():
            _remove(left)
        folder = root / _start(place)
        alive = _join(folder)
    except OSError:
        return None
    atexit.register(_remove, folder, alive)
    return folder


def _start(place: Place) -> str:
    """Return a name that all ranks of this node have that were started together, and no others."""
    if place.launcher == "slurm":  # not the parent: a container's process or a shell may stand between srun and a rank
        return "-".join(os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    return f"{os.getppid()}-{_born(os.getppid())}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _join(folder: Path) -> IO[bytes]:
    """Make the folder, and return its file ``alive``, held for as long as it is open."""
    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # removed meanwhile
            alive = (folder / "alive").open("ab+")
            fcntl.flock(alive, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(alive.fileno()), (folder / "alive").stat()):
                return alive


def _remove(folder: Path, alive: IO[bytes] | None = None) -> None:
    """Remove a start's folder unless another rank lives that uses it. ``alive``: this rank's, which uses it no more."""
    with suppress(OSError), alive or (folder / "alive").open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def _born(pid: int) -> str:
    """Return when a process started, in ticks since boot: field 22 of proc_pid_stat(5). With it, a number that is used
    again is another process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
