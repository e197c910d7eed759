"""Decide what follows when a start of a job has ended: the job is done, starts again, or is given up.

A job's script asks this after all ranks have left (``python -m launch.restart``), so the answer does not depend on
any rank having survived, and ``scontrol`` need not exist inside a container. ``launch local`` asks the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dist_train.errors import CRASHED, FAILED, STOPPED, counted
from dist_train.files import write_text

# What a start that made progress leaves behind: checkpoints, blocks of activations, networks, rows, draws, finished
# stages. Shares of a table's draws, which are jobs of their own, count each other's.
_PROGRESS = (
    "*/done.json", "pretrain/checkpoints/step-*", "extract/*", "learn/*/checkpoints/step-*", "learn/*/final",
    "networks/**/checkpoints/step-*", "networks/**/done.json", "evaluate/rows/*.json", "evaluate/parts/*.npz",
)  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """Hold how a job goes on.

    Attributes:
        code: ``STOPPED`` (75): start it again; any other: end it with this exit code.
        reason: why, for the log and for ``status``.
    """

    code: int
    reason: str


def begin(run: Path, job: str) -> None:
    """Note that a start of a job begins: whatever is newer than this note is progress of this start."""
    path = note_path(run, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"idle": _idle_starts(path)}))


def decide(run: Path, job: str, code: int, starts: int, shards: Path | None = None) -> Decision:
    """Decide how a job goes on after a start that ``begin`` noted.

    Args:
        job: its id; each job counts its own starts.
        code: the largest exit code of the ranks (``dist_train.errors``).
        starts: give up after this many starts in a row without progress.
        shards: the folder that is being packed, where new files are progress too.
    """
    if code == 0:
        return Decision(0, "done")
    if code == FAILED:
        return Decision(FAILED, "failed; its error says what to mend")
    path = note_path(run, job)
    idle = 0 if _newest_progress(run, shards) > path.stat().st_mtime_ns else _idle_starts(path) + 1
    reason = "stopped and saved" if code == STOPPED else f"a rank died (exit code {code})"
    if idle >= starts:
        decision = Decision(
            CRASHED,
            f"{reason}; given up: {counted(starts, 'start')} in a row made no progress (too short a time limit?)",
        )
    else:
        without = f" ({idle} of {counted(starts, 'start')} without progress)" if idle else ""
        decision = Decision(STOPPED, f"{reason}; starting again{without}")
    write_text(path, json.dumps({"idle": idle, "reason": decision.reason}))
    return decision


def note_cancelled(run: Path, job: str) -> str:
    """Note that ``scancel`` ended a start, and return the reason as ``status`` shows it."""
    reason = "cancelled; submitted again, the run continues"
    write_text(note_path(run, job), json.dumps({"idle": 0, "reason": reason}))
    return reason


def last_reason(run: Path, job: str) -> str:
    """Return how the last start of a job ended; empty where nothing had to be decided, or while it runs."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads(note_path(run, job).read_text())["reason"])
    return ""


def note_path(run: Path, job: str) -> Path:
    """Return the file in which the starts of a job are noted."""
    return run / "launch" / f"start-{job}.json"


def _idle_starts(path: Path) -> int:
    """Return the number of starts in a row without progress, as a note counts them."""
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads(path.read_text())["idle"])
    return 0


def _newest_progress(run: Path, shards: Path | None) -> int:
    """Return the time of the newest sign of progress in nanoseconds. It lies on the same file system as the note, so
    both times come from the same clock."""
    # A stage writes inputs.json when it begins.
    signs = [path for pattern in _PROGRESS for path in run.glob(pattern) if path.name != "inputs.json"]
    if shards is not None:
        signs += [path for path in shards.rglob("*") if path.is_file()]
    return max((path.stat().st_mtime_ns for path in signs), default=0)


def main(arguments: Sequence[str]) -> int:
    """Do what a job's script asks: ``begin RUN JOB``, ``cancelled RUN JOB`` or ``decide RUN JOB CODE STARTS
    [SHARDS]``; the script goes on with the exit code of ``decide``."""
    action, folder, job, *more = arguments
    run, decision = Path(folder), Decision(0, "")
    if action == "begin":
        begin(run, job)
    elif action == "cancelled":
        decision = Decision(0, note_cancelled(run, job))
    else:
        code, starts, *shards = more
        decision = decide(run, job, int(code), int(starts), Path(shards[0]) if shards else None)
    if decision.reason:
        print(f"dist-train: job {job}: {decision.reason}", file=sys.stderr, flush=True)
    return decision.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
