"""Show what a run is doing, from its folder and, where it was submitted to SLURM, from its jobs."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_train.config import STAGES
from dist_train.errors import UserError, command, counted
from dist_train.stages.share import Share
from launch import restart
from launch.slurm import jobs, scheduler
from launch.slurm.jobs import Job
from launch.slurm.scheduler import State

_UNKNOWN = State("")
_SILENT = 60.0  # seconds without a heartbeat (one comes every five) until a run counts as gone


def show(folder: Path) -> str:
    """Return a few lines on a run, or on every run in a folder.

    Raises:
        UserError: there is no run.
    """
    if _is_run(folder):
        runs = [folder]
    else:
        runs = sorted(path for path in folder.glob("*") if _is_run(path)) if folder.is_dir() else []
    if not runs:
        raise UserError(f"{folder}: no run here (no config.yaml); give RUNS/NAME, or the folder of all runs")
    return "\n\n".join(_RunStatus(run).text() for run in runs)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "launch" / "config.yaml").is_file()


class _RunStatus:
    """Gather what is known of a run, and say it in lines.

    Attributes:
        heartbeat: what its rank 0 wrote last (dist_train/distributed/monitor.py); empty before that, and where it has
            ended and shares of a table have written since.
        shares: the shares of a table whose draws are shared (stages/share.py); empty before one of them has started.
        alive: whether the heartbeat, or that of a share, is recent.
        error: what ended the last start; empty where it did not fail, and where shares have written since.
        jobs: the newest job of every stage, of SLURM.
        states: {job id: what SLURM says of it}.
        no_answer: why SLURM says nothing; empty where it answers.
        starting: {stage: job id} of jobs that run and whose ranks have not met yet.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.heartbeat, self.error = _read(run / "heartbeat.json"), _read(run / "error.json")
        self.shares = _shares(run)
        newest = max((share.heartbeat.get("time", 0.0) for share in self.shares), default=0.0)
        # What is older than the shares is of an earlier start, perhaps of another stage.
        if self.heartbeat.get("time", 0.0) < newest and not _is_alive(self.heartbeat):
            self.heartbeat = {}
        if self.error.get("time", 0.0) < newest:
            self.error = {}
        self.alive = any(_is_alive(beat) for beat in (self.heartbeat, *(share.heartbeat for share in self.shares)))
        self.jobs = [job for job in jobs.newest(run) if not job.local]
        self.states: dict[str, State] = {}
        self.no_answer = ""
        try:
            self.states = scheduler.states([job.id for job in self.jobs])
        except scheduler.NoAnswer as error:
            self.no_answer = str(error)
        running = {job.stage: job.id for job in self.jobs if self.states.get(job.id, _UNKNOWN).state == "RUNNING"}
        self.starting = {} if self.alive else running

    def text(self) -> str:
        """Return the lines of the run."""
        # Few runs train networks of their own for rows.
        asked = {"networks"} & {job.stage for job in self.jobs} or (self.run / "networks").is_dir()
        stages = [name for name in STAGES if name != "networks" or asked]
        table = [_stage(self.run, name, self.alive, name in self.starting) for name in stages]
        widths = [max(len(row[column]) for row in table) for column in range(2)]
        lines = [f"{self.run}"]
        for job in self.jobs:
            lines += self._job_lines(job)
        lines += [f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in table]
        lines += self._heartbeat_lines(finished=all(row[1] == "done" for row in table))
        lines += [line for share in self.shares for line in self._share_lines(share)]
        lines += self._share_counts()
        lines += [line for job in self.starting.values() if (line := _meeting(self.run, job))]
        if self.error and not self.alive:
            lines.append(f"  died of: rank {self.error['rank']}: {self.error['message']}")
        return "\n".join(lines)

    def _heartbeat_lines(self, finished: bool) -> list[str]:
        """Return a line on the last sign of life."""
        beat = self.heartbeat
        if not beat:
            return [] if self.jobs or self.error or self.shares else ["  no start of this run has begun to work yet"]
        if finished:
            return [f"  finished {_when(beat)}"]
        state = "last start" if self.starting and not _is_alive(beat) else _state(beat)
        return [f"  {state}: {beat['doing']} ({_when(beat)})"]

    def _share_lines(self, share: _Share) -> list[str]:
        """Return a line on a share that is at work, silent, stopped or failed; none on others, which are counted."""
        beat, again = share.heartbeat, ""
        job = next((job for job in self.jobs if job.stage == "evaluate" and job.size == share.of.count), None)
        job = job if beat.get("job") else None  # else it was started by hand
        if share.state == "failed":
            log = command("logs", self.run, "--stage", "evaluate", "--member", share.of.number)
            died = f"  share {share.of.number} died of: rank {share.error['rank']}: {share.error['message']}"
            return [f"{died}; its log: {log}" if job else died]
        if share.state not in ("at work", "silent", "stopped"):
            return []
        if share.state != "at work" and job:
            waits = self.states.get(job.member_id(share.of.number), _UNKNOWN).active
            again = "" if waits or self.no_answer else "; submitted again, the run continues"
        elif share.state != "at work" and (words := share.of.command(self.run)):
            again = f"; {words} --share {share.of} continues"
        state = "stopped" if share.state == "stopped" else _state(beat)
        return [f"  share {share.of.number} {state}: {beat['doing']} ({_when(beat)}){again}"]

    def _share_counts(self) -> list[str]:
        """Return a line on how many shares are done, and how many are not."""
        if not self.shares:
            return []
        numbers: dict[str, list[int]] = {}
        for share in self.shares:
            numbers.setdefault(share.state, []).append(share.of.number)
        text = ", ".join(f"{len(numbers[s])} {s} ({_ranges(numbers[s])})" for s in _SHARE_STATES if s in numbers)
        words = self.shares[0].of.command(self.run)
        merge = f"; {words} makes the table" if list(numbers) == ["done"] and words and not self.jobs else ""
        return [f"  of {counted(len(self.shares), 'share')}: {text}{merge}"]

    def _job_lines(self, job: Job) -> list[str]:
        """Return a line on a job or an array, and the end of its log where nothing else says why it failed."""
        states = {name: state for name, state in self.states.items() if _is_of(name, job)}
        counts = Counter(state.state for state in states.values())
        first = next(iter(states.values()), _UNKNOWN)
        text = ", ".join(name if job.size == 1 else f"{count} {name}" for name, count in counts.items())
        unknown = f"state unknown: {self.no_answer}" if self.no_answer else "not known to SLURM any more"
        words = [text or unknown]
        if first.reason and first.state != "COMPLETED":
            words.append(f"({first.reason})")
        if first.nodes and first.nodes != "None assigned":
            words.append(f"on {first.nodes}")
        if job.size == 1 and first.state != "COMPLETED" and (reason := restart.last_reason(self.run, job.id)):
            words.append(f"[last start: {reason}]")
        lines = [f"  job {job.id} {job.stage}: {' '.join(words)}"]
        failed = [name for name, state in states.items() if state.failed]
        if failed and not self.error:
            path = job.log(self.run, 0, int(failed[0].partition("_")[2] or 0))
            if job.size > 1:
                lines.append(f"    failed: {', '.join(failed)}; the end of {path or 'the log, which is not there yet'}")
            with suppress(OSError):
                log = path.read_text(errors="replace").splitlines() if path else []
                lines += [f"    {line[:200]}" for line in [line for line in log if line.strip()][-3:]]
        return lines


_SHARE_STATES = ("done", "at work", "stopped", "failed", "silent", "not started")


@dataclass(frozen=True)
class _Share:
    """Hold what a share of a table's draws wrote last, as ``_RunStatus`` holds it of a run."""

    of: Share
    heartbeat: dict[str, Any]
    error: dict[str, Any]

    @property
    def state(self) -> str:
        """One of ``_SHARE_STATES``."""
        beat = self.heartbeat
        if _is_alive(beat):
            return "at work"
        if self.error:
            return "failed"
        if not beat:
            return "not started"
        return "silent" if not beat["left"] else "done" if beat["doing"] == self.of.done else "stopped"


def _shares(run: Path) -> list[_Share]:
    """Return all shares of the table that were started last, in order; none where no share has started."""
    folders = [path for path in run.glob("evaluate/parts/*-of-*") if path.is_dir()]
    if not folders:
        return []
    count = int(max(folders, key=lambda path: path.stat().st_mtime).name.partition("-of-")[2])
    shares = [(share, share.folder(run)) for share in (Share(number, count) for number in range(count))]
    return [_Share(share, _read(at / "heartbeat.json"), _read(at / "error.json")) for share, at in shares]


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, with neighbours as ranges: "0-2, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _is_of(name: str, job: Job) -> bool:
    """Return whether SLURM's id is that of a job, or of a member of an array. SLURM may have given the number of a job
    to another one before, and accounts for the members of both."""
    number, _, member = name.partition("_")
    return number == job.id and bool(member) == (job.size > 1) and not (member.isdecimal() and int(member) >= job.size)


def _age(beat: dict[str, Any]) -> float:
    """Return the seconds since a heartbeat."""
    return time.time() - beat["time"] if beat else math.inf


def _is_alive(beat: dict[str, Any]) -> bool:
    """Return whether a heartbeat is recent, and not the last one."""
    return _age(beat) < _SILENT and not beat["left"]


def _state(beat: dict[str, Any]) -> str:
    """Return what a heartbeat says of those who sent it."""
    return "now" if _is_alive(beat) else "left" if beat["left"] else "NO SIGN OF LIFE"


def _when(beat: dict[str, Any]) -> str:
    """Return when a heartbeat was sent, and from where."""
    job = f", job {beat['job']}" if beat["job"] else ""
    return f"{_duration(_age(beat))} ago; {counted(beat['ranks'], 'rank')}, rank 0 on {beat['host']}{job}"


def _meeting(run: Path, job: str) -> str:
    """Return a line on what a start waits for until its ranks have met (dist_train/distributed/rendezvous.py)."""
    for path in sorted((run / "launch").glob(f"meet-{job}-*.json"), reverse=True):
        note = _read(path)
        if note:
            waited = _duration(time.time() - path.stat().st_mtime)
            return f"  starting: rank 0 on {note['host']} waits for the other ranks ({waited}; monitor.start_timeout)"
    return ""


def _stage(run: Path, name: str, alive: bool, starting: bool) -> tuple[str, str, str]:
    """Return a stage's name, its state and its figures."""
    folder = run / name
    done = _read(folder / "done.json")
    if done:
        facts = ", ".join(f"{k} {_short(v)}" for k, v in done.items() if k != "inputs" and not isinstance(v, dict))
        return name, "done", facts
    if not folder.is_dir():
        return name, "starting" if starting else "waiting", ""
    later = STAGES[STAGES.index(name) + 1 :]
    later_begun = any((run / other).is_dir() and not (run / other / "done.json").is_file() for other in later)
    state = "running" if alive and not later_begun else "starting" if starting else "stopped"
    return name, state, _progress(folder)


def _progress(folder: Path) -> str:
    """Return the newest figures and the newest checkpoint of a training."""
    words = []
    files = sorted(folder.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    row = _last(files[-1]) if files else {}
    total = row.get("progress/steps")
    if row:
        method = files[-1].parent.name if files[-1].parent != folder else ""
        words.append(f"{method} step {row['step']}{f' of {total:.0f}' if total else ''}".strip())
    if "progress/epoch" in row:
        words.append(f"epoch {row['progress/epoch']:.2f}")
    if "train/loss" in row:
        words.append(f"loss {row['train/loss']:.3f}")
    for tag, unit in (("time/throughput(images/s)", "images/s"), ("time/throughput(it/s)", "it/s")):
        if tag in row:
            words.append(f"{row[tag]:.0f} {unit}")
    if total and row.get("progress/seconds_left"):
        words.append(f"{_duration(row['progress/seconds_left'])} left")
    saved = sorted(folder.rglob("step-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if saved:
        words.append(f"checkpoint {saved[-1].parent.name} {_duration(time.time() - saved[-1].stat().st_mtime)} ago")
    return ", ".join(words)


def _last(path: Path) -> dict[str, Any]:
    """Return the newest value of every tag, from the end of the file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().splitlines()
    values: dict[str, Any] = {}
    for line in lines:
        try:
            values |= json.loads(line)
        except ValueError:  # the first line may be cut off, and the last one is being written
            continue
    return values


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object; empty where there is none, or it is being written."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content


def _duration(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
