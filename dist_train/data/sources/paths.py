"""The files that a path given as ``--train`` or ``--val`` means."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from glob import glob
from pathlib import Path

from dist_train.errors import UserError

# How the names of a subset's files begin in a folder with files of several splits (Hugging Face has
# train-00000-of-00294.parquet, train_images_0.tar, ...).
SPLITS = {"train": ("train",), "val": ("validation", "valid", "val")}
_SPLIT = re.compile(r"(train|validation|valid|val|test)(?=[-_.\d])")
_TARS = (".tar", ".tar.gz", ".tgz", ".zip")  # compressed files are refused when they are opened


def is_there(path: Path) -> bool:
    """Tell whether there is such a file or folder, or a file that matches the pattern."""
    return path.exists() or bool(glob(str(path)))


def files_of(path: Path, subset: str) -> tuple[list[Path], dict[str, int]]:
    """Return the files of many images that a path means, and how many files of each other split lie beside them.

    A path means itself, the files that match it as a pattern, or the files of a folder that has nothing else in it;
    only the files of ``subset``, where the names begin with a split. There are no files where the path is a folder of
    images, or is not there.

    Raises:
        UserError: a pattern matches files of both kinds; a folder has no file of this subset, or has them in its
            folder data/.
    """
    if path.is_dir():
        return _of_folder(path, subset)
    files = [path] if path.is_file() else sorted(map(Path, glob(str(path))))
    if len(files) > 1 and len({file.suffix for file in files}) > 1:
        raise UserError(f"{path}: matches files of several kinds, {files[0].name} and {files[-1].name}; give a pattern "
                        "of parquet files alone, or of tars alone")  # fmt: skip
    return files, {}


def _of_folder(folder: Path, subset: str) -> tuple[list[Path], dict[str, int]]:
    files = _many_images(folder)
    if not files:
        if below := _many_images(folder / "data"):
            raise UserError(f"{folder}: its {below[0].suffix} files lie in {folder / 'data'}; give that")
        return [], {}
    splits = {file: match[1] if (match := _SPLIT.match(file.name)) else None for file in files}
    own = [file for file in files if splits[file] in SPLITS[subset]]
    others = Counter(split for file, split in splits.items() if split and split not in SPLITS[subset])
    if others and not own:
        pattern = shlex.quote(f"{folder}/*{files[0].suffix}")
        raise UserError(
            f"{folder}: its files are those of {', '.join(others)}, none is named {SPLITS[subset][0]}...; give as "
            f"--{subset} a pattern of the files that you mean, as {pattern}"
        )
    return own or files, dict(others)


def _many_images(folder: Path) -> list[Path]:
    """Return the parquet files of a folder; else its tars, where it has nothing else."""
    try:
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    except OSError:
        return []  # listing the folder reports the error
    parquet = [entry for entry in entries if entry.suffix == ".parquet"]
    tars = [entry for entry in entries if entry.name.endswith(_TARS)]
    return parquet or (tars if len(tars) == len(entries) else [])
