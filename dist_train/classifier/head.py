"""Classes, the rows that score them, and the answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Class:
    """A class of a model.

    Attributes:
        name: the name in predictions; no two classes share it.
        wnid: the WordNet id of a class that came with the run; "" for an added class.
        photos: how many photos it was added from; 0 for a class that came with the run.
        added: the day it was added, as "2026-11-25"; "" for a class that came with the run.
    """

    name: str
    wnid: str = ""
    photos: int = 0
    added: str = ""


@dataclass(frozen=True)
class Prediction:
    """An answer for a photo.

    Attributes:
        name: name of the class.
        wnid: its WordNet id, or "".
        probability: its share of a softmax over all classes.
    """

    name: str
    wnid: str
    probability: float


@dataclass(frozen=True)
class Estimate:
    """Tell how well a head classified photos that it was not fitted on.

    Attributes:
        head: a name in ``heads.choice.HEADS``.
        strength: of its regularisation, in its own measure; None where it has none.
        accuracy: percent right, the mean over classes.
        half_width: of the 95% interval of ``accuracy``, in points.
        judged_by: how photos were held out.
    """

    head: str
    strength: float | None
    accuracy: float
    half_width: float
    judged_by: str


@dataclass(frozen=True)
class Head:
    """The classifier that follows from the classes: the score of class ``c`` is the largest product of the query with
    the rows whose ``owner`` is ``c``, plus ``offset[c]``.

    Attributes:
        rows: [R, dim].
        owner: the class of each row, [R].
        offset: [classes].
        query_scale: length to which an activation is scaled before the products; None: it is the query as it is.
        estimates: of the heads that were tried, where it was fitted to photos; the simplest first.
        answers: how often held-out photos of each class got each answer, [classes, classes]; None where it is not
            known.
    """

    rows: torch.Tensor
    owner: torch.Tensor
    offset: torch.Tensor
    query_scale: float | None = None
    estimates: tuple[Estimate, ...] = ()
    answers: torch.Tensor | None = None

    @property
    def linear(self) -> bool:
        """Whether every class has a single row."""
        return len(self.rows) == len(self.offset)

    def scores(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, classes] of activations [B, dim]. Exports trace this function too."""
        query = activations if self.query_scale is None else self.query_scale * F.normalize(activations, dim=-1)
        responses = query @ self.rows.T
        if self.linear:
            return responses + self.offset
        largest = responses.new_full((responses.shape[0], self.offset.shape[0]), -torch.inf)
        owner = self.owner.expand(responses.shape[0], -1)
        return largest.scatter_reduce(1, owner, responses, "amax") + self.offset
