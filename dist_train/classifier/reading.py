"""Photos in order, decoded on all cores while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
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


def ahead(work: Callable[[Item], Result], items: Iterable[Item], batch: int) -> Iterator[Result]:
    """Yield ``work(item)`` of all items in order; threads, one a core, are three batches of items ahead, or two items a
    thread where that is more."""
    remaining, results, threads = iter(items), deque[Future[Result]](), usable_cpus()
    waiting = max(3 * batch, 2 * threads)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        while True:
            results += [pool.submit(work, item) for item in islice(remaining, waiting - len(results))]
            if not results:
                return
            yield results.popleft().result()
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
    size: int,
) -> Iterator[Answer]:
    """Yield the answer of each photo in order, or its fault; few photos are in memory at a time.

    Args:
        photos: in order.
        prepare: makes of a photo, and of its name in errors, what ``answer`` takes; threads call it ahead. Raises
            UserError where the photo cannot be decoded.
        answer: returns the answers for several photos.
        size: photos that it takes at once.
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

    for batch in batches(ahead(ready, enumerate(photos, 1), size), size):
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
