"""The report's tables of accuracy, ready for ``templates/tables.html``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dist_train.fewshot.results import Interval, Metrics, Results
from dist_train.report import paper
from dist_train.report.comparison import (
    LOW_SHOT_MEASURES,
    PAIRED_METRICS,
    Differences,
    best_method,
    published_low_shot,
)
from dist_train.report.markdown import base_cell, paper_cells
from dist_train.report.wording import display_name, marked_name


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and a note in small print below it."""

    text: str
    note: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """A row; ``kind`` is its CSS class: "best", "paper", "published", or "" for any other."""

    name: str
    cells: list[Cell]
    kind: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose ``columns`` are repeated under each of ``spans``; a single "" stands for no spans."""

    spans: list[str]
    columns: list[Cell]
    rows: list[Row]


_COLUMNS = [Cell("base", "top-1 / top-5"), Cell("novel", "top-1 / top-5"), Cell("H")]


def accuracy_table(results: Results) -> Table:
    """Return a row per method, and below it the paper's row that is comparable with it; without novel classes, base
    accuracy only."""
    if results.base_only:
        return _base_table(results)
    best = {k: best_method(results, k) for k in results.shots}
    rows = []
    for method, result in results.methods.items():
        cells = []
        for k in results.shots:
            *accuracies, harmonic = _accuracy_cells(result.shots[k], result.draws != 1)
            cells += [*accuracies, replace(harmonic, bold=best[k] == method)]
        rows.append(Row(marked_name(method), cells, "best" if method == best_method(results) else ""))
        if row := paper.row_beside(method, results.methods):
            figures = (row.shots.get(k) for k in results.shots)
            rows.append(Row("paper", _paper_cells(figures), "paper"))
    return Table([f"{k}-shot" for k in results.shots], _COLUMNS, rows)


def _base_table(results: Results) -> Table:
    best, k = best_method(results), min(results.shots)
    rows = [
        Row(display_name(method), [Cell(base_cell(result.shots[k]))], "best" if method == best else "")
        for method, result in results.methods.items()
    ]
    return Table([""], _COLUMNS[:1], rows)


def paper_table() -> Table:
    """Return the whole of the paper's Table 1."""
    rows = [
        Row(row.method, _paper_cells(row.shots.values()), note=f"{row.base_data} of the base data")
        for row in paper.TABLE_1.values()
    ]
    return Table(["1-shot", "2-shot", "3-shot"], _COLUMNS, rows)


def oracle_table(results: Results) -> Table:
    """Return a row per oracle, and below it the paper's."""
    rows = []
    for method, metrics in results.oracles.items():
        rows.append(Row(display_name(method), _accuracy_cells(metrics, interval=False)))
        if method in paper.TABLE_2:
            rows.append(Row("paper", _paper_cells([paper.TABLE_2[method]]), "paper"))
    return Table([""], _COLUMNS, rows)


def low_shot_table(results: Results) -> Table:
    """Return low-shot ImageNet's measures, top-5, and the published ones where the split is theirs."""
    rows = []
    for method, result in results.methods.items():
        several = result.draws != 1
        cells = [_cell(result.shots[k][f"{key}_top5"], interval=several) for k in results.shots
                 for key in LOW_SHOT_MEASURES]  # fmt: skip
        rows.append(Row(display_name(method), cells))
    for row in published_low_shot(results):
        figures = [row.top5.get(title, {}).get(k) for k in results.shots for title in LOW_SHOT_MEASURES.values()]
        cells = [Cell("–" if figure is None else f"{figure:.2f}") for figure in figures]
        rows.append(Row(row.method, cells, "published", f"published, {row.backbone}"))
    return Table([f"n = {k}" for k in results.shots], [Cell(title) for title in LOW_SHOT_MEASURES.values()], rows)


def difference_table(results: Results, differences: Differences) -> Table:
    """Return the values of the reference method, then the paired differences of the others from it."""
    rows = [Row(display_name(differences.reference), [_cell(value) for value in differences.own])]
    for method, values in differences.rows.items():
        several = results.methods[method].draws != 1
        rows.append(Row(display_name(method), [_cell(value, sign="+", interval=several) for value in values]))
    columns = [Cell(name, note) for name, _, note in (title.partition(" ") for title in PAIRED_METRICS.values())]
    return Table([f"{k}-shot" for k in results.shots], columns, rows)


def _accuracy_cells(metrics: Metrics, interval: bool = True) -> list[Cell]:
    names = (("base_top1", "base_top5"), ("novel_top1", "novel_top5"), ("harmonic",))
    return [_cell(*(metrics[name] for name in group), interval=interval) for group in names]


def _cell(*values: Interval, sign: str = "", interval: bool = True) -> Cell:
    means = " / ".join(f"{value.mean:{sign}.2f}" for value in values)
    halves = " / ".join(f"{value.half_width:.2f}" for value in values)
    return Cell(means, f"± {halves}" if interval else "")


def _paper_cells(figures: Iterable[paper.Figures | None]) -> list[Cell]:
    return [Cell(text) for entry in figures for text in paper_cells(entry)]
