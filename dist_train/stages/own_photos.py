"""A run on one's own photos: whether it is one, and what its report says first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from dist_train.config import NETWORK_OF
from dist_train.data.activations import load
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar
from dist_train.fewshot.learning_curve import Job, LearningCurve, curve_of_images, curve_of_shots
from dist_train.fewshot.methods import FROZEN, make
from dist_train.fewshot.results import Results
from dist_train.names import is_wnid
from dist_train.report.comparison import best_method
from dist_train.report.examples import rank_classes, thumbnails
from dist_train.report.own_classes import PAIRS, PICTURES, ConfusedPair, OwnClasses, own_class_rows, right_share
from dist_train.report.per_class import ClassList, Counts, most_confused
from dist_train.runs.run import Run
from dist_train.stages.scoring import BaseScoring, JointScoring

_CHEAP = 30.0
"""Seconds that a method's answers may take to be computed once more, for pictures of its mistakes."""

Ids = npt.NDArray[np.int64]


def is_of_own_photos(run: Run) -> bool:
    """Tell whether a run is on somebody's own photos.

    It is where the index of its shards has a class that is no WordNet id: those are folders that a person has named,
    while all classes of ImageNet and of what is made from it are such ids. Images that the program drew
    (``pack.draw``), and features, are nobody's photos.
    """
    if run.features or (run.config.pack and run.config.pack.draw):
        return False
    return not all(map(is_wnid, run.shards.classes))


def own_classes(run: Run, results: Results, scoring: JointScoring | BaseScoring, classes: ClassList) -> OwnClasses:
    """Return what the report says first: of the best method at the most shots."""
    shots = max(results.shots)
    best = best_method(results, shots, FROZEN)
    with np.load(run.dir / "evaluate" / "rows" / f"{best}.npz") as confusions:
        counts = confusions[str(shots)]
    learned = [*np.diff(run.groups("train", "scored").bounds).tolist(), *[shots] * len(run.novel)]
    return OwnClasses(
        best,
        shots,
        right_share(counts),
        own_class_rows(counts, classes, learned, results.methods[best].draws),
        _pairs(run, results, scoring, classes, counts),
        _curve(run, results, scoring.context, best),
        run.config.trains,
    )


def _curve(run: Run, results: Results, context: Context, best: str) -> LearningCurve | None:
    """Return the curve of the novel classes over the shots that were evaluated; without novel classes that of heads
    that are fitted to parts of the training photos."""
    if run.novel:
        return curve_of_shots([(k, metrics["novel_top1"]) for k, metrics in results.methods[best].shots.items()])
    train, val = (load(run.dir / "extract", f"base_{name}") for name in ("train", "val"))
    return curve_of_images(train, val, context.device, run.config.evaluate.seed, partial(_watched, context))


def _watched(context: Context, jobs: Sequence[Job]) -> Iterator[Job]:
    with progress_bar(len(jobs), "evaluate: what more photos bring", "fit", context.main) as bar:
        for job in jobs:
            context.report_progress(f"evaluate: what more photos bring, {bar.n} of {len(jobs)} fits")
            yield job
            bar.update()


def _pairs(
    run: Run, results: Results, scoring: JointScoring | BaseScoring, classes: ClassList, counts: Counts
) -> list[ConfusedPair]:
    """Return the most confused pairs, with photos that got the wrong answer in the first draw where they are cheap to
    find."""
    tables = [load(run.dir / "extract", "base_val").select(run.kept)]
    tables += [load(run.dir / "extract", "novel_val")] if run.novel else []
    photos = [(table.rows[a:b], table.ids[a:b]) for table in tables for a, b in pairwise(table.offsets.tolist())]
    confused = most_confused(counts, range(len(counts)), PAIRS)
    answers = _answers(run, results, scoring, {truth: photos[truth][0] for truth, _, _ in confused})
    pairs = []
    for truth, answer, share in confused:
        mistaken = photos[truth][1][answers[truth] == answer] if answers else photos[truth][1][:0]
        shown = mistaken if len(mistaken) else photos[truth][1]
        truths, others = (thumbnails(run.shards["val"], ids[:PICTURES]) for ids in (shown, photos[answer][1]))
        names = classes.names[truth], classes.names[answer]
        pairs.append(ConfusedPair(*names, round(share, 2), truths, bool(len(mistaken)), others))
    return pairs


def _answers(
    run: Run, results: Results, scoring: JointScoring | BaseScoring, rows: dict[int, npt.NDArray[np.float16]]
) -> dict[int, Ids]:
    """Return the best method's answers to validation photos of some classes, in the first draw.

    Args:
        rows: class -> activations of its photos [n, C].

    Returns:
        class -> the number of the class that each photo is taken for; {} where that would take long.
    """
    shots = max(results.shots)
    best = best_method(results, shots, FROZEN)
    if not rows or best in NETWORK_OF or results.seconds[best] / results.draws > _CHEAP:
        return {}
    support = scoring.base.means.new_zeros(0, 1, scoring.base.means.shape[1])
    if isinstance(scoring, JointScoring):
        support = scoring.load(scoring.novel_train.rows[scoring.supports[0][:, :shots]])
    with torch.inference_mode():
        queries = scoring.load(np.concatenate(list(rows.values())))
        taken_for: Ids = rank_classes(make(best, scoring.base), support, queries, run.kept)[:, 0]
    ends = np.cumsum([len(own) for own in rows.values()])
    return dict(zip(rows, np.split(taken_for, ends[:-1]), strict=True))
