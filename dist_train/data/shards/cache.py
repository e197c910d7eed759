"""Shards of a URL on this node's disk.

    DIR/SHA256                      a file, under the hash of its content
    DIR/.SHA256.BYTES.tmp-PID       one that is being fetched
    DIR/locks/SHA256, DIR/locks/room

A file appears under its hash or not at all: it is fetched to a temporary name, checked, and renamed.
So ranks and runs share the folder, and shards that two data sets have in common. A lock for each
file makes one process fetch it while the others wait; readers hold a shared lock on the file
itself, and what is locked is never evicted. All locks are the kernel's: a killed process holds none.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from dist_train.config import CacheConfig
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.extras import needs_extra
from dist_train.files import file_sha256

if TYPE_CHECKING:
    from dist_train.data.shards.index import Subset

log = logging.getLogger(__name__)

# Not there, not allowed, no such kind of URL, its library not installed: no attempt will do better.
_FINAL = (FileNotFoundError, PermissionError, ValueError, ImportError)
_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs"}  # by scheme, which is also the name of the extra


class Cache:
    """One URL's files, by way of a folder on this node.

    Attributes:
        url: of the folder that has index.json.
        block_shards: shards that a block of the order has, 0 = all are in use at a time.
        fetched, retries: files fetched by this process, and attempts that failed.
    """

    def __init__(self, url: str, config: CacheConfig, block_shards: int = 0) -> None:
        self.url, self.config, self.block_shards = url.rstrip("/"), config, block_shards
        self.dir = Path(os.path.expandvars(config.dir)).expanduser()  # a cluster profile names $USER
        self.fetched = self.retries = 0
        self._held: list[IO[bytes]] = []
        try:
            (self.dir / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache.dir={self.dir}: {error.strerror}; choose a folder on a local disk") from None

    def check_capacity(self, sizes: Sequence[int]) -> None:
        """Before anything is fetched: three blocks fit (one in use, one ahead, one on its way out), or
        all shards where there are no blocks.

        Raises:
            UserError: they do not.
        """
        need = 3 * self.block_shards * max(sizes, default=0) if self.block_shards else sum(sizes)
        if min(need, sum(sizes)) > self.config.gb * 1e9:
            remedy = "lower it" if self.block_shards else "set data.block_shards to shuffle in blocks"
            raise UserError(
                f"cache.gb={self.config.gb:g}: {self.url} needs {need / 1e9:.2f} with "
                f"data.block_shards={self.block_shards}; raise it, or {remedy}"
            )

    def get(self, name: str, sha256: str, size: int = 0) -> Path:
        """The local path of ``URL/name``; fetches it where it is not there. Size 0: not known before.

        Raises:
            UserError: it cannot be had, or is not the file that the index names; or the cache is too small.
        """
        target = self.dir / sha256
        if self._touch(target, size):
            return target
        with self._lock(sha256):
            if self._touch(target, size):  # another process fetched it while we waited
                return target
            temporary = self._reserve(sha256, size)
            try:
                self._attempts(lambda: self._fetch(name, temporary, sha256, size), name)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        self.fetched += 1
        return target

    def hold(self, path: Path) -> None:
        """Keep a file from eviction as long as this object lives (a table that stays mapped)."""
        self._held.append(path.open("rb"))
        fcntl.flock(self._held[-1], fcntl.LOCK_SH)

    def read(self, name: str) -> bytes:
        """A small file, never cached."""

        def act() -> bytes:
            filesystem, path = self._open_url(name)
            content: bytes = filesystem.cat_file(path)
            return content

        content: bytes = self._attempts(act, name)
        return content

    def _touch(self, path: Path, size: int) -> bool:
        """Whether the file is there; counts as a use of it."""
        try:
            if size and path.stat().st_size != size:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _open_url(self, name: str) -> tuple[Any, str]:
        import fsspec

        scheme = self.url.partition("://")[0]
        if scheme in _LIBRARIES:
            with needs_extra(scheme, self.url):
                importlib.import_module(_LIBRARIES[scheme])
        found: tuple[Any, str] = fsspec.url_to_fs(f"{self.url}/{name}", **_options(self.url, self.config.timeout))
        return found

    def _fetch(self, name: str, temporary: Path, sha256: str, size: int) -> None:
        filesystem, path = self._open_url(name)
        filesystem.get_file(path, str(temporary))
        found = temporary.stat().st_size
        if size and found != size:
            raise OSError(f"{found} bytes came, the index says {size}")
        if file_sha256(temporary) != sha256:
            raise OSError("its sha256 is not the one in the index")

    def _attempts(self, act: Callable[[], Any], name: str) -> Any:
        for attempt in range(self.config.retries + 1):
            try:
                return act()
            except UserError:
                raise
            except Exception as error:  # each file system has its own kinds
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise UserError(f"cache.dir={self.dir}: {error.strerror}; make room, or lower cache.gb") from None
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                if attempt == self.config.retries or isinstance(error, _FINAL):
                    raise UserError(
                        f"{self.url}/{name}: cannot be fetched, {attempt + 1} attempt(s) ({reason}); "
                        f"check the URL and the credentials; what is fetched already stays in {self.dir}"
                    ) from None
                self.retries += 1
                pause = 2**attempt * random.uniform(0.5, 1.0)  # apart, where many nodes fail together
                log.warning("%s/%s: %s; again in %.1f s", self.url, name, reason, pause)
                time.sleep(pause)

    def _reserve(self, sha256: str, size: int) -> Path:
        """Make room; the returned temporary file's name takes it."""
        limit = int(self.config.gb * 1e9)
        wait_until = time.monotonic() + 2 * self.config.timeout
        while True:
            with self._lock("room"):
                self._remove_abandoned(sha256)
                if self._evict(limit - size):
                    temporary = self.dir / f".{sha256}.{size}.tmp-{os.getpid()}"
                    temporary.touch()
                    return temporary
            if time.monotonic() > wait_until:
                raise UserError(
                    f"cache.gb={self.config.gb:g}: {self.dir} is full of shards in use; raise it, or lower "
                    f"data.block_shards"
                )
            time.sleep(0.5)

    def _evict(self, limit: int) -> bool:
        """Remove the least recently used files until all together are within ``limit``; False: not possible."""
        files = {path: path.stat() for path in self.dir.iterdir() if path.is_file()}
        total = sum(
            int(path.name.split(".")[2]) if path.name.startswith(".") else stat.st_size for path, stat in files.items()
        )
        kept = [(stat.st_mtime, path, stat.st_size) for path, stat in files.items() if not path.name.startswith(".")]
        for _, path, size in sorted(kept):
            if total <= limit:
                break
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # in use
                path.unlink()
            total -= size
        return total <= limit

    def _remove_abandoned(self, mine: str) -> None:
        """Temporary files whose process was killed: nobody holds their lock."""
        for path in self.dir.glob(".*.tmp-*"):
            sha256 = path.name.split(".")[1]
            try:
                with nullcontext() if sha256 == mine else FileLock(self.dir / "locks" / sha256, timeout=0):
                    path.unlink(missing_ok=True)
            except Timeout:
                pass

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.dir / "locks" / name)


def _options(url: str, timeout: float) -> dict[str, Any]:
    """Time-outs for a file system, under the names that it has for them."""
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        import aiohttp

        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(None, sock_connect=timeout, sock_read=timeout)}}
    if scheme == "s3":
        return {"config_kwargs": {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 1}}}
    if scheme == "gs":
        return {"timeout": timeout}
    return {}


class Prefetcher:
    """Fetches the shards of coming global batches, one process a node, in the order of their use.

    Runs one block of shards ahead of the batch in use; without blocks the first batches need all shards.
    Does nothing for local shards.
    """

    def __init__(
        self,
        subset: Subset,
        batch: Callable[[int], npt.NDArray[np.int64]],
        start: int,
        stop: int,
        context: Context,
    ) -> None:
        self._now = start
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if subset.cache is not None and context.local_rank == 0 and start < stop:
            work = (subset, subset.cache, batch, start, stop)
            self._thread = threading.Thread(target=self._run, args=work, name="prefetch", daemon=True)
            self._thread.start()

    def at(self, number: int) -> None:
        """Batch ``number`` is being read."""
        self._now = number

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(
        self, subset: Subset, cache: Cache, batch: Callable[[int], npt.NDArray[np.int64]], start: int, stop: int
    ) -> None:
        with ThreadPoolExecutor(cache.config.downloads, thread_name_prefix="download") as pool:
            ahead = 1
            for number in range(start, stop):
                while number > self._now + ahead and not self._closed.wait(0.05):
                    pass
                ids = batch(number)
                if number == start and cache.block_shards:
                    ahead = max(1, cache.block_shards * len(subset) // len(subset.shards) // len(ids))
                for done in [pool.submit(self._fetch, subset, int(n)) for n in np.unique(subset.samples["shard"][ids])]:
                    done.result()
                if self._closed.is_set():
                    return

    def _fetch(self, subset: Subset, shard: int) -> None:
        try:
            if not self._closed.is_set():
                subset.fetch(shard)
        except UserError:
            pass  # the reader meets it too, and there it is reported
