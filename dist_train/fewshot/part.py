"""What some draws of a row have found. Ranks exchange it; an evaluation that stops keeps it in a file, and so does each
share of one that is spread over jobs (stages/part_store.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from dist_train.fewshot.protocols.joint import Draw
from dist_train.fewshot.table_row import Curve, Curves, TableRow

Confusions = dict[str, npt.NDArray[np.int32]]
"""Number of shots -> int32 [classes, classes], summed over draws: how often each class was taken for which."""


@dataclass(frozen=True)
class Part:
    """Hold what some draws of one method's row have found.

    Attributes:
        draws: number of shots (as in ``TableRow``) -> number of the draw -> its results, without predictions.
        confusions: summed over these draws; empty for episodes.
        seconds: what finding it took.
    """

    draws: Mapping[str, Mapping[int, Draw]] = field(default_factory=dict)
    confusions: Confusions = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def numbers(self) -> set[int]:
        """Numbers of the draws."""
        return {number for of_k in self.draws.values() for number in of_k}

    @classmethod
    def join(cls, parts: Iterable[Part]) -> Self:
        """Return the parts, which have no draw in common, as one."""
        draws: dict[str, dict[int, Draw]] = {}
        confusions: Confusions = {}
        seconds = 0.0
        for part in parts:
            for k, of_k in part.draws.items():
                draws.setdefault(k, {}).update(of_k)
            for k, counts in part.confusions.items():
                confusions[k] = confusions[k] + counts if k in confusions else counts
            seconds += part.seconds
        return cls(draws, confusions, seconds)

    def row(self) -> TableRow:
        """Return the row of the table, whose draws are all here."""
        in_order = {k: [of_k[number] for number in sorted(of_k)] for k, of_k in self.draws.items()}
        return TableRow(
            shots={k: {metric: [d.metrics[metric] for d in of_k] for metric in of_k[0].metrics}
                   for k, of_k in in_order.items()},
            curves={k: _average_curves(of_k) for k, of_k in in_order.items() if of_k[0].seen_unseen.size},
            seconds=round(self.seconds, 1),
        )  # fmt: skip


def _average_curves(draws: Sequence[Draw]) -> Curves:
    return Curves(Curve.over_draws([d.seen_unseen for d in draws]), Curve.over_draws([d.forgetting for d in draws]))
