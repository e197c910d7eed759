"""Classes, the rows that score them, and the answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
import torch.nn.functional as F

from dist_train.classifier.doubt import Doubt
from dist_train.classifier.posterior import LongQuery
from dist_train.errors import WrongValue
from dist_train.names import shown

STRANGE = 5.0
"""The familiarity, in percent, below which a photo is unlike the model's classes: 95 of 100 known photos have more."""


@dataclass(frozen=True)
class Class:
    """A class of a model.

    Attributes:
        name: the name in predictions; no two classes share it.
        wnid: the WordNet id of a class that came with the run; "" for an added class.
        photos: how many photos the model keeps of it: those it was added from, or further photos of a class that came
            with the run.
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
        probability: that it is right, if the photo shows one of the classes: its share of a softmax over all classes,
            at the temperature that suits photos that the head was not fitted on.
    """

    name: str
    wnid: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a model says of a photo; as a sequence it is its predictions.

    Attributes:
        predictions: the classes with the highest scores, the best first; empty where there is a fault.
        sure: whether the model stands by the first of them: its probability and the familiarity are above the model's
            thresholds. "Not sure" is the model's way to say "I don't know".
        familiarity: percent of known photos (of the model's classes, and not fitted on) that look less like the model's
            classes than this photo does, from 0 to 100. Below 5 it is rare among photos of these classes.
        photo: its name or path; "" where it has none.
        fault: why there is no answer; "" where there is one.
    """

    predictions: tuple[Prediction, ...]
    sure: bool = True
    familiarity: float = 100.0
    photo: str = ""
    fault: str = ""

    @property
    def strange(self) -> bool:
        """Whether the photo is unlike the known photos of all classes, however probable one of them is."""
        return self.familiarity < STRANGE

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)

    def __getitem__(self, place: int) -> Prediction:
        return self.predictions[place]


def checked_topk(value: object, name: str = "topk") -> int:
    """Return how many classes an answer is to name.

    Args:
        value: what was given.
        name: what the error names.

    Raises:
        WrongValue: it is not a whole number, or below 1.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise WrongValue(f"{name} {shown(value)}: must be a whole number >= 1")
    return int(value)


def checked_confidence(value: object, name: str = "min_confidence") -> float | None:
    """Return the probability from which on an answer is to be sure; None for the model's own thresholds.

    Args:
        value: what was given.
        name: what the error names.

    Raises:
        WrongValue: it is not a number from 0 to 1.
    """
    if value is None:
        return None
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise WrongValue(f"{name} {shown(value)}: must be a number from 0 to 1")
    return float(value)


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
        return self.doubt.probabilities(scores)

    def nearness(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the cosine of each activation [B, dim] to the nearest class mean, [B]; 1 where means are not known."""
        if self.means is None:
            return activations.new_ones(len(activations))
        return (F.normalize(activations, dim=1) @ self.means.T).amax(1)
