"""The results of a run as markdown, ``table.md``; and what the report's tables share with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dist_train.fewshot.methods import LABELS
from dist_train.fewshot.protocols.joint import harmonic_mean, paired
from dist_train.fewshot.protocols.low_shot import PRIOR
from dist_train.report import paper

AGAINST = {"base_top1": "base top-1", "novel_top1": "novel top-1", "harmonic": "H", "ausuc": "AUSUC"}
MEASURES = {
    "novel": "novel, joint",
    "novel_only": "novel-only",
    "base": "base, joint",
    "all": "all",
    "all_prior": "all with prior",
}
"""Low-shot ImageNet's measures (fewshot/protocols/low_shot.py) -> their titles."""


def name_of(method: str) -> str:
    return LABELS.get(method, method)


def compared(method: str) -> str:
    """The name of a row that stands beside the paper's; with a mark where ``footnote`` says what is not the same."""
    return name_of(method) + (" ¹" if method in paper.WHOLE_NETWORK else "")


def footnote(results: Mapping[str, Any]) -> str:
    """Say how the rows that ``compared`` marks differ from the paper's; nothing where there are none."""
    if not set(paper.WHOLE_NETWORK) & set(results["methods"]):
        return ""
    return "¹ Trains one layer on the frozen activations, where the paper's row trains the whole network."


def best_method(results: Mapping[str, Any]) -> str:
    """The one with the largest harmonic mean at the fewest shots."""
    k = str(min(results["shots"]))
    return max(results["methods"], key=lambda method: results["methods"][method][k]["harmonic"]["mean"])


def table_markdown(results: Mapping[str, Any]) -> str:
    """The table as markdown: one row a method, then the paper's rows, then the oracles, where the numbers are
    from, and the differences draw by draw.

    Args:
        results: as in ``results.json`` (see stages/evaluate.py); percent.
    """
    shots: list[int] = results["shots"]
    parts = ("base top-1/top-5", "novel top-1/top-5", "H")
    lines = head([f"{k}-shot {part}" for k in shots for part in parts])
    for method, by_shots in results["methods"].items():
        lines.append(line([compared(method), *(cell for k in shots for cell in _cells(by_shots[str(k)]))]))
    for row in paper.TABLE_1.values():
        if row.ours in results["methods"]:
            name = f"{_paper_name(row)} (paper, {paper.SETTING})"
            lines.append(line([name, *(cell for k in shots for cell in paper_cells(row.shots.get(k)))]))
    lines += ["", " ".join(filter(None, [how(results), footnote(results), where(results)])), ""]
    if results.get("oracles"):
        lines += ["Shown all training images of the novel classes (the paper's Table 2):", "", *head(list(parts))]
        for method, values in results["oracles"].items():
            lines.append(line([name_of(method), *_cells(values, interval=False)]))
        for method in (m for m in results["oracles"] if m in paper.TABLE_2):
            lines.append(line([f"{name_of(method)} (paper)", *paper_cells(paper.TABLE_2[method])]))
        lines.append("")
    rival, rows = against(results)
    if rows:
        lines += [f"{name_of(rival)}, and the others less it, draw by draw (points; 95% t-interval):", ""]
        lines += head([f"{k}-shot {title}" for k in shots for title in AGAINST.values()])
        own = [results["methods"][rival][str(k)][metric] for k in shots for metric in AGAINST]
        lines.append(line([name_of(rival), *map(mean, own)]))
        lines += [line([name_of(m), *(mean(v, "+") for v in values)]) for m, values in rows.items()] + [""]
    return "\n".join(lines)


def episodes_markdown(results: Mapping[str, Any]) -> str:
    """table.md of episodes: one row a method, the published ones where the split is theirs, and what was counted."""
    shots: list[int] = results["shots"]
    episodes, released = results["episodes"], results["protocol"] == "released"
    lines = head([f"{k}-shot" for k in shots])
    for method, by_shots in results["methods"].items():
        values = [by_shots[str(k)]["accuracy"] for k in shots]
        lines.append(line([name_of(method), *(mean(v, half="std" if released else "ci95") for v in values)]))
    if results["split"]["hash"] == paper.MINI_SPLIT:
        for name, figures in paper.MINI.items():
            cells = [f"{figures[k]:.2f}" if k in figures else "–" for k in shots]
            lines.append(line([f"{name} (published)", *cells]))
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
        f"{where(results)}",
        "",
    ])  # fmt: skip


def published(results: Mapping[str, Any]) -> tuple[paper.LowShotRow, ...]:
    """The rows that results can be compared with: none where the split, or its half, is another."""
    split = results["split"]
    theirs = (split["hash"], split.get("holdout")) == (paper.LOW_SHOT_SPLIT, "novel")
    return tuple(paper.LOW_SHOT) if theirs else ()


def low_shot_markdown(results: Mapping[str, Any]) -> str:
    """A section for table.md: the measures by method, beside the published ones where the split is theirs."""
    shots: list[int] = results["shots"]
    lines = [
        "Low-shot ImageNet's measures, top-1 / top-5 (novel, joint: among all classes; novel-only: among novel "
        f"classes; prior: P(novel) = {PRIOR}):",
        "",
        *head([f"n = {k}" for k in shots], ("method", "measure")),
    ]
    for method, by_shots in results["methods"].items():
        for key, title in MEASURES.items():
            values = [[by_shots[str(k)][f"{key}_top{top}"] for top in (1, 5)] for k in shots]
            cells = [" / ".join(mean(v) for v in pair) for pair in values]
            lines.append(line([name_of(method), title, *cells]))
    for row in published(results):
        for title, values in row.top5.items():
            cells = [f"– / {values[k]:.2f}" if k in values else "–" for k in shots]
            lines.append(line([f"{row.method} (published, {row.backbone})", title, *cells]))
    return "\n".join([*lines, ""])


def against(results: Mapping[str, Any]) -> tuple[str, dict[str, list[dict[str, float]]]]:
    """The method that the others are compared with (phi2, or else the last), and for each of the others the
    paired differences from it: of every number of shots the metrics of ``AGAINST``."""
    methods = results["methods"]
    rival = "phi2" if "phi2" in methods else list(methods)[-1]
    rows = {}
    for method in (m for m in methods if m != rival):
        pairs = [(methods[method][str(k)][metric], methods[rival][str(k)][metric])
                 for k in results["shots"] for metric in AGAINST]  # fmt: skip
        rows[method] = [paired(ours["draws"], theirs["draws"]) for ours, theirs in pairs]
    return rival, rows


def paper_cells(figures: paper.Figures | None) -> tuple[str, str, str]:
    """Base, novel, and H, which the paper does not print but follows from its figures; dashes for None."""
    if figures is None:
        return "–", "–", "–"
    base1, base5, novel1, novel5 = figures
    return f"{base1:.2f} / {base5:.2f}", f"{novel1:.2f} / {novel5:.2f}", f"{harmonic_mean(base1, novel1):.2f}"


def how(results: Mapping[str, Any]) -> str:
    """What was measured, in sentences."""
    classes, queries = results["classes"], results["queries"]
    novel = results["split"].get("holdout", "novel")  # or pseudo-novel
    return (
        f"Percent; mean ± half-width of the {results['interval']}, {results['draws']} draws. "
        f"All {classes['base'] + classes['novel']} classes ({classes['base']} base, {classes['novel']} {novel}) "
        f"are scored together, on {queries['base']:,} base and {queries['novel']:,} {novel} images. "
        "H = harmonic mean of base and novel top-1. "
        "The paper's rows are of other classes: they show what to expect, not a target."
    )


def _paper_name(row: paper.PaperRow) -> str:
    return row.method if row.base_data == "100%" else f"{row.method}, {row.base_data} of base"


def where(results: Mapping[str, Any]) -> str:
    """The same numbers can be made again from this, and the run's config.yaml."""
    split, options = results["split"], results.get("options") or {}
    chosen = [f"evaluate.rule={results['rule']}"] if results.get("rule", "max") != "max" else []
    chosen += [f"{name}={value:g}" for name, value in options.items()]
    older = [f"{name_of(method)} of {commit}" for method, commit in (results.get("older") or {}).items()]
    parts = [f"Split {split['name']} ({split['hash']})", f"shards {results['shards']}", *chosen]
    parts += [f"commit {results['commit']}" + (f" ({', '.join(older)})" if older else "")]
    return f"{', '.join(parts)}, command: {results['command']}"


def _cells(values: Mapping[str, Any], interval: bool = True) -> tuple[str, str, str]:
    base, novel = (
        " / ".join(mean(values[f"{role}_top{k}"], interval=interval) for k in (1, 5)) for role in ("base", "novel")
    )
    return base, novel, mean(values["harmonic"], interval=interval)


def mean(value: Mapping[str, Any], sign: str = "", interval: bool = True, half: str = "ci95") -> str:
    """As "12.34 ± 0.56" of ``protocol.summary``; ``half`` names what stands behind the sign."""
    return f"{value['mean']:{sign}.2f}" + (f" ± {value[half]:.2f}" if interval else "")


def head(columns: Sequence[str], names: Sequence[str] = ("method",)) -> list[str]:
    """The first two lines of a table: columns of text, then of numbers."""
    return [line([*names, *columns]), line(["---"] * len(names) + ["---:"] * len(columns))]


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
