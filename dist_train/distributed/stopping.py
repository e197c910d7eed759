"""Leaving in order: a signal or a deadline sets a flag, the ranks agree, save together and go.

USR2 and TERM are what SLURM sends before it takes a job's nodes, INT is Ctrl-C. A second signal
leaves at once, for whoever does not want to wait for the save.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from dist_train.distributed.context import Context

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
_SAME = 1.0  # seconds: a launcher may pass on what a terminal already sent to the whole group


class Stopped(Exception):
    """Everything is saved; leave with exit code ``errors.STOPPED``."""


def margin(seconds: float) -> float:
    """How long before a job's end to stop: a step, a save and the way out. Two minutes, or a fifth of a
    job that is shorter than ten."""
    return min(120.0, seconds / 5)


class StopFlag:
    """``with StopFlag(context, minutes) as stop:`` and ``stop.agreed()`` at each step boundary.

    Args:
        max_minutes: stop after so many minutes; None: never.
        env: ``SLURM_JOB_END_TIME`` (seconds since 1970) is a deadline too, ``margin`` ahead.
    """

    def __init__(self, context: Context, max_minutes: float | None = None, env: Mapping[str, str] = os.environ) -> None:
        self.context = context
        self.reason: str | None = None
        self._first = 0.0
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self._why = f"max_minutes={max_minutes:g} are over" if max_minutes else ""
        if env.get("SLURM_JOB_END_TIME", "").isdigit():
            end = int(env["SLURM_JOB_END_TIME"])
            began = env.get("SLURM_JOB_START_TIME", "")
            left = end - time.time() - margin(end - int(began) if began.isdigit() else 3600)
            if time.monotonic() + left < self._deadline:
                self._deadline, self._why = time.monotonic() + left, "the job's time is nearly over"
        self._before: dict[int, Any] = {}
        self._flag = torch.zeros(1)
        self._work: Any = None

    def __enter__(self) -> StopFlag:
        # The main thread may be in a library's wait, where Python's handlers do not run: the numbers go
        # through a pipe to a thread of our own.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, lambda number, frame: None)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        os.register_at_fork(before=self._hold, after_in_parent=self._release, after_in_child=self._forked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reset()
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    # A forked child must die of a signal like any other process, from its first moment on: signals wait
    # until its handlers are reset, or they would reach this process through the pipe.

    def _hold(self) -> None:
        if self._before:
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def _release(self) -> None:
        if self._before:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _forked(self) -> None:
        if self._before:
            self._reset()
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _reset(self) -> None:
        """The handlers as they were."""
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
        while self._before:
            signal.signal(*self._before.popitem())

    def _listen(self) -> None:
        while True:
            for number in os.read(self._read, 64):
                if number == 0:
                    return
                if number in _SIGNALS:
                    self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        now, name = time.monotonic(), signal.Signals(number).name
        if self.reason is None:
            self.reason, self._first = f"signal {name}", now
            self._say(f"{name}: saving at the next step and leaving; once more to leave at once")
        elif now - self._first > _SAME:
            self._say(f"{name} again: leaving at once; the last checkpoint stays")
            os._exit(128 + number)

    def _say(self, text: str) -> None:
        os.write(2, f"dist-train: rank {self.context.rank}: {text}\n".encode())

    def requested(self) -> bool:
        """Whether this rank was told to stop. The others may not know yet."""
        if self.reason is None and time.monotonic() > self._deadline:
            self.reason, self._first = self._why, time.monotonic()
        return self.reason is not None

    def agreed(self) -> bool:
        """Whether all ranks stop here. Every rank calls it at the same step boundaries, and all get
        the same answer: one step after the first rank was told, for the exchange of one step is read
        at the next, when it has long arrived. So it costs no waiting, and no device synchronisation."""
        if self.context.world == 1:
            return self.requested()
        stop = False
        if self._work is not None:
            self._work.wait()
            stop = bool(self._flag.item())
        self._flag.fill_(float(self.requested()))
        self._work = None if stop else dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
        return stop

    def finish(self) -> None:
        """At the end of a loop: take in the exchange that is still on its way."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def agreed_now(self) -> bool:
        """The same, asked and answered at once: for boundaries that are seconds apart."""
        self.finish()
        flag = torch.tensor([float(self.requested())])
        if self.context.world > 1:
            dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def announced(self) -> bool:
        """For work without common steps (``extract``): whether any rank was told to stop, by the
        ranks' store. What a rank finds here the others may find later."""
        if self.context.world == 1:
            return self.requested()
        store = dist.distributed_c10d._get_default_store()
        if self.requested():
            store.set("stop", "1")
        return self.requested() or bool(store.check(["stop"]))
