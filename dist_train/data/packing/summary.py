"""The summary of a pack: its images counted, compared with the official set, and printed."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.data.account import Account
from dist_train.data.packing.duplicates import print_duplicates
from dist_train.data.sources.archives import Items
from dist_train.errors import UserError, counted
from dist_train.names import shown

NOT_DECODED = (".heic", ".heif", ".hif", ".avif", ".gif")
OFFICIAL = {"train": 1_281_167, "val": 50_000}  # images of ILSVRC2012
OFFICIAL_CLASSES = 1000
SHOWN = 20  # of a long list


def summarise(records: dict[str, list[dict[str, Any]]], classes: list[str]) -> dict[str, Any]:
    """Return the summary for ``index.json``, from the records of all shards (see ``write_shard``).

    Returns:
        subsets: per subset images, shards, bytes, modes, formats, per_class (min, mean, max) and
            empty_classes; undecodable: subset, key, source and reason of each image that was left out; misnamed:
            subset, key, source and format of each image that is called .jpg or .jpeg and is no JPEG; official:
            whether the counts are those of ILSVRC2012.
    """
    subsets = {name: _count(entries, classes) for name, entries in records.items()}
    counts = {name: subset["images"] for name, subset in subsets.items()}
    return {
        "classes": len(classes),
        "subsets": subsets,
        "official": len(classes) == OFFICIAL_CLASSES and counts == OFFICIAL,
        "undecodable": _listed(records, "undecodable"),
        "misnamed": _listed(records, "misnamed"),
    }


def _count(records: list[dict[str, Any]], classes: list[str]) -> dict[str, Any]:
    shards = [record["shard"] for record in records if record["shard"]["samples"]]
    labels = [row[-2] for record in records for row in record["rows"]]
    per_class = np.bincount(labels, minlength=len(classes)) if labels else np.zeros(len(classes), int)
    return {
        "images": len(labels),
        "shards": len(shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "modes": _total(records, "modes"),
        "formats": _total(records, "formats"),
        "per_class": {
            "min": int(per_class.min()),
            "mean": round(float(per_class.mean()), 3),
            "max": int(per_class.max()),
        },
        "empty_classes": [classes[label] for label in np.flatnonzero(per_class == 0)],
    }


def _total(records: list[dict[str, Any]], field: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record[field])
    return dict(total.most_common())


def _listed(records: dict[str, list[dict[str, Any]]], field: str) -> list[dict[str, str]]:
    return [
        {"subset": name, **entry} for name, entries in records.items() for record in entries for entry in record[field]
    ]


def final_account(scanned: Account, summary: dict[str, Any]) -> Account:
    """Return what became of all files in the end: the scan may take images that cannot be decoded, or that are dropped
    as duplicates.

    Args:
        scanned: the account of ``archives.scan``.
        summary: the summary of ``summarise``, with that of the duplicates.
    """
    images = sum(subset["images"] for subset in summary["subsets"].values())
    final = Account(images, [], scanned.passed_over, scanned.examples, scanned.notes)
    for entry in summary["undecodable"]:
        final.leave_out(entry["source"], entry["reason"])
    for copies in summary["duplicates"]["groups"]:
        for copy in copies:
            if copy["dropped"]:
                final.leave_out(copy["path"], "a duplicate")
    final.left_out += scanned.left_out
    return final


def print_summary(summary: dict[str, Any], scanned: Account, out: Path) -> None:
    """Print the summary on stdout, and a warning for all files that were left out on stderr."""
    for name, subset in summary["subsets"].items():
        per_class = subset["per_class"]
        print(
            f"{name}: {counted(subset['images'], 'image')} of {counted(summary['classes'], 'class')} in "
            f"{counted(subset['shards'], 'shard')}, {subset['bytes'] / 1e9:.3f} GB; "
            f"{per_class['min']} to {per_class['max']} a class (mean {per_class['mean']:g}); "
            f"{_counts(subset['modes'])}; {_counts(subset['formats'])}"
        )
    same = "are" if summary["official"] else "are not"
    print(f"the counts {same} those of ILSVRC2012 (1,281,167 train, 50,000 val, 1000 classes)")
    for entry in summary["misnamed"][:SHOWN]:
        print(f"called JPEG, but {entry['format']}: {shown(entry['source'])}")
    print_duplicates(summary["duplicates"])
    final = final_account(scanned, summary)
    print(final.line())
    for line in final.passed_over_lines():
        print(line)
    _warn(summary, scanned, out)


def _warn(summary: dict[str, Any], scanned: Account, out: Path) -> None:
    lost = summary["undecodable"]
    lines = [f"  {shown(entry['source'])}: {shown(entry['reason'])}" for entry in lost[:SHOWN]]
    if lost:
        where = f"{out / 'index.json'} lists them under summary.undecodable"
        lines.insert(0, f"WARNING: LEFT OUT {counted(len(lost), 'image')} that cannot be decoded; {where}")
    if scanned.left_out:
        where = f"{out / 'index.json'} lists them under summary.account"
        lines.append(f"WARNING: LEFT OUT {counted(len(scanned.left_out), 'file')} before a look at the pixels; {where}")
        lines += [f"  {line}" for line in scanned.left_out_lines()]
    for name, subset in summary["subsets"].items():
        if empty := subset["empty_classes"]:
            lines.append(
                f"WARNING: {counted(len(empty), 'class')} without a {name} image, the first: {shown(empty[0])}"
            )
    for line in lines:
        print(line, file=sys.stderr)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def check_formats(items: Items) -> None:
    """Print, before the work, how many training images only re-encoding can take, by their names.

    Args:
        items: the training images.

    Raises:
        UserError: only re-encoding can take any of them.
    """
    count = sum(name.lower().endswith(NOT_DECODED) for name in items.names)
    what = "HEIC, AVIF or GIF by their names, which DALI does not decode; --quality 95 re-encodes these to JPEG"
    if count and count == len(items):
        raise UserError(f"{items.source}: all of {counted(count, 'photo')}: {what}")
    if count:
        print(f"train: {count:,} of {counted(len(items), 'photo')}: {what}")
