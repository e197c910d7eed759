"""A model on disk: tensors as safetensors, everything else as JSON; no pickle.

    model.json                 classes, preprocessing, method, provenance; names, sizes and sha256 of the other files
    network-HASH.safetensors   backbone, predictor, rows of the base classes
    added-HASH.safetensors     activations of the photos of the classes
    model-HASH.json            model.json as it was before each of the last changes; it names its added-HASH.safetensors
    pictures/HASH.jpg          small pictures of the photos

The name of a file has the first digits of its hash, and ``model.json`` is replaced last, in a single step: whoever
opens the folder finds the model before a change or after it. Then the files that neither it nor a state that can be
restored names are removed. A change writes the activations and not the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dist_train.classifier.model_json import MAX_JSON, MAX_PART, VERSION, About, Files, Part, parse
from dist_train.errors import UserError, command
from dist_train.files import atomic_write, check_regular, file_sha256, read_regular

PARTS = ("added", "network")  # in the order of reading: a change replaces the first file, so its absence shows early
PICTURES = "pictures"
MAX_PICTURE = 1 << 20
"""Bytes that a small picture may have."""
Tensors = Mapping[str, torch.Tensor]
_WRITING = threading.Lock()
_MAKING = (f"{command('create', 'PHOTOS', '--out', 'MODEL')} of photos, {command('adapt', 'RUN', '--out', 'MODEL')} of "
           "a run")  # fmt: skip


class Saved(NamedTuple):
    """A model as it lies in its folder.

    Attributes:
        state: the entry of ``model.json`` as a state that can be restored.
        network: the entry of the network's file in it.
    """

    state: Part
    network: Part


def write(
    folder: Path,
    about: Mapping[str, Any],
    network: Callable[[], Tensors],
    added: Tensors,
    pictures: Mapping[str, Callable[[], bytes | None]],
    before: Saved | None = None,
) -> tuple[About, Saved]:
    """Write a model to a folder, or replace the model there.

    Args:
        folder: the model folder; it is created where it is missing.
        about: what ``model.json`` is to hold, but for ``version`` and ``files``.
        network: returns the tensors of the network; not called where their file is there already, as a network never
            changes.
        added: the tensors of the photos.
        pictures: for the id of each picture that is to be there, what returns it; None where it is lost.
        before: the model in the folder that this model was made from and is to replace; None: there is none.

    Returns:
        ``model.json`` as it was written, without changes to undo whose state is lost.

    Raises:
        UserError: another process changes or serves the model; or it is no longer as it was ``before``, so that a
            change would be lost; or what would be written could not be opened again (see ``model_json``).
        OSError: the disk is full or not writable; the model that was there is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.json"
    with _WRITING, lock(folder, 10):
        there = _state_in(folder) if before is not None and is_model(folder) else None
        if before is not None and there not in (None, before.state):
            raise UserError(f"{folder}: was changed since it was loaded; load it again and repeat, or save elsewhere",
                            "model.changed")  # fmt: skip
        added_part, added_data = _serialised("added", added)
        new = {added_part: added_data}
        if before is not None and _exists(folder, before.network):
            network_part = before.network
        else:
            network_part, network_data = _serialised("network", network())
            new[network_part] = network_data
        past = [entry for entry in about["past"] if entry.before == there or _exists(folder, entry.before)]
        if past and past[-1].before == there:
            new[past[-1].before] = path.read_bytes()
        files = Files(network=network_part, added=added_part)
        data, checked = _checked(
            {**about, "past": [entry.model_dump(exclude_defaults=True) for entry in past]}, files, path
        )
        for part, content in new.items():
            if not _exists(folder, part):
                _write(folder / part.file, content)
        _write_pictures(folder, pictures)
        _write(path, data)
        _remove_other_files(folder, checked)
        return checked, Saved(_state(data), network_part)


def _checked(about: Mapping[str, Any], files: Files, path: Path) -> tuple[bytes, About]:
    """Return ``model.json`` as bytes and as it will be read.

    Raises:
        UserError: it could not be read.
    """
    content = {"version": VERSION, **about, "files": files.model_dump()}
    data = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors="surrogatepass")
    if len(data) > MAX_JSON:
        raise UserError(f"{path}: would have {len(data)} bytes, and {MAX_JSON} are the limit; keep fewer photos",
                        "model.full")  # fmt: skip
    return data, parse(data, path)


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


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


def read_state(folder: Path, state: Part, device: torch.device) -> tuple[About, dict[str, torch.Tensor]]:
    """Return an earlier state of the model in a folder: ``model.json`` as it was, and the tensors of its photos.

    Raises:
        UserError: a file of the state is missing or changed.
    """
    path = folder / state.file
    try:
        data = read_regular(path, MAX_JSON)
        if _state(data) != state:
            raise UserError(f"{path}: changed or damaged; the change after it cannot be undone")
        about = parse(data, path)
        return about, _tensors(folder, about.files.added, device)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); the change after it cannot be undone"
                        ) from None  # fmt: skip


def read_picture(folder: Path, picture: str) -> bytes | None:
    """Return a small picture by its id; None where it is not there."""
    try:
        return read_regular(folder / PICTURES / f"{picture}.jpg", MAX_PICTURE) if picture.isalnum() else None
    except (OSError, UserError):
        return None


def pack(folder: Path, name: str, archive: zipfile.ZipFile) -> None:
    """Write the model in a folder to an archive, below ``name``: with its pictures and its history, and without the
    states that can be restored.

    Raises:
        UserError, OSError: the model cannot be read.
    """
    content = json.loads(read_regular(folder / "model.json", MAX_JSON)) | {"past": []}
    archive.writestr(f"{name}/model.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for part in PARTS:
        file = content["files"][part]["file"]
        archive.write(folder / file, f"{name}/{file}")
    for picture in sorted({photo["picture"] for photo in content.get("photos", []) if photo["picture"]}):
        data = read_picture(folder, picture)
        if data is not None:
            archive.writestr(f"{name}/{PICTURES}/{picture}.jpg", data)


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model, even a damaged one."""
    return os.path.lexists(folder / "model.json")


def no_folder(path: Path) -> UserError:
    """Return the error for a file that is given as a model's folder, perhaps an export."""
    return UserError(f"{path}: is a file, and a model is a folder; of exports {command('classify')} alone takes those "
                     "whose name ends in .onnx")  # fmt: skip


def no_model(folder: Path, lacks: str = "a model (no model.json)") -> UserError:
    """Return the error for a folder without ``model.json``, or for one that is not there.

    Args:
        lacks: what the folder is not.
    """
    if not folder.exists():
        return UserError(f"{folder}: no such folder; check the path, or make a model: {_MAKING}")
    if any(folder.glob("network-*.safetensors")):
        return UserError(f"{folder}: its model.json is lost; copy it from where the model was copied from, or make the "
                         f"model again: {_MAKING}")  # fmt: skip
    return UserError(f"{folder}: not {lacks}; make a model: {_MAKING}")


def is_fitted(folder: Path) -> bool:
    """Return whether the model in a folder is one of photos alone; only ``model.json`` is read.

    Raises:
        UserError: there is no model, or ``model.json`` is damaged.
    """
    return _about(folder)[0].fitted


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
            f"{folder}: another process changes or serves this model; wait for it, or write to another folder",
            "model.locked",
        ) from None
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        file_lock.release()


def _about(folder: Path) -> tuple[About, Part]:
    """Return ``model.json`` and its entry as a state."""
    path = folder / "model.json"
    try:
        data = read_regular(path, MAX_JSON)
    except FileNotFoundError:
        raise no_model(folder) from None
    except NotADirectoryError:
        raise no_folder(folder) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy the model again") from None
    return parse(data, path), _state(data)


def _state_in(folder: Path) -> Part:
    """Return the entry of the state in a folder, which a model that was loaded is to replace."""
    try:
        return _about(folder)[1]
    except UserError as error:  # it was sound when it was loaded
        raise UserError(str(error), "model.unreadable") from None


def _state(data: bytes) -> Part:
    digest = hashlib.sha256(data).hexdigest()
    return Part(file=f"model-{digest[:16]}.json", bytes=len(data), sha256=digest)


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


def _write_pictures(folder: Path, pictures: Mapping[str, Callable[[], bytes | None]]) -> None:
    """Write the pictures that are not there yet. They are for the eye: unlike the model they are not synced."""
    there = set(os.listdir(folder / PICTURES)) if (folder / PICTURES).is_dir() else set()
    for picture, load in pictures.items():
        data = load() if f"{picture}.jpg" not in there else None
        if data:
            path = folder / PICTURES / f"{picture}.jpg"
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f".{picture}.tmp-{secrets.token_hex(4)}")
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


def _remove_other_files(folder: Path, about: About) -> None:
    """Remove the files that neither the model nor a state that can be restored names: those of states that cannot be
    reached any more, and those of a save that was killed."""
    files = {about.files.network.file, about.files.added.file, *(entry.before.file for entry in about.past)}
    pictures = {f"{photo.picture}.jpg" for photo in about.photos}
    for entry in about.past:
        names = _names_in_state(folder / entry.before.file)
        files |= names[0]
        pictures |= names[1]
    patterns = ("added-*.safetensors", "network-*.safetensors", "model-*.json", ".*.tmp-*")
    for path in [path for pattern in patterns for path in folder.glob(pattern) if path.name not in files]:
        path.unlink(missing_ok=True)
    if not about.pictures:
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
    elif (folder / PICTURES).is_dir():
        for name in set(os.listdir(folder / PICTURES)) - pictures:
            (folder / PICTURES / name).unlink(missing_ok=True)


def _names_in_state(path: Path) -> tuple[set[str], set[str]]:
    """Return the names of the file of photos and of the pictures that a state names; nothing where it is damaged."""
    try:
        about = parse(read_regular(path, MAX_JSON), path)
    except (OSError, UserError):
        return set(), set()
    return {about.files.added.file}, {f"{photo.picture}.jpg" for photo in about.photos}
