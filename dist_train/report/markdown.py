"""``table.md``: the results of a run as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dist_train.errors import counted
from dist_train.fewshot.protocols.joint import harmonic_mean
from dist_train.fewshot.protocols.low_shot import PRIOR
from dist_train.fewshot.results import Interval, Metrics, Results
from dist_train.report import paper
from dist_train.report.comparison import LOW_SHOT_MEASURES, PAIRED_METRICS, paired_differences, published_low_shot
from dist_train.report.wording import (
    describe_backbone,
    describe_fewer_draws,
    describe_figures,
    describe_origin,
    display_name,
    footnote,
    marked_name,
)

_COLUMNS = ("base top-1/top-5", "novel top-1/top-5", "H")


def joint_markdown(results: Results) -> str:
    """Return table.md of joint scoring.

    A row per method comes first, then the paper's rows, where the numbers are from, the oracles, and the differences
    draw by draw. Without novel classes only base accuracy is left.
    """
    if results.base_only:
        return _base_markdown(results)
    lines = _backbone_lines(results)
    lines += markdown_head([f"{k}-shot {column}" for k in results.shots for column in _COLUMNS])
    for method, result in results.methods.items():
        cells = [cell for k in results.shots for cell in _accuracy_cells(result.shots[k], result.draws != 1)]
        lines.append(markdown_row([marked_name(method), *cells]))
    beside = [paper.row_beside(method, results.methods) for method in results.methods]
    for row in paper.TABLE_1.values():
        if row in beside:
            name = row.method if row.base_data == "100%" else f"{row.method}, {row.base_data} of base"
            cells = [cell for k in results.shots for cell in paper_cells(row.shots.get(k))]
            lines.append(markdown_row([f"{name} (paper, {paper.SETTING})", *cells]))
    notes = (describe_figures(results), footnote(results.methods), describe_fewer_draws(results),
             describe_origin(results))  # fmt: skip
    lines += ["", " ".join(filter(None, notes)), ""]
    return "\n".join([*lines, *_oracle_lines(results), *_difference_lines(results)])


def _base_markdown(results: Results) -> str:
    lines = _backbone_lines(results)
    lines += markdown_head([_COLUMNS[0]])
    for method, result in results.methods.items():
        lines.append(markdown_row([display_name(method), base_cell(result.shots[min(results.shots)])]))
    return "\n".join([*lines, "", f"{describe_figures(results)} {describe_origin(results)}", ""])


def base_cell(metrics: Metrics) -> str:
    """Format top-1 and top-5 of the base classes as "83.10 / 97.25", without an interval."""
    return " / ".join(format_mean(metrics[f"base_top{k}"], interval=False) for k in (1, 5))


def _backbone_lines(results: Results) -> list[str]:
    text = describe_backbone(results)
    return [text, ""] if text else []


def _oracle_lines(results: Results) -> list[str]:
    if not results.oracles:
        return []
    lines = ["With all training images of the novel classes as supports (the paper's Table 2):", ""]
    lines += markdown_head(_COLUMNS)
    for method, metrics in results.oracles.items():
        lines.append(markdown_row([display_name(method), *_accuracy_cells(metrics, interval=False)]))
    for method in results.oracles:
        if method in paper.TABLE_2:
            lines.append(markdown_row([f"{display_name(method)} (paper)", *paper_cells(paper.TABLE_2[method])]))
    return [*lines, ""]


def _difference_lines(results: Results) -> list[str]:
    differences = paired_differences(results)
    if not differences.rows:
        return []
    name = display_name(differences.reference)
    lines = [
        f"{name} in percent, and the paired differences of the other methods from it, draw by draw "
        "(points; 95% t-interval):",
        "",
    ]
    lines += markdown_head([f"{k}-shot {title}" for k in results.shots for title in PAIRED_METRICS.values()])
    lines.append(markdown_row([name, *map(format_mean, differences.own)]))
    for method, values in differences.rows.items():
        several = results.methods[method].draws != 1
        lines.append(markdown_row([display_name(method), *(format_mean(value, "+", several) for value in values)]))
    return [*lines, ""]


def episodes_markdown(results: Results) -> str:
    """Return table.md of episodes: a row per method, the published rows where the split is theirs, and the terms."""
    assert results.episodes is not None
    lines = _backbone_lines(results)
    lines += markdown_head([f"{k}-shot" for k in results.shots])
    for method, result in results.methods.items():
        cells = [format_mean(result.shots[k]["accuracy"]) for k in results.shots]
        lines.append(markdown_row([display_name(method), *cells]))
    if results.split.hash == paper.MINI_SPLIT:
        for name, figures in paper.MINI.items():
            cells = [f"{figures[k]:.2f}" if k in figures else "–" for k in results.shots]
            lines.append(markdown_row([f"{name} (published)", *cells]))
    queries = (
        "All other images of a class are queries, and so is one support image of each beyond 1 shot, as in the release."
        if results.protocol == "released"
        else f"Queries of each class: {results.episodes.queries}, none of them a support."
    )
    terms = (
        f"Percent; mean ± {results.interval}, {counted(results.draws, 'episode')} of {results.episodes.ways} of the "
        f"{counted(results.classes.novel, 'novel class')}, which alone compete. {queries} {describe_origin(results)}"
    )
    return "\n".join([*lines, "", terms, ""])


def low_shot_markdown(results: Results) -> str:
    """Return a section for table.md: low-shot ImageNet's measures by method, and the published ones where they apply.

    Published rows apply where the split is theirs.
    """
    lines = [
        "Low-shot ImageNet's measures, top-1 / top-5 (novel, joint: among all classes; novel-only: among novel "
        f"classes; prior: P(novel) = {PRIOR}):",
        "",
        *markdown_head([f"n = {k}" for k in results.shots], ("method", "measure")),
    ]
    for method, result in results.methods.items():
        for key, title in LOW_SHOT_MEASURES.items():
            values = [[result.shots[k][f"{key}_top{top}"] for top in (1, 5)] for k in results.shots]
            cells = [" / ".join(format_mean(value, interval=result.draws != 1) for value in pair) for pair in values]
            lines.append(markdown_row([display_name(method), title, *cells]))
    for row in published_low_shot(results):
        for title, top5 in row.top5.items():
            cells = [f"– / {top5[k]:.2f}" if k in top5 else "–" for k in results.shots]
            lines.append(markdown_row([f"{row.method} (published, {row.backbone})", title, *cells]))
    return "\n".join([*lines, ""])


def paper_cells(figures: paper.Figures | None) -> tuple[str, str, str]:
    """Return the paper's base, novel and H, which it does not print but follows from its figures; dashes for None."""
    if figures is None:
        return "–", "–", "–"
    base1, base5, novel1, novel5 = figures
    return f"{base1:.2f} / {base5:.2f}", f"{novel1:.2f} / {novel5:.2f}", f"{harmonic_mean(base1, novel1):.2f}"


def _accuracy_cells(metrics: Metrics, interval: bool = True) -> tuple[str, str, str]:
    base, novel = (
        " / ".join(format_mean(metrics[f"{role}_top{k}"], interval=interval) for k in (1, 5))
        for role in ("base", "novel")
    )
    return base, novel, format_mean(metrics["harmonic"], interval=interval)


def format_mean(value: Interval, sign: str = "", interval: bool = True) -> str:
    """Format as "12.34 ± 0.56"; with ``sign`` "+", as "+12.34 ± 0.56"."""
    return f"{value.mean:{sign}.2f}" + (f" ± {value.half_width:.2f}" if interval else "")


def markdown_head(columns: Sequence[str], names: Sequence[str] = ("method",)) -> list[str]:
    """Return the first two lines of a table whose columns are ``names``, of text, then ``columns``, of numbers."""
    return [markdown_row([*names, *columns]), markdown_row(["---"] * len(names) + ["---:"] * len(columns))]


def markdown_row(cells: Iterable[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
