"""Images that training cannot use, and the images that stand in for them."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from dist_train.data.shards.source import BadSample
from dist_train.data.splits import View
from dist_train.errors import UserError, verifying

Ints = npt.NDArray[np.int64]
log = logging.getLogger(__name__)


class Quarantine:
    """Replace a bad image by the next good image of its class, in the order of sample ids.

    The replacement is a function of the data alone: it is the same on every rank, whichever rank meets the image first,
    and after a resume. Labels, and so the balance of classes, stay as they were.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.reasons: dict[int, str] = {}

    def exclude(self, bad: BadSample) -> None:
        """Take a sample out of training, and log its key and the reason once.

        Raises:
            BadSample: the sample is of the validation images. An evaluation that leaves out an image, or counts another
                image twice, would not be exact.
            UserError: its class has no usable image left.
        """
        if self.view.subset.name != "train":
            raise bad
        if bad.sample in self.reasons:
            return
        self.reasons[bad.sample] = bad.reason
        substitute = self.view.subset.key(self._next(bad.sample))
        log.warning("%s: %s; replaced by sample %s", self.view.subset.where(bad.sample), bad.reason, substitute)

    def stand_ins(self, ids: Ints) -> Ints:
        """Return ``ids`` with the bad samples replaced."""
        if not self.reasons:
            return ids
        return np.array([self._next(int(i)) if int(i) in self.reasons else i for i in ids], np.int64)

    def _next(self, sample: int) -> int:
        label = int(self.view.labels_of(np.array([sample]))[0])
        members = self.view.ids[self.view.bounds[label] : self.view.bounds[label + 1]]
        here = int(np.searchsorted(members, sample))
        for step in range(1, len(members)):
            candidate = int(members[(here + step) % len(members)])
            if candidate not in self.reasons:
                return candidate
        subset = self.view.subset
        raise UserError(
            f"{subset.source}: no image of class {self.view.classes[label]} in {subset.name} can be used "
            f"(last: {self.reasons[sample]}); {verifying(subset.source)}"
        )
