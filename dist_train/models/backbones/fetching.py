"""Where a library's own weights are: in its cache of downloads, or, if that is allowed, on the network.

A file is in a cache whole or not at all. Where several processes of a machine want it, one fetches it, and the others
wait.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from tqdm import tqdm

from dist_train.errors import UserError
from dist_train.files import atomic_write

log = logging.getLogger(__name__)

_TIMEOUT = 30.0  # seconds without a byte after which a download is given up
_CHUNK = 1 << 20


def timm_file(source: str, facts: Mapping[str, Any], download: bool) -> Path:
    """Return timm's own weights of a network.

    Args:
        source: what users call the network.
        facts: timm's ``pretrained_cfg``.
        download: whether they may be fetched; otherwise they must be in the cache.

    Raises:
        UserError: timm has none, they are not in the cache and may not be fetched, or cannot be.
    """
    hub = facts.get("hf_hub_id")
    if hub:
        return _hub_file(source, hub, facts.get("hf_hub_filename") or "model.safetensors", download)
    if facts.get("url"):
        return url_file(source, facts["url"], download)
    raise UserError(f"{source}: timm has no weights of it; name a file with --backbone.weights FILE")


def url_file(source: str, url: str, download: bool) -> Path:
    """Return a file of PyTorch's hub: the cached one, or a new one of ``url``.

    Raises:
        UserError: as ``timm_file``.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.exists():
        return path
    if not download:
        raise _absent(source, url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with suppress(OSError, NotImplementedError):  # without locks several fetch it, each to a name of its own
                stack.enter_context(FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False))
                for begun in path.parent.glob(f".{escape(path.name)}.tmp-*"):  # nobody writes it: we have the lock
                    begun.unlink()
            if not path.exists():  # another process may have fetched it while we waited
                log.info("%s: downloading %s", source, url)
                _fetch(url, path)
    except (OSError, HTTPException) as error:  # no network, no such file, a full disk; a broken answer
        raise _failed(source, url, error) from None
    return path


def _fetch(url: str, path: Path) -> None:
    """Write what a URL holds to a file.

    torch.hub's own function neither gives up a server that falls silent nor notices a connection that was cut, where no
    hash is in the file's name.

    Raises:
        OSError, HTTPException: not all of it came, or its hash does not begin as its name says.
    """
    wanted = torch.hub.HASH_REGEX.search(path.name)
    digest, count = hashlib.sha256(), 0
    with (
        urlopen(Request(url, headers={"User-Agent": "torch.hub"}), timeout=_TIMEOUT) as answer,
        atomic_write(path) as file,
    ):
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise OSError(f"it came as {answer.headers['Content-Encoding']}, which was not asked for")
        given = answer.headers.get("Content-Length", "")
        size = int(given) if given.isdecimal() else 0
        with tqdm(total=size or None, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                count += len(chunk)
                bar.update(len(chunk))
        if not count or (size and count != size):
            raise OSError(f"{count} of {size} bytes came")
        if wanted and not digest.hexdigest().startswith(wanted[1]):
            raise OSError(f"its sha256 begins with {digest.hexdigest()[: len(wanted[1])]} and not with {wanted[1]}")


def _hub_file(source: str, hub: str, name: str, download: bool) -> Path:
    """Return a file of the Hugging Face hub, which timm uses: the cached one or a new one."""
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = hub.partition("@")
    names = [name] if name != "model.safetensors" else [name, "pytorch_model.bin"]  # old uploads have only the second
    for file in names:
        cached = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    url = hf_hub_url(repository, name, revision=revision or "main")
    if not download:
        raise _absent(source, url)
    log.info("%s: downloading %s", source, url)
    for file in names:
        try:
            with _without_warnings("huggingface_hub"):
                return Path(hf_hub_download(repository, file, revision=revision or None))
        except LocalEntryNotFoundError as error:  # the hub cannot be asked
            raise _failed(source, url, error.__cause__ or error) from None
        except EntryNotFoundError as error:
            if file == names[-1]:
                raise _failed(source, url, error) from None
        except Exception as error:  # the hub's client raises its own, its transport's and the system's
            raise _failed(source, url, error) from None
    raise AssertionError("unreachable")


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    """Silence a library's words on attempts that it repeats: a last failure is an error, and says why."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _absent(source: str, url: str) -> UserError:
    return UserError(
        f"{source}: its weights are not on this machine, and nothing is downloaded unasked; fetch {url} and name the "
        f"file with --backbone.weights FILE, or allow it with --backbone.download=true"
    )


def _failed(source: str, url: str, error: BaseException) -> UserError:
    if type(error) is URLError:  # which wraps the system's error
        error = error.reason if isinstance(error.reason, OSError) else error
    reason = getattr(error, "strerror", None) or str(error)
    line = reason.strip().partition("\n")[0][:120] or type(error).__name__
    return UserError(
        f"{source}: cannot download {url} ({line}); fetch it elsewhere and name the file with --backbone.weights FILE"
    )
