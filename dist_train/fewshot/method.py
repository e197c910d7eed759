"""The interface of a method: it is made from the base classes, is shown supports, and scores queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from dist_train.config import LearnConfig
from dist_train.data.activations import Activations
from dist_train.errors import UserError
from dist_train.models.predictor import RowPredictor
from dist_train.models.products import products
from dist_train.training import checkpoint

Row = TypeVar("Row", bound=RowPredictor)
Prepared = TypeVar("Prepared")

Scorer = Callable[[torch.Tensor], torch.Tensor]
Support = torch.Tensor
"""float32 [novel classes, k, C]; an ``oracle`` gets a list with the images [images, C] of each novel class."""

COSINE = 10.0
"""``Method.scale`` for cosines: the initial value of the scale that Gidaris & Komodakis (2018) learn (their code)."""


@dataclass(frozen=True)
class Number:
    """Describe a number above zero that a method depends on and ``evaluate.options`` can change.

    Attributes:
        whole: whether it must be a whole number.
        rows: names of the rows that depend on it; empty for all rows of the class.
    """

    default: float
    whole: bool = False
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Base:
    """Hold all that a method may use of the base classes.

    Attributes:
        train: stored activations of base training images.
        means: class means, float32 [base classes, C], on the device.
        rows, bias: float32 [base classes, C] and [base classes], the classifier that was trained with the backbone; on
            the device.
        learn: folder of the trained predictors.
        options: the configuration that they were trained with.
        rule: ``evaluate.rule``.
        numbers: values of the methods' ``numbers``: the defaults, overridden by ``evaluate.options``.
        watch: wraps the loop over the base classes of a long preparation, ``for ... in watch(list)``: it shows
            progress, and raises Stopped when the run is to stop. All ranks must go through the same list.
        decisive: how many of a query's highest base scores the protocol looks at: the others may be less exact, as long
            as they stay below. None where it looks at all.
        keep: whether a later row of the table takes the method's trainings for sets of supports (``Method.trains_as``).
        trainings: those that are kept, by ``trains_as`` and by set.
        prepared: what methods have prepared that others need too, by name (``shared``).
    """

    train: Activations
    means: torch.Tensor
    rows: torch.Tensor
    bias: torch.Tensor
    learn: Path
    options: LearnConfig
    rule: str
    numbers: Mapping[str, float]
    watch: Callable[[Sequence[Any]], Iterable[Any]] = iter
    decisive: int | None = None
    keep: bool = False
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    prepared: dict[str, Any] = field(default_factory=dict, repr=False)

    def shared(self, name: str, prepare: Callable[[], Prepared]) -> Prepared:
        """Return what ``prepare`` returned when it was first called under this name, by any method of the evaluation.

        The name must say all that it depends on, the values of options too.
        """
        if name not in self.prepared:
            self.prepared[name] = prepare()
        prepared: Prepared = self.prepared[name]
        return prepared


def sample_rows(first: int, last: int, count: int) -> npt.NDArray[np.int64]:
    """Return at most ``count`` of the row numbers ``first`` to ``last`` - 1, in order; the same on every call."""
    rows: npt.NDArray[np.int64] = first + np.sort(np.random.RandomState(first).permutation(last - first)[:count])
    return rows


def cosine(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the cosines [Q, N] of queries [Q, C] and rows [N, C]."""
    # The products are divided, and not the queries: they are fewer numbers where there are fewer rows than dimensions.
    lengths = torch.linalg.vector_norm(queries, dim=1, keepdim=True).clamp(min=1e-12)
    cosines: torch.Tensor = products(queries, F.normalize(rows, dim=1)) / lengths
    return cosines


def once(function: Scorer) -> Scorer:
    """Return a function of queries that computes its result once for the same tensor, for the last four.

    An evaluation asks all supports for the scores of the same queries, and a calibration for those of the same images;
    an average of calibrated methods has another calibration's images. A tensor is known by its identity, so it must not
    be changed in place.
    """
    return lru_cache(4)(function)


def load_trained(network: type[Row], name: str, base: Base) -> Row:
    """Load the network that ``learn`` trained under this name, for inference.

    Raises:
        UserError: it is not trained.
    """
    folder = base.learn / name / "final"
    if not folder.is_dir():
        raise UserError(
            f"{folder}: {name} is not trained; run learn with it in learn.methods, or leave it out of evaluate"
        )
    saved = checkpoint.load(folder, base.means.device)
    model = network.build(name, base.means, base.rows, base.options).to(base.means.device)
    model.load_state_dict(saved.tensors["model"])
    model.eval().requires_grad_(False)
    return model


class Method(ABC):
    """Score queries among base and novel classes: one row of the table, or several related ones.

    A file in ``fewshot/methods`` with a subclass of this class is all that a method needs; its names are then
    valid in ``evaluate.methods``. The scores of a query must be comparable over all classes, base and novel.
    ``methods/class_mean.py`` is the example to start from.
    """

    labels: ClassVar[dict[str, str]]
    """Name in ``evaluate.methods`` -> name in tables."""
    moves_base: ClassVar[bool] = False
    """Whether supports change the scores of base classes: then ``take`` scores all classes."""
    calibrated: ClassVar[bool] = False
    """Whether ``take`` calibrates the novel scores (fewshot/calibration.py)."""
    cost: ClassVar[str] = "calibration_cost"
    """The option that says what the calibration may cost."""
    oracle: ClassVar[bool] = False
    """Whether it is shown all training images of the novel classes (paper, Table 2), and so has one result, not one for
    each draw."""
    learns: ClassVar[dict[str, type[RowPredictor]]] = {}
    """Name in ``learn.methods`` -> the network that ``learn`` trains on the base activations."""
    uses: ClassVar[dict[str, str]] = {}
    """Name of a row that is not in ``learns`` -> the trained predictor that it is made from."""
    base_as: ClassVar[str] = ""
    """The row that has the same ``base_scores`` and ``scale``, if there is one: they are computed once for both. It is
    not inherited."""
    trains_as: ClassVar[str] = ""
    """The row whose training for a set of supports it takes too, if there is such a row: each set is trained once where
    the table has both. Between the two rows the trained layers are kept in memory, on the host."""
    scale: ClassVar[float] = 1.0
    """The factor that turns its scores into logits; ``COSINE`` for cosines. Only a prior over base and novel classes
    needs it (fewshot/protocols/low_shot.py); ranks do not depend on it."""
    numbers: ClassVar[dict[str, Number]] = {}
    """Name in ``evaluate.options`` -> the number."""

    @classmethod
    def learned(cls, name: str) -> str:
        """Return the name in ``learn.methods`` of the predictor that the row ``name`` is made from, if there is one."""
        return cls.uses.get(name, name)

    @abstractmethod
    def __init__(self, name: str, base: Base) -> None:
        """Prepare the row ``name`` from the base classes; called once."""

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        """Return the scores [Q, base classes] of queries [Q, C], all finite; not called where ``moves_base``.

        Base and novel queries come mixed, as they do for the scorer that ``take`` returns."""
        raise NotImplementedError

    @abstractmethod
    def take(self, support: Support) -> Scorer:
        """Return a function from queries [Q, C] to scores [Q, novel classes] for these supports.

        Where ``moves_base``, it returns scores [Q, base + novel classes]; in a run without novel classes its supports
        are [0, 1, C]."""

    def take_first(self, support: torch.Tensor, shots: Sequence[int]) -> Iterator[Scorer]:
        """Yield what ``take`` returns for the first k supports of each class, for each k of ``shots``.

        A method whose classes score by their nearest support computes all products once for all k."""
        return (self.take(support[:, :k]) for k in shots)
