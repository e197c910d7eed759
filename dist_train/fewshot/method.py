"""What a method is: one row of the table, made from the base classes, shown supports, asked for scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from dist_train.training import checkpoint

Row = TypeVar("Row", bound=RowPredictor)

Scorer = Callable[[torch.Tensor], torch.Tensor]
Support = torch.Tensor
"""float32 [novel classes, k, C]; an ``oracle`` gets a list of the novel classes' [images, C]."""

COSINE = 10.0
"""``Method.scale`` of cosines: where Gidaris & Komodakis (2018) start the one that they learn (their code)."""


@dataclass(frozen=True)
class Number:
    """A number of a method that ``evaluate.options`` can change; above zero.

    Attributes:
        whole: whether it must be a whole number.
        rows: the rows of its class that are made with it; none named: all.
    """

    default: float
    whole: bool = False
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Base:
    """What a method may use of the base classes.

    Attributes:
        train: stored activations of base training images.
        means: float32 [base classes, C], on the device.
        rows, bias: float32 [base classes, C] and [base classes], the backbone's own classifier, trained with it;
            on the device.
        learn: folder of the trained predictors.
        options: what these were trained with.
        rule: ``evaluate.rule``.
        numbers: the defaults of the methods' ``numbers``, and over them ``evaluate.options``.
        watch: to be put around a long preparation's loop over the base classes, ``for ... in watch(list)``: shows
            progress, and raises Stopped where the run is told to leave. All ranks go through the same list.
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


def drawn(first: int, last: int, count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` of the rows ``first`` to ``last`` of a table, in order: the same each time."""
    rows: npt.NDArray[np.int64] = first + np.sort(np.random.RandomState(first).permutation(last - first)[:count])
    return rows


def cosine(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Queries [Q, C] and rows [N, C] -> cosines [Q, N]."""
    return F.normalize(queries, dim=1) @ F.normalize(rows, dim=1).T


def trained(kind: type[Row], name: str, base: Base) -> Row:
    """What ``learn`` has trained under this name, for inference.

    Raises:
        UserError: it is not trained.
    """
    folder = base.learn / name / "final"
    if not folder.is_dir():
        raise UserError(
            f"{folder}: {name} is not trained; run learn with it in learn.methods, or leave it out of evaluate"
        )
    saved = checkpoint.load(folder, base.means.device)
    model = kind.build(name, base.means, base.rows, base.options).to(base.means.device)
    model.load_state_dict(saved.tensors["model"])
    model.eval().requires_grad_(False)
    return model


class Method(ABC):
    """One row of the table, or several of a kind.

    A file of ``fewshot/methods`` with a class of this kind is all that a method needs: its names are then
    valid in ``evaluate.methods``. Scores of one query must be comparable over all classes, base and novel.
    ``methods/class_mean.py`` is the example to start from.
    """

    labels: ClassVar[dict[str, str]]
    """Name in ``evaluate.methods`` -> name in tables."""
    moves_base: ClassVar[bool] = False
    """Whether supports change the scores of base classes: then ``take`` scores all classes."""
    oracle: ClassVar[bool] = False
    """Whether it is shown all training images of the novel classes (paper, Table 2): one result, not one a draw."""
    learns: ClassVar[dict[str, type[RowPredictor]]] = {}
    """What ``learn`` trains on the base activations, by names in ``learn.methods``."""
    uses: ClassVar[dict[str, str]] = {}
    """For names that are not in ``learns``: the trained predictor that they are made from."""
    base_as: ClassVar[str] = ""
    """The row whose ``base_scores`` and ``scale`` are the same, where there is one: computed once for both. Not
    inherited."""
    scale: ClassVar[float] = 1.0
    """What its scores are multiplied by to be logits; ``COSINE`` for cosines. Only a prior over base and novel
    classes needs it (fewshot/protocols/low_shot.py): ranks do not."""
    numbers: ClassVar[dict[str, Number]] = {}
    """Its numbers, by their names in ``evaluate.options``."""

    @classmethod
    def learned(cls, name: str) -> str:
        """The name in ``learn.methods`` of what the row ``name`` is made from, where it is made from any."""
        return cls.uses.get(name, name)

    @abstractmethod
    def __init__(self, name: str, base: Base) -> None:
        """Prepare the row ``name`` from the base classes; once."""

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        """Queries [Q, C] -> scores [Q, base classes], finite; not asked where ``moves_base``. Base and novel queries
        come mixed, as for what ``take`` returns."""
        raise NotImplementedError

    @abstractmethod
    def take(self, support: Support) -> Scorer:
        """Support -> a function from queries [Q, C] to scores [Q, novel classes]; where ``moves_base`` to
        [Q, base + novel classes]."""
