"""Ranks that wait for each other: their requests to rank 0's store, and the names of ranks that do not come."""

import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from dist_train.distributed.rendezvous import Place, _wait_for_all
from dist_train.errors import LostError


class Counting:
    """Count the requests that a rank makes to a real store: a check counts its keys, and a get waits too."""

    def __init__(self, port: int) -> None:
        self.requests: Counter[str] = Counter()
        self._store = dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=10), wait_for_workers=False)

    def __getattr__(self, name: str) -> Any:
        def ask(*given: Any) -> Any:
            self.requests[name] += len(given[0]) if name == "check" else 1
            return getattr(self._store, name)(*given)

        return ask


def meet(
    present: list[int], world: int, patience: float, late: float = 0.0
) -> tuple[list[Counting], dict[int, Exception]]:
    """Let the ranks of a world wait for each other, and return their numbers of requests and their errors. The last
    rank comes ``late`` seconds after the others."""
    host = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    stores, errors = [Counting(host.port) for _ in present], {}

    def come(store: Counting, rank: int) -> None:
        time.sleep(late if rank == present[-1] else 0)
        try:
            _wait_for_all(store, Place(rank, world, rank, world, "slurm"), time.monotonic() + patience, patience)
        except LostError as error:
            errors[rank] = error

    threads = [threading.Thread(target=come, args=pair) for pair in zip(stores, present, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return stores, errors


@pytest.mark.parametrize(("world", "late"), [(1, 0.0), (2, 0.0), (5, 0.0), (16, 0.0), (5, 1.0)])
def test_a_rank_makes_the_same_requests_in_any_world_however_late_the_last_rank_comes(world: int, late: float) -> None:
    stores, errors = meet(list(range(world)), world, 30, late)
    assert not errors
    asked = [sum(store.requests.values()) - store.requests["set_timeout"] for store in stores]
    assert min(asked) == 5 or world <= 2  # of two ranks, each may be the last at a meeting
    assert max(asked) <= 7 and sum(asked) == 5 * world + 2  # the last rank makes another request, at both meetings


@pytest.mark.parametrize(("present", "missing"), [([0, 1, 3], "2;"), ([0], "1, 2, 3;"), ([1, 2, 3], "0;")])
def test_ranks_that_do_not_come_are_named_by_all_that_did(present: list[int], missing: str) -> None:
    _, errors = meet(present, 4, 1)
    assert set(errors) == set(present)
    assert all(f"of 4 ranks these did not come within 1 s (monitor.start_timeout): {missing}" in str(error)
               for error in errors.values())  # fmt: skip


def test_twenty_of_many_missing_ranks_are_named() -> None:
    _, errors = meet([0], 100, 1)
    named = str(errors[0]).partition("(monitor.start_timeout): ")[2].partition(";")[0]
    assert named == ", ".join(map(str, range(1, 21)))


def test_ranks_may_open_as_many_files_as_the_system_allows(tmp_path: Path) -> None:
    """Rank 0 of a thousand ranks has three connections to each other rank."""
    code = (
        "import resource; from pathlib import Path; from dist_train.distributed.rendezvous import Place, meet\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        f"meet(Place(0, 1, 0, 1, 'slurm'), {{}}, Path({str(tmp_path)!r}), 10)\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == 2 * [str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])], done.stderr
