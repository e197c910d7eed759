"""How ranks stop in order: a signal or a deadline sets a flag, the ranks agree on it, save together and leave.

SLURM sends USR2 and TERM before it takes a job's nodes; INT is Ctrl-C. A second signal leaves at once, for a user who
does not want to wait for the save.
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
_SAME_SIGNAL = 1.0  # seconds: a launcher may pass on a signal that a terminal has sent to the whole group


class Stopped(Exception):
    """Everything is saved; leave with exit code ``errors.STOPPED``."""


def margin(seconds: float) -> float:
    """Return how many seconds before its end a job of ``seconds`` stops, for a step, a save and the way out: two
    minutes, or a fifth of a job that is shorter than ten minutes."""
    return min(120.0, seconds / 5)


class StopFlag:
    """Hold whether to stop, in a ``with`` block around the work; loops ask ``agreed`` at each step boundary.

    Args:
        max_minutes: minutes after which to stop; None for no limit.
        env: its ``SLURM_JOB_END_TIME`` (seconds since 1970), less ``margin``, is a deadline too.

    Attributes:
        reason: why this rank should stop; None as long as it should not.
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
        # The main thread may be waiting inside a library, where Python's handlers do not run: signal numbers go through
        # a pipe to a thread of our own.
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

    # A forked child must die of a signal like any other process, from its first moment on: signals are blocked until
    # its handlers are reset, or they would reach this process through the pipe.

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
        """Restore the handlers."""
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
        elif now - self._first > _SAME_SIGNAL:
            self._say(f"{name} again: leaving at once; the last checkpoint stays")
            os._exit(128 + number)

    def _say(self, text: str) -> None:
        os.write(2, f"dist-train: rank {self.context.rank}: {text}\n".encode())

    def requested(self) -> bool:
        """Return whether this rank has a reason to stop. The others may not know yet."""
        if self.reason is None and time.monotonic() > self._deadline:
            self.reason, self._first = self._why, time.monotonic()
        return self.reason is not None

    def agreed(self) -> bool:
        """Return whether all ranks stop here. All ranks call it at the same step boundaries, and get the same answer.

        The answer comes one call after the first rank had a reason: the exchange of a boundary is read at the next,
        when it has long arrived. So nothing waits, and no device is synchronised.
        """
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
        """Complete the exchange that is still on its way; to be called at the end of a loop."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def agreed_now(self) -> bool:
        """Return what ``agreed`` does, but at once, for boundaries that are seconds apart."""
        self.finish()
        flag = torch.tensor([float(self.requested())])
        if self.context.world > 1:
            dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def announced(self) -> bool:
        """Return whether any rank has announced a stop in the ranks' store, for work without common steps
        (``extract``). Other ranks may notice the same announcement later."""
        if self.context.world == 1:
            return self.requested()
        store = dist.distributed_c10d._get_default_store()
        if self.requested():
            store.set("stop", "1")
        return self.requested() or bool(store.check(["stop"]))
