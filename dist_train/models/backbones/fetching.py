"""Where a library's own weights are: in its cache of downloads, or, if that is allowed, on the network."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from dist_train.errors import UserError


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
    raise UserError(
        f"{source}: timm has no weights of it; name a file with --weights FILE (in a run: --backbone.weights FILE)"
    )


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
    prefix = torch.hub.HASH_REGEX.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = prefix.group(1) if prefix else None
        torch.hub.download_url_to_file(url, str(path), digest, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no network, no such file, a full disk; another hash
        raise _failed(source, url, error) from None
    return path


def _hub_file(source: str, hub: str, name: str, download: bool) -> Path:
    """Return a file of the Hugging Face hub, which timm uses: the cached one or a new one."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = hub.partition("@")
    names = [name] if name != "model.safetensors" else [name, "pytorch_model.bin"]  # old uploads have only the second
    for file in names:
        cached = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{name}"
    if not download:
        raise _absent(source, url)
    for file in names:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except EntryNotFoundError as error:
            if file == names[-1]:
                raise _failed(source, url, error) from None
        except Exception as error:  # the hub's client raises its own, its transport's and the system's
            raise _failed(source, url, error) from None
    raise AssertionError("unreachable")


def _absent(source: str, url: str) -> UserError:
    return UserError(
        f"{source}: its weights are not on this machine, and nothing is downloaded unasked; fetch {url} and name the "
        f"file with --weights FILE (in a run: --backbone.weights FILE), or allow it with --download (in a run: "
        f"--backbone.download true)"
    )


def _failed(source: str, url: str, error: Exception) -> UserError:
    line = str(error).strip().partition("\n")[0][:120]
    return UserError(f"{source}: cannot download {url} ({line}); fetch it elsewhere and name the file with --weights")
