"""Classes, the rows that score them, and the answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
class Head:
    """The classifier that follows from the classes: the score of class ``c`` is the largest product of the query with
    the rows whose ``owner`` is ``c``, plus ``offset[c]``.

    Attributes:
        rows: [R, dim].
        owner: the class of each row, [R].
        offset: [classes].
    """

    rows: torch.Tensor
    owner: torch.Tensor
    offset: torch.Tensor

    @property
    def linear(self) -> bool:
        """Whether every class has a single row."""
        return len(self.rows) == len(self.offset)

    def scores(self, query: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, classes] of queries [B, dim]. Exports trace this function too."""
        responses = query @ self.rows.T
        if self.linear:
            return responses + self.offset
        largest = responses.new_full((responses.shape[0], self.offset.shape[0]), -torch.inf)
        owner = self.owner.expand(responses.shape[0], -1)
        return largest.scatter_reduce(1, owner, responses, "amax") + self.offset
