"""Splits of the classes into base and novel, as lists of wnids; and views of the shards by class.

A split file is JSON: name, description, base, novel, pseudo_novel (a part of base, for choosing
hyper-parameters without a look at the novel classes) and a hash over the lists.

In a split by halves (Hariharan & Girshick 2017) the pseudo-novel classes lie outside the base, so that the
backbone is the same for both halves, and each half is scored with base classes of its own: two more lists,
scored_with_novel and scored_with_pseudo_novel. The other base classes are only trained on.

Classes are drawn by the rank of ``sha256("SEED:WNID")``: the first N wnids are novel, the next P pseudo-novel.
Anyone can make the list again in any language; no library's random stream is involved.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dist_train.config import configs_dir
from dist_train.data.shards.index import Subset, chunks
from dist_train.distributed.shared import shared_array
from dist_train.errors import UserError, command
from dist_train.files import read_lines, write_text
from dist_train.names import class_name, is_class_name


@dataclass(frozen=True)
class Split:
    """Hold the sorted wnids of a split.

    ``novel`` may be empty: then a run trains on all classes, and its table has base accuracy only. ``pseudo_novel`` is
    a subset of ``base``. In a split by halves, which has the last two lists, it is apart from ``base``, and the last
    two are subsets of ``base``.
    """

    name: str
    base: tuple[str, ...]
    novel: tuple[str, ...]
    pseudo_novel: tuple[str, ...] = ()
    description: str = ""
    scored_with_novel: tuple[str, ...] = ()
    scored_with_pseudo_novel: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.base:
            raise UserError(f"split {self.name}: no base class; name at least one")
        for kind in ("base", "novel"):
            classes = getattr(self, kind)
            twice = sorted({c for c in classes if classes.count(c) > 1}) if len(set(classes)) < len(classes) else []
            if twice:
                raise UserError(f"split {self.name}: {kind} names {twice[0]!r} twice; remove one")
        every = (*self.base, *self.novel, *self.pseudo_novel)
        strange = next((name for name in every if not is_class_name(name)), None)
        if strange is not None:
            raise UserError(f"split {self.name}: {_fault(strange)}")
        both = sorted(set(self.base) & set(self.novel))
        if both:
            raise UserError(f"split {self.name}: {both[0]!r} is base and novel; remove it from one")
        if self.halves:
            self._check_halves()
            return
        loose = sorted(set(self.pseudo_novel) - set(self.base))
        if loose:
            raise UserError(f"split {self.name}: pseudo-novel {loose[0]!r} is no base class; add it there")

    def _check_halves(self) -> None:
        if not (self.scored_with_novel and self.scored_with_pseudo_novel and self.novel and self.pseudo_novel):
            raise UserError(
                f"split {self.name}: halves need scored_with_novel, scored_with_pseudo_novel, novel and pseudo_novel"
            )
        both = sorted(set(self.pseudo_novel) & {*self.base, *self.novel})
        if both:
            raise UserError(f"split {self.name}: pseudo-novel {both[0]!r} is base or novel too; halves are apart")
        for kind in ("scored_with_novel", "scored_with_pseudo_novel"):
            loose = sorted(set(getattr(self, kind)) - set(self.base))
            if loose:
                raise UserError(f"split {self.name}: {kind} names {loose[0]!r}, which is no base class; add it there")

    @property
    def halves(self) -> bool:
        """Whether the split has a half for validation and a half for test, over the same base."""
        return bool(self.scored_with_novel or self.scored_with_pseudo_novel)

    @property
    def hash(self) -> str:
        """16 hex digits of sha256 over the sorted lists: three lists, or five by halves."""
        lists = [self.base, self.novel, self.pseudo_novel]
        lists += [self.scored_with_novel, self.scored_with_pseudo_novel] if self.halves else []
        return hashlib.sha256(json.dumps([sorted(part) for part in lists]).encode()).hexdigest()[:16]

    def roles(self, holdout: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return (base, novel) for a run: ``holdout`` is "novel" or "pseudo-novel" (see DataConfig)."""
        if holdout == "novel":
            return self.base, self.novel
        if not self.pseudo_novel:
            raise UserError(f"split {self.name}: has no pseudo-novel classes; use data.holdout=novel")
        held = set(self.pseudo_novel)
        return tuple(c for c in self.base if c not in held), self.pseudo_novel

    def scored(self, holdout: str) -> tuple[str, ...]:
        """Return the base classes that are scored beside the novel classes of ``holdout``."""
        if self.halves:
            return self.scored_with_novel if holdout == "novel" else self.scored_with_pseudo_novel
        return self.roles(holdout)[0]

    def kept(self, holdout: str) -> list[int]:
        """Return the positions of ``scored`` among the base classes of a run."""
        scored = set(self.scored(holdout))
        return [number for number, wnid in enumerate(self.roles(holdout)[0]) if wnid in scored]

    def without(self, classes: Sequence[str], name: str) -> Split:
        """Return the split without some classes, under another name.

        Raises:
            UserError: the split does not name such a class, or no base class is left.
        """
        left = set(classes)
        strange = sorted(left - {*self.base, *self.novel, *self.pseudo_novel})
        if strange:
            raise UserError(f"split {self.name}: names no class {strange[0]!r}; mend --without")
        kinds = {kind: tuple(c for c in getattr(self, kind) if c not in left)
                 for kind in ("base", "novel", "pseudo_novel", *_HALVES)}  # fmt: skip
        text = f"{self.description}; without {', '.join(sorted(left))}".removeprefix("; ")
        return Split(name, description=text, **kinds)


def _fault(name: object) -> str:
    """Return why this is no class name in the form of ``names.class_name``."""
    try:
        kept = class_name(str(name))
    except UserError as error:
        return str(error)
    return f"class name {name!a}: is not in Unicode's composed form (NFC); write {kept!a}"


def draw_split(name: str, classes: Sequence[str], novel: int, pseudo_novel: int, seed: int) -> Split:
    """Split ``classes`` by the rank of their hash (see the module's docstring).

    Args:
        novel: number of novel classes; 0: all classes are base classes.

    Raises:
        UserError: there are not enough classes.
    """
    if novel < 0 or pseudo_novel < 0:
        raise UserError(f"--novel {novel} --pseudo-novel {pseudo_novel}: give at least 0 of each")
    if novel + pseudo_novel >= len(classes):
        raise UserError(
            f"--novel {novel} --pseudo-novel {pseudo_novel}: {len(classes)} classes leave no base class; ask for fewer"
        )
    ranked = sorted(classes, key=lambda wnid: hashlib.sha256(f"{seed}:{wnid}".encode()).digest())
    base = sorted(ranked[novel:])
    if novel:
        text = f"novel = the {novel} of {len(classes)} wnids with the smallest sha256('{seed}:WNID')"
        text += f", pseudo-novel = the next {pseudo_novel}, base = all that are not novel"
    else:
        text = f"no novel classes, base = all {len(classes)} classes"
        text += f", pseudo-novel = the {pseudo_novel} with the smallest sha256('{seed}:WNID')" * bool(pseudo_novel)
    return Split(
        name, tuple(base), tuple(sorted(ranked[:novel])), tuple(sorted(ranked[novel : novel + pseudo_novel])), text
    )


_HALVES = ("scored_with_novel", "scored_with_pseudo_novel")


def save_split(split: Split, path: Path) -> None:
    """Write a split file, whole or not at all."""
    entry = {
        "name": split.name,
        "description": split.description,
        "hash": split.hash,
        "novel": split.novel,
        "pseudo_novel": split.pseudo_novel,
        **({key: getattr(split, key) for key in _HALVES} if split.halves else {}),
        "base": split.base,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(entry, indent=1) + "\n")


def load_split(name_or_path: str) -> Split:
    """Return a published split by its name, or the split of a file by its path.

    Raises:
        UserError: the file is not there, is no split file, or its lists do not match its hash.
    """
    published = configs_dir() / "splits"
    path = published / f"{name_or_path}.json"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in published.glob("*.json")))
        raise UserError(f"data.split={name_or_path}: no such file and no published split ({names})")
    again = command("split", "--shards", "SHARDS", "--novel", "N", "--out", "NEW.json")
    try:
        entry = json.loads(path.read_text())
        base, novel, pseudo = (tuple(sorted(entry[kind])) for kind in ("base", "novel", "pseudo_novel"))
        halves = {key: tuple(sorted(entry[key])) for key in _HALVES if key in entry}
        split = Split(entry["name"], base, novel, pseudo, entry.get("description", ""), **halves)
        stated = entry["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a split file ({error!r}); make one: {again}") from None
    if stated != split.hash:
        raise UserError(f"{path}: lists were changed, their hash is {split.hash}, the file says {stated}")
    return split


def read_classes(path: Path, known: Sequence[str] = ()) -> list[str]:
    """Read a list of classes, a line each: the whole line where it is a class in ``known``, else its first word.

    Raises:
        UserError: there is no such file, it is no text file, or a word cannot be a class name.
    """
    lines = [unicodedata.normalize("NFC", line) for line in read_lines(path, "a list of classes, one a line")]
    classes, whole = [], set(known)
    for number, line in enumerate(lines, 1):
        try:
            classes += [class_name(line if line in whole else line.split()[0])] if line else []
        except UserError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
    return classes


class Labelled(Protocol):
    """Describe samples with labels: the images of a subset of shards, or the rows of a file of features."""

    @property
    def name(self) -> str:
        """ "train" or "val"."""

    @property
    def source(self) -> str:
        """Where they are, for messages."""

    @property
    def digest(self) -> str:
        """Identifies the labels; "" where they are in no file."""

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The number of each sample's class: int32 [N]."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Group the samples of some classes by class. Arrays of N numbers are in memory once a node
    (``distributed.shared``).

    Attributes:
        ids: int64 [N], sample ids sorted by class, then id.
        bounds: int64 [classes + 1]: class c has ``ids[bounds[c]:bounds[c + 1]]``.
        classes: wnids; a model's output c stands for ``classes[c]``.
        lookup: int64 [all classes], label of a sample -> label of this group, -1 = not in it.
    """

    ids: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    lookup: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [N], the position of each sample's class in ``classes``; made anew each time."""
        return np.repeat(np.arange(len(self.classes)), np.diff(self.bounds))


@dataclass(frozen=True, kw_only=True)
class View(Groups):
    """Select the images of some classes of a subset; the shards stay as they are."""

    subset: Subset

    @cached_property
    def turned(self) -> bool:
        """Whether any of its images is stored turned, see ``images.orientation``."""
        if "orientation" not in (self.subset.samples.dtype.names or ()):  # version 1
            return False

        def look() -> npt.NDArray[np.bool_]:
            return np.array(
                [
                    bool(((rows["orientation"] != 1) & (self.lookup[rows["label"]] >= 0)).any())
                    for rows in chunks(self.subset.samples)
                ]
            )

        return bool(_shared_of(self.subset, self.lookup, "turned", look).any())

    def shards(self) -> npt.NDArray[np.int32]:
        """Return the shard of each sample: int32 [N]."""
        return _shared_of(self.subset, self.lookup, "shards", lambda: self.subset.samples["shard"][self.ids])

    def by_shard(self) -> npt.NDArray[np.int64]:
        """Return the places of ``ids`` in the order in which their images lie in the shards: int64 [N]."""
        return _shared_of(self.subset, self.lookup, "by-shard", lambda: np.argsort(self.ids))

    def labels_of(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the labels of sample ids, read from the index anew: the guard of every batch.

        Raises:
            UserError: a sample belongs to a class that this view does not have. So a novel
                image can never reach base training unnoticed.
        """
        labels: npt.NDArray[np.int64] = self.lookup[self.subset.samples["label"][ids]]
        if labels.min(initial=0) < 0:
            stray = int(ids[int(np.argmin(labels))])
            raise UserError(f"{self.subset.where(stray)}: its class is not in this view; base and novel would mix")
        return labels


def make_view(subset: Subset, all_classes: Sequence[str], classes: Sequence[str], split: str) -> View:
    """Return the images of ``classes`` in a subset; for the rest see ``make_groups``."""
    return View(subset=subset, **vars(make_groups(subset, all_classes, classes, split)))


def make_groups(subset: Labelled, all_classes: Sequence[str], classes: Sequence[str], split: str) -> Groups:
    """Return the samples of ``classes`` in a subset.

    Args:
        all_classes: the classes of all subsets, by label.
        split: the split's name or path, for messages.

    Raises:
        UserError: the split names a class that no subset has, or that has no sample in this subset.
    """
    position = {wnid: number for number, wnid in enumerate(all_classes)}
    missing = [wnid for wnid in classes if wnid not in position]
    if missing:
        raise UserError(
            f"split {split}: class {missing[0]!r} is not in {subset.source} "
            f"({len(missing)} of {len(classes)} are missing); use a split that was made for its classes"
        )
    lookup = np.full(len(all_classes), -1, np.int64)
    for label, wnid in enumerate(classes):
        lookup[position[wnid]] = label
    # An array for both: first the bounds of the classes, then the ids.
    table = _shared_of(subset, lookup, "ids", lambda: _grouped(subset.labels, lookup, len(classes)))
    bounds, ids = table[: len(classes) + 1], table[len(classes) + 1 :]
    counts = np.diff(bounds)
    if counts.min() == 0:
        if counts.max() == 0:
            raise UserError(
                f"{subset.source}: none of the split's {len(classes)} classes, such as {classes[0]!r}, has a "
                f"{subset.name} image; give data with the same names of classes"
            )
        wnid = classes[int(np.argmin(counts))]
        without = [wnid for wnid, count in zip(classes, counts, strict=True) if count == 0]
        out = f"{Path(split).stem}_without.json"
        less = command("split", "--split", split, "--out", out, *(f"--without={wnid}" for wnid in without))
        raise UserError(
            f"{subset.source}: class {wnid!r} has no {subset.name} image ({len(without)} of {len(classes)} classes "
            f"have none); add some of it, or leave it out: {less} and then {shlex.join(['--data.split', out])}"
        )
    return Groups(ids=ids, bounds=bounds, classes=tuple(classes), lookup=lookup)


def _grouped(labels: npt.NDArray[np.int32], lookup: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Return the ``bounds`` and then the ``ids`` of a view: int64 [classes + 1 + N].

    The samples form a matrix with an entry each, in the column of its class: to order them by columns, SciPy counts and
    does not compare. For 14 million samples that takes half the time of NumPy's stable sort of 16 bits, and a fifth of
    the time of its sort of 64 bits.
    """
    from scipy.sparse import csr_array  # here: a tenth of a second to import

    own = np.where(lookup < 0, classes, lookup).astype(np.int32)[labels]  # samples of other classes come last
    rows = np.arange(len(own) + 1, dtype=np.int32 if len(own) < 2**31 else np.int64)
    columns = csr_array((np.ones(len(own), np.int8), own, rows), shape=(len(own), classes + 1)).tocsc()
    del own, rows  # to make room for the arrays that follow, which are as large
    bounds = columns.indptr[: classes + 1].astype(np.int64)
    return np.concatenate([bounds, columns.indices[: bounds[-1]]])


def _shared_of(
    subset: Labelled, lookup: npt.NDArray[np.int64], title: str, make: Callable[[], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """Return an array that a subset's table and a view's ``lookup`` decide; shared where the table is a file."""
    name = f"{title}-{subset.digest[:16]}-{hashlib.sha256(lookup.tobytes()).hexdigest()[:16]}"
    return shared_array(name, len(subset) if subset.digest else 0, make)
