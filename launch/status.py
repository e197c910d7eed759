"""What a run is doing: from its folder, and from SLURM where it was submitted there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from dist_train.config import STAGES
from dist_train.errors import UserError
from launch import after, jobs

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
    table = [_stage(run, name, alive) for name in STAGES]
    table = [row for row in table if row]
    widths = [max(len(row[column]) for row in table) for column in range(2)]
    lines = [
        f"{run}",
        *_jobs(run),
        *(f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in table),
    ]
    if beat:
        where = f"{beat['ranks']} rank(s), rank 0 on {beat['host']}" + (f", job {beat['job']}" if beat["job"] else "")
        state = "now" if alive else "left" if beat["left"] else "NO SIGN OF LIFE"
        lines.append(f"  {state}: {beat['doing']} ({_ago(age or 0)} ago; {where})")
    if error and not alive:
        lines.append(f"  died of: rank {error['rank']}: {error['message']}")
    return "\n".join(lines)


def _jobs(run: Path) -> list[str]:
    """A line for each stage's newest job."""
    entries = [entry for entry in jobs.newest(run) if not entry["local"]]
    states = jobs.states([entry["job"] for entry in entries])
    lines = []
    for entry in entries:
        mine = {job: state for job, state in states.items() if job.split("_")[0] == entry["job"]}
        counts: dict[str, int] = {}
        for state in mine.values():
            counts[state.state] = counts.get(state.state, 0) + 1
        told = next(iter(mine.values()), None)
        text = ", ".join(name if entry["size"] == 1 else f"{count} {name}" for name, count in counts.items())
        parts = [text or "not known to SLURM any more"]
        if told and told.reason and told.state != "COMPLETED" and told.reason != "exit code 0":
            parts.append(f"({told.reason})")
        if told and told.nodes and told.nodes != "None assigned":
            parts.append(f"on {told.nodes}")
        if entry["size"] == 1 and told and told.state != "COMPLETED" and (ended := after.told(run, entry["job"])):
            parts.append(f"[last start: {ended}]")
        lines.append(f"  job {entry['job']} {entry['stage']}: {' '.join(parts)}")
    return lines


def _stage(run: Path, name: str, alive: bool) -> tuple[str, str, str]:
    folder = run / name
    done = _read(folder / "done.json")
    if done:
        facts = ", ".join(f"{k} {_short(v)}" for k, v in done.items() if k != "inputs" and not isinstance(v, dict))
        return name, "done", facts
    if not folder.is_dir():
        return name, "waiting", ""
    later = any((run / other).is_dir() for other in STAGES[STAGES.index(name) + 1 :])
    state = "running" if alive and not later else "stopped"
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
