"""Heads of models of photos alone: all rows are fitted together to the photos of all classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from dist_train.classifier.doubt_fit import Known, fitted_doubt
from dist_train.classifier.head import Head
from dist_train.classifier.heads.choice import HEADS, answer_counts, choose
from dist_train.classifier.heads.contract import Background, Sample
from dist_train.classifier.heads.means import Imprinting
from dist_train.classifier.heads.prior import check_prior, frequencies
from dist_train.classifier.maker import HeadMaker
from dist_train.names import check_choice


def check_head(name: str) -> None:
    """Check the name of a head, "auto" included.

    Raises:
        UserError: there is no such head.
    """
    check_choice("--head", name, ("auto", *HEADS))


@dataclass(frozen=True)
class FittedHeads(HeadMaker):
    """Fit a head to photos.

    The first head is chosen among all; after that its kind and its strength stay, so that a change takes no more than
    a fit, until another choice is asked for (``Classifier.choose_head``).

    Attributes:
        head: the name of the head, or "auto" before the choice.
        strength: of the head's regularisation; None before the choice, or where the head has none.
        background: how images of other classes vary, where there are any.
        prior: how frequent the classes are taken to be, a name in ``heads.prior.PRIORS``.

    Raises:
        UserError: there is no such head or prior.
    """

    FITTED: ClassVar = True
    head: str = "auto"
    strength: float | None = None
    background: Background | None = None
    prior: str = "equal"

    def __post_init__(self) -> None:
        check_head(self.head)
        check_prior(self.prior)

    @property
    def name(self) -> str:
        return self.head

    def make(self, kept: Sequence[int], photos: Sequence[torch.Tensor]) -> tuple[Head, FittedHeads]:
        device, sample = photos[0].device, Sample.of(photos)
        if len(photos) == 1:  # nothing to tell apart: every photo is of this class
            zeros, none = torch.zeros(1, photos[0].shape[1], device=device), torch.zeros(1, device=device)
            owner, same = torch.zeros(1, dtype=torch.int64, device=device), sample.activations[:, :1] * 0
            return self._doubting(Head(zeros, owner, none, 1), sample, same), self
        names = list(HEADS) if self.head == "auto" else [self.head]
        choice = choose(sample, names, self.strength, self.background, self.prior)
        fit = choice.fit
        head = Head(fit.rows.float(), torch.arange(len(photos), device=device), fit.offset.float(), len(photos),
                    1.0 if fit.unit else None, choice.estimates, answer_counts(fit.held_out, sample))  # fmt: skip
        return self._doubting(head, sample, fit.held_out), replace(self, head=choice.head, strength=fit.strength)

    def about(self) -> dict[str, Any]:
        return {"head": self.head, "strength": self.strength, "prior": self.prior}

    def as_in(self, about: dict[str, Any]) -> FittedHeads:
        return replace(self, head=about["head"], strength=about["strength"], prior=about["prior"])

    def tensors(self) -> Mapping[str, torch.Tensor]:
        if self.background is None:
            return {}
        freedom = torch.tensor([self.background.freedom])
        return {"background.scatter": self.background.scatter.float(), "background.freedom": freedom}

    def on(self, device: torch.device) -> FittedHeads:
        if self.background is None:
            return self
        return replace(self, background=Background(self.background.scatter.to(device), self.background.freedom))

    def _doubting(self, head: Head, sample: Sample, held_out: torch.Tensor) -> Head:
        """Return the head with its class means and its doubt.

        Args:
            head: of the photos.
            sample: these photos.
            held_out: the scores of each photo by a head that was fitted without it, as the softmax takes them.
        """
        nearest = next(iter(Imprinting().fits(sample, None, None)))
        judged = sample.judged
        known = Known(held_out[judged], nearest.held_out[judged].amax(1), sample.labels[judged])
        doubt = fitted_doubt(known, temperature=1.0, frequency=frequencies(self.prior, sample.counts))
        return replace(head, means=nearest.rows.float(), doubt=doubt)
