"""One shard of a pack: read its images, check them with the training decoder, and write it whole."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dist_train.config import Orientation
from dist_train.data.packing.stored_images import Encoding, Header, stored_images
from dist_train.data.shards.members import dali_index, tar_members
from dist_train.data.sources.archives import Item
from dist_train.distributed.pool import advance
from dist_train.errors import UserError
from dist_train.files import atomic_write, file_sha256, write_text

# Images checked at a time: enough to spread DALI's cost of starting, few enough for the memory.
BATCH_IMAGES, BATCH_BYTES = 128, 16_000_000


class ShardTask(NamedTuple):
    """Describe a shard to write.

    Attributes:
        path: its tar; the ``.idx`` lies beside it.
        record: the file that notes what is in the shard.
        items: its images in order.
        encoding: how to re-encode them; None: they keep their bytes.
        rule: how they are turned.
        drop: images, by their place among the items, that are left out as duplicates.
    """

    path: Path
    record: Path
    items: list[Item]
    encoding: Encoding | None
    rule: Orientation
    drop: frozenset[int] = frozenset()


def write_shard(task: ShardTask, threads: int) -> None:
    """Write the tar, its ``.idx`` and, last, the record: a JSON file with all that the index needs.

    The content depends on the task alone. Images that cannot be decoded are left out and listed. The record has the
    hash of the source bytes of every other image, dropped or not.

    Raises:
        UserError: a source cannot be read.
        OSError: the shard cannot be written; nothing of it is left.
    """
    from webdataset import TarWriter  # not above: to read shards, the library is not needed

    kept: list[tuple[Item, Header]] = []
    left_out: list[dict[str, str]] = []
    digests: list[str] = []
    task.record.unlink(missing_ok=True)  # from here on it may not be true
    task.path.parent.mkdir(parents=True, exist_ok=True)
    with (whole := atomic_write(task.path)) as file:
        with TarWriter(file, encoder=False, mtime=0, user="root", group="root") as tar:
            for part in decoder_batches([item.size for item in task.items]):
                items = task.items[part]
                images = stored_images(read_blobs(items), task.encoding, task.rule, threads)
                for item, (blob, header, digest) in zip(items, images, strict=True):
                    digests.append(digest)
                    if isinstance(header, str):
                        left_out.append({"key": item.key, "source": item.source, "reason": header})
                        continue
                    if len(digests) - 1 in task.drop:
                        continue
                    tar.write({"__key__": item.key, "cls": str(item.label).encode(), "jpg": blob})
                    kept.append((item, header))
                advance(len(items))
        file.flush()
        members = tar_members(whole.temporary)
        shard = {
            "name": task.path.name,
            "samples": len(kept),
            "bytes": whole.temporary.stat().st_size,
            "sha256": file_sha256(whole.temporary),
        }
    write_text(task.path.with_suffix(".idx"), dali_index(members))
    record = {
        "shard": shard,
        **_facts(kept, members),
        "undecodable": left_out,
        "digests": digests,
        "dropped": sorted(task.drop),
    }
    write_text(task.record, json.dumps(record))


def decoder_batches(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut a row of images, given their bytes, into batches that are decoded at a time."""
    first, total = 0, 0
    for here, size in enumerate(sizes):
        if here > first and (here - first == BATCH_IMAGES or total + size > BATCH_BYTES):
            yield slice(first, here)
            first, total = here, 0
        total += size
    yield slice(first, len(sizes))


def read_blobs(items: list[Item]) -> list[bytes]:
    """Return the source bytes of each item, read at its position.

    Raises:
        UserError: a source is gone or shorter than at the scan.
    """
    files: dict[str, int] = {}
    blobs = []
    try:
        for item in items:
            if item.path not in files:
                files[item.path] = os.open(item.path, os.O_RDONLY)
            blobs.append(os.pread(files[item.path], item.size, item.offset))
            if len(blobs[-1]) != item.size:
                raise UserError(f"{item.source}: ends early; the source changed since it was scanned: start again")
    except OSError as error:
        raise UserError(f"{item.source}: cannot be read ({error.strerror}); make it readable and start again") from None
    finally:
        for file in files.values():
            os.close(file)
    return blobs


def _facts(kept: list[tuple[Item, Header]], members: list[tuple[str, str, int, int]]) -> dict[str, Any]:
    """Return the facts about the images in the shard.

    Returns:
        rows: (offset, size, width, height, orientation, label, key) of each image; sources: the path that each was
        packed from; modes, formats: how many images of each; misnamed: images whose name says JPEG while they are not.
    """
    places = [(offset, size) for _, extension, offset, size in members if extension == "jpg"]
    rows = [
        (*place, header.width, header.height, header.orientation, item.label, item.key)
        for place, (item, header) in zip(places, kept, strict=True)
    ]
    misnamed = [
        {"key": item.key, "source": item.source, "format": header.format}
        for item, header in kept
        # MPO: a JPEG with further pictures behind it
        if header.format not in ("JPEG", "MPO") and item.source.lower().endswith((".jpg", ".jpeg"))
    ]
    modes = Counter(header.mode for _, header in kept)
    formats = Counter(header.format for _, header in kept)
    sources = [item.name for item, _ in kept]
    return {"rows": rows, "sources": sources, "modes": modes, "formats": formats, "misnamed": misnamed}
