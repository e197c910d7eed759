"""What follows a start of a job that has ended: is it done, is it to start again, or is it to be given up?

The job's script asks this after all ranks have left (``python -m launch.restart``), so the answer does not
depend on any rank having survived, and ``scontrol`` need not be inside a container. ``launch local``
asks the same.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

from dist_train.errors import CRASHED, FAILED, STOPPED
from dist_train.files import write_text

# What a start that got somewhere leaves behind: checkpoints, blocks of activations, finished stages.
_MARKS = ("*/done.json", "pretrain/checkpoints/step-*", "learn/*/checkpoints/step-*", "learn/*/final", "extract/*")


def begin(run: Path, job: str) -> None:
    """A start of a job begins: what is newer than this note is its progress."""
    path = _note(run, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"idle": _idle(path)}))


def again(run: Path, job: str, code: int, starts: int, shards: Path | None = None) -> tuple[int, str]:
    """(75 to start again, else the exit code to end with; why), for a start that ``begin`` saw.

    Args:
        job: its name; each job counts its own starts.
        code: the largest exit code of the ranks (``dist_train.errors``).
        starts: give up after so many starts in a row without progress.
        shards: the folder that is being packed.
    """
    if code == 0:
        return 0, "done"
    if code == FAILED:
        return FAILED, "failed; its error says what to mend"
    path = _note(run, job)
    idle = 0 if _newest(run, shards) > path.stat().st_mtime_ns else _idle(path) + 1
    result, reason = STOPPED, "stopped and saved" if code == STOPPED else f"a rank died (exit code {code})"
    if idle >= starts:
        result = CRASHED
        reason += f"; given up: {starts} start(s) in a row made no progress (too short a time limit?)"
    else:
        reason += "; starting again" + (f" ({idle} of {starts} start(s) without progress)" if idle else "")
    write_text(path, json.dumps({"idle": idle, "reason": reason}))
    return result, reason


def cancelled(run: Path, job: str) -> str:
    """Note that a start was ended by ``scancel``; returns the words."""
    reason = "cancelled; submitted again, the run continues"
    write_text(_note(run, job), json.dumps({"idle": 0, "reason": reason}))
    return reason


def told(run: Path, job: str) -> str:
    """How the last start of a job ended, where ``again`` had to decide."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads(_note(run, job).read_text())["reason"])
    return ""


def _note(run: Path, job: str) -> Path:
    return run / "launch" / f"start-{job}.json"


def _idle(path: Path) -> int:
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads(path.read_text())["idle"])
    return 0


def _newest(run: Path, shards: Path | None) -> int:
    """Time of the newest mark, in nanoseconds; on the same file system as the note, so by the same clock."""
    found = [path for mark in _MARKS for path in run.glob(mark) if path.name != "inputs.json"]
    if shards is not None:
        found += [path for path in shards.rglob("*") if path.is_file()]
    return max((path.stat().st_mtime_ns for path in found), default=0)


if __name__ == "__main__":
    # begin RUN JOB | cancelled RUN JOB | again RUN JOB CODE STARTS [SHARDS]
    what, folder, name, *more = sys.argv[1:]
    if what == "begin":
        begin(Path(folder), name)
        sys.exit(0)
    if what == "cancelled":
        print(f"dist-train: job {name}: {cancelled(Path(folder), name)}", file=sys.stderr, flush=True)
        sys.exit(0)
    result, reason = again(Path(folder), name, int(more[0]), int(more[1]), Path(more[2]) if more[2:] else None)
    print(f"dist-train: job {name}: {reason}", file=sys.stderr, flush=True)
    sys.exit(result)
