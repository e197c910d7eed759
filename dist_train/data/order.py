"""Which samples form global batch b: a pure function of the seed.

The epochs' permutations are laid end to end, and the endless row is cut into global batches. So
every sample comes exactly once an epoch, every batch has the same size, and the only state is the
number of the batch; ranks, threads and restarts have no say. An epoch's last batch may reach into
the next epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dist_train.errors import UserError

Ints = npt.NDArray[np.int64]


def permutation(num_samples: int, seed: int, epoch: int) -> Ints:
    """Positions 0..num_samples-1 in the order of an epoch.

    ``RandomState`` because NumPy freezes its stream (NEP 19): the order of a run stays what it was
    under every later NumPy.
    """
    return np.random.RandomState([seed, epoch]).permutation(num_samples).astype(np.int64)


def block_permutation(shards: Ints, block_shards: int, seed: int, epoch: int) -> Ints:
    """The same, but block after block of ``block_shards`` shards, so that few are in use at a time.

    Which shards form a block is drawn anew each epoch; within a block all samples are shuffled.

    Args:
        shards: int64 [num_samples], the shard of each position.
    """
    random = np.random.RandomState([seed, epoch])
    place = random.permutation(int(shards.max()) + 1)
    shuffled = random.permutation(len(shards)).astype(np.int64)
    return shuffled[np.argsort(place[shards[shuffled]] // block_shards, kind="stable")]


@dataclass(frozen=True)
class Order:
    """The row of global batches.

    Attributes:
        shards, block_shards: see ``block_permutation``; 0 = one permutation of all samples.

    Raises:
        UserError: fewer samples than one batch holds.
    """

    num_samples: int
    global_batch: int
    seed: int
    shards: Ints | None = None
    block_shards: int = 0
    _epochs: dict[int, Ints] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch:
            raise UserError(
                f"pretrain.global_batch={self.global_batch}: there are only {self.num_samples} training images; "
                f"choose a global batch of at most that"
            )

    def epoch(self, number: int) -> Ints:
        """All positions in the order of epoch ``number``."""
        order = self._epochs.get(number)
        if order is None:
            if self.block_shards and self.shards is not None:
                order = block_permutation(self.shards, self.block_shards, self.seed, number)
            else:
                order = permutation(self.num_samples, self.seed, number)
            if len(self._epochs) > 2:  # a batch reaches over two epochs at most; a reader ahead may be in a third
                self._epochs.pop(min(list(self._epochs)), None)
            self._epochs[number] = order
        return order

    def batch(self, number: int) -> tuple[Ints, Ints]:
        """Global batch ``number``: (positions [global_batch], epoch of each [global_batch])."""
        row = np.arange(number * self.global_batch, (number + 1) * self.global_batch, dtype=np.int64)
        epochs, places = np.divmod(row, self.num_samples)
        positions = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            positions[here] = self.epoch(int(epoch))[places[here]]
        return positions, epochs

    def steps(self, epochs: float) -> int:
        """Batches that ``epochs`` passes take, to the nearest whole one (at least 1)."""
        return max(1, round(epochs * self.num_samples / self.global_batch))

    def ends_epoch(self, number: int) -> bool:
        """Whether batch ``number`` takes an epoch's last sample."""
        first = number * self.global_batch
        return (first + self.global_batch) // self.num_samples > first // self.num_samples


def rank_slice(batch: Ints, rank: int, world: int) -> Ints:
    """This rank's part of a global batch: every world-th sample, so that parts are equal.

    Raises:
        UserError: the ranks do not divide the batch.
    """
    if len(batch) % world:
        raise UserError(
            f"pretrain.global_batch: {len(batch)} images do not divide into {world} ranks x accumulation steps; "
            f"choose a multiple of {world}"
        )
    return batch[rank::world]
