"""Global batches of a few images of each of some classes, for losses that compare images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_train.data.loading.order import Ints, Order


@dataclass(frozen=True, kw_only=True)
class GroupedOrder(Order):
    """Draw each global batch anew: different classes, and ``images`` different images of each (Hermans et al. 2017,
    section 2), as a pure function of seed and batch number. Each rank's pass holds whole classes.

    Every batch counts as an epoch of its own, so that an image that comes again is cropped anew.

    Attributes:
        bounds: int64 [classes + 1]: class c has the positions ``bounds[c]`` to ``bounds[c + 1]`` - 1.
        images: images of a class in a batch; of a class that has fewer, some come twice.
        parts: passes of all ranks in which a batch is taken; they divide the classes of a batch.
    """

    bounds: Ints
    images: int
    parts: int

    def batch(self, number: int) -> tuple[Ints, Ints]:
        random = np.random.RandomState([self.seed, number])
        classes = random.permutation(len(self.bounds) - 1)[: self.global_batch // self.images]
        sizes = self.bounds[classes + 1] - self.bounds[classes]
        drawn = [np.resize(random.permutation(size), self.images) for size in sizes]
        groups = self.bounds[classes][:, None] + np.stack(drawn)
        # Part p of a batch is every parts-th image from p on (``order.rank_slice``).
        positions = groups.reshape(-1, self.parts, self.images).transpose(0, 2, 1).ravel()
        return positions.astype(np.int64), np.full(self.global_batch, number, np.int64)
