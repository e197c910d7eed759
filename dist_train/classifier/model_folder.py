"""A model on disk: tensors as safetensors, everything else as JSON; no pickle.

    model.json                 classes, preprocessing, method, provenance; names, sizes and sha256 of the other files
    network-HASH.safetensors   backbone, predictor, rows of the base classes
    added-HASH.safetensors     activations of the photos of added classes

The name of a file has the first digits of its hash, and ``model.json`` is replaced last, in a single step: whoever
opens the folder finds the model before a change or after it. A change of the classes writes a few kilobytes.
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

PARTS = ("added", "network")  # in the order of reading: a change replaces the first file, so its absence shows early
Tensors = Mapping[str, torch.Tensor]
_WRITING = threading.Lock()


class Saved(NamedTuple):
    """A model as it lies in its folder.

    Attributes:
        state: the sha256 of ``model.json``.
        network: the entry of the network's file in it.
    """

    state: str
    network: Part


def write(
    folder: Path,
    about: Mapping[str, Any],
    network: Callable[[], Tensors],
    added: Tensors,
    before: Saved | None = None,
) -> Saved:
    """Write a model to a folder, or replace the model there.

    Args:
        folder: the model folder; it is created where it is missing.
        about: ``Classifier.about()`` and ``base_rows``.
        network: returns the tensors of the network; not called where their file is there already, as a network never
            changes.
        added: the activations of the photos of added classes.
        before: the model in the folder that this model was made from and is to replace; None: there is none.

    Raises:
        UserError: another process changes or serves the model; or it is no longer as it was ``before``, so that a
            change would be lost; or what would be written could not be opened again (see ``model_json``).
        OSError: the disk is full or not writable; the model that was there is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.json"
    with _WRITING, lock(folder, 10):
        if before is not None and is_model(folder) and _about(folder)[1] != before.state:
            raise UserError(f"{folder}: was changed since it was loaded; load it again and repeat, or save elsewhere")
        added_part, added_data = _serialised("added", added)
        new = {added_part: added_data}
        if before is not None and _exists(folder, before.network):
            network_part = before.network
        else:
            network_part, network_data = _serialised("network", network())
            new[network_part] = network_data
        files = {"added": added_part.model_dump(), "network": network_part.model_dump()}
        text = json.dumps({"version": VERSION, **about, "files": files}, indent=1, ensure_ascii=False) + "\n"
        parse(text.encode(errors="surrogatepass"), path)  # raises where what would be written could not be read
        for part, data in new.items():
            if not _exists(folder, part):
                with atomic_write(folder / part.file) as file:
                    file.write(data)
        write_text(path, text)
        _remove_other_files(folder, {added_part.file, network_part.file})
        return Saved(hashlib.sha256(text.encode()).hexdigest(), network_part)


def read(folder: Path, device: torch.device) -> tuple[About, dict[str, dict[str, torch.Tensor]], Saved]:
    """Return a model that ``write`` has written: ``model.json``, the tensors of each file on a device, and its state.

    Raises:
        UserError: there is no model, it is of another version of the format, or a file is missing, changed, or not a
            regular file.
    """
    for attempt in range(5):
        about, state = _about(folder)
        try:
            tensors = {name: _tensors(folder, getattr(about.files, name), device) for name in PARTS}
            return about, tensors, Saved(state, about.files.network)
        except FileNotFoundError as error:
            missing = error.filename
            if _about(folder)[1] == state:  # else the model was replaced meanwhile
                break
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); copy the model again") from None
        time.sleep(0.1 * attempt)
    raise UserError(f"{missing}: missing, though model.json names it; make the model again, or copy all its files")


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model, even a damaged one."""
    return os.path.lexists(folder / "model.json")


@contextmanager
def lock(folder: Path, wait: float = 0) -> Iterator[None]:
    """Hold the model folder for this process alone: for the time of a change, or as long as ``serve`` runs.

    A second lock in the same process does nothing, and so does a lock on a file system that has none or that is
    read-only.

    Raises:
        UserError: another process holds the folder for more than ``wait`` seconds.
    """
    file_lock = FileLock(folder / ".lock", thread_local=False, is_singleton=True, fallback_to_soft=False)
    try:
        file_lock.acquire(timeout=wait)
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
        file_lock.release()


def _about(folder: Path) -> tuple[About, str]:
    """Return ``model.json`` and its sha256."""
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


def _tensors(folder: Path, part: Part, device: torch.device) -> dict[str, torch.Tensor]:
    path = folder / part.file
    if check_regular(path, MAX_PART) != part.bytes or file_sha256(path) != part.sha256:
        raise UserError(f"{path}: changed or damaged (its hash is not model.json's); make the model again")
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); make the model again") from None


def _serialised(name: str, tensors: Tensors) -> tuple[Part, bytes]:
    """Return the bytes of a file of tensors, and its entry in ``model.json``."""
    data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    return Part(file=f"{name}-{digest[:16]}.safetensors", bytes=len(data), sha256=digest), data


def _exists(folder: Path, part: Part) -> bool:
    path = folder / part.file
    return path.is_file() and path.stat().st_size == part.bytes


def _remove_other_files(folder: Path, kept: set[str]) -> None:
    """Remove the files of the model before, and the temporary files of a save that was killed."""
    old = [path for name in PARTS for path in folder.glob(f"{name}-*.safetensors") if path.name not in kept]
    for path in [*old, *folder.glob(".*.tmp-*")]:
        path.unlink(missing_ok=True)
