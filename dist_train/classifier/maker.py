"""How the classes of a model become its head: the contract of the two kinds of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch

from dist_train.classifier.head import Head
from dist_train.errors import UserError
from dist_train.names import shown


def check_kind(fitted: bool, head: str | None = None, rule: str | None = None, prior: str | None = None) -> None:
    """Check that a model's kind has what is to be chosen for it.

    Args:
        fitted: whether it is a model of photos alone; otherwise it is from a run.
        head: to be fitted; None: it stays.
        rule: by which several photos of a class count; None: it stays.
        prior: how frequent the classes are taken to be; None: it stays.

    Raises:
        UserError: the other kind of models has it.
    """
    if head and not fitted:
        raise UserError(f"--head {shown(head)}: is of models of photos alone; this model comes from a run, and its "
                        f"--method is chosen when it is made")  # fmt: skip
    if prior and not fitted:
        raise UserError(f"--prior {shown(prior)}: is of models of photos alone; a model from a run keeps no photos of "
                        f"the run's classes that would say how frequent they are")  # fmt: skip
    if rule and fitted:
        raise UserError(f"--rule {shown(rule)}: is of models from a run, and this model's head is fitted to its "
                        f"photos; leave it out")  # fmt: skip


class HeadMaker(ABC):
    """Make the head of a model from its classes. A maker does not change; copies of a model share it.

    A model from a run predicts a row from each class's photos (``predicted.py``); a model of photos alone fits all rows
    together (``fitted.py``).

    Attributes:
        FITTED: whether the head is kept in the model folder, as it takes seconds to make.
    """

    FITTED: ClassVar[bool]

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the method, as people see it."""

    @abstractmethod
    def make(self, kept: Sequence[int], photos: Sequence[torch.Tensor]) -> tuple[Head, Self]:
        """Return the head of the classes as they are, and the maker for the next change of them.

        Args:
            kept: the classes of the run that have not been removed, in increasing order.
            photos: activations [k, dim] of the photos of each class: of those of the run, where k may be 0, then of the
                added classes.
        """

    @abstractmethod
    def as_in(self, about: dict[str, Any]) -> Self:
        """Return the maker with the choices of an earlier state of the same model.

        Args:
            about: what ``about`` returned then.
        """

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Return the entry ``method`` of ``model.json``."""

    @abstractmethod
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Return the tensors that lie beside the backbone's in a model's file of the network."""

    @abstractmethod
    def on(self, device: torch.device) -> Self:
        """Return the maker on a device."""
