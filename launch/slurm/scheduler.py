"""Ask SLURM's own programs: the states of jobs, and whether SLURM answers at all."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dist_train.errors import UserError

_ACTIVE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING")
_FAILED = ("FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL")


class NoAnswer(UserError):
    """Report that SLURM does not answer, which does not mean that there are no jobs."""


class NoCluster(NoAnswer):
    """Report that SLURM's programs are installed, but configured for no cluster."""


@dataclass(frozen=True)
class State:
    """Hold what SLURM says about a job.

    Attributes:
        state: SLURM's word for it, such as RUNNING; empty where SLURM does not know the job.
        reason: why it waits, or its exit code where that is not 0.
        nodes: the nodes that it runs or ran on.
    """

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def active(self) -> bool:
        """Whether the job is queued or running."""
        return self.state in _ACTIVE

    @property
    def failed(self) -> bool:
        """Whether the job ended badly, other than by a cancellation."""
        return self.state in _FAILED


def ask(program: Sequence[str]) -> list[str]:
    """Run one of SLURM's programs and return the lines that it prints.

    Raises:
        NoAnswer: the program is missing, failed, or took longer than 30 seconds.
    """
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=30)
    except OSError as error:
        raise NoAnswer(f"SLURM does not answer ({program[0]}: {error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"SLURM does not answer ({program[0]}: nothing within 30 s)") from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        # SLURM reports a missing configuration in words only, not by an exit code of its own.
        kind = NoCluster if "configuration source" in reason else NoAnswer
        raise kind(f"SLURM does not answer ({program[0]}: {reason.removeprefix(f'{program[0]}: ')})")
    return [line for line in done.stdout.splitlines() if line.strip()]


def states(job_ids: Sequence[str]) -> dict[str, State]:
    """Return the state of each job by its id; the members of an array have ids of their own (``12_0``).

    squeue knows the jobs that are queued or running, sacct the others. Where one of the two is missing or does not
    answer, the other is believed.

    Raises:
        NoAnswer: squeue does not answer, and sacct does not know all of the jobs.
    """
    known: dict[str, State] = {}
    if not job_ids:
        return known
    with suppress(NoAnswer):
        ids = ",".join(sorted(set(job_ids)))
        for line in ask(["sacct", "-n", "-X", "-P", "-j", ids, "-o", "JobID,State,ExitCode,NodeList"]):
            job_id, state, exit_code, nodes = _columns(line)
            code = exit_code.split(":")[0]
            known[job_id] = State(state.split(" ")[0], f"exit code {code}" if code != "0" else "", nodes)
    try:
        # For all jobs: squeue fails as a whole when it is asked about an id that it has forgotten.
        queue = ask(["squeue", "-h", "-r", "-o", "%i|%T|%r|%N"])
    except NoAnswer:
        if {array_id(job_id) for job_id in known} >= set(job_ids):
            return known
        raise
    for line in queue:
        job_id, state, reason, nodes = _columns(line)
        if array_id(job_id) in job_ids:
            known[job_id] = State(state, "" if reason == "None" else reason, nodes)
    return known


def _columns(line: str) -> list[str]:
    """Split a line of four columns; columns that are missing are empty."""
    return (line.split("|") + [""] * 4)[:4]


def array_id(job_id: str) -> str:
    """Return the id of the array that a member (``12_0``) belongs to; a job that is no member has its own id."""
    return job_id.split("_")[0]


def scancel(job_ids: Sequence[str]) -> list[str]:
    """Run scancel for each of these jobs, the last job first, and return a line for each job that it refused."""
    problems = []
    for job_id in reversed(job_ids):
        done = subprocess.run(["scancel", job_id], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            problems.append(f"scancel {job_id}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return problems
