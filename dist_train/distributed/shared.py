"""Share large arrays and checks between the ranks of a node: the first rank does the work, and all map the result.

    TMPDIR/dist_train-UID/HOST/START/NAME.npy      an array; its pages are in memory once, however many ranks map it
    TMPDIR/dist_train-UID/HOST/START/NAME.checked  a check was passed
    TMPDIR/dist_train-UID/HOST/START/NAME.lock     held while a rank is at work
    TMPDIR/dist_train-UID/HOST/START/alive         held, together, by all ranks that live

Locks are the kernel's: a killed process holds none. START is a step of a SLURM job, or the process that started the
ranks, so that a new start makes and checks everything anew. Nothing depends on these files: each is a pure function of
its name, and a rank that cannot use them makes a copy of its own. A file is complete or not there (rename), is never
written again, and may be removed by this node at any time: a mapped file stays mapped. HOST is for a TMPDIR that nodes
share: a file that another node removes from a network file system is lost to a process that has mapped it (SIGBUS).
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


def shared_array(name: str, items: int, make: Callable[[], Array]) -> Array:
    """Return ``make()``; from ``LARGE`` items on, mapped read-only from a file that all ranks of this node map.

    Args:
        name: file name; the array must be a pure function of it.
        items: about how many items the array has.
    """
    folder = _folder() if items >= LARGE else None
    if folder is None:
        return make()
    path = folder / f"{name}.npy"
    with _lock(path):
        mapped = _mapped(path)
        if mapped is not None:
            return mapped
        array = make()
        _publish(path, array)
        mapped = _mapped(path)
        return array if mapped is None else mapped  # no room, or the folder went with a rank that has ended


def discard_array(name: str) -> None:
    """Remove a shared array's file. A rank that has mapped it keeps it."""
    if (folder := _folder()) is not None:
        with suppress(OSError):
            (folder / f"{name}.npy").unlink(missing_ok=True)


def check_once(name: str, check: Callable[[], None]) -> None:
    """Run a check, which raises an error if it fails, unless another rank of this node and start has passed it.

    Args:
        name: file name; must change with what the check looks at.
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
    """Map the array in a file; return None where there is none."""
    try:
        return np.asarray(np.load(path, mmap_mode="r"))  # the array below np.memmap, whose indexing is slower
    except (OSError, ValueError):
        return None


def _publish(path: Path, array: Array) -> None:
    """Write the array, whole or not at all. Without fsync: it need not survive the machine."""
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
    """Return the held lock, or a null context where the file system has no locks or the holder is too slow: then two
    ranks do the same work."""
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
        for start in root.iterdir():
            _remove(start)
        folder = root / _start(place)
        alive = _join(folder)
    except OSError:
        return None
    atexit.register(_remove, folder, alive)
    return folder


def _start(place: Place) -> str:
    """Return a name that is the same for all ranks of this node that were started together, and for no others."""
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
    """Remove a start's folder, unless a living rank uses it.

    Args:
        alive: this rank's own file of the folder, which this rank uses no more.
    """
    with suppress(OSError), alive or (folder / "alive").open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def _born(pid: int) -> str:
    """Return when a process started, in ticks since boot: field 22 of proc_pid_stat(5). It tells apart two processes
    that had the same number."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
