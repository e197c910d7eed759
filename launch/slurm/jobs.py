"""The jobs of a run: the record of each submitted job, which jobs are alive, and how to end them."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dist_train.distributed.context import Context
from dist_train.errors import UserError, command
from dist_train.files import outermost_missing
from dist_train.runs.lock import RunLock
from launch.slurm import scheduler
from launch.slurm.profile import CHAIN
from launch.slurm.scheduler import NoAnswer, array_id


@dataclass(frozen=True)
class Job:
    """A submitted job, or an array of them: a line of RUN/launch/jobs.jsonl.

    Attributes:
        stage: its name in the chain.
        id: SLURM's id; for an array, the id of the whole array.
        names: names of an array's members, as the sweep has them.
        size: number of the array's members; 1 for a job that is no array.
        ranks: number of ranks of each member.
        local: whether it ran on the submitting machine, without SLURM.
        time: time of the submission, in seconds since 1970.
    """

    stage: str
    id: str
    names: list[str] = field(default_factory=list)
    size: int = 1
    ranks: int = 1
    local: bool = False
    time: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, Any]:
        """Return the job as its line has it."""
        values = dataclasses.asdict(self)
        return {"stage": values.pop("stage"), "job": values.pop("id"), **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what ``to_json`` returns.

        Raises:
            KeyError, TypeError: these are not the values of a job.
        """
        return cls(id=values.pop("job"), **values)

    def member_id(self, member: int) -> str:
        """Return the id of a member; a job that is no array has its own."""
        return self.id if self.size == 1 else f"{self.id}_{member}"

    def log(self, run: Path, rank: int, member: int = 0) -> Path | None:
        """Return the log of a rank, or None where it has written nothing yet."""
        job_id = self.member_id(member)
        # A rank that is another program's child may have no log of its own: then what the job's shell printed.
        for name in (f"{job_id}_{rank}_log.out", f"{job_id}_log.out"):
            path = folder(run) / name
            if path.is_file() and path.stat().st_size:
                return path
        return None


def folder(run: Path) -> Path:
    """Return the folder where submitit keeps a run's scripts and logs."""
    return (run / "launch" / "jobs").absolute()


def record(run: Path, job: Job) -> None:
    """Add a submitted job to the run's records."""
    path = run / "launch" / "jobs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(job.to_json()) + "\n")


def recorded(run: Path) -> list[Job]:
    """Return all jobs of a run, the oldest first. Lines that cannot be read are skipped."""
    try:
        lines = (run / "launch" / "jobs.jsonl").read_text().splitlines()
    except OSError:
        return []
    jobs = []
    for line in lines:
        try:
            jobs.append(Job.from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            continue
    return jobs


def newest(run: Path) -> list[Job]:
    """Return the last submitted job of each stage, in the order of submission."""
    return sorted({job.stage: job for job in recorded(run)}.values(), key=lambda job: job.time)


def active(run: Path) -> list[str]:
    """Return the ids of the run's jobs that are queued or running, in the order of submission.

    Raises:
        NoAnswer: SLURM does not say.
    """
    ids = _submitted(run)
    alive = {array_id(job_id) for job_id, state in scheduler.states(ids).items() if state.active}
    return [job_id for job_id in ids if job_id in alive]


def cancel(run: Path) -> list[str]:
    """End the run's jobs, the last of the chain first, and return their ids. Jobs that run save first.

    Raises:
        UserError: this machine has no scancel, there is no such run, no job of it is alive, or SLURM does not answer.
    """
    if shutil.which("scancel") is None:
        raise UserError("no scancel on this machine: go to a login node; a run without SLURM ends by Ctrl-C")
    if not run.is_dir():
        names = ",".join(f"{run.name}.{stage}" for stage in CHAIN)
        raise UserError(f"{run}: no such folder; its jobs, if any: squeue --name {shlex.quote(names)}")
    try:
        ids = active(run)
    except NoAnswer as error:
        remedy = f"scancel {' '.join(_submitted(run))}"
        raise UserError(f"{run}: {error}; nothing was cancelled; its jobs: {remedy}") from None
    if not ids:
        raise UserError(f"{run}: no job of it is queued or running")
    problems = scheduler.scancel(ids)
    if problems:
        raise UserError(f"{run}: {'; '.join(problems)}")
    return ids


def _submitted(run: Path) -> list[str]:
    """Return the ids of all jobs of a run that SLURM was given."""
    return [job.id for job in recorded(run) if not job.local]


@contextmanager
def reserved(run: Path) -> Iterator[None]:
    """Reserve a run for this process alone, from its checks to its last submitted job. The folder of a new run is
    deleted again where nothing was submitted.

    Raises:
        UserError: another submission is under way, or jobs of the run are queued or running.
        NoAnswer: SLURM does not say whether there are such jobs.
    """
    made = outermost_missing(run / "launch")
    with RunLock(run / "launch", Context(), made) as lock:
        lock.acquire()
        try:
            busy = active(run) if shutil.which("squeue") else []
            if busy:  # they read the run's configuration when they start
                raise UserError(
                    f"{run}: jobs {', '.join(busy)} of this run are queued or running; "
                    f"{command('status', run)} shows them, {command('cancel', run)} ends them"
                )
            yield
        except BaseException:
            if not recorded(run):
                if made == lock.folder.resolve():  # of a run that was there
                    shutil.rmtree(lock.folder, ignore_errors=True)
                else:
                    RunLock(run, Context(), made).discard(["launch", "sweep"])
            raise
