"""Images that training cannot use, and what stands in for them."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from dist_train.data.splits import View
from dist_train.errors import UserError, verifying

Ints = npt.NDArray[np.int64]
log = logging.getLogger(__name__)


class Quarantine:
    """A bad image is replaced by the next good one of its class, in the order of sample ids.

    That is a function of the data alone: the same on every rank, whoever meets the image first, and
    after a resume. Labels, and so the balance of classes, stay what they were.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.reasons: dict[int, str] = {}

    def add(self, sample: int, reason: str) -> None:
        """Take a sample out; says so, once, by its key.

        Raises:
            UserError: its class has no image left.
        """
        if sample in self.reasons:
            return
        self.reasons[sample] = reason
        other = self.view.subset.key(self._next(sample))
        log.warning("%s: %s; replaced by sample %s", self.view.subset.where(sample), reason, other)

    def stand_ins(self, ids: Ints) -> Ints:
        """``ids`` with the bad ones replaced."""
        if not self.reasons:
            return ids
        return np.array([self._next(int(i)) if int(i) in self.reasons else i for i in ids], np.int64)

    def _next(self, sample: int) -> int:
        label = int(self.view.labels_of(np.array([sample]))[0])
        members = self.view.ids[self.view.bounds[label] : self.view.bounds[label + 1]]
        here = int(np.searchsorted(members, sample))
        for step in range(1, len(members)):
            other = int(members[(here + step) % len(members)])
            if other not in self.reasons:
                return other
        subset = self.view.subset
        raise UserError(
            f"{subset.source}: no image of class {self.view.classes[label]} in {subset.name} can be used "
            f"(last: {self.reasons[sample]}); {verifying(subset.source)}"
        )
