"""The average of the logits of two methods that are sure in different cases, calibrated.

Its members are not calibrated before: the calibration of the average would take back any offset that all novel scores
of a member have.

A logit less its query's log sum exp is a log probability, and what all classes of a query share changes no rank; so
this is the average of log probabilities (the product of experts of Hinton 1999, with equal weights).

- ``phi_plus_plda``: phi+, and the two-covariance posterior beside its base rows; nothing is trained for new
  classes.
- ``phi_plus_logistic``: phi+ and logistic regression, which is trained for each set of supports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import torch

from dist_train.fewshot.calibration import NUMBERS, Calibrated
from dist_train.fewshot.head import Head
from dist_train.fewshot.method import Base, Method, Number, Scorer, Support, once
from dist_train.fewshot.methods.gaussian import BesidePlus
from dist_train.fewshot.methods.last_layer import LastLayer
from dist_train.fewshot.methods.phi_plus import Uncalibrated


class _Average(Method):
    """Average the scores of two methods."""

    def __init__(self, first: Method, second: Method) -> None:
        self.members = first, second
        self.moves_base = first.moves_base or second.moves_base  # type: ignore[misc]
        # Each set of supports asks a member whose base classes stay for the scores of the same queries.
        self._of_base = {member: once(member.base_scores) for member in self.members}

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        first, second = (member.base_scores(queries) for member in self.members)
        return (first + second) / 2

    def take(self, support: Support) -> Scorer:
        return next(self.take_first(support, [support.shape[1]]))

    def take_first(self, support: torch.Tensor, shots: Sequence[int]) -> Iterator[Scorer]:
        of_members = [self._scorers(member, support, shots) for member in self.members]
        return (partial(_mean, *scorers) for scorers in zip(*of_members, strict=True))

    def _scorers(self, member: Method, support: torch.Tensor, shots: Sequence[int]) -> Iterator[Scorer]:
        """Yield the member's scorers: of all classes where the average moves base classes, else of the novel ones."""
        if self.moves_base and not (member.moves_base or len(support)):
            return iter([self._of_base[member]] * len(shots))
        scorers = member.take_first(support, shots)
        if isinstance(member, Head):  # before its calibration
            scorers = (member.novel_scores(support[:, :k]) for k in shots)
        if member.moves_base or not self.moves_base:
            return scorers
        return (partial(_joined, self._of_base[member], scorer) for scorer in scorers)


def _mean(first: Scorer, second: Scorer, queries: torch.Tensor) -> torch.Tensor:
    return (first(queries) + second(queries)).div_(2)  # in place: new memory takes longer than the division


def _joined(base: Scorer, novel: Scorer, queries: torch.Tensor) -> torch.Tensor:
    """Return the scores of base and of novel classes."""
    return torch.cat([base(queries), novel(queries)], 1)


class BesideGaussians(Calibrated):
    labels: ClassVar = {"phi_plus_plda": "φ+ and two-covariance posterior"}
    uses: ClassVar = {"phi_plus_plda": "phi_plus"}
    cost = "average_cost"
    numbers: ClassVar = {
        **{key: number for key, number in BesidePlus.numbers.items() if key not in NUMBERS},
        cost: Number(0.28),  # base accuracy is above that of phi+ at its own cost (docs/results/heads.md)
    }
    share: ClassVar[float] = 0.5
    """As ``BesidePlus`` has it."""

    def __init__(self, name: str, base: Base) -> None:
        beside = BesidePlus("plda_plus", base)
        super().__init__(_Average(beside.plus, beside), base)


class BesideLogistic(Calibrated):
    labels: ClassVar = {"phi_plus_logistic": "φ+ and logistic regression"}
    uses: ClassVar = {"phi_plus_logistic": "phi_plus"}
    trains_as = "logistic"
    moves_base = True
    numbers: ClassVar = {**NUMBERS, **LastLayer.numbers}

    def __init__(self, name: str, base: Base) -> None:
        super().__init__(_Average(Uncalibrated("phi_plus", base), LastLayer("logistic", base)), base)
