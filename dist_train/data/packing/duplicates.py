"""Images that are in a pack twice: in train and in val, or under two classes.

They are found by the hashes of the source bytes, which are taken while the images are copied.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dist_train.data.sources.archives import Scan
from dist_train.errors import UserError, counted
from dist_train.names import shown

SHOWN = 20  # images printed


class Copy(NamedTuple):
    """Describe an image that has the bytes of another image. ``row`` is its row in the subset's ``Items``."""

    subset: str
    row: int
    label: int


class Duplicates(NamedTuple):
    """Hold the duplicates of a pack.

    Attributes:
        groups: the copies of each image that is in train and in val, or under two classes; train before val, by row.
        within_class: how many images repeat another image of their class and subset.
    """

    groups: list[list[Copy]]
    within_class: int


def find_duplicates(scanned: Scan, digests: dict[str, npt.NDArray[np.bytes_]]) -> Duplicates:
    """Compare the images' bytes by their hashes.

    Args:
        digests: per subset the hash of each image [N], b"" for those that were left out.
    """
    names = list(digests)
    rows = [np.flatnonzero(column != b"") for column in digests.values()]
    subset = np.repeat(np.arange(len(names)), [len(column) for column in rows])
    row = np.concatenate(rows)
    hashes = np.concatenate([digests[name][column] for name, column in zip(names, rows, strict=True)])
    _, image, count = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(count[image] > 1)
    by_image: dict[int, list[Copy]] = {}
    for place in repeated:
        name, number = names[subset[place]], int(row[place])
        copy = Copy(name, number, int(scanned.subsets[name].label[number]))
        by_image.setdefault(int(image[place]), []).append(copy)
    kinds = [len({(copy.subset, copy.label) for copy in copies}) for copies in by_image.values()]
    groups = [copies for copies, number in zip(by_image.values(), kinds, strict=True) if number > 1]
    return Duplicates(groups, len(repeated) - sum(kinds))


def rows_to_drop(duplicates: Duplicates) -> dict[str, set[int]]:
    """Return the rows per subset that the rule ``drop`` leaves out.

    An image under two classes goes with every copy, for it is not known which class is right. An image in train and in
    val loses its training copies.
    """
    rows: dict[str, set[int]] = {}
    for copies in duplicates.groups:
        two_classes = _classes(copies) > 1
        for copy in copies:
            if two_classes or copy.subset == "train":
                rows.setdefault(copy.subset, set()).add(copy.row)
    return rows


def refuse_duplicates(duplicates: Duplicates, scanned: Scan, out: object) -> None:
    """Stop where there are duplicates, as the rule ``fail`` asks.

    Raises:
        UserError: there are duplicates.
    """
    if duplicates.groups:
        entry = summarise_duplicates(duplicates, scanned, "fail")
        raise UserError(
            f"{out}: images with the same bytes: {_counts(entry)}; the first: {_line(entry['groups'][0][:3])}; "
            "start again with --on-duplicates keep, or with drop to leave them out: it goes on from here"
        )


def summarise_duplicates(duplicates: Duplicates, scanned: Scan, rule: str) -> dict[str, Any]:
    """Return the entry of ``index.json``.

    Returns:
        rule; train_and_val, two_classes: number of images with copies there (an image can be both); within_class:
        number of images that repeat another image of their class and subset; dropped: number of images left out, by
        subset; groups: the copies of each image, as subset, class and path, and whether it is dropped.
    """
    drop = rows_to_drop(duplicates) if rule == "drop" else {}
    return {
        "rule": rule,
        "train_and_val": sum(len({copy.subset for copy in copies}) > 1 for copies in duplicates.groups),
        "two_classes": sum(_classes(copies) > 1 for copies in duplicates.groups),
        "within_class": duplicates.within_class,
        "dropped": {name: len(drop.get(name, ())) for name in scanned.subsets},
        "groups": [[_entry(copy, scanned, drop) for copy in copies] for copies in duplicates.groups],
    }


def print_duplicates(entry: dict[str, Any]) -> None:
    """Print the summary of the duplicates: the counts, and the first images by their paths."""
    if not entry["groups"] and not entry["within_class"]:
        return
    dropped = sum(entry["dropped"].values())
    done = (
        f"{counted(dropped, 'image')} dropped"
        if entry["rule"] == "drop"
        else "kept; packed anew with --on-duplicates drop, into another --out, they are left out"
    )
    print(f"images with the same bytes: {_counts(entry)}" + (f"; {done}" if entry["groups"] else ""))
    for copies in entry["groups"][:SHOWN]:
        print(f"  {_line(copies)}")
    if len(entry["groups"]) > SHOWN:
        print(f"  and {len(entry['groups']) - SHOWN:,} more, in index.json under summary.duplicates")


def _counts(entry: dict[str, Any]) -> str:
    return (
        f"{entry['train_and_val']:,} in train and in val, {entry['two_classes']:,} under two classes, "
        f"{entry['within_class']:,} repeated within a class"
    )


def _line(copies: list[dict[str, str]]) -> str:
    return " = ".join(shown(f"{copy['subset']} {copy['class']}: {copy['path']}") for copy in copies)


def _entry(copy: Copy, scanned: Scan, drop: dict[str, set[int]]) -> dict[str, Any]:
    return {
        "subset": copy.subset,
        "class": scanned.classes[copy.label],
        "path": scanned.subsets[copy.subset].where(copy.row),
        "dropped": copy.row in drop.get(copy.subset, ()),
    }


def _classes(copies: list[Copy]) -> int:
    return len({copy.label for copy in copies})
