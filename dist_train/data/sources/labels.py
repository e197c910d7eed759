"""The class of an image: by its folder, by a file of labels, or by its name.

They are asked in this order: the class folder; the file given with ``--devkit``; the wnid in the image's name; the file
of labels that lies beside the images. Where two of them disagree on an image, the image is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dist_train.data.sources.devkit import devkit_synsets, devkit_wnids
from dist_train.data.sources.kaggle import SOLUTION, is_csv, read_solution, read_words, solution_of, words_of
from dist_train.data.sources.synsets import Synsets
from dist_train.errors import UserError, counted
from dist_train.names import class_name

LABELS_REMEDY = (
    f"give as --devkit ILSVRC2012_devkit_t12.tar.gz of image-net.org, or {SOLUTION} of Kaggle; or sort the images "
    "into one folder per class"
)


_class_name = lru_cache(10_000)(class_name)  # a million images have a thousand classes


@dataclass(frozen=True)
class LabelFile:
    """Hold the labels that a file gives.

    Attributes:
        path: the file.
        classes: image id ("ILSVRC2012_val_00000001") -> wnid.
        beside: whether it lay beside the images, and was not given.
        synsets: the names and hierarchy of the classes, from it or from the file that comes with it.
    """

    path: Path
    classes: dict[str, str]
    beside: bool = False
    synsets: Synsets = field(default_factory=Synsets)


class Source(NamedTuple):
    """Describe a place that labels may come from: its name in messages, and a function from an image's name to its
    class or None."""

    says: str
    label: Callable[[str], str | None]


def label_file(devkit: Path | None, val: Path | None) -> LabelFile | None:
    """Read the file given as ``--devkit``, a devkit or Kaggle's CSV; without it, the CSV where Kaggle has it.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    path = devkit or (solution_of(val) if val else None)
    if path is None:
        return None
    if is_csv(path):
        words = words_of(path)
        synsets = Synsets(read_words(words)) if words else Synsets()
        return LabelFile(path, read_solution(path), devkit is None, synsets)
    return LabelFile(path, devkit_wnids(path), False, devkit_synsets(path))


def image_id(name: str) -> str:
    """Return the image's id, its name without folders, extension and the wnid that Hugging Face appends
    ("ILSVRC2012_val_00000001_n03000134.JPEG", "n01440764_10026_n01440764.JPEG")."""
    return re.sub(r"(?<=.)_n\d{8}$", "", _stem(name))


def name_label(name: str) -> str | None:
    """Return the wnid at the end of a name, where Hugging Face has it, or None."""
    match = re.search(r"._(n\d{8})$", _stem(name))
    return match[1] if match else None


def train_name_label(name: str) -> str | None:
    """Return the wnid that a training image is named after, at the start or at the end of its name, or None.

    Raises:
        UserError: the name begins with one wnid and ends with another.
    """
    begin, end = re.match(r"(n\d{8})_", _stem(name)), name_label(name)
    if begin and end and begin[1] != end:
        raise UserError(f"{name}: its name begins with the class {begin[1]} and ends with {end}; rename or remove it")
    return end or (begin[1] if begin else None)


def folder_label(name: str) -> str | None:
    """Return the class folder as a class name: the first part of "class/.../file"; None for "file"."""
    folder, slash, _ = name.partition("/")
    return _class_name(folder) if slash else None


def train_labels(source: object, names: Sequence[str]) -> list[str]:
    """Return the class of each training image, by its folder, or by its name where there are no folders.

    Raises:
        UserError: an image has no class; folder and name disagree.
    """
    folders = {folder_label(name) for name in names}
    if None in folders:
        return decide_labels(source, names, [Source("its name", train_name_label)], _no_train_label)[0]
    by_name = Source("its name", lambda name: label if (label := name_label(name)) in folders else None)
    return decide_labels(source, names, [Source("its folder", folder_label), by_name], _no_train_label)[0]


def val_labels(
    source: object, names: Sequence[str], classes: Sequence[str], file: LabelFile | None, by: str = "its folder"
) -> tuple[list[str], str]:
    """Return the class of each validation image, and where the labels came from ("12 by /path/of/a.csv").

    An answer that is no class of the training images does not contradict a class folder: folders may have names
    of their own.

    Args:
        by: where the first part of "class/file" comes from, for messages.

    Raises:
        UserError: an image has no label or two; a label is not among ``classes``; a flat folder or tar lacks
            images that ``file`` labels.
    """
    known = set(classes)
    by_folder = any(folder_label(name) for name in names)

    def unless_foreign(label: str | None) -> str | None:
        return None if by_folder and label not in known else label

    by_name = Source("its name", lambda name: unless_foreign(name_label(name)))
    sources = [Source(by, folder_label), by_name]
    if file:
        by_file = Source(str(file.path), lambda name: unless_foreign(file.classes.get(image_id(name))))
        sources.insert(2 if file.beside else 1, by_file)
    labels, used = decide_labels(source, names, sources, lambda name: _no_val_label(name, file))
    for name, label in zip(names, labels, strict=True):
        if label not in known:
            raise UserError(
                f"{source}: {name} is labelled {label!r}, which is not among the training classes; give the "
                f"validation images and the labels that belong to --train, or remove it"
            )
    if file and used[str(file.path)]:
        _check_count(source, names, file)
    return labels, ", ".join(f"{count:,} by {says}" for says, count in used.items())


def decide_labels(
    source: object, names: Sequence[str], sources: Sequence[Source], nothing: Callable[[str], str]
) -> tuple[list[str], Counter[str]]:
    """Return for each image the label of the first source that has a label, and how many labels each source gave.

    Args:
        source: the archive or folder, for messages.
        nothing: returns why a name has no label, and what to do.

    Raises:
        UserError: no source has a label for an image, or two disagree.
    """
    labels, used = [], Counter[str]()
    for name in names:
        answers = [(says, label) for says, ask in sources if (label := ask(name)) is not None]
        if not answers:
            raise UserError(f"{source}: {nothing(name)}")
        says, label = answers[0]
        for other, second in answers[1:]:
            if second != label:
                raise UserError(
                    f"{source}: image {name!r} is {label!r} by {says} and {second!r} by {other}; correct the wrong "
                    f"label, or remove the image"
                )
        labels.append(label)
        used[says] += 1
    return labels, used


def _check_count(source: object, names: Sequence[str], file: LabelFile) -> None:
    here = {image_id(name) for name in names}
    if len(here & file.classes.keys()) != len(file.classes):
        raise UserError(
            f"{source}: holds {counted(len(here), 'validation image')}, {file.path} labels {len(file.classes)}; "
            "fetch the images "
            f"again, or give the file of labels that belongs to them"
        )


def _no_train_label(name: str) -> str:
    return (
        f"image {name!r} lies in no class folder, and its name begins and ends with no wnid; give "
        "ILSVRC2012_img_train.tar or a folder with one folder per class"
    )


def _no_val_label(name: str, file: LabelFile | None) -> str:
    if file is None:
        return f"its images carry no labels, the first: {name!r}; {LABELS_REMEDY}"
    ids = sorted(file.classes)
    return f"image {name!r} has no label: {file.path} names {ids[0]} to {ids[-1]}; {LABELS_REMEDY}"


def _stem(name: str) -> str:
    file = name.rpartition("/")[2]
    return file.rpartition(".")[0] or file
