"""``dist-train logs``: print what a rank of a job has printed, and follow it until the job has ended."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dist_train.errors import UserError, command
from launch.slurm import jobs
from launch.slurm.jobs import Job
from launch.slurm.scheduler import NoAnswer

_POLL = 0.5  # seconds between two looks at a log that is followed
_QUIET = 5.0  # seconds without a new line after which SLURM is asked whether the job still runs


def print_log(run: Path, stage: str | None, rank: int, follow: bool, member: int = 0) -> None:
    """Print the log of the newest job, or of the newest job of ``stage``.

    Args:
        rank: the rank whose log is printed.
        follow: go on until the job has ended.
        member: number of the member of an array.

    Raises:
        UserError: there is no such job, rank, member or log.
    """
    job, path = _newest_log(run, stage, rank, member)
    print(f"==> {job.stage}, job {job.id}, rank {rank}: {path}", file=sys.stderr)
    if follow:
        _follow(run, job, path)
    else:
        sys.stdout.write(path.read_text(errors="replace"))


def _newest_log(run: Path, stage: str | None, rank: int, member: int) -> tuple[Job, Path]:
    """Return the job whose log of this rank was written last, and that log."""
    candidates = [job for job in jobs.recorded(run) if stage in (None, job.stage)]
    if not candidates:
        of_stage = f" of {stage}" if stage else ""
        raise UserError(f"{run}: no job{of_stage} was submitted; without SLURM, look at your terminal")
    for option, number, count in (
        ("member", member, max(job.size for job in candidates)),
        ("rank", rank, max(job.ranks for job in candidates)),
    ):
        if not 0 <= number < count:
            available = f"{option}s 0..{count - 1}" if count > 1 else f"{option} 0 only"
            raise UserError(f"--{option} {number}: {stage or 'this run'} has {available}")
    logs = [(job, path) for job in candidates if (path := job.log(run, rank, member)) is not None]
    if not logs:
        last = candidates[-1]
        raise UserError(
            f"{last.stage}: job {last.id} has no log of rank {rank} yet; {command('status', run)} shows its state"
        )
    return max(logs, key=lambda log: log[1].stat().st_mtime)


def _follow(run: Path, job: Job, path: Path) -> None:
    """Print a log while it grows, until SLURM says that the job has ended."""
    quiet, silence = 0.0, ""
    with path.open(errors="replace") as file:
        while True:
            text = file.read()
            sys.stdout.write(text)
            sys.stdout.flush()
            quiet = 0.0 if text else quiet + _POLL
            if quiet and quiet % _QUIET == 0 and not job.local:
                try:
                    if job.id not in jobs.active(run):
                        return
                except NoAnswer as error:  # the job may still run: go on, and print each reason once
                    if str(error) != silence:
                        silence = str(error)
                        print(f"dist-train: {silence}; still following the log, Ctrl-C ends it", file=sys.stderr)
            time.sleep(_POLL)
