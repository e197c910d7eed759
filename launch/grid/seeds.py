"""One table of several runs that differ in their seeds alone: intervals over backbones, predictors and draws.

Each run has a sweep over ``learn.seed``; its members are the predictors of its backbone. ``launch/grid/nested.py`` has
the model of the intervals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_train.config.checks import typed
from dist_train.errors import UserError, counted
from dist_train.fewshot.methods import LEARNED, METHODS
from dist_train.fewshot.results import MethodResult, Results
from dist_train.report.comparison import PAIRED_METRICS
from dist_train.report.markdown import markdown_head, markdown_row
from dist_train.report.wording import display_name
from launch.grid.nested import NestedMean
from launch.grid.report import read_results
from launch.grid.sweep import MADE_BY, check_folder, sweep_folder

_REFERENCES = ("phi2", "phi_plus")
"""Methods that the others are compared with, where the table has them."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Member:
    """A predictor: the folder of its run, its results, and the inputs that they were made from."""

    folder: Path
    results: Results
    inputs: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> _Member:
        """Read a member of a sweep.

        Raises:
            UserError: it has no results, they are damaged, or they are not of base and novel classes scored together.
        """
        try:
            results = read_results(folder)
            inputs = json.loads((folder / "evaluate" / "inputs.json").read_text())
            inputs = {**inputs, "evaluate.options": dict(results.options)}
            _check_rows(results)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder}: has no results ({error}); finish its evaluate, or remove the folder") from None
        if results.protocol != "joint" or results.base_only:
            raise UserError(f"{folder}: has no base and novel classes scored together; take evaluate.protocol=joint "
                            "and a split with novel classes")  # fmt: skip
        return cls(folder, results, inputs)


def seeds_table(runs: Sequence[Path]) -> str:
    """Return the table of runs that differ in their seeds: means, differences, and what each kind of seed contributes.

    Args:
        runs: folders of two or more runs, each with a sweep over ``learn.seed``.

    Raises:
        UserError: a run is not there, has too few members or none, or they differ in more than their seeds.
    """
    members = [_members(run) for run in runs]
    _check(runs, members)
    first = members[0][0].results
    values = {
        (method, shots, metric): _stack(members, method, shots, metric)
        for method in _methods(members) for shots in first.shots for metric in PAIRED_METRICS
    }  # fmt: skip
    return "\n".join([*_describe(members), *_tables(values, first.shots)])


def _members(run: Path) -> list[_Member]:
    """Return the predictors of a run's backbone, by their seeds."""
    check_folder(run)
    pattern = re.compile(r"learn\.seed=(\d+)")
    seeds = [(int(match[1]), path) for path in sweep_folder(run).glob("*") if (match := pattern.fullmatch(path.name))]
    if len(seeds) < 2:
        raise UserError(f"{run}: needs a sweep over two or more predictors, and has {len(seeds)}; make it "
                        f"by {MADE_BY}")  # fmt: skip
    return [_Member.read(path) for _, path in sorted(seeds)]


def _check(runs: Sequence[Path], members: Sequence[Sequence[_Member]]) -> None:
    """Refuse runs whose seeds are not nested: other inputs differ, seeds are the same, or numbers of members differ.

    Raises:
        UserError: names the run and what is wrong.
    """
    for run, of_run in zip(runs, members, strict=True):
        if len(of_run) != len(members[0]):
            raise UserError(
                f"{run}: has {counted(len(of_run), 'predictor')}, and {runs[0]} {len(members[0])}; make as many"
            )
    for of_run in members:
        _check_same(members[0][0], of_run[0], ("seed", "learn.seed", "evaluate.seed"))
        for member in of_run[1:]:
            _check_same(of_run[0], member, ("learn.seed",))
    for key, why in (("seed", "backbones of other seeds"), ("evaluate.seed", "other draws for each backbone")):
        seen: dict[Any, Path] = {}
        for run, of_run in zip(runs, members, strict=True):
            value = of_run[0].inputs[key]
            if value in seen:
                raise UserError(f"{run}: {key}={value}, as {seen[value]} has; the intervals need {why}: give each run "
                                f"a --{key} of its own")  # fmt: skip
            seen[value] = run


def _check_same(first: _Member, other: _Member, apart: Sequence[str]) -> None:
    """Refuse two members that differ in other inputs than ``apart``.

    Raises:
        UserError: names both, and the inputs that differ.
    """
    keys = sorted({*first.inputs, *other.inputs} - {*apart})
    changed = [key for key in keys if first.inputs.get(key) != other.inputs.get(key)]
    if changed:
        texts = (f"{key}: {typed(first.inputs.get(key))} and {typed(other.inputs.get(key))}" for key in changed[:4])
        raise UserError(f"{first.folder} and {other.folder} differ in more than seeds ({'; '.join(texts)}); make them "
                        "with the same options")  # fmt: skip


def _check_rows(results: Results) -> None:
    """Check that each row has all metrics at all numbers of shots, in the same draws.

    Raises:
        ValueError: names the row that has not.
    """
    for name, result in results.methods.items():
        cells = [result.shots.get(k, {}).get(metric) for k in results.shots for metric in PAIRED_METRICS]
        sizes = {np.asarray(cell.draws, np.float64).size if cell else None for cell in cells}
        if len(sizes) > 1 or None in sizes:
            raise ValueError(f"the row {name!r} is damaged")


def _methods(members: Sequence[Sequence[_Member]]) -> list[str]:
    """Return the methods that can be taken from each run: in all draws, of all its members or, where no predictor takes
    part in a method, of any."""
    names = dict.fromkeys(name for of_run in members for member in of_run for name in member.results.methods)
    return [name for name in names if all(_of_members(of_run, name) for of_run in members)]


def _of_members(of_run: Sequence[_Member], method: str) -> list[MethodResult]:
    """Return the method's results, one for each member of a run; empty if they are not complete.

    Without a predictor they are the same for all, so that those of a member stand for all.
    """
    complete = [
        member.results.methods[method] for member in of_run
        if method in member.results.methods and member.results.methods[method].draws == member.results.draws
    ]  # fmt: skip
    if len(complete) == len(of_run):
        return complete
    alone = method in METHODS and METHODS[method].learned(method) not in LEARNED
    return complete[:1] * len(of_run) if alone and all(other == complete[0] for other in complete) else []


def _stack(members: Sequence[Sequence[_Member]], method: str, shots: int, metric: str) -> Values:
    """Return a metric of a method, in percent: [backbones, predictors, draws]."""
    return np.array(
        [[result.shots[shots][metric].draws for result in _of_members(of_run, method)] for of_run in members]
    )


def _describe(members: Sequence[Sequence[_Member]]) -> list[str]:
    """Say what the figures are of."""
    first = members[0][0].results
    seeds = ", ".join(str(of_run[0].inputs["seed"]) for of_run in members)
    of_draws = ", ".join(str(of_run[0].inputs["evaluate.seed"]) for of_run in members)
    of_predictors = [", ".join(str(member.inputs["learn.seed"]) for member in of_run) for of_run in members]
    predictors = "; ".join(of_predictors if len({*of_predictors}) > 1 else of_predictors[:1])
    others = {name for of_run in members for member in of_run for name in member.results.methods} - {*_methods(members)}
    commits = sorted({commit for of_run in members for member in of_run
                      for commit in (member.results.commit, *member.results.older.values())})  # fmt: skip
    lines = [
        f"{counted(len(members), 'backbone')} (seed {seeds}), {counted(len(members[0]), 'predictor')} on each "
        f"(learn.seed {predictors}), "
        f"{counted(first.draws, 'draw')} of supports for each backbone (evaluate.seed {of_draws}). "
        f"{first.classes.base} base "
        f"and {counted(first.classes.novel, f'{first.split.holdout} class')} of split {first.split.name} "
        f"({first.split.hash[:12]}), "
        f"all scored together; shards {first.shards[:12]}; commit {', '.join(commits)}.",
        "",
        f"Percent; mean ± half-width of the 95% interval over backbones, predictors and draws: the t-interval of the "
        f"{len(members)} means of the backbones, with {counted(len(members) - 1, 'degree')} of freedom. "
        "Below each such table stands what a figure of a single draw varies by: the standard deviations of a "
        "backbone's seed / a predictor's seed / a draw, by the nested analysis of variance (Searle et al. 1992).",
        "",
    ]
    if others:
        lines += [f"Left out, as not all have them in all draws: {', '.join(map(display_name, sorted(others)))}.", ""]
    return lines


def _tables(values: Mapping[tuple[str, int, str], Values], shots: Sequence[int]) -> Iterator[str]:
    """Yield the lines of all tables: of the figures, and of the differences from each reference."""
    methods = list(dict.fromkeys(method for method, _, _ in values))
    cells = [(k, metric) for k in shots for metric in PAIRED_METRICS]
    yield from _two_tables(
        "Figures", {name: [NestedMean.of(values[name, *cell]) for cell in cells] for name in methods}, shots, ""
    )
    for reference in (name for name in _REFERENCES if name in methods and len(methods) > 1):
        differences = {
            name: [NestedMean.of(values[name, *cell] - values[reference, *cell]) for cell in cells]
            for name in methods if name != reference
        }  # fmt: skip
        yield from _two_tables(
            f"Differences from {display_name(reference)}, of the same predictors' seed and draw",
            differences,
            shots,
            "+",
        )


def _two_tables(title: str, rows: Mapping[str, Sequence[NestedMean]], shots: Sequence[int], sign: str) -> Iterator[str]:
    """Yield a table of means and intervals, and one of standard deviations."""
    columns = [f"{k}-shot {metric}" for k in shots for metric in PAIRED_METRICS.values()]
    yield from [f"{title}:", "", *markdown_head(columns)]
    for method, means in rows.items():
        yield markdown_row([display_name(method), *(f"{m.mean:{sign}.2f} ± {m.half_width:.2f}" for m in means)])
    yield from ["", f"{title}, standard deviations of backbone / predictor / draw:", "", *markdown_head(columns)]
    for method, means in rows.items():
        texts = (f"{m.backbone:.2f} / {m.predictor:.2f} / {m.draw:.2f}" for m in means)
        yield markdown_row([display_name(method), *texts])
    yield ""
