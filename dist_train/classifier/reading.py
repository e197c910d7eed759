"""Photos in order, decoded on all cores while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

from dist_train.classifier import photos
from dist_train.classifier.photos import Photo
from dist_train.data.account import Account
from dist_train.distributed.context import usable_cpus
from dist_train.errors import UserError

Source: TypeAlias = tuple[str, Photo | UserError]
"""The name of a photo, "" where it has none, and the photo, or why there is none."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(work: Callable[[Item], Result], items: Iterable[Item], waiting: int) -> Iterator[Result]:
    """Yield ``work(item)`` of all items in order; threads, one a core, are at most ``waiting`` items ahead."""
    remaining, results = iter(items), deque[Future[Result]]()
    pool = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="decode")
    try:
        while True:
            results += [pool.submit(work, item) for item in islice(remaining, waiting - len(results))]
            if not results:
                return
            yield results.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
        paths = photos.in_folder(folder, account)
    except UserError as error:
        yield str(folder), error
        return
    for name, reason in account.left_out:
        yield name, UserError(f"{name}: {reason}")
    for path in paths:
        yield str(path), path
