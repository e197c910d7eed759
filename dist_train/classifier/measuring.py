"""How good a model is on photos of known classes: every class, every photo, and what its probabilities are worth."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError

from dist_train.classifier.answer import Answer
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.heads.choice import mean_accuracy
from dist_train.classifier.photos import Photo
from dist_train.errors import UserError, counted
from dist_train.names import path_of, spelt
from dist_train.report.per_class import wilson

BINS = 10
"""Bins of equal width in which the probability of an answer is compared with how often it is right. Guo et al. (2017)
take 15 for ten thousand images; a folder of photos has fewer."""
_CURVE = 50  # points of the threshold curve at most
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredPhoto:
    """A photo with its answer.

    Attributes:
        photo: its name or path.
        truth: the name of its class; "" for a photo of no class of the model.
        answer: the class with the highest score.
        probability: of that class.
        rank: the place of the right class among the answers, from 1; 0 for a photo of no class.
        sure: see ``Answer``.
        familiarity: see ``Answer``.
        known: whether the model has the photo itself, so that its answer says nothing.
    """

    photo: str
    truth: str
    answer: str
    probability: float
    rank: int
    sure: bool
    familiarity: float
    known: bool = False

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return self.rank == 1


@dataclass(frozen=True)
class MeasuredClass:
    """A class with the answers for its photos.

    Attributes:
        name: of the class.
        wnid: its WordNet id, or "".
        photos: how many were measured.
        top1: percent of them that are right.
        low: lower end of the 95% interval of ``top1`` (Wilson 1927).
        high: its upper end.
        top5: percent of them whose class is among the first five answers.
        taken_for: the most frequent wrong answer; "" for none.
        taken_for_photos: photos that get it.
    """

    name: str
    wnid: str
    photos: int
    top1: float
    low: float
    high: float
    top5: float
    taken_for: str
    taken_for_photos: int


@dataclass(frozen=True)
class Confusion:
    """How many photos of a class get a wrong answer, and which percentage of the class's photos they are."""

    truth: str
    answer: str
    photos: int
    share: float


@dataclass(frozen=True)
class Bin:
    """Answers whose probability lies between ``low`` and ``high``, in percent.

    Attributes:
        photos: how many there are.
        said: the mean of their probabilities.
        right: how many percent of them are right.
    """

    low: float
    high: float
    photos: int
    said: float
    right: float


@dataclass(frozen=True)
class Threshold:
    """What happens where only answers of at least the probability ``threshold`` (0 to 1) are given.

    Attributes:
        answered: percent of the photos that get an answer.
        right: percent of these that are right.
    """

    threshold: float
    answered: float
    right: float


@dataclass(frozen=True)
class Others:
    """How photos of no class of the model fare.

    Attributes:
        photos: how many there are.
        not_sure: percent of them for which the model says "not sure", as it should.
        auroc_probability: area under the ROC curve, in percent, of the probability as a sign that a photo is of a class
            of the model: the chance that such a photo gets a higher probability than another photo does.
        auroc_familiarity: the same for the familiarity.
        results: each of them.
    """

    photos: int
    not_sure: float
    auroc_probability: float
    auroc_familiarity: float
    results: tuple[MeasuredPhoto, ...]


@dataclass(frozen=True)
class Measurement:
    """How good a model is on photos whose classes are known. Percentages are from 0 to 100.

    Attributes:
        photos: how many were measured.
        classes: how many classes they have.
        of_classes: classes of the model, which all take part in each answer.
        top1: percent of the photos that are right.
        top5: percent whose class is among the first five answers.
        mean: the mean over classes of the percentages that are right.
        low, high: the ends of the 95% interval of ``mean``.
        said: the mean probability of the answers.
        calibration_error: the expected calibration error in points: the mean over photos of the difference, in their
            bin, between what is said and what is right (Guo et al. 2017, equation 3), over 10 bins of equal width.
        sure: percent of the photos for which the model is sure.
        sure_right: percent of these that are right; 0 where there are none.
        known: photos that the model itself has, which say nothing.
        per_class: the classes that have photos, in the model's order.
        confusions: all wrong answers by class, the most frequent first.
        bins: the bins that have photos, by rising probability.
        curve: the threshold curve, by rising threshold.
        results: each photo, in the order given.
        others: photos of no class of the model; None where none were given.
    """

    photos: int
    classes: int
    of_classes: int
    top1: float
    top5: float
    mean: float
    low: float
    high: float
    said: float
    calibration_error: float
    sure: float
    sure_right: float
    known: int
    per_class: tuple[MeasuredClass, ...]
    confusions: tuple[Confusion, ...]
    bins: tuple[Bin, ...]
    curve: tuple[Threshold, ...]
    results: tuple[MeasuredPhoto, ...]
    others: Others | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON has it; the names of photos as ``names.spelt`` has them."""
        return asdict(self._with_names(spelt))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measurement:
        """Read what ``to_json`` returns.

        Raises:
            ValueError: it is no measurement.
        """
        try:
            return TypeAdapter(cls).validate_python(values)._with_names(path_of)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def _with_names(self, name: Callable[[str], str]) -> Measurement:
        """Return the same with other names of the photos."""

        def renamed(results: tuple[MeasuredPhoto, ...]) -> tuple[MeasuredPhoto, ...]:
            return tuple(replace(result, photo=name(result.photo)) for result in results)

        others = self.others and replace(self.others, results=renamed(self.others.results))
        return replace(self, results=renamed(self.results), others=others)

    def worst(self, count: int) -> list[MeasuredPhoto]:
        """Return the wrong answers with the highest probabilities, ``count`` at most; the highest first."""
        wrong = [result for result in self.results if not result.right]
        return sorted(wrong, key=lambda result: -result.probability)[:count]


def measure(
    model: Classifier,
    photos: torch.Tensor | Sequence[Photo],
    labels: Sequence[str],
    names: Sequence[str] = (),
    others: torch.Tensor | Sequence[Photo] = (),
    names_of_others: Sequence[str] = (),
) -> Measurement:
    """Measure a model on photos whose classes are known.

    Args:
        model: all its classes take part in each answer.
        photos: activations [N, dim] of the photos, or the photos.
        labels: the name or wnid of each photo's class.
        names: of the photos; default: their paths, where they are paths.
        others: photos of no class of the model, or their activations.
        names_of_others: as ``names``.

    Raises:
        UserError: there are no photos, there is not a label or a name for each, a label is no class of the model, or a
            photo cannot be decoded.
    """
    if not len(labels) or len(photos) != len(labels):
        raise UserError(
            f"{counted(len(photos), 'photo')} with {counted(len(labels), 'label')}: give a label for each photo, at "
            "least one"
        )
    for given, own, what in ((names, photos, "photo"), (names_of_others, others, "other photo")):
        if len(given) not in (0, len(own)):
            raise UserError(
                f"{counted(len(given), 'name')} of {counted(len(own), what)}: give a name for each, or none"
            )
    places = {name: place for place, entry in enumerate(model.classes) for name in (entry.wnid, entry.name) if name}
    unknown = next((label for label in labels if label not in places), None)
    if unknown is not None:
        raise UserError(f"label {unknown!r}: the model has no such class; give the name or wnid of a class",
                        "class.unknown", name=unknown)  # fmt: skip
    truth = torch.tensor([places[label] for label in labels])
    results = _answered(model, photos, names, truth)
    return _summary(model, results, truth, _others(model, others, names_of_others, results) if len(others) else None)


def csv_text(measurement: Measurement) -> str:
    """Return a row for each photo, those of no class of the model at the end."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["photo", "class", "answer", "right", "probability", "rank", "sure", "familiarity", "in_the_model"])
    for result in (*measurement.results, *(measurement.others.results if measurement.others else ())):
        row = [spelt(result.photo), result.truth, result.answer, int(result.right), f"{result.probability:.6f}"]
        writer.writerow([*row, result.rank or "", int(result.sure), f"{result.familiarity:.2f}", int(result.known)])
    return out.getvalue()


def _answered(
    model: Classifier, photos: torch.Tensor | Sequence[Photo], names: Sequence[str], truth: torch.Tensor | None
) -> tuple[MeasuredPhoto, ...]:
    """Return each photo with its answer; ``truth`` has the places of their classes, int64 [N], if they have any."""
    activations = photos if isinstance(photos, torch.Tensor) else model.activations(photos)
    paths = [str(photo) if isinstance(photo, (str, Path)) else "" for photo in photos]
    known = model.classes_with(activations)
    classes = model.classes
    answers: list[Answer] = []
    ranks: list[int] = []
    for first in range(0, len(activations), 1000):
        part = slice(first, first + 1000)
        scores = model.scores(activations[part])
        answers += model.answers(activations[part], 1, scores)
        if truth is not None:
            scores = scores.cpu()
            better = (scores > scores.gather(1, truth[part][:, None])).sum(1)
            ranks += (1 + better).tolist()
    results = []
    for number, answer in enumerate(answers):
        name = classes[int(truth[number])].name if truth is not None else ""
        # Of equal scores the answer is right or wrong as ``topk`` has it.
        rank = 0 if truth is None else 1 if answer[0].name == name else max(2, ranks[number])
        results.append(
            MeasuredPhoto(
                (names or paths)[number],
                name,
                answer[0].name,
                answer[0].probability,
                rank,
                answer.sure,
                answer.familiarity,
                known[number] is not None,
            )
        )
    return tuple(results)


def _summary(
    model: Classifier, results: tuple[MeasuredPhoto, ...], truth: torch.Tensor, others: Others | None
) -> Measurement:
    right = np.array([result.right for result in results], float)
    probability = np.array([result.probability for result in results])
    sure = np.array([result.sure for result in results])
    mean, low, high = mean_accuracy(torch.from_numpy(right > 0), truth)
    per_class, confusions = _by_class(model, results)
    bins = _bins(probability, right)
    return Measurement(
        photos=len(results),
        classes=len(per_class),
        of_classes=len(model.classes),
        top1=_percent(right),
        top5=_percent(np.array([result.rank <= 5 for result in results])),
        mean=mean,
        low=low,
        high=high,
        said=_percent(probability),
        calibration_error=sum(bin.photos * abs(bin.said - bin.right) for bin in bins) / len(results),
        sure=_percent(sure),
        sure_right=_percent(right[sure]),
        known=sum(result.known for result in results),
        per_class=per_class,
        confusions=confusions,
        bins=bins,
        curve=_curve(probability, right),
        results=results,
        others=others,
    )


def _by_class(
    model: Classifier, results: Sequence[MeasuredPhoto]
) -> tuple[tuple[MeasuredClass, ...], tuple[Confusion, ...]]:
    """Return the classes that have photos, and their wrong answers, the most frequent first."""
    of_class: dict[str, list[MeasuredPhoto]] = {}
    for result in results:
        of_class.setdefault(result.truth, []).append(result)
    classes, confusions = list[MeasuredClass](), list[Confusion]()
    for entry in model.classes:
        own = of_class.get(entry.name)
        if own is None:
            continue
        wrong = sorted(result.answer for result in own if not result.right)
        counts = sorted({answer: wrong.count(answer) for answer in wrong}.items(), key=lambda pair: -pair[1])
        confusions += [Confusion(entry.name, answer, n, 100 * n / len(own)) for answer, n in counts]
        top1 = _percent(np.array([result.right for result in own]))
        top5 = _percent(np.array([result.rank <= 5 for result in own]))
        most = counts[0] if counts else ("", 0)
        classes.append(MeasuredClass(entry.name, entry.wnid, len(own), top1, *wilson(top1, len(own)), top5, *most))
    return tuple(classes), tuple(sorted(confusions, key=lambda pair: (-pair.photos, -pair.share)))


def _bins(probability: _Floats, right: _Floats) -> tuple[Bin, ...]:
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    return tuple(
        Bin(100 * n / BINS, 100 * (n + 1) / BINS, int((place == n).sum()), _percent(probability[place == n]),
            _percent(right[place == n]))
        for n in range(BINS) if (place == n).any()
    )  # fmt: skip


def _curve(probability: _Floats, right: _Floats) -> tuple[Threshold, ...]:
    """Return the threshold curve: from all answers to the surest alone, at probabilities that answers have."""
    order = np.argsort(probability, kind="stable")
    values, first = np.unique(probability[order], return_index=True)
    sums = right[order][::-1].cumsum()[::-1]  # how many are right from this place on
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), _CURVE)).round().astype(int))
    left = len(order) - first
    return tuple(
        Threshold(float(values[n]), 100 * float(left[n]) / len(order), 100 * float(sums[first[n]] / left[n]))
        for n in chosen
    )


def _others(
    model: Classifier,
    photos: torch.Tensor | Sequence[Photo],
    names: Sequence[str],
    own: Sequence[MeasuredPhoto],
) -> Others:
    """Return how photos of no class fare, beside the photos of classes, ``own``."""
    results = _answered(model, photos, names, None)
    return Others(
        photos=len(results),
        not_sure=100 - _percent(np.array([result.sure for result in results])),
        auroc_probability=_auroc([one.probability for one in own], [one.probability for one in results]),
        auroc_familiarity=_auroc([one.familiarity for one in own], [one.familiarity for one in results]),
        results=results,
    )


def _auroc(own: Sequence[float], others: Sequence[float]) -> float:
    """Return the chance, in percent, that a value of ``own`` is above one of ``others``; equal values count half."""
    from scipy.stats import mannwhitneyu

    return 100 * float(mannwhitneyu(own, others).statistic) / (len(own) * len(others))


def _percent(values: npt.NDArray[Any]) -> float:
    """Return the mean of shares in percent; 0 where there are none."""
    return 100 * float(values.mean()) if len(values) else 0.0
