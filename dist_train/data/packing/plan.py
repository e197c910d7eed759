"""The plan of a pack: what decides the content of its shards, and which images go into which shard."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL

from dist_train.config import PackConfig, digest
from dist_train.data.packing.stored_images import Encoding, recode
from dist_train.data.packing.write_shard import read_blobs
from dist_train.data.shards.index import SUBSETS, VERSION, read_index
from dist_train.data.sources.archives import Items, Scan
from dist_train.errors import UserError

IDX_BYTES = 128  # about the length of an image's line in the .idx file
SAMPLE = 64  # images re-encoded in advance, to learn how small they get


class PlannedShard(NamedTuple):
    """Hold the images of a shard: rows of the subset's ``Items``, and about how many bytes the shard will take."""

    subset: str
    number: int
    rows: npt.NDArray[np.int64]
    bytes: int

    def tar(self, out: Path) -> Path:
        """Return the shard's file."""
        return out / self.subset / f"{self.number:06d}.tar"

    def record(self, out: Path) -> Path:
        """Return the file that notes what is in the shard."""
        return out / ".pack" / f"{self.subset}-{self.number:06d}.json"


def make_plan(options: PackConfig, scanned: Scan) -> dict[str, Any]:
    """Return what decides the content of every shard: packs with equal plans are equal byte for byte.

    Where the sources lie and the number of workers are no part of it.
    """
    plan = {**_of_options(options), "classes": f"{len(scanned.classes)} (hash {digest(scanned.classes)})"}
    for name in SUBSETS:
        items = scanned.subsets.get(name)
        plan[f"{name} images"] = f"{len(items)} (hash {items.hash})" if items else "none"
    return plan


def _of_options(options: PackConfig) -> dict[str, Any]:
    """Return the part of a plan that needs no look at the images."""
    return {
        "version": VERSION,
        "seed": options.seed,
        "shard_mb": options.shard_mb,
        "orientation": options.orientation,
        "shorter_side": options.shorter_side,
        "quality": options.quality,
        "encoder": f"Pillow {PIL.__version__}" if Encoding.of(options) else None,
        "on_duplicates": options.on_duplicates,
    }


def check_pack_options(options: PackConfig, out: Path) -> None:
    """Check that the finished pack in ``out`` was made with these options. Whether it was made from the same images,
    ``pack`` finds out.

    Raises:
        UserError: it was made with other options.
    """
    now = _of_options(options)
    there = read_index(out).get("plan", {})
    check_same_plan(out, {key: there.get(key) for key in now}, now)


def check_same_plan(out: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that the plan of the pack in ``out`` is the present plan.

    Raises:
        UserError: they differ; the line says in what.
    """
    differing = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    if differing:
        what = ", ".join(f"{key} {there.get(key)} there, {now.get(key)} now" for key in differing)
        raise UserError(f"{out}: holds another pack ({what}); choose another --out, or delete it first")


def plan_shards(scanned: Scan, options: PackConfig) -> list[PlannedShard]:
    """Shuffle each subset as a whole and cut it into shards of about equal bytes.

    ``RandomState`` because NumPy freezes its stream (NEP 19): a seed means the same under any version.
    """
    shards = []
    for name, items in scanned.subsets.items():
        order = np.random.RandomState(options.seed).permutation(len(items))
        sizes = items.size[order] * _shrinkage(items, order, options)
        bytes_each = tar_bytes(sizes)
        for number, (first, last) in enumerate(cut_evenly(bytes_each, options.shard_mb * 1e6)):
            on_disk = bytes_each[first:last].sum() + IDX_BYTES * (last - first)
            shards.append(PlannedShard(name, number, order[first:last], int(on_disk)))
    return shards


def tar_bytes(sizes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the bytes in the tar for images of these sizes [N]: two headers, the class, the image in whole blocks."""
    return 512.0 * (3 + np.ceil(sizes / 512))


def cut_evenly(sizes: npt.NDArray[np.float64], target: float) -> list[tuple[int, int]]:
    """Cut a row of sizes into pieces of about equal sums near ``target``: [first, last), none empty."""
    ends = np.cumsum(sizes)
    pieces = max(1, round(float(ends[-1] / target)))
    marks = np.searchsorted(ends, ends[-1] * np.arange(1, pieces) / pieces, side="right")
    bounds = np.unique([0, *marks, len(sizes)])
    return [(int(first), int(last)) for first, last in itertools.pairwise(bounds)]


def _shrinkage(items: Items, order: npt.NDArray[np.int64], options: PackConfig) -> float:
    """Return the bytes after re-encoding per byte before, from a few images, so that shards come out near shard_mb."""
    encoding = Encoding.of(options)
    if encoding is None:
        return 1.0
    before = after = 0
    for row in order[:SAMPLE]:
        (blob,) = read_blobs([items[int(row)]])
        recoded = recode(blob, encoding, options.orientation)
        if isinstance(recoded, bytes):
            before, after = before + len(blob), after + len(recoded)
    return after / before if before else 1.0
