"""From order to batches: the one place where a training or evaluation batch is put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from dist_train.config import DataConfig
from dist_train.context import Context, usable_cpus
from dist_train.data import augment
from dist_train.data.dali import DecodeError, Request, decode, decode_errors
from dist_train.data.order import Order, rank_slice
from dist_train.data.source import ShardSource
from dist_train.data.splits import View
from dist_train.errors import UserError

Ints = npt.NDArray[np.int64]
Step = tuple[Ints, Ints]
Made = tuple[Ints, Request]


@dataclass(frozen=True)
class Batch:
    """B images of this rank.

    Attributes:
        images: float32 [B, 3, side, side], normalised, channels_last, on the device.
        labels: int64 [B] on the device, positions in the view's classes.
        ids: int64 [B], sample ids.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: Ints


def train_batches(
    view: View, order: Order, data: DataConfig, seed: int, context: Context, start: int, stop: int, accumulate: int = 1
) -> Iterator[Batch]:
    """This rank's share of global batches ``start`` to ``stop``, ``accumulate`` pieces for each.

    The same numbers give the same pixels on any number of ranks; ``start`` is all there is to resume.
    """
    parts = context.world * accumulate
    share = rank_slice(order.batch(start)[0], 0, parts)  # refuses a world that does not divide

    def plan() -> Iterator[tuple[Ints, Ints]]:
        for number in range(start, stop):
            positions, epochs = order.batch(number)
            for piece in range(accumulate):
                part = piece * context.world + context.rank
                yield view.ids[rank_slice(positions, part, parts)], rank_slice(epochs, part, parts)

    def request(source: ShardSource, ids: Ints, epochs: Ints) -> Request:
        rows = view.subset.samples[ids]
        h, w = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        windows = augment.random_resized_crop(seed, epochs, ids, h, w, data.scale, data.ratio)
        side = np.full((len(ids), 2), data.train_size, np.int32)
        blobs = source.read(ids)
        return Request(blobs, windows.anchor, windows.shape, side, np.zeros_like(side), windows.flip)

    return _batches(view, plan(), request, len(share), data.train_size, data, context)


def eval_batches(view: View, ids: Ints, data: DataConfig, batch: int, context: Context) -> Iterator[Batch]:
    """The given samples once each, in order, with torchvision's Resize and CenterCrop; the last batch
    may be short, and no ids is no batch."""

    def plan() -> Iterator[tuple[Ints, Ints]]:
        for first in range(0, len(ids), batch):
            yield ids[first : first + batch], np.zeros(0, np.int64)

    def request(source: ShardSource, ids: Ints, _: Ints) -> Request:
        rows = view.subset.samples[ids]
        h, w = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        size = augment.resized_sizes(h, w, data.eval_resize)
        crop = augment.centre_anchor(size, data.eval_size)
        whole = np.stack([h, w], axis=1).astype(np.int32)
        zero = np.zeros_like(whole)
        return Request(source.read(ids), zero, whole, size, crop, np.zeros(len(ids), np.int32))

    return _batches(view, plan(), request, batch, data.eval_size, data, context)


def _batches(
    view: View,
    plan: Iterator[Step],
    request: Callable[[ShardSource, Ints, Ints], Request],
    max_batch: int,
    side: int,
    data: DataConfig,
    context: Context,
) -> Iterator[Batch]:
    """``plan`` gives (ids, their epochs) of each batch, ``request`` what DALI needs for them."""
    source = ShardSource(view.subset)
    planned: list[Ints] = []  # what is on its way through the decoder, oldest first

    def build(step: Step) -> Made:
        return step[0], request(source, *step)

    def requests() -> Iterator[Request]:
        for ids, made in _ahead(build, plan, data.prefetch):
            planned.append(ids)
            yield made

    gpu = context.device.index if context.device.type == "cuda" else None
    mixed = gpu is not None and data.decoder != "cpu"
    if data.decoder == "mixed" and not mixed:
        raise UserError("data.decoder=mixed: needs a GPU, this rank has none; use auto or cpu")
    images = decode(requests(), max_batch, side, decode_threads(data, context), data.prefetch, gpu, mixed)
    try:
        for tensor in images:
            ids = planned.pop(0)
            labels = torch.from_numpy(view.labels_of(ids)).to(context.device, non_blocking=True)
            yield Batch(tensor.to(context.device, non_blocking=True), labels, ids)
    except DecodeError as error:
        raise UserError(_blame(view, planned[0] if planned else np.zeros(0, np.int64), error)) from error
    finally:
        images.close()
        source.close()


def _ahead(build: Callable[[Step], Made], plan: Iterator[Step], depth: int) -> Iterator[Made]:
    """Bytes are read by one thread, ``depth`` batches ahead, so that the loop never waits for a disk
    that keeps up on average."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        queue = [pool.submit(build, step) for step in islice(plan, depth)]
        while queue:
            ready = queue.pop(0).result()
            queue += [pool.submit(build, step) for step in islice(plan, 1)]
            yield ready


def _blame(view: View, ids: Ints, error: DecodeError) -> str:
    """One line that names the sample that DALI only counts."""
    blobs = [blob.tobytes() for blob in ShardSource(view.subset).read(ids)]  # the reader thread has its own
    for sample, reason in zip(ids, decode_errors(blobs, threads=1), strict=True):
        if reason:
            root = view.subset.root
            return f"{view.subset.where(int(sample))}: cannot be decoded ({reason}); run dist-train verify {root}"
    return f"a batch of {view.subset.root} cannot be decoded: {error}"


def decode_threads(data: DataConfig, context: Context) -> int:
    """CPU threads for one rank's decoder: as configured, or an equal share of the usable CPUs."""
    return data.threads or max(1, usable_cpus() // context.local_world)
