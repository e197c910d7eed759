"""From order to batches: the one place where a training or evaluation batch is put together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from dist_train.config import DataConfig, Views
from dist_train.data.images.headers import parses
from dist_train.data.images.orientation import stored_windows, transposed
from dist_train.data.loading import augment
from dist_train.data.loading.dali import decode, decode_errors, stored_sizes
from dist_train.data.loading.dali_errors import DecodeError, PipelineError
from dist_train.data.loading.order import Order, rank_slice
from dist_train.data.loading.preprocessing import Request
from dist_train.data.loading.quarantine import Quarantine
from dist_train.data.loading.reader import BadSample, ShardSource
from dist_train.data.loading.transfer import Transfer
from dist_train.data.shards.cache import Prefetcher
from dist_train.data.splits import View
from dist_train.distributed.context import Context, cpus_per_rank
from dist_train.errors import UserError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """B images of this rank.

    Attributes:
        images: float32 [B, 3, side, side], normalised, channels_last, on the device; [B * 10, ...], image
            by image, of ten crops.
        labels: int64 [B] on the device, positions in the view's classes.
        ids: int64 [B], sample ids.
        replaced: how many of them stand in for an image that cannot be used.
        waited: seconds in which nothing was done for this batch, because the GPU still computed with earlier ones.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: Ints
    replaced: int = 0
    waited: float = 0.0


@dataclass(frozen=True)
class Step:
    """A batch to be made: sample ids, in training the epoch of each, and the side of the images."""

    ids: Ints
    epochs: Ints
    side: int


Made = tuple[Ints, Request]


def train_batches(
    view: View, order: Order, data: DataConfig, seed: int, context: Context, numbers: range, accumulate: int = 1
) -> Generator[Batch]:
    """Make this rank's share of the global batches ``numbers``, in ``accumulate`` pieces each.

    The same numbers give the same pixels on any number of ranks; the first number is all that a resumed run needs.
    """
    parts = context.world * accumulate
    share = rank_slice(order.batch(numbers.start)[0], 0, parts)  # refuses a world that does not divide
    subset = view.subset

    def plan() -> Generator[Step]:
        ahead = Prefetcher(subset, lambda n: view.ids[order.batch(n)[0]], numbers.start, numbers.stop, context)
        try:
            for number in numbers:
                ahead.at(number)
                positions, epochs = order.batch(number)
                side = train_side(data, int(epochs[0]))
                for piece in range(accumulate):
                    part = piece * context.world + context.rank
                    yield Step(view.ids[rank_slice(positions, part, parts)], rank_slice(epochs, part, parts), side)
        finally:
            ahead.close()

    def request(source: ShardSource, ids: Ints, step: Step) -> Request:
        windows = train_windows(view, ids, step.epochs, data, seed)
        turned, anchor, shape = _stored(view, ids, windows.anchor, windows.shape)
        chosen = augment.operations(data, seed, step.epochs, ids)
        size = np.full((len(ids), 2), step.side, np.int32)
        blobs, crop = source.read(ids), np.zeros_like(size)
        return Request(blobs, turned, anchor, shape, size, crop, windows.flip, step.side, chosen)

    return _batches(view, plan(), request, len(share), data, context)


def train_windows(view: View, ids: Ints, epochs: Ints, data: DataConfig, seed: int) -> augment.Windows:
    """Crop windows and flips of samples in their epochs."""
    height, width = _sizes(view, ids).T
    return augment.random_resized_crop(seed, epochs, ids, height, width, data.scale, data.ratio)


def _sizes(view: View, ids: Ints) -> Ints:
    """Height and width of the upright images: int64 [B, 2]."""
    rows = view.subset.samples[ids]
    return np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)


def _stored(
    view: View, ids: Ints, anchor: npt.NDArray[np.int32], shape: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], ...]:
    """Orientations, and windows as they lie in the stored images."""
    turned = view.subset.orientations(ids)
    if (turned == 1).all():
        return turned, anchor, shape
    return turned, *stored_windows(turned, anchor, shape, _sizes(view, ids).astype(np.int32))


def train_side(data: DataConfig, epoch: int) -> int:
    """Side of the training crops, in pixels, of a global batch whose first sample is of ``epoch``: a batch
    has one side, though it may reach into the next epoch.

    FFCV's rule (``get_resolution`` of its train_imagenet.py).
    """
    if data.ramp_from is None or epoch >= data.ramp_epochs[1]:
        return data.train_size
    side = 32 * round(float(np.interp(epoch, data.ramp_epochs, (data.ramp_from, data.train_size))) / 32)
    return data.ramp_from if epoch <= data.ramp_epochs[0] else min(max(side, data.ramp_from), data.train_size)


def eval_batches(
    view: View, ids: Ints, data: DataConfig, batch: int, context: Context, views: Views = "centre"
) -> Generator[Batch]:
    """The given samples once each, in order, with torchvision's Resize and CenterCrop or TenCrop; the last
    batch may be short, and no ids is no batch. Nothing is augmented.

    Args:
        batch: crops at a time, at least those of one image. An image is decoded once for all of its crops.

    Raises:
        UserError: a validation image cannot be used. A training image is replaced, as in training.
    """
    crops = 10 if views == "ten" else 1
    images = max(1, batch // crops)

    def plan() -> Generator[Step]:
        for first in range(0, len(ids), images):
            yield Step(ids[first : first + images], np.zeros(0, np.int64), data.eval_size)

    def request(source: ShardSource, ids: Ints, step: Step) -> Request:
        whole = _sizes(view, ids)
        size = augment.resized_sizes(whole[:, 0], whole[:, 1], data.eval_resize)
        if views == "ten":
            crop, flip = augment.ten_crops(size, data.eval_size)
        else:
            crop, flip = augment.centre_anchor(size, data.eval_size), np.zeros(len(ids), np.int32)
        turned, anchor, shape = _stored(view, ids, np.zeros_like(size), whole.astype(np.int32))
        chosen = np.zeros((len(ids), 0, 3), np.int32)
        return Request(source.read(ids), turned, anchor, shape, size, crop, flip, step.side, chosen)

    return _batches(view, plan(), request, images, replace(data, augment="none"), context, crops)


def _batches(
    view: View,
    plan: Generator[Step],
    request: Callable[[ShardSource, Ints, Step], Request],
    max_batch: int,
    data: DataConfig,
    context: Context,
    crops: int = 1,
) -> Generator[Batch]:
    """``plan`` gives the steps, ``request`` what DALI needs for one, with the ids that it is to use, for
    ``crops`` of each image.

    A pipeline that met a bad image is spent: the image goes to the quarantine, and a new pipeline
    starts at the oldest batch that is not out yet.
    """
    gpu = context.device.index if context.device.type == "cuda" else None
    mixed = gpu is not None and data.decoder != "cpu"
    if data.decoder == "mixed" and not mixed:
        raise UserError("data.decoder=mixed: needs a GPU, this rank has none; use auto or cpu")
    threads = decode_threads(data, context)
    quarantine = Quarantine(view)
    source = ShardSource(view.subset)  # of the reader thread; one is alive at a time
    transfer, waited = Transfer(context.device), 0.0
    again: deque[Step] = deque()  # to be made once more, by a new pipeline
    planned: deque[Step] = deque()  # being made, oldest first
    decoding: deque[Ints] = deque()  # of these, what the decoder has: the ids it was given

    def build(step: Step) -> Made:
        while True:
            ids = quarantine.stand_ins(step.ids)
            try:
                made = request(source, ids, step)
                _check_headers(view, ids, made)
                return ids, made
            except BadSample as error:
                _take_out(quarantine, error)

    def steps() -> Iterator[Step]:
        while step := again.popleft() if again else next(plan, None):
            planned.append(step)
            yield step

    def requests() -> Generator[Request]:
        for ids, made in _ahead(build, steps(), data.prefetch):
            decoding.append(ids)
            yield made

    try:
        while True:
            wanted = requests()
            device = gpu if mixed else None
            images = decode(wanted, max_batch, data, threads, device, crops, view.turned, locked=gpu is not None)
            try:
                for tensor in images:
                    step, ids = planned.popleft(), decoding.popleft()
                    labels = transfer.send(torch.from_numpy(view.labels_of(ids)))
                    replaced = int((ids != step.ids).sum())
                    yield Batch(transfer.send(tensor), labels, ids, replaced, waited)
                    waited = transfer.used(tensor)
                return
            except DecodeError as error:
                wanted.close()  # waits for the reader thread
                if not _take_out_bad(quarantine, [step.ids for step in planned]):
                    raise PipelineError(
                        f"DALI failed, though its decoder on the CPU takes each image: {error}"
                    ) from error
                again.extendleft(reversed(planned))
                planned.clear()
                decoding.clear()
            finally:
                images.close()
                wanted.close()
    finally:
        source.close()
        plan.close()
        transfer.close()


def _check_headers(view: View, ids: Ints, made: Request) -> None:
    """Raises BadSample for the first image that looks doubtful and that DALI's decoder on the CPU refuses."""
    for sample, blob in zip(ids.tolist(), made.blobs, strict=True):
        if not parses(blob) and (reason := decode_errors([blob.tobytes()], threads=1)[0]):
            raise BadSample(view.subset, sample, f"cannot be decoded ({reason})")


def _take_out(quarantine: Quarantine, error: BadSample) -> None:
    """Training goes on without the sample. An evaluation that leaves one out, or counts another
    twice, would not be exact: it stops."""
    if quarantine.view.subset.name != "train":
        raise error
    quarantine.add(error.sample, error.reason)


def _take_out_bad(quarantine: Quarantine, batches: list[Ints]) -> bool:
    """DALI says that a batch failed, not which image: find those that cannot be used. Returns whether there are any."""
    view = quarantine.view
    source, found = ShardSource(view.subset), False  # the reader thread has its own
    try:
        for ids in map(quarantine.stand_ins, batches):
            try:
                blobs = [blob.tobytes() for blob in source.read(ids)]
            except BadSample:
                found = True  # the reader will meet it again, and take it out
                continue
            for sample, reason in zip(ids.tolist(), _faults(view, ids, blobs), strict=True):
                if reason is not None:
                    _take_out(quarantine, BadSample(view.subset, sample, reason))
                    found = True
    finally:
        source.close()
    return found


def _faults(view: View, ids: Ints, blobs: list[bytes]) -> list[str | None]:
    """Why each image cannot be used, or None: DALI's decoder on the CPU refuses it, or it is not of the index's size,
    so that windows may lie outside of it."""
    reasons = [reason and f"cannot be decoded ({reason})" for reason in decode_errors(blobs, threads=1)]
    sound = [n for n, reason in enumerate(reasons) if reason is None]
    lying, stated = transposed(view.subset.orientations(ids)), _sizes(view, ids)
    stated[lying] = stated[lying, ::-1]
    for n, (height, width) in zip(sound, stored_sizes([blobs[n] for n in sound]).tolist(), strict=True):
        if (height, width) != tuple(stated[n]):
            reasons[n] = f"is {width} x {height} pixels, not those of the index: it was replaced under the index"
    return reasons


def _ahead(build: Callable[[Step], Made], plan: Iterator[Step], depth: int) -> Iterator[Made]:
    """Bytes are read by one thread, ``depth`` batches ahead, so that the loop never waits for a disk
    that keeps up on average."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        queue = [pool.submit(build, step) for step in islice(plan, depth)]
        while queue:
            ready = queue.pop(0).result()
            queue += [pool.submit(build, step) for step in islice(plan, 1)]
            yield ready


def decode_threads(data: DataConfig, context: Context) -> int:
    """CPU threads for one rank's decoder: as configured, or an equal share of the usable CPUs."""
    return data.threads or cpus_per_rank(context.local_world)
