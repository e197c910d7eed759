"""From archives or folders to shards: shuffle, cut, write in parallel, continue where it stopped.

The plan (which image goes into which shard, in which order) is a pure function of the sources and
the options, and each shard is a pure function of its part of the plan: any number of workers and
any number of interruptions give the same bytes. While it runs, ``OUT/.pack`` holds the plan and a
record per finished shard; ``index.json`` comes last, and then ``.pack`` goes.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL

from dist_train.config import PackConfig, digest
from dist_train.data.packing.duplicates import find_duplicates, refuse, to_drop
from dist_train.data.packing.duplicates import summarise as summarise_duplicates
from dist_train.data.packing.pack_report import account_of, check_formats, print_report, summarise
from dist_train.data.packing.pack_shard import DIGEST_HEX, Encoding, ShardTask, read_blobs, recode, write_shard
from dist_train.data.packing.spool import spool, spooled, tasks_of
from dist_train.data.shards.index import (
    SUBSETS,
    VERSION,
    Shard,
    ShardSet,
    open_shards,
    read_index,
    sample_dtype,
    write_index,
)
from dist_train.data.sources.archives import Items, Scan, hold_out, scan
from dist_train.data.sources.synsets import Synsets
from dist_train.distributed.pool import progress_bar, run_tasks
from dist_train.errors import UserError
from dist_train.files import write_text
from dist_train.names import shown

IDX_BYTES = 128  # an image's line in the .idx file, about
SAMPLE = 64  # images re-encoded in advance, to learn how small they get


class Part(NamedTuple):
    """The images of one shard: rows of the subset's ``Items``, and the bytes it will take, about."""

    subset: str
    number: int
    rows: npt.NDArray[np.int64]
    bytes: int

    def tar(self, out: Path) -> Path:
        return out / self.subset / f"{self.number:06d}.tar"

    def record(self, out: Path) -> Path:
        return out / ".pack" / f"{self.subset}-{self.number:06d}.json"


def pack(options: PackConfig, out: Path, progress: bool = True) -> ShardSet:
    """Make the shards in ``out``, or continue to; a finished pack of the same plan is left as it is.

    Args:
        options: ``draw`` is not looked at here.
        progress: show bars on stderr.

    Raises:
        UserError: bad sources (see ``archives.scan``), ``out`` holds something else, no space left.
    """
    if options.train is None:
        raise UserError("pack.train: no training images; give ILSVRC2012_img_train.tar or a folder with --train")
    for option, source in (("--train", options.train), ("--val", options.val)):
        if source and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise UserError(
                f"--out {out}: lies in {option} {source}, which would then hold shards; give a folder elsewhere"
            )
    found = scan(options.train, options.val, options.devkit, progress)
    if Encoding.of(options) is None:
        check_formats(found.subsets["train"])
    for note in found.notes:
        print(shown(note))
    if options.val_share is not None:
        found = hold_out(found, options.val_share, options.seed)
    plan = make_plan(options, found)
    if (out / "index.json").is_file():
        return _finished(out, plan, found)
    parts: list[Part] = []
    try:
        with _state(out, plan):
            found = _readable(found, options, out, progress)
            parts = cut_parts(found, options)
            _write_parts(parts, found, options, out, progress)
            same = _settle_duplicates(parts, found, options, out, progress)
            shards, summary = _publish(parts, found, plan, same, out)
            shutil.rmtree(out / ".pack")
    except OSError as error:
        raise _cannot_write(error, parts, out) from None
    print_report(summary, found.account, out)
    return shards


def make_plan(options: PackConfig, found: Scan) -> dict[str, Any]:
    """What decides the content of every shard: packs with equal plans are equal byte for byte.
    Where the sources lie and the number of workers are no part of it."""
    plan = {**_of_options(options), "classes": f"{len(found.classes)} (hash {digest(found.classes)})"}
    for name in SUBSETS:
        items = found.subsets.get(name)
        plan[f"{name} images"] = f"{len(items)} (hash {items.hash})" if items else "none"
    return plan


def _of_options(options: PackConfig) -> dict[str, Any]:
    """The part of a plan that needs no look at the images."""
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
    """Raises UserError where the finished pack in ``out`` was made with other options, as ``pack`` does; whether
    from the same images, ``pack`` finds out."""
    now = _of_options(options)
    there = read_index(out).get("plan", {})
    _same_plan(out, {key: there.get(key) for key in now}, now)


def cut_parts(found: Scan, options: PackConfig) -> list[Part]:
    """Shuffle each subset as a whole and cut it into shards of about equal bytes.

    ``RandomState`` because NumPy freezes its stream (NEP 19): a seed means the same under any version.
    """
    parts = []
    for name, items in found.subsets.items():
        order = np.random.RandomState(options.seed).permutation(len(items))
        sizes = items.size[order] * _shrinkage(items, order, options)
        bytes_each = tar_bytes(sizes)
        for number, (first, last) in enumerate(cut(bytes_each, options.shard_mb * 1e6)):
            on_disk = bytes_each[first:last].sum() + IDX_BYTES * (last - first)
            parts.append(Part(name, number, order[first:last], int(on_disk)))
    return parts


def tar_bytes(sizes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Bytes in the tar for images of these sizes [N]: two headers, the class, the image in whole blocks."""
    return 512.0 * (3 + np.ceil(sizes / 512))


def cut(sizes: npt.NDArray[np.float64], target: float) -> list[tuple[int, int]]:
    """Cut a row of sizes into pieces of about equal sums near ``target``: [first, last), none empty."""
    ends = np.cumsum(sizes)
    pieces = max(1, round(float(ends[-1] / target)))
    marks = np.searchsorted(ends, ends[-1] * np.arange(1, pieces) / pieces, side="right")
    bounds = np.unique([0, *marks, len(sizes)])
    return [(int(first), int(last)) for first, last in itertools.pairwise(bounds)]


def _shrinkage(items: Items, order: npt.NDArray[np.int64], options: PackConfig) -> float:
    """Bytes after re-encoding per byte before, from a few images: shards are to come out near shard_mb."""
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


# ---- where it stopped


@contextmanager
def _state(out: Path, plan: dict[str, Any]) -> Iterator[None]:
    """``out/.pack`` with the plan in it, for this process alone; leftovers of a killed one removed."""
    state = out / ".pack"
    foreign = [folder for name in SUBSETS if (folder := out / name).exists()]
    if foreign and not state.is_dir():
        raise UserError(f"{foreign[0]}: exists and is not from a pack; choose another --out")
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{out}: another process is packing into it; wait for it, or choose another --out"
            ) from None
        except OSError:
            pass  # a file system without locks
        for folder in (out, state, *(out / name for name in SUBSETS)):
            for leftover in folder.glob(".*.tmp-*"):
                leftover.unlink()
        path = state / "plan.json"
        # What to do with duplicates is settled last: until then it may change.
        settled = {key: value for key, value in plan.items() if key != "on_duplicates"}
        if path.is_file():
            _same_plan(out, json.loads(path.read_text()), settled)
        else:
            write_text(path, json.dumps(settled))
        yield


def _finished(out: Path, plan: dict[str, Any], found: Scan) -> ShardSet:
    index = read_index(out)
    _same_plan(out, index.get("plan", {}), plan)
    if found.synsets != Synsets() and "synsets" not in index:  # packed before the index had them, or without a devkit
        try:
            write_text(out / "index.json", json.dumps({**index, "synsets": asdict(found.synsets)}, indent=1))
        except OSError as error:
            print(f"{out}: cannot be written ({error.strerror}): its classes keep their wnids for names")
    try:
        shards = open_shards(out)
    except UserError as error:
        raise UserError(f"{error}; to pack again, delete {out} first") from None
    shutil.rmtree(out / ".pack", ignore_errors=True)
    print(f"{out}: already packed with these options; nothing to do")
    return shards


def _same_plan(out: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    if differing:
        what = ", ".join(f"{key} {there.get(key)} there, {now.get(key)} now" for key in differing)
        raise UserError(f"{out}: holds another pack ({what}); choose another --out, or delete it first")


def _record(part: Part, out: Path) -> dict[str, Any] | None:
    """What ``write_shard`` noted, if the shard is finished and still has its size."""
    path, tar = part.record(out), part.tar(out)
    if not (path.is_file() and tar.is_file() and tar.with_suffix(".idx").is_file()):
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record if record["shard"]["bytes"] == tar.stat().st_size else None


def _finished_record(part: Part, out: Path) -> dict[str, Any]:
    record = _record(part, out)
    assert record is not None  # written just now, or found intact at the start
    return record


# ---- writing


def _readable(found: Scan, options: PackConfig, out: Path, progress: bool) -> Scan:
    """The same images, those in parquet files copied to where they can be read in place (see ``spool``)."""
    tasks = tasks_of(found.subsets.values(), out / ".pack" / "spool")
    if not tasks:
        return found
    total = sum(file.stat().st_size for file in tasks)
    print(
        f"{out}: {len(tasks)} parquet files cannot be read in place: their {total / 1e9:.3f} GB are copied into "
        f"{out / '.pack'} first, and deleted at the end"
    )
    copies = sum(file.stat().st_size for file, task in tasks.items() if task.done() is None)
    if copies:  # once they are there, the shards' sizes are known
        _check_space(copies + (0 if Encoding.of(options) else total), out)
    spool(tasks.values(), options.workers, progress)
    return replace(found, subsets={name: spooled(items, tasks) for name, items in found.subsets.items()})


def _write_parts(parts: list[Part], found: Scan, options: PackConfig, out: Path, progress: bool) -> None:
    """Write the shards that are not there yet."""
    todo = [part for part in parts if _record(part, out) is None]
    total, left = (sum(len(part.rows) for part in some) for some in (parts, todo))
    if len(todo) < len(parts):
        print(f"{out}: continues; {len(parts) - len(todo)} of {len(parts)} shards are there")
    if Encoding.of(options) is None:
        _check_space(sum(part.bytes for part in todo), out)
    with progress_bar(total, "pack", "image", progress, done=total - left) as bar:
        run_tasks(write_shard, _tasks(todo, found, options, out, {}), len(todo), options.workers, bar)


def _tasks(
    parts: list[Part], found: Scan, options: PackConfig, out: Path, drop: dict[str, set[int]]
) -> Iterator[ShardTask]:
    encoding = Encoding.of(options)
    for part in parts:
        items = [found.subsets[part.subset][int(row)] for row in part.rows]
        yield ShardTask(part.tar(out), part.record(out), items, encoding, options.orientation, _dropped(part, drop))


def _dropped(part: Part, drop: dict[str, set[int]]) -> frozenset[int]:
    """Places in the shard of the rows to drop."""
    rows = drop.get(part.subset, set())
    return frozenset(place for place, row in enumerate(part.rows) if int(row) in rows)


def _settle_duplicates(
    parts: list[Part], found: Scan, options: PackConfig, out: Path, progress: bool
) -> dict[str, Any]:
    """Find the images that are there twice and do as ``on_duplicates`` says: the shards from which an image goes, or
    into which it comes back after a change of mind, are written again.

    Raises:
        UserError: the rule is ``fail``, and there are duplicates.
    """
    digests = {name: np.zeros(len(items), f"S{DIGEST_HEX}") for name, items in found.subsets.items()}
    dropped = []
    for part in parts:
        record = _finished_record(part, out)
        digests[part.subset][part.rows] = record["digests"]
        dropped.append(set(record["dropped"]))
    duplicates = find_duplicates(found, digests)
    if options.on_duplicates == "fail":
        refuse(duplicates, found, out)
    drop = to_drop(duplicates) if options.on_duplicates == "drop" else {}
    todo = [part for part, gone in zip(parts, dropped, strict=True) if gone != _dropped(part, drop)]
    with progress_bar(sum(len(part.rows) for part in todo), "drop duplicates", "image", progress and bool(todo)) as bar:
        run_tasks(write_shard, _tasks(todo, found, options, out, drop), len(todo), options.workers, bar)
    return summarise_duplicates(duplicates, found, options.on_duplicates)


def _check_space(needed: int, out: Path) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(_no_space(out, needed, free))


def _no_space(out: Path, needed: int, free: int) -> str:
    return (
        f"No space left on {out}: about {needed / 1e9:.3f} GB are still needed, {free / 1e9:.3f} GB are "
        f"free; make room and start again to continue, or choose another --out"
    )


def _cannot_write(error: OSError, parts: list[Part], out: Path) -> UserError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{error.filename or out}: cannot be written ({error.strerror}); choose another --out")
    needed = sum(part.bytes for part in parts if _record(part, out) is None)
    return UserError(_no_space(out, needed, shutil.disk_usage(out).free))


def _publish(
    parts: list[Part], found: Scan, plan: dict[str, Any], same: dict[str, Any], out: Path
) -> tuple[ShardSet, dict[str, Any]]:
    """The index from all records, with plan and summary in it; ``same`` is of ``_settle_duplicates``."""
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in found.subsets}
    for part in parts:
        records[part.subset].append(_finished_record(part, out))
    summary = {**summarise(records, found.classes), "duplicates": same}
    summary["account"] = account_of(found.account, summary).entry()
    tables = {}
    for name, entries in records.items():
        # DALI and webdataset refuse a tar without images: one of which nothing could be decoded goes.
        kept = [entry for entry in entries if entry["shard"]["samples"]]
        if not kept:
            reasons = [entry["reason"] for record in entries for entry in record["undecodable"]]
            why = f"can be decoded; the first: {reasons[0]}" if reasons else "is left without the duplicates"
            raise UserError(f"{found.subsets[name].source}: no image {why}")
        for entry in entries:
            if not entry["shard"]["samples"]:
                tar = out / name / entry["shard"]["name"]
                tar.with_suffix(".idx").unlink()
                tar.unlink()
        sources = [path for entry in kept for path in entry["sources"]]
        tables[name] = [Shard(**entry["shard"]) for entry in kept], _table(kept), sources
    extra = {"plan": plan, "summary": summary}
    if found.synsets != Synsets():
        extra["synsets"] = asdict(found.synsets)
    return write_index(out, found.classes, plan["orientation"], tables, extra), summary


def _table(records: list[dict[str, Any]]) -> npt.NDArray[Any]:
    """Rows of ``samples.npy``, in the order of the shards."""
    rows = [(shard, *row) for shard, record in enumerate(records) for row in record["rows"]]
    keys = [row[-1].encode() for row in rows]
    return np.array(
        [(*row[:-1], key) for row, key in zip(rows, keys, strict=True)],
        sample_dtype(max(len(key) for key in keys)),
    )
