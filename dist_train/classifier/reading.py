"""Photos in order, decoded on all cores before the network computes, or while a GPU does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from dist_train.classifier import photo_files
from dist_train.classifier.answer import Answer
from dist_train.data.account import Account
from dist_train.distributed.cpus import usable_cpus
from dist_train.errors import UserError

if TYPE_CHECKING:
    from dist_train.classifier.photos import Photo

Source: TypeAlias = "tuple[str, Photo | UserError]"
"""The name of a photo, "" where it has none, and the photo, or why there is none."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pace:
    """How photos are read for a network.

    Attributes:
        batch: photos that the network takes at once.
        ahead: photos that are read and wait for it, at most.
        meanwhile: whether photos are read while the network computes, as is right for a GPU. On the CPU, torch shares a
            layer's work among all cores and waits for the last of them: a core that decodes meanwhile holds up the
            others, layer after layer. There, photos are read in turns with the network (docs/results/batch.md).
    """

    batch: int
    ahead: int
    meanwhile: bool


def read(work: Callable[[Item], Result], items: Iterable[Item], pace: Pace) -> Iterator[Result]:
    """Yield ``work(item)`` of all items in order, computed by threads, one a core."""
    pool = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="decode")
    remaining, waiting = iter(items), deque[Future[Result]]()
    try:
        while True:
            if pace.meanwhile or not waiting:
                waiting += [pool.submit(work, item) for item in islice(remaining, pace.ahead - len(waiting))]
                if not pace.meanwhile:
                    wait(waiting)
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(items: Iterable[Item], size: int = 32) -> Iterator[list[Item]]:
    """Yield lists of at most ``size`` items, so that a folder of photos need not lie in memory."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def answered(
    photos: Iterable[Source],
    prepare: Callable[[Photo, str], Item],
    answer: Callable[[list[Item]], Sequence[Answer]],
    pace: Pace,
) -> Iterator[Answer]:
    """Yield the answer of each photo in order, or its fault; few photos are in memory at a time.

    Args:
        photos: in order.
        prepare: makes of a photo, and of its name in errors, what ``answer`` takes; threads call it. Raises UserError
            where the photo cannot be decoded.
        answer: returns the answers for a batch of photos.
        pace: how photos are read for it.
    """

    def ready(numbered: tuple[int, Source]) -> tuple[str, Item | None, str]:
        number, (name, photo) = numbered
        label = name or f"photo {number}"
        try:
            if isinstance(photo, UserError):
                raise photo
            return name, prepare(photo, label), ""
        except UserError as error:
            return name, None, str(error).removeprefix(f"{label}: ")

    for batch in batches(read(ready, enumerate(photos, 1), pace), pace.batch):
        prepared = [item for _, item, _ in batch if item is not None]
        answers = iter(answer(prepared) if prepared else ())
        for name, item, fault in batch:
            yield replace(next(answers) if item is not None else Answer((), False, 0.0, fault=fault), photo=name)


def listed(images: Iterable[Photo] | Photo) -> Iterable[Photo]:
    """Return photos that are given singly, or several at once, as several."""
    if isinstance(images, (str, Path, bytes)) or hasattr(images, "shape") or not isinstance(images, Iterable):
        return [images]  # type: ignore[list-item]
    return images


def sources(images: Iterable[Photo] | Photo) -> Iterator[Source]:
    """Yield photos that are given singly, in a list, or as folders with photos, and below, in them."""
    for image in listed(images):
        if not isinstance(image, (str, Path)):
            yield "", image
        elif image != "" and Path(image).is_dir():  # the path "" would be the working folder
            yield from _of_folder(Path(image))
        else:
            yield str(image), image


def _of_folder(folder: Path) -> Iterator[Source]:
    account = Account()
    try:
        paths = photo_files.in_folder(folder, account)
    except UserError as error:
        yield str(folder), error
        return
    for name, reason in account.left_out:
        yield name, UserError(f"{name}: {reason}")
    for path in paths:
        yield str(path), path
