"""Heads of models from a run: the trained predictor makes the rows of each class from its photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, get_args

import torch

from dist_train.classifier.head import Head
from dist_train.classifier.maker import HeadMaker
from dist_train.config import LearnConfig, Rule
from dist_train.errors import UserError
from dist_train.fewshot.calibration import Calibration
from dist_train.fewshot.methods import METHODS
from dist_train.fewshot.row_method import RowMethod
from dist_train.models.backbones import Backbone
from dist_train.models.predictor import RowClassifier

RULES = get_args(Rule)


@dataclass(frozen=True)
class Calibrated:
    """Hold the calibration on some of the run's classes.

    Attributes:
        kept: these classes.
        calibration: None where the method has none.
        queries: of the images of the calibration.
    """

    kept: tuple[int, ...]
    calibration: Calibration | None
    queries: torch.Tensor


@dataclass(frozen=True)
class PredictedHead(HeadMaker):
    """Predict rows: what a run's training has left for new classes.

    Attributes:
        method: a name in ``evaluate.methods``, of a ``RowMethod``.
        phi: the trained network of the method, which maps activations to rows.
        learn: the configuration that ``phi`` was built with.
        base_rows: the rows of the run's classes, [base classes, dim].
        sample: activations and labels for the calibration, [N, dim] and [N]; empty where the method has none.
        cost: see ``Calibration``.
        rule: how several photos of a class count: ``max`` takes the largest of their responses (the paper), ``mean`` a
            single row from their mean activation, ``rows`` the mean of their rows. φ+ makes a single row by any rule.
        calibrated: the last calibration, which takes a second and does not depend on the added classes.

    Raises:
        UserError: there is no such rule.
    """

    FITTED: ClassVar = False
    method: str
    phi: RowClassifier
    learn: LearnConfig
    base_rows: torch.Tensor
    sample: tuple[torch.Tensor, torch.Tensor]
    cost: float
    rule: str = "max"
    calibrated: Calibrated | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"rule {self.rule!r}: give one of {', '.join(RULES)}")

    @property
    def name(self) -> str:
        return self.method

    def make(self, kept: Sequence[int], added: Sequence[torch.Tensor]) -> tuple[Head, PredictedHead]:
        base, *rows_of_added = self._rows(kept, added)
        counts = [*[1] * len(base), *map(len, rows_of_added)]
        owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(base.device)
        offset = torch.zeros(len(counts), device=base.device)
        calibrated = self._calibrate(kept, base)
        if calibrated.calibration and rows_of_added:
            largest = torch.stack([(calibrated.queries @ rows.T).amax(1) for rows in rows_of_added]).amax(0)
            offset[len(base) :] = calibrated.calibration.offset(largest, len(rows_of_added))
        head = Head(torch.cat([base, *rows_of_added]), owner, offset, self.query_scale())
        return head, replace(self, calibrated=calibrated)

    def query_scale(self) -> float | None:
        """Return the length to which the method scales queries; None where a query is the activation as it is."""
        activation = torch.rand(1, self.base_rows.shape[1], generator=torch.Generator().manual_seed(0))
        activation = activation.to(self.base_rows.device)
        query = self.phi.query(activation)
        return None if torch.equal(query, activation) else round(query.norm().item(), 6)

    def base_accuracy(
        self, kept: Sequence[int], added: Sequence[torch.Tensor], activations: torch.Tensor, labels: torch.Tensor
    ) -> list[float]:
        """Return what the added classes did to the accuracy on the run's classes, in percent: with the run's classes
        alone, then with the first added class, with the first two, and so on: [1 + added classes].

        Args:
            kept: see ``make``.
            added: see ``make``.
            activations: [N, dim] of images that were not trained on.
            labels: the place of each image's class among ``kept``, int64 [N].
        """
        base, *rows_of_added = self._rows(kept, added)
        calibrated = self._calibrate(kept, base)
        # Only images that the run's classes get right can become wrong; added classes take those that they outscore.
        queries, own = _correct(self.phi.query(activations), base, labels)
        taken = torch.full_like(own, -torch.inf)  # the largest score of any added class
        taken_of_calibration = calibrated.queries.new_full((len(calibrated.queries),), -torch.inf)
        correct = [len(own)]
        for count, rows in enumerate(rows_of_added, 1):
            taken = torch.maximum(taken, (queries @ rows.T).amax(1))
            offset = 0.0
            if calibrated.calibration:
                responses = (calibrated.queries @ rows.T).amax(1)
                taken_of_calibration = torch.maximum(taken_of_calibration, responses)
                offset = calibrated.calibration.offset(taken_of_calibration, count)
            correct.append(int((own >= taken + offset).sum()))
        return [100 * count / len(labels) for count in correct]

    def about(self) -> dict[str, Any]:
        return {"name": self.method, "rule": self.rule, "calibration_cost": self.cost, "learn": asdict(self.learn)}

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {
            **{f"predictor.{key}": tensor for key, tensor in self.phi.state_dict().items()},
            "base_rows": self.base_rows,
            "sample.activations": self.sample[0].half(),
            "sample.labels": self.sample[1],
        }

    def on(self, device: torch.device) -> PredictedHead:
        self.phi.eval().requires_grad_(False).to(device)
        activations, labels = (tensor.to(device) for tensor in self.sample)
        base_rows = self.base_rows.to(device)
        return replace(self, base_rows=base_rows, sample=(activations, labels), calibrated=None)

    def _rows(self, kept: Sequence[int], added: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the rows of the run's classes together, then the rows of each added class."""
        rows_of_added = list(added)
        by_photos: dict[int, list[int]] = {}
        for number, activations in enumerate(added):
            by_photos.setdefault(len(activations), []).append(number)
        for numbers in by_photos.values():  # a single pass for all classes of as many photos
            rows = self.phi.novel_rows(torch.stack([added[n] for n in numbers]), self.rule)
            for number, rows_of_class in zip(numbers, rows, strict=True):
                rows_of_added[number] = rows_of_class
        return [self.base_rows[list(kept)], *rows_of_added]

    def _calibrate(self, kept: Sequence[int], base: torch.Tensor) -> Calibrated:
        """Return the calibration on the run's classes, whose rows are ``base``."""
        if self.calibrated is not None and self.calibrated.kept == tuple(kept):
            return self.calibrated
        activations, labels = self.sample
        query = self.phi.query
        positions = labels.new_full((len(self.base_rows),), -1)  # -1: removed, so never the right answer
        positions[list(kept)] = torch.arange(len(kept), device=labels.device)
        calibration = None
        if len(activations):
            calibration = Calibration(activations, positions[labels], lambda x: query(x) @ base.T, self.cost)
        return Calibrated(tuple(kept), calibration, query(calibration.images) if calibration else activations)


def untrained_predictor(method: str, means: torch.Tensor, backbone: Backbone, learn: LearnConfig) -> RowClassifier:
    """Return the network of a method, whose weights are still to be loaded.

    Args:
        method: a name in ``evaluate.methods``.
        means: class means [base classes, dim], for their shape.
        backbone: its head's shape counts.
        learn: the configuration of the method's network.
    """
    kind = row_method(method)
    network: RowClassifier = kind.network.build(kind.learned(method), means, backbone.head.weight.detach(), learn)
    return network


def row_method(name: str) -> type[RowMethod]:
    """Return the method of that name, which must give rows, as a classifier is made of these.

    Raises:
        UserError: there is no such method, or it gives no rows.
    """
    kind = METHODS.get(name)
    if kind is None or not issubclass(kind, RowMethod):
        names = [name for name, kind in METHODS.items() if issubclass(kind, RowMethod)]
        raise UserError(f"method {name!r}: a classifier is made of one of {', '.join(names)}")
    return kind


def _correct(queries: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the queries that these rows classify correctly, and the score of each for its own class."""
    scores = queries @ rows.T
    correct = scores.argmax(1) == labels
    return queries[correct], scores[correct].amax(1)
