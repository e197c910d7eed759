"""Which samples form global batch b: a pure function of the seed.

The epochs' permutations are laid end to end, and the endless row is cut into global batches. So
every sample comes exactly once an epoch, every batch has the same size, and the only state is the
number of the batch; ranks, threads and restarts change nothing. An epoch's last batch may reach into
the next epoch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_train.distributed.shared import discard_array, shared_array
from dist_train.errors import UserError, counted

Ints = npt.NDArray[np.int64]
Positions = npt.NDArray[np.integer[Any]]  # int32 wherever that is enough: half the memory


def permutation(num_samples: int, seed: int, epoch: int) -> Positions:
    """Return the positions 0..num_samples-1 in the order of an epoch.

    ``RandomState`` because NumPy freezes its stream (NEP 19): the order of a run stays what it was
    under every later NumPy.
    """
    return _shuffled(np.random.RandomState([seed, epoch]), num_samples)


def _shuffled(random: np.random.RandomState, count: int) -> Positions:
    """Return ``random.permutation(count)``, which is this shuffle of int64."""
    dtype: Any = np.int32 if count < 2**31 else np.int64
    positions: Positions = np.arange(count, dtype=dtype)
    random.shuffle(positions)
    return positions


def block_permutation(shards: Positions, block_shards: int, seed: int, epoch: int) -> Positions:
    """Return a permutation that takes block after block of ``block_shards`` shards, so that few are in use at a time.

    The shards of a block are drawn anew each epoch; within a block all samples are shuffled.

    Args:
        shards: [num_samples], the shard of each position.
    """
    random = np.random.RandomState([seed, epoch])
    block = random.permutation(int(shards.max()) + 1) // block_shards
    block = block.astype(np.uint16 if len(block) <= 2**16 else np.int64)  # NumPy sorts 16 bits by radix
    shuffled = _shuffled(random, len(shards))
    return shuffled[np.argsort(block[shards[shuffled]], kind="stable")]


@dataclass(frozen=True)
class Order:
    """Hold the row of global batches. An epoch's permutation is in memory once a node (``distributed.shared``).

    Attributes:
        shards, block_shards: see ``block_permutation``; 0 = one permutation of all samples.

    Raises:
        UserError: there are fewer samples than one batch holds.
    """

    num_samples: int
    global_batch: int
    seed: int
    shards: Positions | None = None
    block_shards: int = 0
    _epochs: dict[int, Positions] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch:
            raise UserError(
                f"pretrain.global_batch={self.global_batch}: the base classes have only "
                f"{counted(self.num_samples, 'training image')}; "
                f"choose a global batch of at most that"
            )

    def epoch(self, number: int) -> Positions:
        """Return all positions in the order of epoch ``number``."""
        order = self._epochs.get(number)
        if order is None:
            order = shared_array(self._name(number), self.num_samples, partial(self._draw, number))
            if len(self._epochs) > 2:  # a batch reaches over two epochs at most; a reader ahead may be in a third
                oldest = min(list(self._epochs))
                self._epochs.pop(oldest, None)
                discard_array(self._name(oldest))
            self._epochs[number] = order
        return order

    def _draw(self, number: int) -> Positions:
        if self.block_shards and self.shards is not None:
            return block_permutation(self.shards, self.block_shards, self.seed, number)
        return permutation(self.num_samples, self.seed, number)

    def _name(self, number: int) -> str:
        """Return a name made of everything that decides an epoch."""
        return f"order-{self.num_samples}-{self.seed}-{number}{self._blocks}"

    @cached_property
    def _blocks(self) -> str:
        if not self.block_shards or self.shards is None:
            return ""
        return f"-{self.block_shards}-{hashlib.sha256(self.shards.tobytes()).hexdigest()[:16]}"

    def batch(self, number: int) -> tuple[Ints, Ints]:
        """Return global batch ``number``: (positions [global_batch], epoch of each [global_batch])."""
        row = np.arange(number * self.global_batch, (number + 1) * self.global_batch, dtype=np.int64)
        epochs, places = np.divmod(row, self.num_samples)
        positions = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            positions[here] = self.epoch(int(epoch))[places[here]]
        return positions, epochs

    def steps(self, epochs: float) -> int:
        """Return the number of batches in ``epochs`` passes, to the nearest whole number (at least 1)."""
        return max(1, round(epochs * self.num_samples / self.global_batch))

    def ends_epoch(self, number: int) -> bool:
        """Tell whether batch ``number`` takes an epoch's last sample."""
        first = number * self.global_batch
        return (first + self.global_batch) // self.num_samples > first // self.num_samples


def rank_slice(batch: Ints, rank: int, world: int) -> Ints:
    """Return this rank's part of a global batch: every world-th sample, so that parts are equal.

    Raises:
        UserError: the ranks do not divide the batch.
    """
    if len(batch) % world:
        raise UserError(
            f"pretrain.global_batch: {len(batch)} images do not divide into {world} ranks x accumulation steps; "
            f"choose a multiple of {world}"
        )
    return batch[rank::world]
