"""What a run is doing: from its folder, and from SLURM where it was submitted there."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_train.config import STAGES
from dist_train.errors import UserError
from launch import restart
from launch.slurm import jobs, scheduler
from launch.slurm.jobs import Job
from launch.slurm.scheduler import State

_NONE = State("")
_SILENT = 60.0  # seconds without a heartbeat (one comes every five) until a run counts as gone


def show(folder: Path) -> str:
    """A few lines a run, for one run or for all in a folder.

    Raises:
        UserError: no run there.
    """
    if _is_run(folder):
        runs = [folder]
    else:
        runs = sorted(path for path in folder.glob("*") if _is_run(path)) if folder.is_dir() else []
    if not runs:
        raise UserError(f"{folder}: no run here (no config.yaml); give RUNS/NAME, or the folder of all runs")
    return "\n\n".join(_run(run) for run in runs)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "launch" / "config.yaml").is_file()


def _run(run: Path) -> str:
    beat, error = _read(run / "heartbeat.json"), _read(run / "error.json")
    age = time.time() - beat["time"] if beat else None
    alive = age is not None and age < _SILENT and not beat["left"]
    entries = [entry for entry in jobs.newest(run) if not entry.local]
    states, silence = _states(entries)
    starting = {} if alive else {e.stage: e.id for e in entries if states.get(e.id, _NONE).state == "RUNNING"}
    table = [row for name in STAGES if (row := _stage(run, name, alive, name in starting))]
    widths = [max(len(row[column]) for row in table) for column in range(2)]
    lines = [f"{run}"]
    for entry in entries:
        mine = {job: state for job, state in states.items() if job.split("_")[0] == entry.id}
        lines += _job(run, entry, mine, silence, bool(error))
    lines += [f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in table]
    if beat:
        where = f"{beat['ranks']} rank(s), rank 0 on {beat['host']}" + (f", job {beat['job']}" if beat["job"] else "")
        told = f"{_ago(age or 0)} ago; {where}"
        if all(row[1] == "done" for row in table):
            lines.append(f"  finished {told}")
        else:
            state = "now" if alive else "last start" if starting else "left" if beat["left"] else "NO SIGN OF LIFE"
            lines.append(f"  {state}: {beat['doing']} ({told})")
    elif not entries and not error:
        lines.append("  no start of it has got to work yet")
    lines += [line for job in starting.values() if (line := _meeting(run, job))]
    if error and not alive:
        lines.append(f"  died of: rank {error['rank']}: {error['message']}")
    return "\n".join(lines)


def _states(entries: list[Job]) -> tuple[dict[str, State], str]:
    """What SLURM says of these jobs, or why it does not."""
    try:
        return scheduler.states([entry.id for entry in entries]), ""
    except scheduler.NoAnswer as error:
        return {}, str(error)


def _job(run: Path, entry: Job, mine: dict[str, State], silence: str, explained: bool) -> list[str]:
    """A line for a job (an array), and the end of its log where nothing else says why it failed."""
    counts = Counter(state.state for state in mine.values())
    told = next(iter(mine.values()), _NONE)
    text = ", ".join(name if entry.size == 1 else f"{count} {name}" for name, count in counts.items())
    unknown = f"state unknown: {silence}" if silence else "not known to SLURM any more"
    parts = [text or unknown]
    if told.reason and told.state != "COMPLETED":
        parts.append(f"({told.reason})")
    if told.nodes and told.nodes != "None assigned":
        parts.append(f"on {told.nodes}")
    if entry.size == 1 and told.state != "COMPLETED" and (ended := restart.last_reason(run, entry.id)):
        parts.append(f"[last start: {ended}]")
    lines = [f"  job {entry.id} {entry.stage}: {' '.join(parts)}"]
    failed = [job for job, state in mine.items() if state.failed]
    if failed and not explained:
        path = entry.log(run, 0, int(failed[0].partition("_")[2] or 0))
        with suppress(OSError):
            said = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path else []
            lines += [f"    {line[:200]}" for line in said[-3:]]
    return lines


def _meeting(run: Path, job: str) -> str:
    """What a start waits for before its ranks have met (dist_train/distributed/rendezvous.py)."""
    for path in sorted((run / "launch").glob(f"meet-{job}-*.json"), reverse=True):
        note = _read(path)
        if note:
            waited = _ago(time.time() - path.stat().st_mtime)
            return f"  starting: rank 0 on {note['host']} waits for the other ranks ({waited}; monitor.start_timeout)"
    return ""


def _stage(run: Path, name: str, alive: bool, starting: bool) -> tuple[str, str, str]:
    folder = run / name
    done = _read(folder / "done.json")
    if done:
        facts = ", ".join(f"{k} {_short(v)}" for k, v in done.items() if k != "inputs" and not isinstance(v, dict))
        return name, "done", facts
    if not folder.is_dir():
        return name, "starting" if starting else "waiting", ""
    after = STAGES[STAGES.index(name) + 1 :]
    later = any((run / other).is_dir() and not (run / other / "done.json").is_file() for other in after)
    state = "running" if alive and not later else "starting" if starting else "stopped"
    return name, state, _progress(folder)


def _progress(folder: Path) -> str:
    """The newest numbers of a training, and its newest checkpoint."""
    parts = []
    files = sorted(folder.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    row = _last(files[-1]) if files else {}
    total = row.get("progress/steps")
    if row:
        method = files[-1].parent.name if files[-1].parent != folder else ""
        parts.append(f"{method} step {row['step']}{f' of {total:.0f}' if total else ''}".strip())
    if "progress/epoch" in row:
        parts.append(f"epoch {row['progress/epoch']:.2f}")
    if "train/loss" in row:
        parts.append(f"loss {row['train/loss']:.3f}")
    for tag, unit in (("time/throughput(images/s)", "images/s"), ("time/throughput(it/s)", "it/s")):
        if tag in row:
            parts.append(f"{row[tag]:.0f} {unit}")
    if total and row.get("progress/seconds_left"):
        parts.append(f"{_ago(row['progress/seconds_left'])} left")
    saved = sorted(folder.rglob("step-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if saved:
        parts.append(f"checkpoint {saved[-1].parent.name} {_ago(time.time() - saved[-1].stat().st_mtime)} ago")
    return ", ".join(parts)


def _last(path: Path) -> dict[str, Any]:
    """The newest value of every tag, from the file's end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().splitlines()
    found: dict[str, Any] = {}
    for line in lines:
        try:
            found |= json.loads(line)
        except ValueError:  # the first may be cut, and the last is being written
            continue
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
