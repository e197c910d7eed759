"""Run tasks in many processes at once, with progress and a clean way out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from tqdm import tqdm

from dist_train.distributed.cpus import usable_cpus
from dist_train.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Cancelled(Exception):
    """Report in a worker that the parent has given up; ``advance`` raises it."""


def progress_bar(total: int, title: str, unit: str, show: bool, done: int = 0) -> tqdm[Any]:
    """Return a bar with rate and time left on stderr; in a log file it prints a line every half minute."""
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit=unit,
        unit_scale=unit == "B",
        mininterval=0.1 if sys.stderr.isatty() else 30,
        disable=not show,
    )


@contextmanager
def working(title: str, show: bool = True) -> Iterator[None]:
    """Say on a terminal what is going on, with the time since it began, and the time left once the work calls
    ``tell_share``; the line comes after a second and goes with the work. Elsewhere nothing is printed."""
    if not show or not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    tell_share(0)

    def show_line() -> None:
        if not ended.wait(1):
            with tqdm(desc=title, bar_format="{desc} ... {elapsed}{postfix}", leave=False) as line:
                line.start_t -= 1
                while not ended.wait(1):
                    if _share:
                        left = line.format_dict["elapsed"] * (1 / _share - 1)
                        line.set_postfix_str(f"{line.format_interval(left)} left", refresh=False)
                    line.refresh()

    thread = threading.Thread(target=show_line, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


_share = 0.0


def tell_share(done: float) -> None:
    """Tell the line of ``working``, where there is one, which share of its work is done."""
    global _share
    _share = done


def advance(images: int) -> None:
    """Count images that a task has done; tasks call it now and then.

    Raises:
        Cancelled: the parent has given up.
    """
    count, stop = _shared
    with count.get_lock():
        count.value += images
    if stop.is_set():
        raise Cancelled


def run_tasks(
    function: Callable[[Task, int], Result], tasks: Iterable[Task], total: int, workers: int, bar: tqdm[Any]
) -> list[Result]:
    """Call ``function(task, threads)`` for all tasks, in processes, and return the results in the order of the tasks.

    An error of a task, and KeyboardInterrupt, is raised after the other tasks have been stopped.

    Args:
        function: a module's function, which calls ``advance`` as it goes.
        tasks: ``total`` tasks, taken one after the other: not all need be in memory.
        workers: CPUs to use; 0 for all usable CPUs. With fewer tasks than CPUs, each task has several threads.
        bar: shows what the tasks count.

    Raises:
        UserError: negative ``workers``, or a process was killed from outside.
    """
    if workers < 0:
        raise UserError(f"--workers {workers}: must be >= 0")
    if total == 0:
        return []
    cpus = workers or usable_cpus()
    processes = min(cpus, total)
    # Not fork: the caller may have threads (torch, DALI), and a forked process could hang on their locks. The
    # forkserver imports the modules once for all workers.
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
    """End this worker when its parent is killed, which cannot stop it and leaves its queue open."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
