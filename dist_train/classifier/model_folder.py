"""A model on disk: tensors as safetensors, everything else as JSON; no pickle.

    model.json                 classes, preprocessing, method, provenance; the names, sizes and sha256 of the others
    network-HASH.safetensors   backbone, predictor, rows of the base classes
    added-HASH.safetensors     activations of the photos of the classes that were added

A file's name has the first digits of its hash, and ``model.json`` is replaced last, in one step: whoever opens the
folder finds the model before a change or after it. A change of the classes writes a few kilobytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dist_train.classifier.model_json import MAX_JSON, MAX_PART, VERSION, About, Part, parse
from dist_train.errors import UserError
from dist_train.files import atomic_write, check_regular, file_sha256, read_regular, write_text

PARTS = ("added", "network")  # in the order of reading: a change replaces the first
Tensors = Mapping[str, torch.Tensor]
_WRITING = threading.Lock()


class Saved(NamedTuple):
    """A model as it lies in its folder: the hash of ``model.json``, and that file's entry of the network."""

    state: str
    network: Part


def write(
    folder: Path,
    about: Mapping[str, Any],
    network: Callable[[], Tensors],
    added: Tensors,
    before: Saved | None = None,
) -> Saved:
    """Make or replace the model in a folder.

    Args:
        network: is not asked for where the model that this one was made from lies there: a network never changes.
        before: that model, where this one is to replace it.

    Raises:
        UserError: another process changes or serves it, or it is not as it was ``before``: a change would be lost;
            or it could not be opened again (see ``schema``).
        OSError: the disk is full or not writable; the model that was there is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.json"
    with _WRITING, lock(folder, 10):
        if before is not None and is_model(folder) and _about(folder)[1] != before.state:
            raise UserError(f"{folder}: was changed since it was loaded; load it again and repeat, or save elsewhere")
        packed = [_packed("added", added)]
        files = {"added": packed[0][0]}
        if before is not None and _is_there(folder, before.network):
            files["network"] = before.network
        else:
            packed.append(_packed("network", network()))
            files["network"] = packed[1][0]
        said = {"version": VERSION, **about, "files": {name: entry.model_dump() for name, entry in files.items()}}
        text = json.dumps(said, indent=1, ensure_ascii=False) + "\n"
        parse(text.encode(errors="surrogatepass"), path)  # what is written can be read
        for entry, data in packed:
            if not _is_there(folder, entry):
                with atomic_write(folder / entry.file) as file:
                    file.write(data)
        write_text(path, text)
        kept = {entry.file for entry in files.values()}
        old = [path for name in PARTS for path in folder.glob(f"{name}-*.safetensors") if path.name not in kept]
        for left in [*old, *folder.glob(".*.tmp-*")]:  # of the model before, and of a save that was killed
            left.unlink(missing_ok=True)
        return Saved(hashlib.sha256(text.encode()).hexdigest(), files["network"])


def read(folder: Path, device: torch.device) -> tuple[About, dict[str, dict[str, torch.Tensor]], Saved]:
    """What ``write`` has written: the JSON, and the parts on a device.

    Raises:
        UserError: no model there, of another version, or a file is missing, changed, or no ordinary one.
    """
    for attempt in range(5):
        about, state = _about(folder)
        try:
            parts = {name: _part(folder, getattr(about.files, name), device) for name in PARTS}
            return about, parts, Saved(state, about.files.network)
        except FileNotFoundError as error:
            missing = error.filename
            if _about(folder)[1] == state:  # else it was replaced in between
                break
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); copy the model again") from None
        time.sleep(0.1 * attempt)
    raise UserError(f"{missing}: missing, though model.json names it; make the model again, or copy all its files")


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, be it a damaged one."""
    return os.path.lexists(folder / "model.json")


@contextmanager
def lock(folder: Path, wait: float = 0) -> Iterator[None]:
    """Held by who changes the model: one process at a time, and ``serve`` as long as it runs. Again in the same process
    does nothing; nor does it on a file system without locks, or that cannot be written to.

    Raises:
        UserError: another process has it for more than ``wait`` seconds.
    """
    found = FileLock(folder / ".lock", thread_local=False, is_singleton=True, fallback_to_soft=False)
    try:
        found.acquire(timeout=wait)
    except Timeout:
        raise UserError(
            f"{folder}: another process changes or serves this model; wait for it, or write to another folder"
        ) from None
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        found.release()


def _about(folder: Path) -> tuple[About, str]:
    """``model.json``, and its hash."""
    path = folder / "model.json"
    try:
        data = read_regular(path, MAX_JSON)
    except FileNotFoundError:
        raise UserError(
            f"{folder}: not a model (no model.json); make one with dist-train adapt RUN --out MODEL"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy the model again") from None
    return parse(data, path), hashlib.sha256(data).hexdigest()


def _part(folder: Path, entry: Part, device: torch.device) -> dict[str, torch.Tensor]:
    path = folder / entry.file
    if check_regular(path, MAX_PART) != entry.bytes or file_sha256(path) != entry.sha256:
        raise UserError(f"{path}: changed or damaged (its hash is not model.json's); make the model again")
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); make the model again") from None


def _packed(name: str, tensors: Tensors) -> tuple[Part, bytes]:
    """A part's entry in ``model.json``, and its bytes."""
    data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    return Part(file=f"{name}-{digest[:16]}.safetensors", bytes=len(data), sha256=digest), data


def _is_there(folder: Path, entry: Part) -> bool:
    path = folder / entry.file
    return path.is_file() and path.stat().st_size == entry.bytes
