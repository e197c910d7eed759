"""Make the page of ``gpu_check``, docs/results/gpu.md, from the records of its steps: each aim beside its figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_check_steps import steps

Records = Mapping[str, Mapping[str, Any]]
COMMAND = "tools/gpu_check.sh OUT"
TIMM_TIMES, LEARN_STEPS, LEARN_SECONDS, ROWS_SECONDS, CORES = 1.2, 75_000, 60, 180, 16  # the aims
PAPERS = ("phi1", "phi2", "phi2star")  # predictors
LOOPS = ("step-eager", "step-untuned", "step-loader", "step-compiled")  # training steps


@dataclass(frozen=True)
class Aim:
    """Hold an aim, the figure beside it, and whether it is met; None where the figure does not decide."""

    wanted: str
    figure: str = ""
    met: bool | None = None

    def row(self, rehearsed: bool) -> str:
        """Return the row of the table of aims."""
        verdict = {True: "**met**", False: "**not met**", None: "not decided"}[self.met] if self.figure else "not run"
        if rehearsed and self.figure:
            verdict = "rehearsed"
        return f"| {self.wanted} | {self.figure or '–'} | {verdict} |"


def result(records: Records, step: str) -> Any:
    """Return a step's result, in part where it was ended; None where there is none."""
    return records.get(step, {}).get("result")


def rates(records: Records, step: str) -> dict[str, float]:
    """Return the median images/s of each loop of a training step, or of each loader."""
    figures = result(records, step)
    figures = (figures[0] if isinstance(figures, list) else figures) or {"rates": {}}
    return {name: statistics.median(values) for name, values in figures["rates"].items()}


def trainer(records: Records) -> float | None:
    """Return the images/s of the trainer without a loader: the faster of eager and compiled."""
    medians = [rates(records, step).get("trainer") for step in ("step-eager", "step-compiled")]
    return max((rate for rate in medians if rate), default=None)


def loader_aim(records: Records) -> Aim:
    """Return the aim of the loader against the training."""
    wanted = f"the loader (`mixed`) at least as fast as the GPU trains, with {CORES} CPU cores"
    fed, trained = rates(records, "loader").get("dist_train"), trainer(records)
    if not fed:
        return Aim(wanted)
    threads = result(records, "loader")["threads"]
    figure = f"{fed:,.0f} images/s on {threads} cores"
    if not trained:
        return Aim(wanted, f"{figure}; the training rate is missing")
    met = fed >= trained
    # With fewer cores, a slower loader says nothing about 16.
    return Aim(wanted, f"{figure}, training {trained:,.0f}", met if met or threads >= CORES else None)


def timm_aim(records: Records) -> Aim:
    """Return the aim of the trainer against timm."""
    as_published = "AMP, channels_last, not compiled"
    wanted = f"the trainer at least {TIMM_TIMES} times as fast as timm's loop, as timm publishes it: {as_published}"
    theirs, mine = rates(records, "step-eager").get("timm"), trainer(records)
    if not theirs or not mine:
        return Aim(wanted)
    return Aim(
        wanted, f"{mine:,.0f} beside {theirs:,.0f} images/s: {mine / theirs:.2f} times", mine / theirs >= TIMM_TIMES
    )


def learn_aim(records: Records) -> Aim:
    """Return the aim of the predictors' training."""
    wanted = f"each of the paper's predictors learns {LEARN_STEPS:,} steps in less than {LEARN_SECONDS} s"
    by_method = (result(records, "learn") or {"rates": {}})["rates"]
    times = {name: LEARN_STEPS / max(by_method[name].values()) for name in PAPERS if by_method.get(name)}
    if not times:
        return Aim(wanted)
    slowest = max(times, key=lambda name: times[name])
    figure = f"{slowest}, the slowest of {len(times)}: {times[slowest]:.0f} s, from its rate"
    met = times[slowest] < LEARN_SECONDS
    return Aim(wanted, figure, met if len(times) == len(PAPERS) or not met else None)


def evaluate_aim(records: Records) -> Aim:
    """Return the aim of evaluation."""
    wanted = f"all rows on stored activations in less than {ROWS_SECONDS // 60} minutes"
    figures = result(records, "evaluate")
    if not figures:
        return Aim(wanted)
    seconds, rows = sum(figures["seconds"].values()), len(figures["seconds"])
    whole = rows == len(figures["methods"])
    figure = f"{rows} of {len(figures['methods'])} rows: {seconds:.0f} s"
    met = seconds < ROWS_SECONDS
    return Aim(wanted, figure, met if whole or not met else None)


AIMS = (loader_aim, timm_aim, learn_aim, evaluate_aim)


def page(records: Records) -> str:
    """Return the page in Markdown. Without records it says that nothing was run, and which steps there are."""
    return "\n".join([*_head(records), *_aims(records), *_steps(records), *_figures(records)]) + "\n"


def _head(records: Records) -> Iterator[str]:
    yield "# On a GPU"
    yield ""
    if records:
        last = max(records.values(), key=lambda record: str(record["start"]))
        device, versions = last["device"], last["versions"]
        gpu = f"{device['gpus']} × {device['name']}, {device.get('gib', '?')} GiB" if device["gpus"] else (
            "no GPU: a rehearsal, whose figures say nothing about a GPU")  # fmt: skip
        yield (
            f"Run on {last['start'][:10]}: {gpu}; {device.get('cpus', '?')} CPU cores; "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
            + (f"; CUDA {device['cuda']}, cuDNN {device['cudnn']}" if device.get("cuda") else "")
            + "."
        )
    else:
        yield "**Not run:** no line of this project has run on a GPU yet. The command that does it writes this page:"
    yield ""
    yield f"```\n{COMMAND}\n```"
    yield ""
    yield from (
        "It takes at most twelve minutes on an H200-class GPU, and needs no git and no network. It writes a JSON and",
        "a log of each step to `OUT`; `--only STEP` takes a step again, `--cpu` rehearses all steps without a GPU.",
        "This page is made from the JSON files alone (`tools/gpu_check_page.py`).",
        "",
    )


def _aims(records: Records) -> Iterator[str]:
    yield "## Aims"
    yield ""
    yield "| aim | figure | |"
    yield "|---|---|---|"
    rehearsed = any(not record["device"]["gpus"] for record in records.values())
    yield from (aim(records).row(rehearsed) for aim in AIMS)
    yield ""


def _steps(records: Records) -> Iterator[str]:
    yield "## Steps"
    yield ""
    yield "| step | what it shows | at most (s) | outcome |"
    yield "|---|---|---:|---|"
    for step in steps(Path("OUT")):
        record = records.get(step.name)
        outcome = "not run" if record is None else f"{record['status']}, {record['seconds']:.0f} s"
        counts = result(records, step.name) or {}
        if step.name.startswith("tests-") and counts:
            outcome += f": {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
        if record and record["reason"]:
            outcome += f" ({_cell(record['reason'])})"
        yield f"| `{step.name}` | {step.proves} | {step.seconds} | {outcome} |"
    yield ""


def _figures(records: Records) -> Iterator[str]:
    """Make the tables of the steps that have figures."""
    if any(rates(records, step) for step in LOOPS):
        yield from ("## Training step", "", "Images/s are medians over rounds; GiB are of a step, above weights and "
                    "optimiser states.", "", "| step | loop | images/s | GiB |", "|---|---|---:|---:|")  # fmt: skip
        for step in LOOPS:
            for name, rate in rates(records, step).items():
                memory = result(records, step)[0]["memory"].get(name)
                yield f"| `{step}` | {name} | {rate:,.0f} | {'–' if memory is None else f'{memory:.2f}'} |"
        yield ""
    if rates(records, "loader"):
        yield from ("## Loader", "", "| loader | images/s |", "|---|---:|")
        yield from (f"| {name} | {rate:,.0f} |" for name, rate in rates(records, "loader").items())
        yield ""
    if figures := result(records, "learn"):
        yield from (
            "## Predictors",
            "",
            "| predictor | single launches (it/s) | CUDA graph (it/s) |",
            "|---|---:|---:|",
        )
        for name, row in figures["rates"].items():
            yield f"| {name} | {row.get('off', float('nan')):,.0f} | {row.get('on', float('nan')):,.0f} |"
        yield ""
    if figures := result(records, "evaluate"):
        yield from ("## Rows", "", "| row | seconds |", "|---|---:|")
        yield from (f"| {name} | {seconds:.1f} |" for name, seconds in figures["seconds"].items())
        yield ""
    if figures := result(records, "run"):
        same = "are equal" if figures["equal"] else f"differ by at most {figures['largest_difference']} points"
        yield from ("## A run, stopped and resumed", "", f"The tables of the whole and of the resumed run {same}; the "
                    f"networks' weights by at most {figures['weights_difference']:.1e}.", "")  # fmt: skip
    failures: dict[str, str] = {}
    for step in records:
        if step.startswith("tests-"):
            failures |= (result(records, step) or {}).get("failures", {})
    if failures:
        yield from ("## Tests that failed", "")
        yield from (f"- `{name}`: {_cell((text.strip().splitlines() or [''])[-1])}" for name, text in failures.items())
        yield ""


def _cell(text: str) -> str:
    """Return a text as a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())[:200]
