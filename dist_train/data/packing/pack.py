"""From archives or folders to shards: shuffle, cut, write in parallel, continue where it stopped.

The plan (which image goes into which shard, in which order) is a pure function of the sources and
the options, and each shard is a pure function of its part of the plan: any number of workers and
any number of interruptions give the same bytes. While it runs, ``OUT/.pack`` holds the plan and a
record per finished shard; ``index.json`` comes last, and then ``.pack`` goes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_train.config import PackConfig
from dist_train.data.packing.duplicates import find_duplicates, refuse_duplicates, rows_to_drop, summarise_duplicates
from dist_train.data.packing.plan import PlannedShard, check_same_plan, make_plan, plan_shards
from dist_train.data.packing.spool import spool, spool_tasks, spooled
from dist_train.data.packing.stored_images import DIGEST_HEX, Encoding
from dist_train.data.packing.summary import check_formats, final_account, print_summary, summarise
from dist_train.data.packing.write_shard import ShardTask, write_shard
from dist_train.data.shards.index import SUBSETS, Shard, ShardSet, open_shards, read_index, sample_dtype, write_index
from dist_train.data.sources.archives import Scan, hold_out, scan
from dist_train.data.sources.synsets import Synsets
from dist_train.distributed.pool import progress_bar, run_tasks
from dist_train.errors import UserError, counted
from dist_train.files import write_text
from dist_train.names import shown


def pack(options: PackConfig, out: Path, progress: bool = True) -> ShardSet:
    """Make the shards in ``out``, or continue to; a finished pack of the same plan is left as it is.

    Args:
        options: ``draw`` is not looked at here.
        progress: show bars on stderr.

    Raises:
        UserError: bad sources (see ``archives.scan``), ``out`` holds something else, no space left.
    """
    scanned = _scan(options, out, progress)
    plan = make_plan(options, scanned)
    if (out / "index.json").is_file():
        return _finished(out, plan, scanned)
    packer = Packer(options, out, scanned, progress)
    try:
        with _state(out, plan):
            packer.copy_parquet()
            packer.write()
            duplicates = packer.settle_duplicates()
            shards, summary = packer.publish(plan, duplicates)
            shutil.rmtree(out / ".pack")
    except OSError as error:
        raise packer.cannot_write(error) from None
    print_summary(summary, scanned.account, out)
    return shards


def _scan(options: PackConfig, out: Path, progress: bool) -> Scan:
    """List the images to pack, and say what is known of them before the work."""
    if options.train is None:
        raise UserError("pack.train: no training images; give ILSVRC2012_img_train.tar or a folder with --train")
    for option, source in (("--train", options.train), ("--val", options.val)):
        if source and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise UserError(
                f"--out {out}: lies in {option} {source}, which would then hold shards; give a folder elsewhere"
            )
    scanned = scan(options.train, options.val, options.devkit, progress)
    if Encoding.of(options) is None:
        check_formats(scanned.subsets["train"])
    for note in scanned.notes:
        print(shown(note))
    return scanned if options.val_share is None else hold_out(scanned, options.val_share, options.seed)


@dataclass
class Packer:
    """Do the work on a pack that is not finished.

    Attributes:
        scanned: the images, by their places in the sources; those of parquet files, once copied, in their copies.
        shards: the planned shards, once the images have their places.
    """

    options: PackConfig
    out: Path
    scanned: Scan
    progress: bool
    shards: tuple[PlannedShard, ...] = ()

    def copy_parquet(self) -> None:
        """Copy the images of parquet files to where they can be read in place (see ``spool``)."""
        out = self.out
        tasks = spool_tasks(self.scanned.subsets.values(), out / ".pack" / "spool")
        if not tasks:
            return
        total = sum(file.stat().st_size for file in tasks)
        print(
            f"{out}: {counted(len(tasks), 'parquet file')} not to be read in place: {total / 1e9:.3f} GB are "
            f"copied into {out / '.pack'} first, and deleted at the end"
        )
        copies = sum(file.stat().st_size for file, task in tasks.items() if task.done() is None)
        if copies:  # once they are there, the shards' sizes are known
            _check_space(copies + (0 if Encoding.of(self.options) else total), out)
        spool(tasks.values(), self.options.workers, self.progress)
        subsets = {name: spooled(items, tasks) for name, items in self.scanned.subsets.items()}
        self.scanned = replace(self.scanned, subsets=subsets)

    def write(self) -> None:
        """Write the shards that are not there yet."""
        self.shards = tuple(plan_shards(self.scanned, self.options))
        missing = [shard for shard in self.shards if _record(shard, self.out) is None]
        total, left = (sum(len(shard.rows) for shard in shards) for shards in (self.shards, missing))
        if len(missing) < len(self.shards):
            print(
                f"{self.out}: continues; {len(self.shards) - len(missing)} of "
                f"{counted(len(self.shards), 'shard')} there"
            )
        if Encoding.of(self.options) is None:
            _check_space(sum(shard.bytes for shard in missing), self.out)
        with progress_bar(total, "pack", "image", self.progress, done=total - left) as bar:
            run_tasks(write_shard, self.tasks(missing, {}), len(missing), self.options.workers, bar)

    def settle_duplicates(self) -> dict[str, Any]:
        """Find the images that are there twice and do as ``on_duplicates`` says: write the shards again that lose an
        image, or that get one back because the option was changed.

        Returns:
            the summary of the duplicates (see ``summarise_duplicates``).

        Raises:
            UserError: the rule is ``fail``, and there are duplicates.
        """
        rule = self.options.on_duplicates
        digests = {name: np.zeros(len(items), f"S{DIGEST_HEX}") for name, items in self.scanned.subsets.items()}
        dropped = []
        for shard in self.shards:
            record = _finished_record(shard, self.out)
            digests[shard.subset][shard.rows] = record["digests"]
            dropped.append(set(record["dropped"]))
        duplicates = find_duplicates(self.scanned, digests)
        if rule == "fail":
            refuse_duplicates(duplicates, self.scanned, self.out)
        drop = rows_to_drop(duplicates) if rule == "drop" else {}
        again = [shard for shard, gone in zip(self.shards, dropped, strict=True) if gone != _places(shard, drop)]
        images = sum(len(shard.rows) for shard in again)
        with progress_bar(images, "drop duplicates", "image", self.progress and bool(again)) as bar:
            run_tasks(write_shard, self.tasks(again, drop), len(again), self.options.workers, bar)
        return summarise_duplicates(duplicates, self.scanned, rule)

    def tasks(self, shards: list[PlannedShard], drop: dict[str, set[int]]) -> Iterator[ShardTask]:
        """Yield the tasks that write shards, without the rows of each subset in ``drop``."""
        encoding, rule = Encoding.of(self.options), self.options.orientation
        for shard in shards:
            items = [self.scanned.subsets[shard.subset][int(row)] for row in shard.rows]
            places = _places(shard, drop)
            yield ShardTask(shard.tar(self.out), shard.record(self.out), items, encoding, rule, places)

    def publish(self, plan: dict[str, Any], duplicates: dict[str, Any]) -> tuple[ShardSet, dict[str, Any]]:
        """Write the index from all records, with plan and summary in it, and return it and the summary.

        Args:
            duplicates: their summary.

        Raises:
            UserError: no image of a subset can be decoded, or all are duplicates.
        """
        records: dict[str, list[dict[str, Any]]] = {name: [] for name in self.scanned.subsets}
        for shard in self.shards:
            records[shard.subset].append(_finished_record(shard, self.out))
        summary = {**summarise(records, self.scanned.classes), "duplicates": duplicates}
        summary["account"] = final_account(self.scanned.account, summary).entry()
        tables = {}
        for name, entries in records.items():
            kept = self._without_empty(name, entries)
            sources = [path for entry in kept for path in entry["sources"]]
            tables[name] = [Shard(**entry["shard"]) for entry in kept], _table(kept), sources
        extra = {"plan": plan, "summary": summary}
        if self.scanned.synsets != Synsets():
            extra["synsets"] = asdict(self.scanned.synsets)
        return write_index(self.out, self.scanned.classes, plan["orientation"], tables, extra), summary

    def _without_empty(self, subset: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Remove shards without images, which DALI and webdataset refuse, and return the records of the others."""
        kept = [record for record in records if record["shard"]["samples"]]
        if not kept:
            reasons = [entry["reason"] for record in records for entry in record["undecodable"]]
            why = f"can be decoded; the first: {reasons[0]}" if reasons else "is left without the duplicates"
            raise UserError(f"{self.scanned.subsets[subset].source}: no image {why}")
        for record in records:
            if not record["shard"]["samples"]:
                tar = self.out / subset / record["shard"]["name"]
                tar.with_suffix(".idx").unlink()
                tar.unlink()
        return kept

    def cannot_write(self, error: OSError) -> UserError:
        """Return the error line of a write that failed."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return UserError(
                f"{error.filename or self.out}: cannot be written ({error.strerror}); choose another --out"
            )
        needed = sum(shard.bytes for shard in self.shards if _record(shard, self.out) is None)
        return _no_space(self.out, needed, shutil.disk_usage(self.out).free)


# ---- the state of an unfinished pack


@contextmanager
def _state(out: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Keep ``out/.pack``, with the plan in it, for this process alone, and remove what a killed process left."""
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
            check_same_plan(out, json.loads(path.read_text()), settled)
        else:
            write_text(path, json.dumps(settled))
        yield


def _finished(out: Path, plan: dict[str, Any], scanned: Scan) -> ShardSet:
    """Open a pack that is finished already, and check that it is of the same plan."""
    index = read_index(out)
    check_same_plan(out, index.get("plan", {}), plan)
    if scanned.synsets != Synsets() and "synsets" not in index:  # packed without a devkit, or by an older version
        try:
            write_text(out / "index.json", json.dumps({**index, "synsets": asdict(scanned.synsets)}, indent=1))
        except OSError as error:
            print(f"{out}: cannot be written ({error.strerror}): its classes keep their wnids for names")
    try:
        shards = open_shards(out)
    except UserError as error:
        raise UserError(f"{error}; to pack again, delete {out} first") from None
    shutil.rmtree(out / ".pack", ignore_errors=True)
    print(f"{out}: already packed with these options; nothing to do")
    return shards


def _record(shard: PlannedShard, out: Path) -> dict[str, Any] | None:
    """Return the record that ``write_shard`` wrote, if the shard is finished and still has its size."""
    path, tar = shard.record(out), shard.tar(out)
    if not (path.is_file() and tar.is_file() and tar.with_suffix(".idx").is_file()):
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record if record["shard"]["bytes"] == tar.stat().st_size else None


def _finished_record(shard: PlannedShard, out: Path) -> dict[str, Any]:
    record = _record(shard, out)
    assert record is not None  # written just now, or intact at the start
    return record


def _places(shard: PlannedShard, drop: dict[str, set[int]]) -> frozenset[int]:
    """Return the places in the shard of the rows to drop."""
    rows = drop.get(shard.subset, set())
    return frozenset(place for place, row in enumerate(shard.rows) if int(row) in rows)


def _table(records: list[dict[str, Any]]) -> npt.NDArray[Any]:
    """Return the rows of ``samples.npy``, in the order of the shards."""
    rows = [(shard, *row) for shard, record in enumerate(records) for row in record["rows"]]
    keys = [row[-1].encode() for row in rows]
    return np.array(
        [(*row[:-1], key) for row, key in zip(rows, keys, strict=True)],
        sample_dtype(max(len(key) for key in keys)),
    )


def _check_space(needed: int, out: Path) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise _no_space(out, needed, free)


def _no_space(out: Path, needed: int, free: int) -> UserError:
    return UserError(
        f"No space left on {out}: about {needed / 1e9:.3f} GB are still needed, {free / 1e9:.3f} GB are "
        f"free; make room and start again to continue, or choose another --out"
    )
