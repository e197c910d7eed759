"""Work on many shards at once: processes, progress, and a clean way out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from tqdm import tqdm

from dist_train.distributed.context import usable_cpus
from dist_train.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Cancelled(Exception):
    """Raised in a worker by ``advance`` after the parent has given up."""


def progress_bar(total: int, what: str, unit: str, show: bool, done: int = 0) -> tqdm[Any]:
    """A bar with rate and time left on stderr; in a log file, a line every half minute."""
    interval = 0.1 if sys.stderr.isatty() else 30
    scale = unit == "B"
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        unit_scale=scale,
        mininterval=interval,
        disable=not show,
    )


def advance(images: int) -> None:
    """To be called by a task now and then: counts its images, and ends it if the parent has given up."""
    count, stop = _shared
    with count.get_lock():
        count.value += images
    if stop.is_set():
        raise Cancelled


def run_tasks(
    function: Callable[[Task, int], Result], tasks: Iterable[Task], total: int, workers: int, bar: tqdm[Any]
) -> list[Result]:
    """``function(task, threads)`` for all tasks, in processes; the results in the order of the tasks.

    Args:
        function: a module's function; calls ``advance`` as it goes.
        tasks: ``total`` of them, asked for one after the other: not all need be in memory.
        workers: CPUs to use, 0 = all usable ones. With fewer tasks than that, each has several threads.
        bar: moved on by what the tasks count.

    Raises:
        What a task raises, after the others have been stopped; likewise KeyboardInterrupt.
        UserError: negative ``workers``, or a process was killed from outside.
    """
    if workers < 0:
        raise UserError(f"--workers {workers}: must be >= 0")
    if total == 0:
        return []
    cpus = workers or usable_cpus()
    processes = min(cpus, total)
    # Not fork: the caller may have threads (torch, DALI), and a forked process could hang on their locks.
    # The forkserver imports once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, "dist_train.data.loading.dali"])
    count, stop = context.Value("q", 0), context.Event()
    start = bar.n
    results: dict[int, Result] = {}
    pool = ProcessPoolExecutor(processes, context, _start_worker, (count, stop))
    try:
        rest = iter(enumerate(tasks))
        running: dict[Future[Result], int] = {}
        while len(results) < total:
            for number, task in islice(rest, 2 * processes - len(running)):
                running[pool.submit(function, task, max(1, cpus // processes))] = number
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            results.update({running.pop(future): future.result() for future in done})
            bar.update(start + count.value - bar.n)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for want of memory; start again with fewer --workers to continue"
        ) from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return [results[number] for number in range(total)]


_shared: tuple[Any, Any]


def _start_worker(count: Any, stop: Any) -> None:
    global _shared
    _shared = count, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides, through ``stop``
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A parent that was killed cannot stop us, and its queue stays open: watch for its end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
