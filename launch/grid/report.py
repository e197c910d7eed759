"""The tables of grids: RUN/sweep/table.md, and what the choices of a study change, RUN/study/NAME.md and NAME.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.config import Config, to_dict
from dist_train.errors import UserError, command
from dist_train.fewshot.methods import NUMBERS
from dist_train.fewshot.protocols.joint import paired, summary
from dist_train.files import write_text
from dist_train.report import table
from dist_train.report.table import AGAINST, mean, name_of
from launch.grid.members import Member
from launch.grid.study import DEFAULT, Choice
from launch.grid.sweep import sweep_folder

_SWEPT_METRICS = {"base_top1": "base top-1", "novel_top1": "novel top-1", "harmonic": "H", "accuracy": "accuracy"}


def print_sweep_table(run: Path) -> int:
    """Print the table of a run's sweep; return 0."""
    print(sweep_table(run))
    return 0


def sweep_table(run: Path) -> str:
    """Return one table of all members of a run's sweeps, and write it to RUN/sweep/table.md.

    Raises:
        UserError: no member has results.
    """
    folder = sweep_folder(run)
    rows: list[tuple[list[str], dict[str, Any]]] = []
    missing = []
    for member in sorted(path for path in folder.glob("*") if path.is_dir()):
        try:
            results = json.loads((member / "evaluate" / "results.json").read_text())
        except (OSError, ValueError):
            missing.append(member.name)
            continue
        for method, by_shots in results["methods"].items():
            rows += [([member.name, name_of(method), shots], values) for shots, values in by_shots.items()]
    if not rows:
        raise UserError(f"{folder}: no member has results yet; how they are: {command('status', folder)}")
    metrics = [name for name in _SWEPT_METRICS if any(name in values for _, values in rows)]
    lines = table.head([_SWEPT_METRICS[name] for name in metrics], ["setting", "method", "shots"])
    lines += [table.line([*names, *(_sweep_cell(values.get(name)) for name in metrics)]) for names, values in rows]
    spread = "half-width of the 95% interval over draws or episodes (as released: one standard deviation)"
    lines += ["", f"Percent; mean ± {spread}."]
    if missing:
        lines.append(f"Without results: {', '.join(missing)}")
    text = "\n".join(lines) + "\n"
    write_text(folder / "table.md", text)
    return text


def _sweep_cell(value: Mapping[str, Any] | None) -> str:
    """Return a figure with its spread; a dash where the member's protocol has no such figure."""
    if value is None:
        return "–"
    return table.mean(value, half="ci95" if "ci95" in value else "std")


def write_study(path: Path, choices: Sequence[Choice], members: dict[str, list[Member]]) -> str:
    """Write ``path``.md and ``path``.json; returns the first.

    Args:
        members: as ``study.study_members`` makes them, all done.
    """
    results = {
        name: [json.loads((one.config.run_dir / "evaluate" / "results.json").read_text()) for one in some]
        for name, some in members.items()
    }
    default = members[DEFAULT][0].config
    one = results[DEFAULT][0]
    found = {
        "study": path.name,
        "default": {key: _value(default, key) for choice in choices for key in choice.keys},
        "values": [
            {"method": method, "shots": shots, **{metric: summary(_mean(values, metric)) for metric in AGAINST}}
            for method in dict.fromkeys(name for choice in choices for name in choice.methods)
            for shots, values in _by_shots(results[DEFAULT], method)
        ],
        "differences": list(_differences(choices, members, results)),
        "chosen": list(_chosen(choices, results)),
        "seeds": len(results[DEFAULT]),
        "draws": one["draws"],
        "interval": one["interval"],
        "classes": one["classes"],
        "queries": one["queries"],
        "split": one["split"],
        "shards": one["shards"],
        "commits": sorted({c for some in results.values() for each in some for c in _commits(each)}),
        "command": one["command"],
    }
    text = markdown(found)
    write_text(path.with_name(f"{path.name}.json"), json.dumps(found, indent=1) + "\n")
    write_text(path.with_name(f"{path.name}.md"), text)
    return text


def _value(config: Config, key: str) -> Any:
    found: Any = {**to_dict(config)}
    found["evaluate"]["options"] = {**NUMBERS, **config.evaluate.options}
    for part in key.split("."):
        found = found[part]
    return found


def _by_shots(seeds: Sequence[dict[str, Any]], method: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(shots, {metric: values} of each seed); an oracle's shots are "all"."""
    rows = [one["methods"].get(method) or {"all": one["oracles"][method]} for one in seeds]
    for shots in rows[0]:
        yield shots, [row[shots] for row in rows]


def _mean(seeds: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """Of each draw, the mean over seeds."""
    return [float(mean) for mean in np.mean([one[metric]["draws"] for one in seeds], axis=0)]


def _differences(
    choices: Sequence[Choice], members: dict[str, list[Member]], results: dict[str, list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Every setting less the default."""
    for choice in choices:
        for name in (name for name in choice.settings if name in results):
            config = members[name][0].config
            for method in choice.methods:
                ours, theirs = (_by_shots(results[which], method) for which in (name, DEFAULT))
                for (shots, seeds), (_, defaults) in zip(ours, theirs, strict=True):
                    yield {
                        "setting": {key: _value(config, key) for key in choice.keys},
                        "method": method,
                        "shots": shots,
                        **{m: paired(_mean(seeds, m), _mean(defaults, m)) for m in AGAINST},
                        "novel_top1_of_seeds": [
                            paired(a["novel_top1"]["draws"], b["novel_top1"]["draws"])["mean"]
                            for a, b in zip(seeds, defaults, strict=True)
                        ],
                    }


def _chosen(choices: Sequence[Choice], results: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Of each choice the setting with the highest harmonic mean, over all shots. Those whose difference from it,
    draw by draw, is within its interval are as good: of these the one in the middle, in the file's order."""
    for choice in choices:
        names = list(choice.settings)
        if all(name in results for name in names):
            names.insert(0, DEFAULT)
        for method in choice.methods:
            draws = {}
            for name in names:
                shots = [
                    _mean(seeds, "harmonic") for _, seeds in _by_shots(results.get(name, results[DEFAULT]), method)
                ]
                draws[name] = [float(mean) for mean in np.mean(shots, axis=0)]
            best = max(draws.values(), key=lambda values: sum(values))
            near = {name: paired(values, best) for name, values in draws.items()}
            equal = [name for name, less in near.items() if abs(less["mean"]) <= less["ci95"]]
            taken = equal[(len(equal) - 1) // 2]
            yield {"keys": list(choice.keys), "method": method, "setting": taken, "as_good": equal,
                   "harmonic": float(np.mean(draws[taken]))}  # fmt: skip


def _commits(results: dict[str, Any]) -> list[str]:
    """Of a member's table, and of rows that are older."""
    return [results["commit"], *results["older"].values()]


def markdown(found: dict[str, Any]) -> str:
    """The study as text: which choice matters most, a table for each method and number of shots with the largest
    change of novel top-1 first, the best settings, and where the numbers are from.

    Args:
        found: as in NAME.json; percent, and points for differences.
    """
    lines = [f"# Study {found['study']}", "", _headline(found), "", f"Default: {_setting(found['default'])}.", ""]
    for row in found["values"]:
        rows = [d for d in found["differences"] if (d["method"], d["shots"]) == (row["method"], row["shots"])]
        rows.sort(key=lambda d: -abs(d["novel_top1"]["mean"]))
        lines += [f"## {_where(row)}", "", f"| setting | {' | '.join(AGAINST.values())} |", "|---|---:|---:|---:|---:|"]
        lines.append(_row("default", row, ""))
        lines += [_row(_setting(d["setting"]), d, "+") for d in rows] + [""]
    lines += ["## The best by H", "", "| choice | method | setting | H | as good |", "|---|---|---|---:|---|"]
    for best in found["chosen"]:
        others = ", ".join(f"`{name}`" for name in best["as_good"] if name != best["setting"]) or "–"
        lines.append(f"| {', '.join(f'`{key}`' for key in best['keys'])} | {name_of(best['method'])} "
                     f"| `{best['setting']}` | {best['harmonic']:.2f} | {others} |")  # fmt: skip
    return "\n".join([*lines, "", _how(found), ""])


def _headline(found: dict[str, Any]) -> str:
    if not found["differences"]:
        return "No setting differs from the default."
    parts = []
    for metric in ("novel_top1", "ausuc"):
        top = max(found["differences"], key=lambda d: abs(d[metric]["mean"]))
        own = next(v for v in found["values"] if (v["method"], v["shots"]) == (top["method"], top["shots"]))
        parts.append(f"{AGAINST[metric]} most is {_setting(top['setting'])}: by {mean(top[metric], '+')} points, "
                     f"from {own[metric]['mean']:.2f} ({_where(top)})")  # fmt: skip
    return f"What changes {parts[0]}; what changes {parts[1]}."


def _where(row: dict[str, Any]) -> str:
    return f"{name_of(row['method'])}, {row['shots']} shot{'' if row['shots'] == '1' else 's'}"


def _setting(values: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={_text(value)}`" for key, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _row(name: str, values: dict[str, Any], sign: str) -> str:
    return f"| {name} | {' | '.join(mean(values[metric], sign) for metric in AGAINST)} |"


def _how(found: dict[str, Any]) -> str:
    classes, queries, split = found["classes"], found["queries"], found["split"]
    seeds = f", mean of {found['seeds']} trainings each" if found["seeds"] > 1 else ""
    return (
        "The default in percent; the others less the default in points, draw by draw. Mean ± half-width of the "
        f"{found['interval']}, {found['draws']} draws{seeds}. {classes['base']} base and {classes['novel']} "
        f"pseudo-novel classes are scored together, on {queries['base']:,} and {queries['novel']:,} images. "
        "H = harmonic mean of base and novel top-1. The best by H is over all shots; settings whose difference from "
        "it is within its interval are as good, and the one in the middle is named. "
        f"Split {split['name']} ({split['hash']}), shards {found['shards'][:16]}, "
        f"commit {', '.join(found['commits'])}, command: {found['command']}"
    )
