"""Answers: what a model says of photos, whether it computes by torch or from an export.

Nothing here needs torch: ``classify`` answers from an ONNX file in a fraction of the time that torch takes to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_train.classifier.doubt import Doubt
from dist_train.errors import UserError, WrongValue
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


def check_finite(finite: bool) -> None:
    """Check that the scores of a model are finite.

    Raises:
        UserError: they are not.
    """
    if not finite:
        raise UserError("the model's scores are not finite (NaN or infinite): its weights are; make it again",
                        "model.broken")  # fmt: skip


def answers_of(
    probabilities: npt.NDArray[np.floating[Any]],
    nearness: npt.NDArray[np.floating[Any]],
    classes: Sequence[Class],
    doubt: Doubt,
    *,
    topk: int,
    min_confidence: float | None,
) -> list[Answer]:
    """Return the answers for photos.

    Args:
        probabilities: of the classes, [B, classes].
        nearness: the cosine of each photo to the nearest class mean, [B].
        classes: of the model.
        doubt: of the model.
        topk: classes to name; ``checked_topk``.
        min_confidence: the probability from which on an answer is sure; None: by the doubt.
    """
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :topk]
    shares = np.take_along_axis(probabilities, best, axis=1).tolist()
    answers = []
    for places, own, known in zip(best.tolist(), shares, doubt.familiarity(nearness), strict=True):
        sure = doubt.sure(own[0], known) if min_confidence is None else own[0] >= min_confidence
        named = zip((classes[place] for place in places), own, strict=True)
        answers.append(Answer(tuple(Prediction(entry.name, entry.wnid, share) for entry, share in named), sure, known))
    return answers
