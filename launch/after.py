"""What follows a start of a job that has ended: is it done, is it to start again, or is it to be given up?

The job's script asks this after all ranks have left (``python -m launch.after RUN CODE STARTS``), so the
answer does not depend on any rank having survived, and ``scontrol`` need not be inside a container.
``launch local`` asks the same.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from dist_train.data.files import write_text
from dist_train.errors import CRASHED, FAILED, STOPPED

# What a start that got somewhere leaves behind: checkpoints, blocks of activations, finished stages.
_MARKS = ("*/done.json", "pretrain/checkpoints/step-*", "learn/*/checkpoints/step-*", "learn/*/final", "extract/*")


def again(run: Path, code: int, starts: int, job: str) -> tuple[int, str]:
    """(75 to start again, else the exit code to end with; why).

    Args:
        code: the largest exit code of the ranks (``dist_train.errors``).
        starts: give up after so many starts in a row without progress.
        job: its name; each job counts its own starts.
    """
    if code == 0:
        return 0, "done"
    if code == FAILED:
        return FAILED, "failed; its error says what to mend"
    path = run / "launch" / f"starts-{job}.json"
    before = {"progress": None, "idle": 0}
    with suppress(OSError, ValueError):
        before = json.loads(path.read_text())
    progress = _progress(run)
    idle = before["idle"] + 1 if progress == before["progress"] else 0
    write_text(path, json.dumps({"progress": progress, "idle": idle}))
    what = "stopped and saved" if code == STOPPED else f"a rank died (exit code {code})"
    if idle >= starts:
        return CRASHED, f"{what}; given up: {starts} starts in a row made no progress (too short a time limit?)"
    return STOPPED, f"{what}; starting again" + (f" (no progress {idle} of {starts} times)" if idle else "")


def _progress(run: Path) -> str:
    newest = max((p.stat().st_mtime_ns for mark in _MARKS for where in (mark, f"sweep/*/{mark}")
                  for p in run.glob(where) if p.name != "inputs.json"),
                 default=0)  # fmt: skip
    return str(newest)


if __name__ == "__main__":
    job = os.environ.get("SLURM_JOB_ID", "0")
    result, reason = again(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), job)
    print(f"dist-train: job {job}: {reason}", file=sys.stderr, flush=True)
    sys.exit(result)
