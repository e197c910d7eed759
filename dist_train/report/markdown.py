"""The results of a run as markdown, ``table.md``; and what the report's tables share with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dist_train.fewshot.protocols.joint import harmonic_mean
from dist_train.fewshot.protocols.low_shot import PRIOR
from dist_train.report import paper
from dist_train.report.comparison import LOW_SHOT_MEASURES, PAIRED_METRICS, paired_differences, published_low_shot
from dist_train.report.wording import describe_figures, describe_origin, display_name, footnote, marked_name


def table_markdown(results: Mapping[str, Any]) -> str:
    """The table as markdown: one row a method, then the paper's rows, then the oracles, where the numbers are
    from, and the differences draw by draw.

    Args:
        results: as in ``results.json`` (see stages/evaluate.py); percent.
    """
    shots: list[int] = results["shots"]
    parts = ("base top-1/top-5", "novel top-1/top-5", "H")
    lines = markdown_head([f"{k}-shot {part}" for k in shots for part in parts])
    for method, by_shots in results["methods"].items():
        lines.append(markdown_row([marked_name(method), *(cell for k in shots for cell in _cells(by_shots[str(k)]))]))
    for row in paper.TABLE_1.values():
        if row.ours in results["methods"]:
            name = f"{_paper_name(row)} (paper, {paper.SETTING})"
            lines.append(markdown_row([name, *(cell for k in shots for cell in paper_cells(row.shots.get(k)))]))
    lines += ["", " ".join(filter(None, [describe_figures(results), footnote(results), describe_origin(results)])), ""]
    if results.get("oracles"):
        lines += [
            "Shown all training images of the novel classes (the paper's Table 2):",
            "",
            *markdown_head(list(parts)),
        ]
        for method, values in results["oracles"].items():
            lines.append(markdown_row([display_name(method), *_cells(values, interval=False)]))
        for method in (m for m in results["oracles"] if m in paper.TABLE_2):
            lines.append(markdown_row([f"{display_name(method)} (paper)", *paper_cells(paper.TABLE_2[method])]))
        lines.append("")
    rival, rows = paired_differences(results)
    if rows:
        lines += [f"{display_name(rival)}, and the others less it, draw by draw (points; 95% t-interval):", ""]
        lines += markdown_head([f"{k}-shot {title}" for k in shots for title in PAIRED_METRICS.values()])
        own = [results["methods"][rival][str(k)][metric] for k in shots for metric in PAIRED_METRICS]
        lines.append(markdown_row([display_name(rival), *map(format_mean, own)]))
        lines += [
            markdown_row([display_name(m), *(format_mean(v, "+") for v in values)]) for m, values in rows.items()
        ] + [""]
    return "\n".join(lines)


def episodes_markdown(results: Mapping[str, Any]) -> str:
    """table.md of episodes: one row a method, the published ones where the split is theirs, and what was counted."""
    shots: list[int] = results["shots"]
    episodes, released = results["episodes"], results["protocol"] == "released"
    lines = markdown_head([f"{k}-shot" for k in shots])
    for method, by_shots in results["methods"].items():
        values = [by_shots[str(k)]["accuracy"] for k in shots]
        lines.append(
            markdown_row([display_name(method), *(format_mean(v, half="std" if released else "ci95") for v in values)])
        )
    if results["split"]["hash"] == paper.MINI_SPLIT:
        for name, figures in paper.MINI.items():
            cells = [f"{figures[k]:.2f}" if k in figures else "–" for k in shots]
            lines.append(markdown_row([f"{name} (published)", *cells]))
    asked = (
        "All other images of a class are queries, and so is one support image of each beyond 1 shot, as in the release."
        if released
        else f"{episodes['queries']} queries a class, none of them a support."
    )
    return "\n".join([
        *lines,
        "",
        f"Percent; mean ± {results['interval']}, {results['draws']} episodes of {episodes['ways']} of the "
        f"{results['classes']['novel']} novel classes, which alone compete. {asked} "
        f"{describe_origin(results)}",
        "",
    ])  # fmt: skip


def low_shot_markdown(results: Mapping[str, Any]) -> str:
    """A section for table.md: the measures by method, beside the published ones where the split is theirs."""
    shots: list[int] = results["shots"]
    lines = [
        "Low-shot ImageNet's measures, top-1 / top-5 (novel, joint: among all classes; novel-only: among novel "
        f"classes; prior: P(novel) = {PRIOR}):",
        "",
        *markdown_head([f"n = {k}" for k in shots], ("method", "measure")),
    ]
    for method, by_shots in results["methods"].items():
        for key, title in LOW_SHOT_MEASURES.items():
            values = [[by_shots[str(k)][f"{key}_top{top}"] for top in (1, 5)] for k in shots]
            cells = [" / ".join(format_mean(v) for v in pair) for pair in values]
            lines.append(markdown_row([display_name(method), title, *cells]))
    for row in published_low_shot(results):
        for title, values in row.top5.items():
            cells = [f"– / {values[k]:.2f}" if k in values else "–" for k in shots]
            lines.append(markdown_row([f"{row.method} (published, {row.backbone})", title, *cells]))
    return "\n".join([*lines, ""])


def paper_cells(figures: paper.Figures | None) -> tuple[str, str, str]:
    """Base, novel, and H, which the paper does not print but follows from its figures; dashes for None."""
    if figures is None:
        return "–", "–", "–"
    base1, base5, novel1, novel5 = figures
    return f"{base1:.2f} / {base5:.2f}", f"{novel1:.2f} / {novel5:.2f}", f"{harmonic_mean(base1, novel1):.2f}"


def _paper_name(row: paper.PaperRow) -> str:
    return row.method if row.base_data == "100%" else f"{row.method}, {row.base_data} of base"


def _cells(values: Mapping[str, Any], interval: bool = True) -> tuple[str, str, str]:
    base, novel = (
        " / ".join(format_mean(values[f"{role}_top{k}"], interval=interval) for k in (1, 5))
        for role in ("base", "novel")
    )
    return base, novel, format_mean(values["harmonic"], interval=interval)


def format_mean(value: Mapping[str, Any], sign: str = "", interval: bool = True, half: str = "ci95") -> str:
    """As "12.34 ± 0.56" of ``protocol.summary``; ``half`` names what stands behind the sign."""
    return f"{value['mean']:{sign}.2f}" + (f" ± {value[half]:.2f}" if interval else "")


def markdown_head(columns: Sequence[str], names: Sequence[str] = ("method",)) -> list[str]:
    """The first two lines of a table: columns of text, then of numbers."""
    return [markdown_row([*names, *columns]), markdown_row(["---"] * len(names) + ["---:"] * len(columns))]


def markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
