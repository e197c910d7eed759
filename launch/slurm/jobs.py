"""The SLURM jobs of a run: which there are, how they are, what they print, and how to end them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.errors import UserError, command
from launch.slurm.profile import CHAIN

ACTIVE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING")


@dataclass(frozen=True)
class State:
    """What SLURM says of a job: its state, the reason or exit code, and its nodes."""

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


def folder(run: Path) -> Path:
    """Where submitit keeps a run's scripts and logs."""
    return (run / "launch" / "jobs").absolute()


class NoAnswer(UserError):
    """SLURM does not say how its jobs are. That is not the same as having none."""


class NoCluster(NoAnswer):
    """SLURM's programs are there, but configured for no cluster."""


def record(run: Path, stage: str, job: str, names: Sequence[str], size: int, ranks: int, local: bool = False) -> None:
    """Note a submitted job: an array of ``size`` members, each on ``ranks`` ranks."""
    entry = {"stage": stage, "job": job, "names": list(names), "size": size, "ranks": ranks, "local": local}
    entry["time"] = time.time()
    path = run / "launch" / "jobs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def recorded(run: Path) -> list[dict[str, Any]]:
    """The jobs of a run, oldest first."""
    found = []
    try:
        lines = (run / "launch" / "jobs.jsonl").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def newest(run: Path) -> list[dict[str, Any]]:
    """The last submitted job of every stage, in the order of submission."""
    return sorted({entry["stage"]: entry for entry in recorded(run)}.values(), key=lambda entry: entry["time"])


def states(ids: Sequence[str]) -> dict[str, State]:
    """Job id (of an array's members, ``12_0``) -> state. squeue knows those that are queued or run, sacct
    the others; where one of the two is missing or does not answer, the other's word stands.

    Raises:
        NoAnswer: squeue does not answer, and sacct does not know all of them.
    """
    found: dict[str, State] = {}
    if not ids:
        return found
    asked = ",".join(sorted(set(ids)))
    with suppress(NoAnswer):
        for line in ask(["sacct", "-n", "-X", "-P", "-j", asked, "-o", "JobID,State,ExitCode,NodeList"]):
            job, state, code, nodes = (line.split("|") + [""] * 4)[:4]
            failed = code.split(":")[0] != "0"
            found[job] = State(state.split(" ")[0], f"exit code {code.split(':')[0]}" if failed else "", nodes)
    try:
        # About all jobs: asked about an id that it has forgotten, squeue fails for all of them.
        queue = ask(["squeue", "-h", "-r", "-o", "%i|%T|%r|%N"])
    except NoAnswer:
        if {job.split("_")[0] for job in found} >= set(ids):
            return found
        raise
    for line in queue:
        job, state, reason, nodes = (line.split("|") + [""] * 4)[:4]
        if job.split("_")[0] in ids:
            found[job] = State(state, "" if reason == "None" else reason, nodes)
    return found


def ask(program: list[str]) -> list[str]:
    """The lines that one of SLURM's programs prints.

    Raises:
        NoAnswer: it is not there, failed, or took too long.
    """
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=30)
    except OSError as error:
        raise NoAnswer(f"SLURM does not answer ({program[0]}: {error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"SLURM does not answer ({program[0]}: nothing within 30 s)") from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        # SLURM has no exit code of its own for this, only words.
        kind = NoCluster if "configuration source" in reason else NoAnswer
        raise kind(f"SLURM does not answer ({program[0]}: {reason.removeprefix(f'{program[0]}: ')})")
    return [line for line in done.stdout.splitlines() if line.strip()]


def active(run: Path) -> list[str]:
    """Ids of the run's jobs that are queued or running, in the order of submission.

    Raises:
        NoAnswer: SLURM does not say.
    """
    ids = _submitted(run)
    now = states(ids)
    return [job for job in ids if any(key.split("_")[0] == job and state.active for key, state in now.items())]


def cancel(run: Path) -> list[str]:
    """End the run's jobs, the last of the chain first, and return their ids. What runs saves first.

    Raises:
        UserError: no scancel here, no such run, nothing to cancel, or SLURM does not answer.
    """
    if shutil.which("scancel") is None:
        raise UserError("no scancel on this machine: go to a login node; a run without SLURM ends by Ctrl-C")
    if not run.is_dir():
        names = ",".join(f"{run.name}.{stage}" for stage in CHAIN)
        raise UserError(f"{run}: no such folder; its jobs, if any: squeue --name {shlex.quote(names)}")
    try:
        ids = active(run)
    except NoAnswer as error:
        raise UserError(
            f"{run}: {error}; nothing was cancelled; its jobs: scancel {' '.join(_submitted(run))}"
        ) from None
    if not ids:
        raise UserError(f"{run}: no job of it is queued or running")
    problems = cancel_ids(ids)
    if problems:
        raise UserError(f"{run}: {'; '.join(problems)}")
    return ids


def cancel_ids(ids: Sequence[str]) -> list[str]:
    """End these jobs; returns what went wrong."""
    problems = []
    for job in reversed(ids):
        done = subprocess.run(["scancel", job], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            problems.append(f"scancel {job}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return problems


def _submitted(run: Path) -> list[str]:
    return [entry["job"] for entry in recorded(run) if not entry["local"]]


def logs(run: Path, stage: str | None, rank: int, follow: bool, member: int = 0) -> None:
    """Print the log of the newest job (of ``stage``); ``follow``: until it has ended.

    Raises:
        UserError: no such job, rank, member or log.
    """
    entries = [entry for entry in recorded(run) if stage in (None, entry["stage"])]
    if not entries:
        raise UserError(
            f"{run}: no job{f' of {stage}' if stage else ''} was submitted; without SLURM, look at your terminal"
        )
    for what, number, key in (("member", member, "size"), ("rank", rank, "ranks")):
        last = max(entry[key] for entry in entries) - 1
        if not 0 <= number <= last:
            there = f"{what}s 0..{last}" if last else f"{what} 0 only"
            raise UserError(f"--{what} {number}: {stage or 'this run'} has {there}")
    found = [(path, entry) for entry in entries if (path := log(run, entry, rank, member)) is not None]
    if not found:
        last = entries[-1]
        raise UserError(
            f"{last['stage']}: job {last['job']} has no log of rank {rank} yet; {command('status', run)} says how it is"
        )
    path, entry = max(found, key=lambda pair: pair[0].stat().st_mtime)
    print(f"==> {entry['stage']}, job {entry['job']}, rank {rank}: {path}", file=sys.stderr)
    with path.open(errors="replace") as file:
        quiet, told = 0.0, ""
        while True:
            text = file.read()
            sys.stdout.write(text)
            sys.stdout.flush()
            if not follow:
                return
            quiet = 0.0 if text else quiet + 0.5
            if quiet >= 5 and quiet % 5 == 0 and not entry["local"]:
                try:
                    if entry["job"] not in active(run):
                        return
                except NoAnswer as error:  # it may run: go on, and say so once
                    if str(error) != told:
                        told = str(error)
                        print(f"dist-train: {told}; following on, Ctrl-C ends it", file=sys.stderr)
            time.sleep(0.5)


def log(run: Path, entry: dict[str, Any], rank: int, member: int) -> Path | None:
    """The log of a rank of a job, where there is one."""
    job = entry["job"] if entry["size"] == 1 else f"{entry['job']}_{member}"
    # Ranks that are another program's child may not have one: then what the job's shell said.
    for name in (f"{job}_{rank}_log.out", f"{job}_log.out"):
        path = folder(run) / name
        if path.is_file() and os.path.getsize(path):
            return path
    return None
