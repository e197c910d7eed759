"""Keys: the names of samples in a pack, for WebDataset and DALI, whatever the files are called.

A key has letters and digits of ASCII, ``-`` and ``_``: webdataset and DALI take everything after a key's first dot for
its extension. It depends on the names alone, not on the order or the form in which the images came.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MAX_KEY_BYTES = 90
"""With its extension a key has to fit the 100 bytes of a plain tar header."""

_DIGITS = 16
# ILSVRC's own names are keys. Hugging Face's files have the same names with the class once more at the end.
_OFFICIAL_VAL = re.compile(r"(ILSVRC2012_val_\d{8})(?:_n\d{8})?")
_OFFICIAL_TRAIN = re.compile(r"((n\d{8})_\d+)_\2")


def unique_keys(classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a key for each image: its ``natural_key``, where that is short enough and no other image has the same.

    Every other image, and every image that shares a key, gets hex digits of its name's sha256 behind it.

    Args:
        classes: the class's name of each image; "" where images carry no class in their path.
        names: the path of each image below its source; all different.
    """
    natural = [natural_key(group, name) for group, name in zip(classes, names, strict=True)]
    marked = {row for row, key in enumerate(natural) if len(key) > MAX_KEY_BYTES}
    digits = _DIGITS
    while True:
        keys = list(natural)
        for row in marked:
            keys[row] = _with_hash(natural[row], names[row], digits)
        if len(set(keys)) == len(keys):
            return keys
        count = Counter(keys)
        shared = {row for row, key in enumerate(keys) if count[key] > 1}
        if shared <= marked:  # two hashes that begin alike
            digits *= 2
            if digits > 64:
                raise ValueError("names are not all different")
        marked |= shared


def natural_key(group: str, name: str) -> str:
    """Return the key that a file's name gives: the stem, with its class before it if the stem does not begin with it.

    Args:
        group: the class's name, or "".
        name: the file's path below its source; only the file's own name counts.
    """
    file = name.rpartition("/")[2]
    stem = file.rpartition(".")[0] or file
    if official := _OFFICIAL_VAL.fullmatch(stem) or _OFFICIAL_TRAIN.fullmatch(stem):
        stem = official[1]
    elif group and stem != group and not stem.startswith(f"{group}_"):
        stem = f"{group}_{stem}"
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem if stem.isascii() else _without_marks(stem)) or "_"  # marks alone


def _without_marks(text: str) -> str:
    """Return a text without accents, in either of Unicode's forms: "café" -> "cafe"."""
    return "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))


def _with_hash(key: str, name: str, digits: int) -> str:
    content = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:digits]
    return f"{key[: MAX_KEY_BYTES - 1 - digits]}_{content}"
