"""The same image twice in a pack: in train and in val, or under two classes. Found by the hashes of the source bytes,
which are taken while the images are copied.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dist_train.data.archives import Scan
from dist_train.data.names import shown
from dist_train.errors import UserError

SHOWN = 20  # images printed


class Copy(NamedTuple):
    """One of several images with the same bytes: row of the subset's ``Items``."""

    subset: str
    row: int
    label: int


class Duplicates(NamedTuple):
    """Attributes:
    groups: of each image that is in train and in val, or under two classes, its copies; train before val, by row.
    within_class: how many images repeat another one of their class and subset.
    """

    groups: list[list[Copy]]
    within_class: int


def find_duplicates(found: Scan, digests: dict[str, npt.NDArray[np.bytes_]]) -> Duplicates:
    """Compare the images' bytes by their hashes.

    Args:
        digests: per subset the hash of each image [N], b"" for those that were left out.
    """
    copies = [(name, row) for name, some in digests.items() for row in np.flatnonzero(some != b"")]
    hashes = np.concatenate([some[some != b""] for some in digests.values()])
    _, group, count = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(count[group] > 1)
    together: dict[int, list[Copy]] = {}
    for n in repeated:
        name, row = copies[n]
        together.setdefault(int(group[n]), []).append(Copy(name, int(row), int(found.subsets[name].label[row])))
    places = [len({(copy.subset, copy.label) for copy in some}) for some in together.values()]
    groups = [some for some, places_ in zip(together.values(), places, strict=True) if places_ > 1]
    return Duplicates(groups, len(repeated) - sum(places))


def to_drop(duplicates: Duplicates) -> dict[str, set[int]]:
    """Rows per subset that the rule ``drop`` leaves out: of an image under two classes every copy, for which class is
    right is not known; of one in train and in val the training copies."""
    rows: dict[str, set[int]] = {}
    for copies in duplicates.groups:
        two_classes = _classes(copies) > 1
        for copy in copies:
            if two_classes or copy.subset == "train":
                rows.setdefault(copy.subset, set()).add(copy.row)
    return rows


def refuse(duplicates: Duplicates, found: Scan, out: object) -> None:
    """The rule ``fail``: raises UserError where there are any."""
    if duplicates.groups:
        first = " = ".join(_where(copy, found) for copy in duplicates.groups[0][:3])
        raise UserError(
            f"{out}: {_counts(summarise(duplicates, found, 'fail'))}, the first: {first}; start again with "
            "--on-duplicates keep, or with drop to leave them out: it goes on from here"
        )


def summarise(duplicates: Duplicates, found: Scan, rule: str) -> dict[str, Any]:
    """For ``index.json``.

    Returns:
        rule; train_and_val, two_classes: images of which copies are there (an image can be both); within_class:
        images that repeat one of their class and subset; dropped: images left out, by subset; groups: the copies of
        each image, as subset, class and path, and whether it is dropped.
    """
    drop = to_drop(duplicates) if rule == "drop" else {}
    return {
        "rule": rule,
        "train_and_val": sum(len({copy.subset for copy in some}) > 1 for some in duplicates.groups),
        "two_classes": sum(_classes(some) > 1 for some in duplicates.groups),
        "within_class": duplicates.within_class,
        "dropped": {name: len(drop.get(name, ())) for name in found.subsets},
        "groups": [
            [{**_entry(copy, found), "dropped": copy.row in drop.get(copy.subset, ())} for copy in some]
            for some in duplicates.groups
        ],
    }


def print_duplicates(entry: dict[str, Any]) -> None:
    """What ``summarise`` says, on stdout: the counts, and the first images by their paths."""
    if not entry["groups"] and not entry["within_class"]:
        return
    dropped = sum(entry["dropped"].values())
    done = f"{dropped:,} images dropped" if entry["rule"] == "drop" else "kept; --on-duplicates drop leaves them out"
    print(f"duplicates: {_counts(entry)}" + (f": {done}" if entry["groups"] else ""))
    for copies in entry["groups"][:SHOWN]:
        print("  " + " = ".join(shown(f"{copy['subset']} {copy['class']}: {copy['path']}") for copy in copies))
    if len(entry["groups"]) > SHOWN:
        print(f"  and {len(entry['groups']) - SHOWN:,} more, in index.json under summary.duplicates")


def _counts(entry: dict[str, Any]) -> str:
    return (
        f"{entry['train_and_val']:,} images are in train and in val, {entry['two_classes']:,} under two classes, "
        f"{entry['within_class']:,} repeat one of their class"
    )


def _entry(copy: Copy, found: Scan) -> dict[str, str]:
    return {
        "subset": copy.subset,
        "class": found.classes[copy.label],
        "path": found.subsets[copy.subset].where(copy.row),
    }


def _where(copy: Copy, found: Scan) -> str:
    return f"{copy.subset} {found.classes[copy.label]}: {found.subsets[copy.subset].where(copy.row)}"


def _classes(copies: list[Copy]) -> int:
    return len({copy.label for copy in copies})
