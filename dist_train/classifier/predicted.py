"""Heads of models from a run: the trained predictor makes the rows of each class from its photos."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, get_args

import torch

from dist_train.classifier.head import Head
from dist_train.classifier.known import RunImages
from dist_train.classifier.maker import HeadMaker
from dist_train.classifier.posterior import LongQuery, Posterior, longer_length
from dist_train.config import LearnConfig, Rule
from dist_train.errors import UserError
from dist_train.fewshot.calibration import Calibration
from dist_train.fewshot.methods import METHODS
from dist_train.fewshot.methods.ensemble import BesideGaussians
from dist_train.fewshot.methods.gaussian import BesidePlus
from dist_train.fewshot.row_method import RowMethod
from dist_train.models.backbones import Backbone
from dist_train.models.predictor import RowClassifier
from dist_train.names import check_choice, shown

MODEL_METHODS = [name for name, kind in METHODS.items() if issubclass(kind, (RowMethod, BesidePlus, BesideGaussians))]
"""Names in ``evaluate.methods`` of those that a model can be made of."""
RULES = get_args(Rule)


def check_rule(rule: str) -> None:
    """Check a rule by which several photos of a class count.

    Raises:
        UserError: there is no such rule.
    """
    check_choice("--rule", rule, RULES)


@dataclass(frozen=True)
class Calibrated:
    """Hold the calibration on some of the run's classes.

    Attributes:
        kept: these classes.
        base: their rows, [classes, length].
        longer: see ``Head``.
        calibration: None where the method has none.
        queries: of the images of the calibration, [Q, length].
        labels: the place of each image's class among ``kept``, int64 [Q].
    """

    kept: tuple[int, ...]
    base: torch.Tensor
    longer: LongQuery | None
    calibration: Calibration | None
    queries: torch.Tensor
    labels: torch.Tensor


class Responses:
    """Hold how images respond to the predicted rows of each class, as far as classes have some.

    Args:
        queries: of the images, [N, length].
        labels: the class of each image, int64 [N].
        rows: the predicted rows [r, length] of each class.

    Attributes:
        of_own: the largest response of each image to rows of its own class, [N]; -inf where there are none.
        of_others: the same to rows of all other classes.
    """

    def __init__(self, queries: torch.Tensor, labels: torch.Tensor, rows: Sequence[torch.Tensor]) -> None:
        self._queries, self._labels = queries, labels
        self._largest: dict[int, torch.Tensor] = {}  # the largest response [N] to each class
        self.of_own = self.of_others = queries.new_full((len(queries),), -torch.inf)
        for place, rows_of_class in enumerate(rows):
            if len(rows_of_class):
                self.replace(place, rows_of_class)

    @property
    def classes(self) -> int:
        """How many classes have predicted rows."""
        return len(self._largest)

    def replace(self, place: int, rows: torch.Tensor) -> None:
        """Take other rows for a class, or its first rows."""
        again = place in self._largest
        self._largest[place] = (self._queries @ rows.T).amax(1)
        if again:  # a maximum cannot be taken back
            self.of_own = self.of_others = torch.full_like(self.of_own, -torch.inf)
        for changed in self._largest if again else [place]:
            own, largest = self._labels == changed, self._largest[changed]
            self.of_own = torch.where(own, largest.maximum(self.of_own), self.of_own)
            self.of_others = torch.where(own, self.of_others, largest.maximum(self.of_others))

    def offset(self, calibration: Calibration | None) -> float:
        """Return what a calibration on these images adds to the responses; 0 where there is nothing to calibrate."""
        if calibration is None or not self._largest:
            return 0.0
        offset = calibration.offset(self.of_others, self.classes)
        return offset if math.isfinite(offset) else 0.0  # of no image that a row of another class could win


@dataclass(frozen=True)
class PredictedHead(HeadMaker):
    """Predict rows: what a run's training has left for new classes.

    Photos of a class that came with the run give rows beside its trained row, which stays: it stands for hundreds of
    images. They are predicted rows like those of an added class, on the same scale and as uncertain, so that they get
    the same offset where the method calibrates: the share of other classes' images that all predicted rows together may
    win is bounded then, whoever owns them. What they win from images of their own class is no loss, and not counted.
    Measured on 100 classes of Tiny ImageNet with rows of 60 images (the starter, cosine, 60 draws): k photos of another
    look, those of a further class, are recognised in 36, 52 and 64% of cases for k = 1, 3 and 10, without the offset in
    6, 23 and 48%, without further rows in 1%; photos of the same look gain 3 to 7 points, without the offset 0 to 1;
    all other classes together lose 0.2 points of 60.8, without the offset 0.0.

    Attributes:
        method: one of ``MODEL_METHODS``.
        phi: the trained network of the method, which maps activations to rows.
        learn: the configuration that ``phi`` was built with.
        base_rows: the rows of the run's classes, [base classes, dim].
        sample: activations and labels for the calibration, [N, dim] and [N]; empty where the method has none.
        cost: see ``Calibration``.
        rule: how several photos of a class count: ``max`` takes the largest of their responses (the paper), ``mean`` a
            single row from their mean activation, ``rows`` the mean of their rows. φ+ makes a single row by any rule.
        images: of the run, by which a model knows when it is not sure; None in models that are older.
        posterior: densities of the run's classes, where the method scores by densities too.
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
    images: RunImages | None = field(default=None, repr=False)
    posterior: Posterior | None = field(default=None, repr=False)
    calibrated: Calibrated | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_rule(self.rule)

    @property
    def name(self) -> str:
        return self.method

    def make(self, kept: Sequence[int], photos: Sequence[torch.Tensor]) -> tuple[Head, PredictedHead]:
        calibrated, rows = self._calibrate(kept), self._rows(photos)
        base, counts = calibrated.base, torch.tensor([len(predicted) for predicted in rows])
        owner = torch.cat([torch.arange(len(base)), torch.arange(len(rows)).repeat_interleave(counts)])
        offset = torch.zeros(len(owner), device=base.device)
        responses = Responses(calibrated.queries, calibrated.labels, rows)
        offset[len(base) :] = responses.offset(calibrated.calibration)
        head = Head(torch.cat([base, *rows]), owner.to(base.device), offset, len(rows), self.query_scale(),
                    longer=calibrated.longer)  # fmt: skip
        if self.images:
            head = self.images.doubting(head, kept, photos[len(kept) :], self.rows_of)
        return head, replace(self, calibrated=calibrated)

    def as_in(self, about: dict[str, Any]) -> PredictedHead:
        return replace(self, rule=about["rule"])

    def query_scale(self) -> float | None:
        """Return the length to which the method scales queries; None where a query is the activation as it is."""
        activation = torch.rand(1, self.base_rows.shape[1], generator=torch.Generator().manual_seed(0))
        activation = activation.to(self.base_rows.device)
        query = self.phi.query(activation)
        return None if torch.equal(query, activation) else round(query.norm().item(), 6)

    def base_accuracy(
        self,
        kept: Sequence[int],
        changes: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
        activations: torch.Tensor,
        labels: torch.Tensor,
    ) -> list[float]:
        """Return what further photos did to the accuracy on the run's classes, in percent: without them, with those of
        the first class that got some, with those of the first two, and so on.

        Args:
            kept: see ``make``.
            changes: what ``make`` calls photos, before and after; a class that is new has none before.
            activations: [N, dim] of images that were not trained on.
            labels: the place of each image's class among ``kept``, int64 [N].
        """
        before, after = map(self._rows, changes)
        changed = [n for n, photos in enumerate(zip(*changes, strict=True)) if not torch.equal(*photos)]
        calibrated = self._calibrate(kept)
        queries = self._queries(activations, calibrated.longer)
        scores = queries @ calibrated.base.T
        own = scores.gather(1, labels[:, None])[:, 0]
        others = scores.scatter(1, labels[:, None], -torch.inf).amax(1)
        held_out = Responses(queries, labels, before)
        of_calibration = Responses(calibrated.queries, calibrated.labels, before)
        rates = []
        for place in [None, *changed]:
            for responses in (held_out, of_calibration):
                if place is not None:
                    responses.replace(place, after[place])
            offset = of_calibration.offset(calibrated.calibration)
            right = own.maximum(held_out.of_own + offset) >= others.maximum(held_out.of_others + offset)
            rates.append(100 * float(right.double().mean()))
        return rates

    def about(self) -> dict[str, Any]:
        about = {"name": self.method, "rule": self.rule, "calibration_cost": self.cost, "learn": asdict(self.learn)}
        if self.posterior is None:
            return about
        return about | {"plda_power": self.posterior.coordinates.power, "plda_temperature": self.posterior.temperature}

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {
            **{f"predictor.{key}": tensor for key, tensor in self.phi.state_dict().items()},
            "base_rows": self.base_rows,
            "sample.activations": self.sample[0].half(),
            "sample.labels": self.sample[1],
            **(self.images.tensors() if self.images else {}),
            **(self.posterior.tensors() if self.posterior else {}),
        }

    def on(self, device: torch.device) -> PredictedHead:
        self.phi.eval().requires_grad_(False).to(device)
        activations, labels = (tensor.to(device) for tensor in self.sample)
        base_rows = self.base_rows.to(device)
        images, posterior = self.images and self.images.on(device), self.posterior and self.posterior.on(device)
        return replace(self, base_rows=base_rows, sample=(activations, labels), images=images, posterior=posterior,
                       calibrated=None)  # fmt: skip

    def rows_of(self, photos: torch.Tensor) -> torch.Tensor:
        """Return the rows [n, r, length] that are predicted from photos [n, k, dim] of n classes."""
        rows = self.phi.novel_rows(photos, self.rule)
        return rows if self.posterior is None else self.posterior.novel_rows(rows, photos)

    def _queries(self, activations: torch.Tensor, longer: LongQuery | None) -> torch.Tensor:
        """Return the queries [N, length] of activations [N, dim]."""
        queries = self.phi.query(activations)
        return queries if longer is None else longer(queries, activations)

    def _rows(self, photos: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the rows that are predicted from the photos of each class; none for a class without photos."""
        dim = self.base_rows.shape[1]
        none = self.base_rows.new_empty(0, dim if self.posterior is None else longer_length(dim))
        rows_of_classes = [none] * len(photos)
        by_photos: dict[int, list[int]] = {}
        for number, activations in enumerate(photos):
            if len(activations):
                by_photos.setdefault(len(activations), []).append(number)
        for numbers in by_photos.values():  # a single pass for all classes of as many photos
            rows = self.rows_of(torch.stack([photos[n] for n in numbers]))
            for number, rows_of_class in zip(numbers, rows, strict=True):
                rows_of_classes[number] = rows_of_class
        return rows_of_classes

    def _calibrate(self, kept: Sequence[int]) -> Calibrated:
        """Return the calibration on some of the run's classes."""
        if self.calibrated is not None and self.calibrated.kept == tuple(kept):
            return self.calibrated
        longer, base, (activations, labels) = None, self.base_rows[list(kept)], self.sample
        if self.posterior is not None:
            longer = LongQuery(self.posterior, kept, base)
            base = longer.base_rows()
        positions = labels.new_full((len(self.base_rows),), -1)  # -1: removed, so never the right answer
        positions[list(kept)] = torch.arange(len(kept), device=labels.device)
        if not (len(activations) and kept):
            return Calibrated(tuple(kept), base, longer, None, self._queries(activations[:0], longer), labels[:0])
        queries, labels = self._queries(activations, longer), positions[labels]
        calibration = Calibration(activations, labels, queries @ base.T, self.cost)
        correct = calibration.correct
        return Calibrated(tuple(kept), base, longer, calibration, queries[correct], labels[correct])


def untrained_predictor(method: str, means: torch.Tensor, backbone: Backbone, learn: LearnConfig) -> RowClassifier:
    """Return the network of a method, whose weights are still to be loaded.

    Args:
        method: one of ``MODEL_METHODS``.
        means: class means [base classes, dim], for their shape.
        backbone: its head's shape counts.
        learn: the configuration of the method's network.
    """
    network, learned = row_method(method).network, METHODS[method].learned(method)
    untrained: RowClassifier = network.build(learned, means, backbone.head.weight.detach(), learn)
    return untrained


def row_method(name: str) -> type[RowMethod]:
    """Return the method whose rows a model of the method of that name has, beside densities or alone.

    Raises:
        UserError: there is no such method, or no model can be made of it.
    """
    if name not in MODEL_METHODS:
        near = difflib.get_close_matches(name, MODEL_METHODS, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(MODEL_METHODS)
        raise UserError(f"--method {shown(name)}: no model is made with it; {meant}give one of {known}")
    kind = METHODS[name] if posterior_share(name) is None else METHODS[METHODS[name].learned(name)]
    assert issubclass(kind, RowMethod)
    return kind


def posterior_share(name: str) -> float | None:
    """Return the ``Posterior.share`` of a method's models; None where they have no densities."""
    kind = METHODS[name]
    return kind.share if issubclass(kind, (BesidePlus, BesideGaussians)) else None
