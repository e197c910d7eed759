"""What an evaluation measures of one method, before anything is averaged over draws but the curves.

``evaluate/rows/METHOD.json`` keeps it (stages/row_store.py). Nothing here may depend on how results are shown: this
file is part of the code that a row is made by (stages/row_code.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # scipy.stats has it too, and takes a fifth of the start of a command to import


@dataclass(frozen=True)
class Curve:
    """A curve averaged over draws, point by point.

    Attributes:
        mean: percent.
        ci95: half-widths of the 95% t-intervals of the means; empty in files of versions that did not write them.
    """

    mean: tuple[float, ...]
    ci95: tuple[float, ...] = ()

    @classmethod
    def over_draws(cls, curves: Sequence[npt.NDArray[np.float64]]) -> Self:
        """Average the curves of several draws, rounded to four places."""
        values = np.stack(curves)
        return cls(tuple(values.mean(0).round(4).tolist()), tuple(half_width(values).round(4).tolist()))


@dataclass(frozen=True)
class Curves:
    """The two curves of joint scoring (protocols/joint.py, ``Draw``)."""

    seen_unseen: Curve
    forgetting: Curve

    def to_json(self) -> dict[str, list[float]]:
        """Return {"CURVE": means, "CURVE_ci95": half-widths}."""
        return {
            "seen_unseen": list(self.seen_unseen.mean),
            "seen_unseen_ci95": list(self.seen_unseen.ci95),
            "forgetting": list(self.forgetting.mean),
            "forgetting_ci95": list(self.forgetting.ci95),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[float]]) -> Self:
        """Read what ``to_json`` returns.

        Raises:
            KeyError: a curve is missing.
        """
        seen_unseen, forgetting = (
            Curve(tuple(values[name]), tuple(values.get(f"{name}_ci95", ()))) for name in ("seen_unseen", "forgetting")
        )
        return cls(seen_unseen, forgetting)


@dataclass(frozen=True)
class TableRow:
    """One method's row of the table.

    Attributes:
        shots: number of shots ("1", "2"; "all" for an oracle; "0" without novel classes) -> metric -> its value in each
            draw or episode, percent. Empty for an oracle without novel classes.
        curves: number of shots -> curves; empty for episodes.
        seconds: what computing the row took.
    """

    shots: Mapping[str, Mapping[str, Sequence[float]]]
    curves: Mapping[str, Curves] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the row as ``rows/METHOD.json`` has it."""
        return {
            "shots": {
                k: {metric: list(draws) for metric, draws in metrics.items()} for k, metrics in self.shots.items()
            },
            "curves": {k: curves.to_json() for k, curves in self.curves.items()},
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` returns.

        Raises:
            KeyError: a key is missing.
        """
        curves = {k: Curves.from_json(by_name) for k, by_name in values["curves"].items()}
        return cls(values["shots"], curves, values["seconds"])


def half_width(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the half-width of the 95% t-interval of the mean over the first axis; 0 where that has one entry."""
    count = len(values)
    if count == 1:
        return np.zeros(values.shape[1:])
    width: npt.NDArray[np.float64] = stdtrit(count - 1, 0.975) * values.std(0, ddof=1) / math.sqrt(count)
    return width
