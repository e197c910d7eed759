"""The development kit of ILSVRC2012: which class each validation image has, and what the classes are called."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from dist_train.data.sources.synsets import Synsets
from dist_train.errors import UserError

DEVKIT_REMEDY = "give ILSVRC2012_devkit_t12.tar.gz, or LOC_val_solution.csv of Kaggle, as --devkit"


def devkit_wnids(path: Path) -> dict[str, str]:
    """Return image id ("ILSVRC2012_val_00000001") -> wnid.

    The ground truth has ILSVRC ids, which are not positions in the sorted wnids: meta.mat translates.

    Raises:
        UserError: not a devkit, or a damaged one.
    """
    files = _devkit_files(path)
    try:
        wnids = _wnids(_synsets(files["meta.mat"]))
        ids = [int(line) for line in files["ILSVRC2012_validation_ground_truth.txt"].split()]
    except Exception as error:  # scipy raises nearly anything on a damaged file
        raise UserError(f"{path}: meta.mat or the ground truth cannot be read ({error}); {DEVKIT_REMEDY}") from None
    for number in dict.fromkeys(ids):
        if number not in wnids:
            raise UserError(f"{path}: the ground truth has id {number}, meta.mat has not; {DEVKIT_REMEDY}")
    return {f"ILSVRC2012_val_{line:08d}": wnids[number] for line, number in enumerate(ids, 1)}


def devkit_synsets(path: Path) -> Synsets:
    """Return words and hierarchy of all synsets, inner nodes too, as far as meta.mat has them.

    Raises:
        UserError: not a devkit, or a damaged one.
    """
    files = _devkit_files(path)
    try:
        synsets = _synsets(files["meta.mat"])
        wnids, fields = _wnids(synsets), synsets.dtype.names
        rows = list(zip(wnids.values(), synsets, strict=True))
        words = {wnid: str(row["words"]) for wnid, row in rows} if "words" in fields else {}
        below = {wnid: np.atleast_1d(row["children"]).tolist() for wnid, row in rows} if "children" in fields else {}
        children = {wnid: tuple(wnids[int(number)] for number in nodes) for wnid, nodes in below.items() if nodes}
    except Exception as error:  # scipy raises nearly anything on a damaged file
        raise UserError(f"{path}: meta.mat cannot be read ({error}); {DEVKIT_REMEDY}") from None
    return Synsets(words, children)


def _synsets(meta: bytes) -> Any:
    """Return the rows of meta.mat."""
    return np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])


def _wnids(synsets: Any) -> dict[int, str]:
    """Return ILSVRC id -> wnid, in the order of the rows."""
    return {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}


def _devkit_files(path: Path) -> dict[str, bytes]:
    wanted = ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
    if not path.is_file():
        raise UserError(f"{path}: no such file; {DEVKIT_REMEDY}")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                inner = Path(member.name)
                if member.isreg() and inner.parent.name == "data" and inner.name in wanted:
                    content = tar.extractfile(member)
                    assert content is not None  # it is a regular file
                    files[inner.name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(f"{path}: not a complete devkit ({reason}); {DEVKIT_REMEDY}") from None
    for name in wanted:
        if name not in files:
            raise UserError(f"{path}: not the devkit, it has no data/{name}; {DEVKIT_REMEDY}")
    return files
