"""What a loader is to make: the samples of each batch, and for each image its window, flip and augmentations."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dist_train.config import DataConfig, Views
from dist_train.config.backbone import Preprocessing
from dist_train.data.images.orientation import stored_windows
from dist_train.data.loading import augment
from dist_train.data.loading.order import Order, rank_slice
from dist_train.data.loading.prefetch import ShardPrefetcher
from dist_train.data.loading.preprocessing import Request
from dist_train.data.splits import View
from dist_train.distributed.context import Context

Ints = npt.NDArray[np.int64]
Blobs = list[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Step:
    """Describe a batch to be made.

    Attributes:
        ids: int64 [B], sample ids.
        epochs: int64 [B], the epoch of each sample in training; empty in evaluation.
        side: side of the finished images, in pixels.
    """

    ids: Ints
    epochs: Ints
    side: int


class Plan(Protocol):
    """Describe the batches of a loader."""

    @property
    def view(self) -> View:
        """The samples."""

    @property
    def images(self) -> int:
        """The most images that a batch has."""

    @property
    def crops(self) -> int:
        """Crops that are made of each image."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network takes. Training obeys its interpolation and statistics, and not its sizes."""

    def steps(self) -> Generator[Step]:
        """Yield the batches in order."""

    def request(self, step: Step, ids: Ints, blobs: Blobs) -> Request:
        """Return what to make of the encoded images ``blobs`` of the samples ``ids``, which stand for ``step.ids``."""


@dataclass(frozen=True)
class TrainPlan:
    """Plan this rank's share of the global batches ``numbers``, each in ``accumulate`` pieces.

    Raises:
        UserError: the ranks and pieces do not divide a global batch.
    """

    view: View
    order: Order
    data: DataConfig
    preprocessing: Preprocessing
    context: Context
    numbers: range
    accumulate: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        rank_slice(np.arange(self.order.global_batch), 0, self._parts)

    @property
    def images(self) -> int:
        return self.order.global_batch // self._parts

    @property
    def _parts(self) -> int:
        return self.context.world * self.accumulate

    def steps(self) -> Generator[Step]:
        prefetcher = ShardPrefetcher(self.view.subset, self._ids, self.numbers, self.context)
        try:
            for number in self.numbers:
                prefetcher.reached(number)
                positions, epochs = self.order.batch(number)
                side = train_side(self.data, int(epochs[0]))
                for piece in range(self.accumulate):
                    part = piece * self.context.world + self.context.rank
                    ids = self.view.ids[rank_slice(positions, part, self._parts)]
                    yield Step(ids, rank_slice(epochs, part, self._parts), side)
        finally:
            prefetcher.close()

    def _ids(self, number: int) -> Ints:
        return self.view.ids[self.order.batch(number)[0]]

    def request(self, step: Step, ids: Ints, blobs: Blobs) -> Request:
        seed = self.order.seed
        windows = train_windows(self.view, ids, step.epochs, self.data, seed)
        orientations, anchor, shape = _in_stored_images(self.view, ids, windows.anchor, windows.shape)
        operations = augment.operations(self.data, seed, step.epochs, ids)
        size = np.full((len(ids), 2), step.side, np.int32)
        return Request(
            blobs=blobs, orientation=orientations, anchor=anchor, shape=shape, size=size, crop=np.zeros_like(size),
            flip=windows.flip, side=step.side, operations=operations, preprocessing=self.preprocessing,
        )  # fmt: skip


@dataclass(frozen=True)
class EvalPlan:
    """Plan the given samples once each, in order, ``images`` at a time, with one or ten crops of each image."""

    view: View
    ids: Ints
    preprocessing: Preprocessing
    images: int
    views: Views = "centre"

    @property
    def crops(self) -> int:
        return 10 if self.views == "ten" else 1

    def steps(self) -> Generator[Step]:
        for first in range(0, len(self.ids), self.images):
            yield Step(self.ids[first : first + self.images], np.zeros(0, np.int64), self.preprocessing.size)

    def request(self, step: Step, ids: Ints, blobs: Blobs) -> Request:
        whole = self.view.subset.sizes(ids)
        size = augment.resized_sizes(whole[:, 0], whole[:, 1], self.preprocessing)
        if self.views == "ten":
            crop, flip = augment.ten_crops(size, step.side)
        else:
            crop, flip = augment.centre_anchor(size, step.side), np.zeros(len(ids), np.int32)
        orientations, anchor, shape = _in_stored_images(self.view, ids, np.zeros_like(size), whole.astype(np.int32))
        operations = np.zeros((len(ids), 0, 3), np.int32)
        return Request(
            blobs=blobs, orientation=orientations, anchor=anchor, shape=shape, size=size, crop=crop, flip=flip,
            side=step.side, operations=operations, preprocessing=self.preprocessing,
        )  # fmt: skip


def train_windows(view: View, ids: Ints, epochs: Ints, data: DataConfig, seed: int) -> augment.Windows:
    """Return the crop windows and flips of samples in their epochs."""
    height, width = view.subset.sizes(ids).T
    return augment.random_resized_crop(seed, epochs, ids, height, width, data.scale, data.ratio)


def train_side(data: DataConfig, epoch: int) -> int:
    """Return the side of the training crops, in pixels, of a global batch whose first sample is of ``epoch``.

    All images of a batch have one side, though the batch may reach into the next epoch. The sides grow by FFCV's rule
    (``get_resolution`` of its train_imagenet.py).
    """
    if data.ramp_from is None or epoch >= data.ramp_epochs[1]:
        return data.train_size
    side = 32 * round(float(np.interp(epoch, data.ramp_epochs, (data.ramp_from, data.train_size))) / 32)
    return data.ramp_from if epoch <= data.ramp_epochs[0] else min(max(side, data.ramp_from), data.train_size)


def _in_stored_images(
    view: View, ids: Ints, anchor: npt.NDArray[np.int32], shape: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the orientations of samples, and windows of their upright images as they lie in the stored images."""
    orientations = view.subset.orientations(ids)
    if (orientations == 1).all():
        return orientations, anchor, shape
    return orientations, *stored_windows(orientations, anchor, shape, view.subset.sizes(ids).astype(np.int32))
