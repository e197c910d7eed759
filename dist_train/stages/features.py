"""Take features from elsewhere, in place of what ``pretrain`` and ``extract`` compute from images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dist_train.data.activations import load, write_tables
from dist_train.data.features.feature_set import FeatureSet, FeatureSubset
from dist_train.data.shards.index import SUBSETS
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar
from dist_train.errors import counted
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log

_NAMED = 3
"""Classes that are named where rows are left out."""


def check_features(run: Run, features: FeatureSet, context: Context, redo: bool = False) -> None:
    """Do the stage ``pretrain`` of a run of features: read all values once, before anything is written.

    Raises:
        UserError: a value is not finite or does not fit float16, or a file is damaged.
    """
    if context.main and (redo or not (run.dir / "pretrain" / "done.json").is_file()):
        for name in SUBSETS:
            empty = sum(int((~rows.any(1)).sum()) for rows in _watched(features[name], "check", context))
            if empty:
                log.warning(
                    "pretrain: %d of %d rows of %s are all zeros: no method can tell them apart; leave failures out",
                    empty, len(features[name]), features[name].path,
                )  # fmt: skip
    context.barrier("features-checked")
    stage = Stage(run, "pretrain", context, redo)
    if stage.done:
        return stage.log_done()
    if context.main:
        log.info(
            "pretrain: nothing to train: %d and %d rows of features with %d activations each",
            len(features["train"]), len(features["val"]), features.dim,
        )  # fmt: skip
    stage.finish(seconds=0)


def store_features(run: Run, features: FeatureSet, context: Context) -> int:
    """Write the tables of ``extract`` from features; rank 0 does it, and says which rows are left out.

    Returns:
        number of rows that this rank has written.
    """
    written = 0
    if context.main:
        for name in SUBSETS:
            subset = features[name]
            tables = {f"{role}_{name}": run.groups(name, role) for role in run.roles}
            write_tables(run.dir / "extract", tables, features.dim, _watched(subset, "extract", context))
            written += sum(map(len, tables.values()))
            _log_left_out(run, features, subset)
        _warn_of_repeated(run)
    context.barrier("features-stored")
    return written


def _log_left_out(run: Run, features: FeatureSet, subset: FeatureSubset) -> None:
    counts = np.bincount(subset.labels, minlength=len(features.classes))
    taken = {*run.base, *run.novel}
    others = [name for name, count in zip(features.classes, counts, strict=True) if count and name not in taken]
    if others:
        rows = sum(count for name, count in zip(features.classes, counts, strict=True) if name in {*others})
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        log.info(
            "extract: %d rows of %s are left out: the split does not use their classes %s%s",
            rows, subset.path, ", ".join(others[:_NAMED]), more,
        )  # fmt: skip


def _warn_of_repeated(run: Run) -> None:
    """Warn of rows that training and validation share: such a query may have been a support."""
    train, val = (
        [hash(row.tobytes()) for role in run.roles for row in load(run.dir / "extract", f"{role}_{name}").rows]
        for name in SUBSETS
    )
    shared = sum(map(set(train).__contains__, val))
    if shared:
        log.warning(
            "extract: %d of %d validation rows are among the training rows too, number by number; accuracy on images "
            "that a method was shown says little", shared, len(val),
        )  # fmt: skip


def _watched(subset: FeatureSubset, title: str, context: Context) -> Iterator[np.ndarray]:
    """Yield the rows of a subset [n, dim], with progress."""
    with progress_bar(len(subset), f"{title} {subset.name}", "row", context.main) as bar:
        for rows in subset.rows():
            context.report_progress(f"{title} {subset.name}: {bar.n} of {counted(len(subset), 'row')}")
            yield rows
            bar.update(len(rows))
