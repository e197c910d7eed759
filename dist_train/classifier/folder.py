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
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dist_train.data.files import atomic_write, file_sha256, write_text
from dist_train.errors import UserError

VERSION = 1
PARTS = ("network", "added")
Tensors = Mapping[str, torch.Tensor]


def write(folder: Path, about: Mapping[str, Any], parts: Mapping[str, Tensors]) -> None:
    """Make or replace the model in a folder. A part that is there already, by its hash, is not written again.

    Raises:
        OSError: the disk is full or not writable; the model that was there is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in PARTS:
        data = save({key: tensor.detach().cpu().contiguous() for key, tensor in parts[name].items()})
        digest = hashlib.sha256(data).hexdigest()
        path = folder / f"{name}-{digest[:16]}.safetensors"
        if not (path.is_file() and path.stat().st_size == len(data)):
            with atomic_write(path) as file:
                file.write(data)
        files[name] = {"file": path.name, "bytes": len(data), "sha256": digest}
    text = json.dumps({"version": VERSION, **about, "files": files}, indent=1, ensure_ascii=False)
    write_text(folder / "model.json", text + "\n")
    kept = {entry["file"] for entry in files.values()}
    for name in PARTS:  # those of the model before
        for path in folder.glob(f"{name}-*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def read(folder: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """What ``write`` has written: the JSON, and the parts on a device.

    Raises:
        UserError: no model there, of another version, or a file is missing or changed.
    """
    for attempt in range(5):
        about = _about(folder)
        try:
            return about, {name: _part(folder, about["files"][name], device) for name in PARTS}
        except FileNotFoundError as error:
            missing = error.filename
            if about == _about(folder):  # else it was replaced in between
                break
            time.sleep(0.1 * attempt)
    raise UserError(f"{missing}: missing, though model.json names it; make the model again, or copy all its files")


def is_model(folder: Path) -> bool:
    return (folder / "model.json").is_file()


def lock(folder: Path) -> FileLock:
    """Held by who may change the model: one at a time, and ``serve`` as long as it runs.

    Raises:
        UserError: another process has it.
    """
    found = FileLock(folder / ".lock", timeout=0)
    try:
        found.acquire()
    except Timeout:
        raise UserError(
            f"{folder}: another process changes or serves this model; wait for it, or write to another --out"
        ) from None
    except (OSError, NotImplementedError):  # a file system without locks, or one that cannot be written to
        with suppress(OSError):
            found.release()
    return found


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        about = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: not a model (no model.json); make one with dist-train adapt RUN --out MODEL"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); make the model again") from None
    if not isinstance(about, dict) or about.get("version") != VERSION:
        version = about.get("version") if isinstance(about, dict) else None
        raise UserError(
            f"{path}: version {version!r}, and this dist_train reads {VERSION}; make the model again with it"
        )
    return about


def _part(folder: Path, entry: Mapping[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    path = folder / os.path.basename(entry["file"])
    if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
        raise UserError(f"{path}: changed or damaged (its hash is not model.json's); make the model again")
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); make the model again") from None
