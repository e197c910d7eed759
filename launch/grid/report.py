"""The tables of grids: RUN/sweep/table.md for a sweep, RUN/study/NAME.md and NAME.json for a study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.config import Config, to_dict
from dist_train.errors import UserError, command, counted
from dist_train.fewshot.methods import NUMBERS
from dist_train.fewshot.results import Interval, Metrics, Results
from dist_train.files import write_text
from dist_train.report.comparison import PAIRED_METRICS
from dist_train.report.markdown import format_mean, markdown_head, markdown_row
from dist_train.report.wording import display_name
from launch.grid.members import Member
from launch.grid.study import DEFAULT, Choice, Settings
from launch.grid.sweep import MADE_BY, check_folder, sweep_folder

_SWEPT_METRICS = {"base_top1": "base top-1", "novel_top1": "novel top-1", "harmonic": "H", "accuracy": "accuracy"}


def read_results(run: Path) -> Results:
    """Read the results of a member.

    Raises:
        OSError: there are none.
        ValueError: they are damaged.
    """
    return Results.read(run / "evaluate" / "results.json")


def print_sweep_table(run: Path) -> int:
    """Print the table of a run's sweep; return 0."""
    print(sweep_table(run))
    return 0


def sweep_table(run: Path) -> str:
    """Return one table of all members of a run's sweeps, and write it to RUN/sweep/table.md.

    Raises:
        UserError: there is no such run, it has no sweep, or no member has results.
    """
    check_folder(run)
    folder = sweep_folder(run)
    if not folder.is_dir():
        raise UserError(f"{run}: has no sweep, or is no run; one is made by {MADE_BY}")
    rows: list[tuple[tuple[str, str, str], Metrics]] = []
    missing = []
    for member in sorted(path for path in folder.glob("*") if path.is_dir()):
        try:
            results = read_results(member)
        except (OSError, ValueError):
            missing.append(member.name)
            continue
        for method, result in results.methods.items():
            rows += [((member.name, display_name(method), str(k)), metrics) for k, metrics in result.shots.items()]
    if not rows:
        raise UserError(f"{folder}: no member has results yet; {command('status', folder)} shows their states")
    columns = {key: title for key, title in _SWEPT_METRICS.items() if any(key in metrics for _, metrics in rows)}
    lines = markdown_head(list(columns.values()), ["setting", "method", "shots"])
    for names, metrics in rows:  # members may have other protocols, and so other metrics
        cells = (format_mean(metrics[key]) if key in metrics else "–" for key in columns)
        lines.append(markdown_row([*names, *cells]))
    spread = "half-width of the 95% interval over draws or episodes (as released: one standard deviation)"
    lines += ["", f"Percent; mean ± {spread}."]
    if missing:
        lines.append(f"Without results: {', '.join(missing)}")
    text = "\n".join(lines) + "\n"
    write_text(folder / "table.md", text)
    return text


@dataclass(frozen=True)
class DefaultRow:
    """Hold the figures of a method at a number of shots, in the default setting.

    Attributes:
        method: as in ``evaluate.methods``.
        shots: number of shots; "all" for an oracle.
        metrics: those of ``PAIRED_METRICS``, in percent, over draws; several seeds are averaged draw by draw.
    """

    method: str
    shots: str
    metrics: Metrics

    def to_json(self) -> dict[str, Any]:
        """Return the row as NAME.json has it."""
        return {"method": self.method, "shots": self.shots, **_metrics_to_json(self.metrics)}


@dataclass(frozen=True)
class Difference:
    """Hold how a setting differs from the default, draw by draw.

    Attributes:
        setting: value of each key that the choice varies.
        method, shots: as in ``DefaultRow``.
        metrics: those of ``PAIRED_METRICS``, in points.
        novel_top1_of_seeds: the difference in novel top-1 of each seed, in points.
    """

    setting: Mapping[str, Any]
    method: str
    shots: str
    metrics: Metrics
    novel_top1_of_seeds: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """Return the difference as NAME.json has it."""
        return {
            "setting": dict(self.setting),
            "method": self.method,
            "shots": self.shots,
            **_metrics_to_json(self.metrics),
            "novel_top1_of_seeds": list(self.novel_top1_of_seeds),
        }


@dataclass(frozen=True)
class Best:
    """Hold the best setting of a choice for a method, by the harmonic mean over all numbers of shots.

    Attributes:
        keys: the keys that the choice varies.
        method: as in ``evaluate.methods``.
        setting: its name.
        as_good: names of the settings that the draws cannot tell from the best, in the file's order.
        harmonic: the harmonic mean of ``setting``, in percent.
    """

    keys: Sequence[str]
    method: str
    setting: str
    as_good: Sequence[str]
    harmonic: float

    def to_json(self) -> dict[str, Any]:
        """Return the choice's best as NAME.json has it."""
        return {**vars(self), "keys": list(self.keys), "as_good": list(self.as_good)}


@dataclass(frozen=True)
class StudyReport:
    """Hold what the choices of a study change.

    Attributes:
        name: name of the study.
        default: value of each key that a choice varies, in the default.
        rows, differences, best: the figures.
        seeds: number of trainings of each setting.
        results: results of the default's first seed, for what all members have in common.
        commits: commits of the code that made the members' results.
    """

    name: str
    default: Mapping[str, Any]
    rows: Sequence[DefaultRow]
    differences: Sequence[Difference]
    best: Sequence[Best]
    seeds: int
    results: Results
    commits: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as NAME.json has it."""
        common = self.results.to_json()
        return {
            "study": self.name,
            "default": dict(self.default),
            "values": [row.to_json() for row in self.rows],
            "differences": [difference.to_json() for difference in self.differences],
            "chosen": [best.to_json() for best in self.best],
            "seeds": self.seeds,
            **{key: common[key] for key in ("draws", "interval", "classes", "queries", "split", "shards")},
            "commits": list(self.commits),
            "command": self.results.command,
        }


def write_study(path: Path, choices: Sequence[Choice], settings: Settings) -> str:
    """Write ``path``.json and ``path``.md, and return the text of the second.

    Args:
        settings: as ``study.study_members`` returns them, all done.

    Raises:
        OSError, ValueError: a member has no results, or they are damaged.
    """
    report = compare(path.name, choices, settings)
    text = study_markdown(report)
    write_text(path.with_name(f"{path.name}.json"), json.dumps(report.to_json(), indent=1) + "\n")
    write_text(path.with_name(f"{path.name}.md"), text)
    return text


_Seeds = Sequence[Results]
"""The results of a setting, one for each seed."""


def compare(name: str, choices: Sequence[Choice], settings: Settings) -> StudyReport:
    """Compare each setting of a study with the default, draw by draw.

    Args:
        name: name of the study.
        settings: as ``study.study_members`` returns them, all done.
    """
    results = {setting: [read_results(member.run) for member in members] for setting, members in settings.items()}
    default = results[DEFAULT]
    methods = dict.fromkeys(method for choice in choices for method in choice.methods)
    return StudyReport(
        name=name,
        default={key: _value(settings[DEFAULT][0].config, key) for choice in choices for key in choice.keys},
        rows=[
            DefaultRow(method, shots, {key: Interval.of(_mean_draws(seeds, key)) for key in PAIRED_METRICS})
            for method in methods
            for shots, seeds in _by_shots(default, method)
        ],
        differences=[difference for choice in choices for difference in _differences(choice, settings, results)],
        best=[_best(choice, method, results) for choice in choices for method in choice.methods],
        seeds=len(default),
        results=default[0],
        commits=sorted({commit for seeds in results.values() for member in seeds for commit in _commits(member)}),
    )


def _value(config: Config, key: str) -> Any:
    """Return the value of a key such as ``learn.lr``; of the methods' options, those that are left out too."""
    value: Any = to_dict(config)
    value["evaluate"]["options"] = {**NUMBERS, **config.evaluate.options}
    for name in key.split("."):
        value = value[name]
    return value


def _by_shots(seeds: _Seeds, method: str) -> Iterator[tuple[str, list[Metrics]]]:
    """Yield each number of shots with the metrics of each seed; an oracle's shots are "all"."""
    if method in seeds[0].methods:
        for k in seeds[0].methods[method].shots:
            yield str(k), [results.methods[method].shots[k] for results in seeds]
    else:
        yield "all", [results.oracles[method] for results in seeds]


def _mean_draws(seeds: Sequence[Metrics], metric: str) -> list[float]:
    """Return the mean over seeds for each draw."""
    means: list[float] = np.mean([metrics[metric].draws for metrics in seeds], axis=0).tolist()
    return means


def _differences(
    choice: Choice, settings: Mapping[str, Sequence[Member]], results: Mapping[str, _Seeds]
) -> Iterator[Difference]:
    """Yield how each setting of a choice differs from the default, for each method and number of shots."""
    for name in (name for name in choice.settings if name in results):
        setting = {key: _value(settings[name][0].config, key) for key in choice.keys}
        for method in choice.methods:
            pairs = zip(_by_shots(results[name], method), _by_shots(results[DEFAULT], method), strict=True)
            for (shots, seeds), (_, defaults) in pairs:
                metrics = {
                    key: Interval.paired(_mean_draws(seeds, key), _mean_draws(defaults, key)) for key in PAIRED_METRICS
                }
                of_seeds = [
                    Interval.paired(ours["novel_top1"].draws, theirs["novel_top1"].draws).mean
                    for ours, theirs in zip(seeds, defaults, strict=True)
                ]
                yield Difference(setting, method, shots, metrics, of_seeds)


def _best(choice: Choice, method: str, results: Mapping[str, _Seeds]) -> Best:
    """Return the setting with the highest harmonic mean over all numbers of shots. Settings whose difference from it,
    draw by draw, is within its interval are as good: the middle setting of these, in the file's order, is taken."""
    names = list(choice.settings)
    if all(name in results for name in names):  # else one of them is the default
        names.insert(0, DEFAULT)
    draws: dict[str, list[float]] = {}
    for name in names:
        by_shots = [
            _mean_draws(seeds, "harmonic") for _, seeds in _by_shots(results.get(name, results[DEFAULT]), method)
        ]
        draws[name] = np.mean(by_shots, axis=0).tolist()
    highest = max(draws.values(), key=sum)
    less = {name: Interval.paired(values, highest) for name, values in draws.items()}
    as_good = [name for name, difference in less.items() if abs(difference.mean) <= difference.half_width]
    taken = as_good[(len(as_good) - 1) // 2]
    return Best(choice.keys, method, taken, as_good, float(np.mean(draws[taken])))


def _commits(results: Results) -> list[str]:
    """Return the commits of the members' tables, and of older rows in them."""
    return [results.commit, *results.older.values()]


def _metrics_to_json(metrics: Metrics) -> dict[str, Any]:
    return {key: interval.to_json() for key, interval in metrics.items()}


def study_markdown(report: StudyReport) -> str:
    """Return a study as text: which choice matters most, a table for each method and number of shots with the largest
    change of novel top-1 first, the best settings, and where the numbers are from."""
    lines = [f"# Study {report.name}", "", _headline(report), "", f"Default: {_setting(report.default)}.", ""]
    for row in report.rows:
        differences = [d for d in report.differences if (d.method, d.shots) == (row.method, row.shots)]
        differences.sort(key=lambda d: -abs(d.metrics["novel_top1"].mean))
        lines += [f"## {_heading(row)}", "", *markdown_head(list(PAIRED_METRICS.values()), ["setting"])]
        lines.append(_table_line("default", row.metrics))
        lines += [_table_line(_setting(d.setting), d.metrics, "+") for d in differences] + [""]
    lines += ["## The best by H", "", "| choice | method | setting | H | as good |", "|---|---|---|---:|---|"]
    for best in report.best:
        others = ", ".join(f"`{name}`" for name in best.as_good if name != best.setting) or "–"
        keys = ", ".join(f"`{key}`" for key in best.keys)
        lines.append(f"| {keys} | {display_name(best.method)} | `{best.setting}` | {best.harmonic:.2f} | {others} |")
    return "\n".join([*lines, "", _origin(report), ""])


def _headline(report: StudyReport) -> str:
    if not report.differences:
        return "No setting differs from the default."
    parts = []
    for metric in ("novel_top1", "ausuc"):
        top = max(report.differences, key=lambda d: abs(d.metrics[metric].mean))
        default = next(row for row in report.rows if (row.method, row.shots) == (top.method, top.shots))
        parts.append(
            f"{PAIRED_METRICS[metric]} most is {_setting(top.setting)}: by {format_mean(top.metrics[metric], '+')} "
            f"points, from {default.metrics[metric].mean:.2f} ({_heading(top)})"
        )
    return f"What changes {parts[0]}; what changes {parts[1]}."


def _heading(row: DefaultRow | Difference) -> str:
    return f"{display_name(row.method)}, {row.shots} shot{'' if row.shots == '1' else 's'}"


def _setting(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={_text(value)}`" for key, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _table_line(name: str, metrics: Metrics, sign: str = "") -> str:
    return markdown_row([name, *(format_mean(metrics[key], sign) for key in PAIRED_METRICS)])


def _origin(report: StudyReport) -> str:
    """Say what the figures are, and what they were measured with."""
    results = report.results
    seeds = f", mean of {report.seeds} trainings each" if report.seeds > 1 else ""
    queries = f"{results.queries.base:,} and {results.queries.novel:,}" if results.queries else "no"
    return (
        "The default is in percent; the others are differences from it in points, draw by draw. Mean ± half-width of "
        f"the {results.interval}, {counted(results.draws, 'draw')}{seeds}. {results.classes.base} base and "
        f"{counted(results.classes.novel, 'pseudo-novel class')} are scored together, on {queries} images. "
        "H = harmonic mean of base and novel top-1. The best by H is over all shots; settings whose difference from "
        "it is within its interval are as good, and the one in the middle is named. "
        f"Split {results.split.name} ({results.split.hash}), {results.samples} {results.shards[:16]}, "
        f"commit {', '.join(report.commits)}, command: {results.command}"
    )
