"""The rows that score classes, and how well they were found to do."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from dist_train.classifier.doubt import Doubt
from dist_train.classifier.posterior import LongQuery


@dataclass(frozen=True)
class Estimate:
    """Tell how well a head classified photos that it was not fitted on.

    Attributes:
        head: a name in ``heads.choice.HEADS``.
        strength: of its regularisation, in its own measure; None where it has none.
        accuracy: percent right, the mean over classes, each of which counts by how frequent it is taken to be.
        low, high: the ends of the 95% interval of ``accuracy``.
        judged_by: how photos were held out.
    """

    head: str
    strength: float | None
    accuracy: float
    low: float
    high: float
    judged_by: str


@dataclass(frozen=True)
class Head:
    """The classifier that follows from the classes: the response of a row is its product with the query, plus its
    offset; the score of a class is the largest response of the rows that it owns.

    Attributes:
        rows: [R, length], of the length of a query: that of an activation, or more where there is ``longer``.
        owner: the class of each row, [R]; every class has a row.
        offset: of each row, [R].
        classes: how many there are.
        query_scale: length to which an activation is scaled before the products; None: it is the query as it is.
        estimates: of the heads that were tried, where it was fitted to photos; the simplest first.
        answers: how often held-out photos of each class got each answer, [classes, classes]; None where it is not
            known.
        means: the class means by which nearness is measured, of length 1, [classes, dim]; None where they are not
            known.
        doubt: when an answer is not sure.
        longer: makes the query longer, where classes are scored by densities too; None: they are not.
    """

    rows: torch.Tensor
    owner: torch.Tensor
    offset: torch.Tensor
    classes: int
    query_scale: float | None = None
    estimates: tuple[Estimate, ...] = ()
    answers: torch.Tensor | None = None
    means: torch.Tensor | None = None
    doubt: Doubt = field(default_factory=Doubt)
    longer: LongQuery | None = None

    @property
    def linear(self) -> bool:
        """Whether every class has a single row; they are in the order of the classes then."""
        return len(self.rows) == self.classes

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the queries [B, length] of activations [B, dim]."""
        query = activations if self.query_scale is None else self.query_scale * F.normalize(activations, dim=-1)
        return query if self.longer is None else self.longer(query, activations)

    def scores(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, classes] of activations [B, dim]. Exports trace this function too."""
        responses = self.query(activations) @ self.rows.T + self.offset
        if self.linear:
            return responses
        largest = responses.new_full((responses.shape[0], self.classes), -torch.inf)
        owner = self.owner.expand(responses.shape[0], -1)
        return largest.scatter_reduce(1, owner, responses, "amax")

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the probabilities [B, classes] of scores."""
        return (scores / self.doubt.temperature).softmax(1)

    def nearness(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the cosine of each activation [B, dim] to the nearest class mean, [B]; 1 where means are not known."""
        if self.means is None:
            return torch.ones_like(activations[:, 0])  # not new_ones(len(...)): exports trace this
        return (F.normalize(activations, dim=1) @ self.means.T).amax(1)
