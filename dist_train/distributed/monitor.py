"""The ranks' watch over each other: a dead rank is named and the others leave; a rank that hangs is ended.

A thread of each rank tells the ranks' store every second what its rank is doing, and watches the next rank, so the
store gets as many requests from each of a thousand ranks as from each of two. A rank that fails says so before it
leaves. A rank that is killed falls silent, and the rank that watches it tells all. A second thread, which never waits
for anything, watches its own rank and whether the store answers.

For observers outside, rank 0 keeps ``RUN/heartbeat.json``, and the first rank that fails leaves ``RUN/error.json``
(see ``launch/status.py``).
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from dist_train.config import MonitorConfig
from dist_train.distributed.context import Context
from dist_train.distributed.rendezvous import new_store
from dist_train.errors import CRASHED, FAILED, LOST, LostError, UserError
from dist_train.files import write_text

_PERIOD = 1.0  # seconds
_HEARTBEAT_PERIOD = 5.0  # seconds between writes to the run's folder, which may be on a slow file system


class Monitor:
    """Watch this rank and the next, in a ``with`` block around all the work of a rank.

    Attributes:
        discard: removes the run's folder where that is of no use after bad input; called when this rank leaves for it.
    """

    def __init__(self, context: Context, config: MonitorConfig, run: Path) -> None:
        self.context, self.config, self.run = context, config, run
        self._written = 0.0
        self._published = False
        self._publishing = threading.Lock()
        self.discard: Callable[[], None] = lambda: None
        self._closed = threading.Event()
        self._store: Any = None
        self._lock = threading.Lock()
        self._answered = time.monotonic()
        self._threads = [threading.Thread(target=self._watch, name="monitor", daemon=True)]
        if context.world > 1:
            # A connection of its own: a wait on the process group's store would block it.
            timeout = timedelta(seconds=config.rank_timeout)
            store = new_store(*context.address, context.world, False, timeout)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"monitor/{attempt}", store)  # type: ignore[attr-defined]
            self._store.set(f"beat/{context.rank}", self._beat(0))
            self._threads.append(threading.Thread(target=self._exchange, name="monitor-store", daemon=True))

    def publish(self) -> None:
        """Report this start in the run's folder from now on."""
        self._published = True
        if self.context.main:  # an earlier start's error
            (self.run / "error.json").unlink(missing_ok=True)

    def __enter__(self) -> Monitor:
        self._answered = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(5 * _PERIOD)
        self._heartbeat(left=True)
        if error is not None and self.context.world > 1:
            # Closing a process group whose ranks are gone has been seen to wait for ever.
            last = threading.Timer(self.config.rank_timeout, self._abandon, [error])
            last.daemon = True
            last.start()

    def _abandon(self, error: BaseException) -> None:
        if not getattr(error, "printed", False):
            print(f"dist-train: error: {error}", file=sys.stderr, flush=True)
        os._exit(getattr(error, "code", CRASHED))

    def report_failure(self, message: str, crashed: bool = False) -> bool:
        """Tell the other ranks, and observers, why this rank leaves.

        Args:
            crashed: whether starting again continues; the others then leave as they leave a rank that is lost.

        Returns:
            Whether no other rank has reported the same message.
        """
        self._note(message)
        first = self._report(f"rank {self.context.rank} failed: {message}", lost=crashed)
        own = bool(first["rank"] == self.context.rank)
        return own or first["message"] != f"rank {first['rank']} failed: {message}"

    def _report(self, message: str, lost: bool) -> dict[str, Any]:
        """Report trouble to all ranks, and return the first report: later trouble is a consequence of the first."""
        trouble = {"rank": self.context.rank, "message": message, "lost": lost}
        if self._store is not None:
            with suppress(RuntimeError):  # the rank that holds the store may be gone
                first: dict[str, Any] = json.loads(self._store.compare_set("trouble", "", json.dumps(trouble)))
                return first
        return trouble

    def find_culprit(self, wait: float) -> UserError | None:
        """Return the error to raise for the rank that made an exchange between ranks fail, or None where no rank is
        found within ``wait`` seconds."""
        if self._store is None:
            return None
        end, others = time.monotonic() + wait, self._others()
        while time.monotonic() < end:
            trouble = self._trouble(others, min(self.config.rank_timeout, 3 * _PERIOD))
            if trouble:
                return trouble
            time.sleep(_PERIOD / 4)
        return None

    def refuse(self) -> None:
        """Let ``discard`` remove the run's folder, with no sign of life written to it meanwhile."""
        with self._publishing:
            self.discard()

    def _note(self, message: str) -> None:
        """Write ``error.json``, unless a rank has written it already: later errors are consequences of the first."""
        if not self._published:
            return
        note = {"time": time.time(), "rank": self.context.rank, "message": message}
        with suppress(OSError), (self.run / "error.json").open("x") as file:
            json.dump(note, file)

    def _heartbeat(self, left: bool = False) -> None:
        if not self.context.main or not self._published or not self.run.is_dir():
            return
        self._written = time.monotonic()
        beat = {**json.loads(self._beat(0)), "time": time.time(), "ranks": self.context.world, "left": left}
        beat["job"] = os.environ.get("SLURM_JOB_ID")
        # The writers of metrics and checkpoints report a full disk; and the folder may just have been discarded.
        with self._publishing, suppress(OSError):
            write_text(self.run / "heartbeat.json", json.dumps(beat))

    def _beat(self, count: int) -> str:
        progress = self.context.progress
        age = time.monotonic() - progress.since
        return json.dumps(
            {
                "count": count,
                "doing": progress.text,
                "age": round(age, 1),
                "host": socket.gethostname(),
                "pid": os.getpid(),
            }
        )

    def _watch(self) -> None:
        """Watch this rank and the store's answers, without touching the store: on a frozen machine it never answers."""
        while True:
            progress, suspended = self.context.progress, self._suspended()
            if self._closed.is_set():
                return
            progress.since += suspended
            self._answered += suspended
            age = time.monotonic() - progress.since
            if age > self.config.hang_timeout and not progress.patient:
                self._end_hang(age)
            if time.monotonic() - self._written > _HEARTBEAT_PERIOD:
                self._heartbeat()
            silent = time.monotonic() - self._answered
            if self._store is not None and silent > self.config.rank_timeout:
                self._leave(LostError(f"the ranks' store has not answered for {silent:.0f} s, its machine is gone"))

    def _suspended(self) -> float:
        """Wait for a period, and return by how many seconds the wait was too long, or 0.

        A job that was suspended (Ctrl-Z, ``scontrol suspend``) must not take that time for a hang or for the others'
        silence.
        """
        start = time.monotonic()
        self._closed.wait(_PERIOD)
        late = time.monotonic() - start - _PERIOD
        return late if late > 2 * _PERIOD else 0.0

    def _exchange(self) -> None:
        count = 0
        following = (self.context.rank + 1) % self.context.world
        watched = {following: self._others()[following]}
        while True:
            if self._suspended():  # so were the others, most likely: count anew
                watched = {following: self._others()[following]}
            if self._closed.is_set():
                return
            count += 1
            with suppress(RuntimeError):  # _trouble reports a store that does not answer
                self._store.set(f"beat/{self.context.rank}", self._beat(count))
            trouble = self._trouble(watched, self.config.rank_timeout)
            self._answered = time.monotonic()
            if isinstance(trouble, LostError):
                self._report(str(trouble), lost=True)
            # Give the main thread, which may have noticed the same trouble, time to leave in its own way.
            if trouble and not self._closed.wait(3 * _PERIOD):
                self._leave(trouble)

    def _others(self) -> dict[int, tuple[str, float]]:
        """Return for each other rank its last beat and when that was first seen; at the start: no beat, and now."""
        return {rank: ("", time.monotonic()) for rank in range(self.context.world) if rank != self.context.rank}

    def _trouble(self, watched: dict[int, tuple[str, float]], silence: float) -> UserError | None:
        """Return the error that a rank has reported (bad input, most likely), or that a rank of ``watched`` has been
        silent for ``silence`` seconds (lost), or None. Updates the beats in ``watched``."""
        with self._lock:
            now = time.monotonic()
            try:
                if self._store.check(["trouble"]):
                    report = json.loads(self._store.get("trouble"))
                    if report["rank"] != self.context.rank:
                        return (LostError if report["lost"] else UserError)(report["message"])
                for rank, (before, since) in watched.items():
                    beat = self._beat_of(rank)
                    if beat is None:
                        continue  # not there yet: the process group waits for it
                    if beat != before:
                        watched[rank] = (beat, now)
                    elif now - since > silence and not self._store.check([f"left/{rank}"]):
                        last = json.loads(beat)
                        return LostError(
                            f"rank {rank} (pid {last['pid']} on {last['host']}) is dead: no sign of life for "
                            f"{now - since:.0f} s, last at {last['doing']!r}"
                        )
            except RuntimeError as error:
                return LostError(
                    f"the ranks' store does not answer, its rank (0, or the launcher) is gone ({_first_line(error)})"
                )
        return None

    def _beat_of(self, rank: int) -> str | None:
        return self._store.get(f"beat/{rank}").decode() if self._store.check([f"beat/{rank}"]) else None

    def report_end(self) -> None:
        """Tell the others that this rank has ended its work: its silence means nothing from now on."""
        if self._store is not None:
            with suppress(RuntimeError):
                self._store.set(f"left/{self.context.rank}", "1")

    def _end_hang(self, age: float) -> None:
        beats = {self.context.rank: self._beat(0)}
        reason = f"no progress for {age:.0f} s"

        def ask() -> None:
            message = f"{reason} at {self.context.progress.text!r}"
            self._note(message)
            self._report(f"rank {self.context.rank} hangs: {message}", lost=True)
            with suppress(RuntimeError):
                for rank in self._others() if self._store is not None else ():
                    beats[rank] = self._beat_of(rank) or ""

        asking = threading.Thread(target=ask, daemon=True)  # the store may be what hangs
        asking.start()
        asking.join(5 * _PERIOD)
        lines = [
            f"dist-train: error: rank {self.context.rank}: {reason} (monitor.hang_timeout); what the ranks were doing:"
        ]
        for rank in range(self.context.world):
            beat = json.loads(beats.get(rank) or "{}")
            lines.append(
                f"  rank {rank}: {beat['doing']} (for {beat['age']:.0f} s)" if beat else f"  rank {rank}: no sign"
            )
        print("\n".join(["", *lines]), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr)
        os._exit(LOST)

    def farewell(self, trouble: UserError) -> str:
        """Return the line with which this rank leaves because of another rank, and note the reason for observers."""
        self._note(str(trouble))
        then = "; the same command continues" if isinstance(trouble, LostError) else ""
        return f"rank {self.context.rank} leaves: {trouble}{then}"

    def _leave(self, trouble: UserError) -> None:
        try:
            print(f"\ndist-train: error: {self.farewell(trouble)}", file=sys.stderr, flush=True)  # after a progress bar
            if trouble.code == FAILED:
                self.refuse()
        finally:
            os._exit(trouble.code)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
