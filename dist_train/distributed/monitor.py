"""Ranks watch each other: a dead one is named and the others leave, a hung one is ended.

Each rank has a thread that tells the ranks' store every second what its rank is doing, and watches
the rank after it: as many requests to the store for each of a thousand ranks as for each of two. A
rank that failed says so before it goes; one that was killed falls silent, and who sees that tells all.
A second thread, which never waits for anybody, watches this rank and whether the store answers.

For those who watch from outside, rank 0 keeps ``RUN/heartbeat.json``, and the first rank that
fails leaves ``RUN/error.json`` (see ``launch/status.py``).
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from dist_train.config import MonitorConfig
from dist_train.distributed.context import Context
from dist_train.errors import CRASHED, LOST, LostError, UserError
from dist_train.files import write_text

_PERIOD = 1.0  # seconds
_HEARTBEAT = 5.0  # seconds between writes to the run's folder, which may be on a slow file system


class Monitor:
    """``with Monitor(context, config) as monitor:`` around all the work of a rank."""

    def __init__(self, context: Context, config: MonitorConfig, run: Path) -> None:
        self.context, self.config, self.run = context, config, run
        self._written = 0.0
        self._published = False
        self._closed = threading.Event()
        self._store: Any = None
        self._lock = threading.Lock()
        self._answered = time.monotonic()
        self._threads = [threading.Thread(target=self._watch, name="monitor", daemon=True)]
        if context.world > 1:
            # A connection of its own: a wait on the process group's store would block it.
            timeout = timedelta(seconds=config.rank_timeout)
            store = dist.TCPStore(*context.address, context.world, False, timeout, wait_for_workers=False)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"monitor/{attempt}", store)
            self._store.set(f"beat/{context.rank}", self._beat(0))
            self._threads.append(threading.Thread(target=self._exchange, name="monitor-store", daemon=True))

    def publish(self) -> None:
        """From now on the run's folder says how this start is doing."""
        self._published = True
        if self.context.main:  # what an earlier start died of
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
            # Closing a process group whose ranks are gone was once seen to wait for ever.
            last = threading.Timer(self.config.rank_timeout, self._abandon, [error])
            last.daemon = True
            last.start()

    def _abandon(self, error: BaseException) -> None:
        if not getattr(error, "told", False):
            print(f"dist-train: error: {error}", file=sys.stderr, flush=True)
        os._exit(getattr(error, "code", CRASHED))

    def failed(self, message: str, crashed: bool = False) -> bool:
        """Tell the others, and those who watch, why this rank leaves; returns whether no other has told the same.
        ``crashed``: starting again continues, so the others leave as from a rank that is lost."""
        self._note(message)
        first = self._tell(f"rank {self.context.rank} failed: {message}", lost=crashed)
        return first["message"] != f"rank {first['rank']} failed: {message}" or first["rank"] == self.context.rank

    def _tell(self, message: str, lost: bool) -> dict[str, Any]:
        """The first to tell is heard, and returned: what follows are consequences."""
        trouble = {"rank": self.context.rank, "message": message, "lost": lost}
        if self._store is not None:
            with suppress(RuntimeError):  # the rank that holds the store may be gone
                first: dict[str, Any] = json.loads(self._store.compare_set("trouble", "", json.dumps(trouble)))
                return first
        return trouble

    def culprit(self, wait: float) -> UserError | None:
        """After an exchange between ranks failed: the rank that caused it, as an error to raise, or None if
        none is found within ``wait`` seconds."""
        if self._store is None:
            return None
        end, others = time.monotonic() + wait, self._others()
        while time.monotonic() < end:
            found = self._trouble(others, min(self.config.rank_timeout, 3 * _PERIOD))
            if found:
                return found
            time.sleep(_PERIOD / 4)
        return None

    def _note(self, message: str) -> None:
        """``error.json``, by the first rank that has something to say: what follows are consequences."""
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
        with suppress(OSError):  # a full disk is reported by those whose numbers matter
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
        """Nothing here touches the store: a store whose machine is frozen never answers."""
        while True:
            progress, suspended = self.context.progress, self._suspended()
            if self._closed.is_set():
                return
            progress.since += suspended
            self._answered += suspended
            age = time.monotonic() - progress.since
            if age > self.config.hang_timeout and not progress.patient:
                self._end_hang(age)
            if time.monotonic() - self._written > _HEARTBEAT:
                self._heartbeat()
            silent = time.monotonic() - self._answered
            if self._store is not None and silent > self.config.rank_timeout:
                self._leave(LostError(f"the ranks' store has not answered for {silent:.0f} s, its machine is gone"))

    def _suspended(self) -> float:
        """Wait for one period; the seconds that it took longer. A job that was suspended (Ctrl-Z, ``scontrol
        suspend``) must not take that time for a hang or for the others' silence."""
        start = time.monotonic()
        self._closed.wait(_PERIOD)
        late = time.monotonic() - start - _PERIOD
        return late if late > 2 * _PERIOD else 0.0

    def _exchange(self) -> None:
        count = 0
        following = (self.context.rank + 1) % self.context.world
        watched = {following: self._others()[following]}
        while True:
            if self._suspended():  # the others most likely too: count anew
                watched = {following: self._others()[following]}
            if self._closed.is_set():
                return
            count += 1
            with suppress(RuntimeError):  # _trouble finds out
                self._store.set(f"beat/{self.context.rank}", self._beat(count))
            trouble = self._trouble(watched, self.config.rank_timeout)
            self._answered = time.monotonic()
            if isinstance(trouble, LostError):
                self._tell(str(trouble), lost=True)
            # Give the main thread, which may have seen the same, the time to leave in its own way.
            if trouble and not self._closed.wait(3 * _PERIOD):
                self._leave(trouble)

    def _others(self) -> dict[int, tuple[str, float]]:
        """For each other rank its last beat, and when it was first seen."""
        return {rank: ("", time.monotonic()) for rank in range(self.context.world) if rank != self.context.rank}

    def _trouble(self, watched: dict[int, tuple[str, float]], silence: float) -> UserError | None:
        """What a rank told of (bad input, most likely: see its line), or the first of ``watched`` that has been
        silent for so many seconds (lost)."""
        with self._lock:
            now = time.monotonic()
            try:
                if self._store.check(["trouble"]):
                    told = json.loads(self._store.get("trouble"))
                    if told["rank"] != self.context.rank:
                        return (LostError if told["lost"] else UserError)(told["message"])
                for rank, (before, since) in watched.items():
                    beat = self._beat_of(rank)
                    if beat is None:
                        continue  # not there yet: the process group waits for it
                    if beat != before:
                        watched[rank] = (beat, now)
                    elif now - since > silence and not self._store.check([f"left/{rank}"]):
                        told = json.loads(beat)
                        return LostError(
                            f"rank {rank} (pid {told['pid']} on {told['host']}) is dead: no sign of life for "
                            f"{now - since:.0f} s, last at {told['doing']!r}"
                        )
            except RuntimeError as error:
                return LostError(
                    f"the ranks' store does not answer, its rank (0, or the launcher) is gone ({_first(error)})"
                )
        return None

    def _beat_of(self, rank: int) -> str | None:
        return self._store.get(f"beat/{rank}").decode() if self._store.check([f"beat/{rank}"]) else None

    def left(self) -> None:
        """This rank is through with its work: its silence means nothing."""
        if self._store is not None:
            with suppress(RuntimeError):
                self._store.set(f"left/{self.context.rank}", "1")

    def _end_hang(self, age: float) -> None:
        doing = {self.context.rank: self._beat(0)}
        reason = f"no progress for {age:.0f} s"

        def ask() -> None:
            message = f"{reason} at {self.context.progress.text!r}"
            self._note(message)
            self._tell(f"rank {self.context.rank} hangs: {message}", lost=True)
            with suppress(RuntimeError):
                for rank in self._others() if self._store is not None else ():
                    doing[rank] = self._beat_of(rank) or ""

        asking = threading.Thread(target=ask, daemon=True)  # the store may be what hangs
        asking.start()
        asking.join(5 * _PERIOD)
        lines = [
            f"dist-train: error: rank {self.context.rank}: {reason} (monitor.hang_timeout); what the ranks were doing:"
        ]
        for rank in range(self.context.world):
            told = json.loads(doing.get(rank) or "{}")
            lines.append(
                f"  rank {rank}: {told['doing']} (for {told['age']:.0f} s)" if told else f"  rank {rank}: no sign"
            )
        print("\n".join(["", *lines]), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr)
        os._exit(LOST)

    def farewell(self, trouble: UserError) -> str:
        """The line with which this rank leaves because of another; also for those who watch."""
        self._note(str(trouble))
        then = "; the same command continues" if isinstance(trouble, LostError) else ""
        return f"rank {self.context.rank} leaves: {trouble}{then}"

    def _leave(self, trouble: UserError) -> None:
        print(f"\ndist-train: error: {self.farewell(trouble)}", file=sys.stderr, flush=True)  # after a progress bar
        os._exit(trouble.code)


def _first(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
