"""Files of a URL on this node's disk.

    DIR/SHA256                      a file, under the hash of its content
    DIR/.SHA256.BYTES.tmp-PID       a file that is being fetched
    DIR/locks/SHA256, DIR/locks/room

A file appears under its hash or not at all: it is fetched to a temporary name, checked, and renamed.
So ranks and runs share the folder, and two data sets share the files that they have in common. A lock for each
file makes one process fetch it while the others wait; readers hold a shared lock on the file
itself, and a locked file is never evicted. All locks are the kernel's: a killed process holds none.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from dist_train.config import CacheConfig
from dist_train.errors import UserError, counted
from dist_train.extras import needs_extra
from dist_train.files import file_sha256

log = logging.getLogger(__name__)

# Missing, forbidden, a URL of an unknown kind, its library not installed: no further attempt would succeed.
_FINAL = (FileNotFoundError, PermissionError, ValueError, ImportError)
_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs"}  # by scheme, which is also the name of the extra


class Cache:
    """Provide the files of a URL, by way of a folder on this node.

    Attributes:
        url: the folder that the files' names are below.
        fetched, retries: number of files that this process fetched, and of attempts that failed.
    """

    def __init__(self, url: str, config: CacheConfig) -> None:
        self.url, self.config = url.rstrip("/"), config
        self.dir = Path(os.path.expandvars(config.dir)).expanduser()  # a cluster profile names $USER
        self.fetched = self.retries = 0
        self._held: list[IO[bytes]] = []
        try:
            (self.dir / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache.dir={self.dir}: {error.strerror}; choose a folder on a local disk") from None

    def check_capacity(self, sizes: Sequence[int], block_shards: int) -> None:
        """Check, before anything is fetched, that the cache can hold the shards in use.

        With blocks of ``block_shards`` shards these are three blocks (one in use, one ahead, one on its way out); with
        0, no blocks, all of them.

        Args:
            sizes: bytes of all shards.

        Raises:
            UserError: the cache is too small.
        """
        need = 3 * block_shards * max(sizes, default=0) if block_shards else sum(sizes)
        if min(need, sum(sizes)) > self.config.gb * 1e9:
            remedy = "lower it" if block_shards else "set data.block_shards to shuffle in blocks"
            raise UserError(
                f"cache.gb={self.config.gb:g}: {self.url} needs {need / 1e9:.2f} with "
                f"data.block_shards={block_shards}; raise it, or {remedy}"
            )

    def get(self, name: str, sha256: str, size: int = 0) -> Path:
        """Return the local path of ``URL/name``, and fetch the file where it is not there.

        Args:
            size: its bytes; 0 where they are not known.

        Raises:
            UserError: the file cannot be fetched, or is not the file that the index names; or the cache is too small.
        """
        target = self.dir / sha256
        if self._touch(target, size):
            return target
        with self._lock(sha256):
            if self._touch(target, size):  # another process fetched it while we waited
                return target
            temporary = self._reserve(sha256, size)
            try:
                self._retried(lambda: self._fetch(name, temporary, sha256, size), name)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        self.fetched += 1
        return target

    def hold(self, path: Path) -> None:
        """Protect a file from eviction as long as this object lives (a table that stays mapped)."""
        self._held.append(path.open("rb"))
        fcntl.flock(self._held[-1], fcntl.LOCK_SH)

    def read(self, name: str) -> bytes:
        """Return the content of a small file, without caching it."""

        def fetch() -> bytes:
            filesystem, path = self._open_url(name)
            content: bytes = filesystem.cat_file(path)
            return content

        content: bytes = self._retried(fetch, name)
        return content

    def _touch(self, path: Path, size: int) -> bool:
        """Tell whether the file is there, and count that as a use of it."""
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
        opened: tuple[Any, str] = fsspec.url_to_fs(f"{self.url}/{name}", **_timeouts(self.url, self.config.timeout))
        return opened

    def _fetch(self, name: str, temporary: Path, sha256: str, size: int) -> None:
        filesystem, path = self._open_url(name)
        filesystem.get_file(path, str(temporary))
        fetched = temporary.stat().st_size
        if size and fetched != size:
            raise OSError(f"{fetched} bytes came, the index says {size}")
        if file_sha256(temporary) != sha256:
            raise OSError("its sha256 is not the one in the index")

    def _retried(self, fetch: Callable[[], Any], name: str) -> Any:
        """Call ``fetch`` until it succeeds, at most ``cache.retries`` times more, with growing pauses.

        By hand and not by tenacity: the log line, the error line and the count all need the attempt's number and its
        reason, and with tenacity's callbacks for them this is longer.
        """
        for attempt in range(self.config.retries + 1):
            try:
                return fetch()
            except UserError:
                raise
            except Exception as error:  # each file system raises its own kinds
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise UserError(f"cache.dir={self.dir}: {error.strerror}; make room, or lower cache.gb") from None
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                if attempt == self.config.retries or isinstance(error, _FINAL):
                    raise UserError(
                        f"{self.url}/{name}: cannot be fetched, {counted(attempt + 1, 'attempt')} ({reason}); "
                        f"check the URL and the credentials; what is fetched already stays in {self.dir}"
                    ) from None
                self.retries += 1
                pause = 2**attempt * random.uniform(0.5, 1.0)  # apart, where many nodes fail together
                log.warning("%s/%s: %s; again in %.1f s", self.url, name, reason, pause)
                time.sleep(pause)

    def _reserve(self, sha256: str, size: int) -> Path:
        """Make room, and return a temporary file whose name reserves it."""
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
        """Remove the least recently used files until all files together are within ``limit``, and tell whether that was
        possible."""
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
        """Remove temporary files whose process was killed: nobody holds their lock."""
        for path in self.dir.glob(".*.tmp-*"):
            sha256 = path.name.split(".")[1]
            try:
                with nullcontext() if sha256 == mine else FileLock(self.dir / "locks" / sha256, timeout=0):
                    path.unlink(missing_ok=True)
            except Timeout:
                pass

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.dir / "locks" / name)


def _timeouts(url: str, timeout: float) -> dict[str, Any]:
    """Return the time-outs for a file system, under the names that it has for them."""
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        import aiohttp

        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(None, sock_connect=timeout, sock_read=timeout)}}
    if scheme == "s3":
        return {"config_kwargs": {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 1}}}
    if scheme == "gs":
        return {"timeout": timeout}
    return {}
