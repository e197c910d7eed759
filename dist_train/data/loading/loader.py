"""From order to batches: the place where training and evaluation batches are put together."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from dist_train.config import DataConfig, Views
from dist_train.config.backbone import Preprocessing
from dist_train.data.loading.dali import Decoder, GraphOptions
from dist_train.data.loading.dali_errors import DecodeError, PipelineError
from dist_train.data.loading.faults import image_faults
from dist_train.data.loading.order import Order
from dist_train.data.loading.plan import EvalPlan, Plan, Step, TrainPlan
from dist_train.data.loading.preprocessing import Finisher, Finishing, Request
from dist_train.data.loading.quarantine import Quarantine
from dist_train.data.loading.reader import Reader, Reading
from dist_train.data.loading.transfer import Transfer
from dist_train.data.shards.source import BadSample, ShardSource
from dist_train.data.splits import View
from dist_train.distributed.context import Context
from dist_train.distributed.cpus import cpus_per_rank
from dist_train.errors import UserError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Hold B images of this rank.

    Attributes:
        images: float32 [B, 3, side, side], normalised, channels_last, on the device; [B * 10, ...], image
            by image, of ten crops.
        labels: int64 [B] on the device, positions in the view's classes.
        ids: int64 [B], sample ids.
        replaced: number of images that stand in for an image that cannot be used.
        waited: seconds in which nothing was done for this batch, because the GPU still computed with earlier batches.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: Ints
    replaced: int = 0
    waited: float = 0.0


def train_batches(
    view: View,
    order: Order,
    data: DataConfig,
    context: Context,
    numbers: range,
    accumulate: int = 1,
    preprocessing: Preprocessing | None = None,
) -> Generator[Batch]:
    """Make this rank's share of the global batches ``numbers``, in ``accumulate`` pieces each.

    The same numbers give the same pixels on any number of ranks; the first number is all that a resumed run needs.

    Args:
        order: the row of batches, whose seed draws the windows and augmentations too.
        preprocessing: of the network, which gives the interpolation and the statistics, while the sizes are those of
            ``data``; None: that of our own networks, ``data.preprocessing``.
    """
    plan = TrainPlan(view, order, data, preprocessing or data.preprocessing, context, numbers, accumulate)
    return Loader(plan, data, context).batches()


def eval_batches(
    view: View,
    ids: Ints,
    data: DataConfig,
    batch: int,
    context: Context,
    views: Views = "centre",
    preprocessing: Preprocessing | None = None,
) -> Generator[Batch]:
    """Make batches of the given samples, once each and in order, with torchvision's Resize and CenterCrop or TenCrop.

    The last batch may be short, and no ids make no batch. Nothing is augmented.

    Args:
        batch: crops at a time, at least the crops of one image. An image is decoded once for all of its crops.
        preprocessing: of the network; None: that of our own networks, ``data.preprocessing``.

    Raises:
        UserError: a validation image cannot be used. A training image is replaced, as in training.
    """
    images = max(1, batch // (10 if views == "ten" else 1))
    plan = EvalPlan(view, ids, preprocessing or data.preprocessing, images, views)
    return Loader(plan, replace(data, augment="none"), context).batches()


@dataclass
class InFlight:
    """Track a batch between the plan and the training loop.

    Attributes:
        step: the batch as it was planned.
        reading: the reader's work on it, until the decoder has it.
        ids: int64 [B], the samples that it really has, once the decoder has it.
        request: the decoder's work, until it is done; it holds the encoded images.
        finishing: the last work on its pixels, once it is decoded.
    """

    step: Step
    reading: Reading | None
    ids: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    request: Request | None = None
    finishing: Finishing | None = None


class Loader:
    """Make the batches of a plan: each is read, decoded and finished while those before it are in use.

    A batch moves through three queues in the order of the plan. The reader works up to ``data.prefetch`` batches ahead
    of DALI, and DALI has as many in work. Where DALI only decodes, one more batch is being finished on the CPU.
    """

    def __init__(self, plan: Plan, data: DataConfig, context: Context) -> None:
        """Prepare to make batches on the device of ``context``.

        Raises:
            UserError: ``data.decoder`` needs a GPU, and there is none.
        """
        gpu = context.device.index if context.device.type == "cuda" else None
        mixed = gpu is not None and data.decoder != "cpu"
        if data.decoder == "mixed" and not mixed:
            raise UserError("data.decoder=mixed: needs a GPU, this rank has none; use auto or cpu")
        self.plan, self.prefetch = plan, data.prefetch
        threads = decode_threads(data, context)
        self._graph = GraphOptions(
            data, plan.preprocessing, plan.images, threads, gpu if mixed else None, plan.crops, plan.view.turned
        )
        self._steps: Iterator[Step] = iter(())
        self._quarantine = Quarantine(plan.view)
        self._reader = Reader(plan, self._quarantine)
        self._decoder: Decoder | None = None
        self._finisher = None if self._graph.finishes else Finisher(threads, locked=gpu is not None)
        self._transfer = Transfer(context.device)
        self._read: deque[InFlight] = deque()
        self._decoding: deque[InFlight] = deque()
        self._finishing: deque[InFlight] = deque()

    def batches(self) -> Generator[Batch]:
        """Yield the batches of the plan.

        Raises:
            BadSample: an image of an evaluation cannot be used.
            PipelineError, torch.OutOfMemoryError, MemoryError: see ``Decoder.take``.
            UserError: a shard cannot be fetched, or a class has no usable image left.
        """
        planned = self._steps = self.plan.steps()
        waited = 0.0
        try:
            while self.advance():
                batch = self._finishing.popleft()
                assert batch.finishing is not None
                images = batch.finishing.wait()
                labels = self._transfer.send(torch.from_numpy(self.plan.view.labels_of(batch.ids)))
                replaced = int((batch.ids != batch.step.ids).sum())
                yield Batch(self._transfer.send(images), labels, batch.ids, replaced, waited)
                waited = self._transfer.used(images)
        finally:
            self._close()
            planned.close()

    def advance(self) -> bool:
        """Read and decode until the oldest batch is being finished, and the batch behind it where the CPU finishes.

        Returns:
            whether there is a batch.
        """
        while len(self._finishing) < (2 if self._finisher else 1):
            try:
                if not self.decode():
                    break
            except DecodeError as error:
                self.repair(error)
        return bool(self._finishing)

    def read(self) -> None:
        """Keep the reader ``prefetch`` batches ahead of the decoder."""
        while len(self._read) < self.prefetch and (step := next(self._steps, None)) is not None:
            self._read.append(InFlight(step, self._reader.start(step)))

    def decode(self) -> bool:
        """Feed the decoder until it has ``prefetch`` batches, and start to finish its oldest.

        Returns:
            whether there was a batch to decode.

        Raises:
            DecodeError: an image of a batch in work cannot be decoded, most likely.
        """
        self.read()
        while self._read and len(self._decoding) < self.prefetch:
            if self._decoder is None:  # DALI starts with a full queue: it must not be longer than the rest of the plan
                self._decoder = Decoder(self._graph, depth=len(self._read))
            batch = self._read.popleft()
            self._decoding.append(batch)
            self._feed(self._decoder, batch)
            self.read()
        if not self._decoding or self._decoder is None:
            return False
        decoded = self._decoder.take()
        batch = self._decoding.popleft()
        assert batch.request is not None
        batch.finishing = self._finisher.start(decoded, batch.request) if self._finisher else Finishing(decoded)
        batch.request = None
        self._finishing.append(batch)
        return True

    def _feed(self, decoder: Decoder, batch: InFlight) -> None:
        assert batch.reading is not None
        batch.ids, batch.request = batch.reading.result()
        batch.reading = None
        decoder.feed(batch.request)

    def repair(self, error: DecodeError) -> None:
        """Put the images that broke the decoder into quarantine, and make all unfinished batches once more.

        DALI says that a batch failed, not which image, and the decoder is spent. All batches that are not out yet are
        looked through, so that it does not matter how far each had come.

        Raises:
            PipelineError: all images are sound.
            BadSample: a faulty image belongs to an evaluation.
        """
        unfinished = [*self._finishing, *self._decoding, *self._read]
        self._reader.cancel([batch.reading for batch in unfinished if batch.reading is not None])
        self._discard_decoder()
        if not self._exclude_faulty([batch.step.ids for batch in unfinished]):
            raise PipelineError(f"DALI failed, though its decoder on the CPU takes each image: {error}") from error
        for queue in (self._finishing, self._decoding, self._read):
            queue.clear()
        self._steps = chain([batch.step for batch in unfinished], self._steps)

    def _exclude_faulty(self, batches: list[Ints]) -> bool:
        """Look through batches for images that cannot be used, and return whether there are any."""
        view, faulty = self.plan.view, False
        source = ShardSource(view.subset)  # the reader's thread has its own
        try:
            for ids in map(self._quarantine.stand_ins, batches):
                try:
                    blobs = [blob.tobytes() for blob in source.read(ids)]
                except BadSample:
                    faulty = True  # the reader will meet it again, and exclude it
                    continue
                for sample, reason in zip(ids.tolist(), image_faults(view, ids, blobs), strict=True):
                    if reason is not None:
                        self._quarantine.exclude(BadSample(view.subset, sample, reason))
                        faulty = True
        finally:
            source.close()
        return faulty

    def _discard_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None

    def _close(self) -> None:
        self._reader.close()
        self._discard_decoder()
        if self._finisher is not None:
            self._finisher.close()
        self._transfer.close()


def decode_threads(data: DataConfig, context: Context) -> int:
    """Return the CPU threads for one rank's decoder: as configured, or an equal share of the usable CPUs."""
    return data.threads or cpus_per_rank(context.local_world)
