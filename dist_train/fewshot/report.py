"""The results of a run for people: ``table.md``, and ``report.html`` that needs nothing beside itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from dist_train.fewshot import chart, paper
from dist_train.fewshot.chart import Series, line_chart
from dist_train.fewshot.methods import LABELS
from dist_train.fewshot.protocol import harmonic_mean, paired

PAPER_SETTING = "ImageNet 900/100, one draw"


def name_of(method: str) -> str:
    return LABELS.get(method, method)


# ---- table.md


def table_markdown(results: Mapping[str, Any]) -> str:
    """The table as markdown: one row a method, then the paper's rows, then where the numbers are from.

    Args:
        results: as in ``results.json`` (see stages/evaluate.py); percent.
    """
    shots: list[int] = results["shots"]
    groups = [f"{k}-shot {part}" for k in shots for part in ("base top-1/top-5", "novel top-1/top-5", "H")]
    lines = [_line(["method", *groups]), _line(["---"] + ["---:"] * len(groups))]
    for method, by_shots in results["methods"].items():
        cells = []
        for k in shots:
            v = by_shots[str(k)]
            cells += [
                _pair(v["base_top1"], v["base_top5"]),
                _pair(v["novel_top1"], v["novel_top5"]),
                _mean(v["harmonic"]),
            ]
        lines.append(_line([name_of(method), *cells]))
    for row in paper.COMPARED:
        cells = []
        for k in shots:
            cells += _paper_cells(row, k)
        lines.append(_line([f"{row.method} (paper, {PAPER_SETTING})", *cells]))
    lines += ["", f"{_how(results)} {_where(results)}", ""]
    rival, rows = against(results)
    if rows:
        heads = [f"{k}-shot {title}" for k in shots for title in AGAINST.values()]
        lines += [f"Less {name_of(rival)}, draw by draw (points; 95% t-interval of the difference):", ""]
        lines += [_line(["method", *heads]), _line(["---"] + ["---:"] * len(heads))]
        lines += [_line([name_of(m), *(_mean(v, "+") for v in values)]) for m, values in rows.items()] + [""]
    return "\n".join(lines)


AGAINST = {"base_top1": "base top-1", "novel_top1": "novel top-1", "harmonic": "H", "ausuc": "AUSUC"}


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


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _mean(value: Mapping[str, Any], sign: str = "") -> str:
    return f"{value['mean']:{sign}.2f} ± {value['ci95']:.2f}"


def _pair(top1: Mapping[str, Any], top5: Mapping[str, Any]) -> str:
    return f"{_mean(top1)} / {_mean(top5)}"


def _paper_cells(row: paper.PaperRow, shots: int) -> tuple[str, str, str]:
    """Base, novel, and H, which the paper does not print but follows from its figures."""
    if shots not in row.shots:
        return "–", "–", "–"
    base1, base5, novel1, novel5 = row.shots[shots]
    return f"{base1:.2f} / {base5:.2f}", f"{novel1:.2f} / {novel5:.2f}", f"{harmonic_mean(base1, novel1):.2f}"


def _how(results: Mapping[str, Any]) -> str:
    classes, queries = results["classes"], results["queries"]
    return (
        f"Percent; mean ± half-width of the {results['interval']}, {results['draws']} draws. "
        f"All {classes['base'] + classes['novel']} classes ({classes['base']} base, {classes['novel']} novel) "
        f"are scored together, on {queries['base']:,} base and {queries['novel']:,} novel images. "
        "H = harmonic mean of base and novel top-1. "
        "The paper's rows are of other classes: they show what to expect, not a target."
    )


def _where(results: Mapping[str, Any]) -> str:
    split = results["split"]
    return (
        f"Split {split['name']} ({split['hash']}), shards {results['shards']}, commit {results['commit']}, "
        f"command: {results['command']}"
    )


# ---- report.html


def report_html(results: Mapping[str, Any], curves: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """One HTML page: headline, table, accuracy against shots, training curves, provenance.

    Args:
        results: as for ``table_markdown``.
        curves: {"pretrain": rows, "learn": {method: rows}}, rows of metrics.jsonl; any may be missing.
        provenance: values may be mappings; shown as they are.
    """
    training, old_and_new = _training(curves, results), _old_and_new(results)
    note = f"<p class='note'>{escape(_how(results))}</p>"
    title = f"Few-shot accuracy: {escape(results['split']['name'])}"
    sections = [
        _headline(results),
        f"<section><h2>Accuracy</h2>{_table(results)}{note}{_paper_table()}</section>",
        _against(results),
        f"<section><h2>More images a class</h2><div class='plots'>{_against_shots(results)}</div></section>",
        f"<section><h2>Old classes and new</h2><div class='plots'>{old_and_new}</div></section>" if old_and_new else "",
        f"<section><h2>Training</h2><div class='plots'>{training}</div></section>" if training else "",
        f"<section><h2>Where the numbers are from</h2>{_provenance(results, provenance)}</section>",
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}{chart.STYLE}</style></head>\n"
        "<body><main>\n" + "\n".join(filter(None, sections)) + "\n</main></body></html>\n"
    )


STYLE = """
:root { color-scheme:light dark; --page:#fff; --text:#1c2024; --soft:#5b636d; --line:#dfe3e8; --tint:#f5f7f9; }
@media (prefers-color-scheme:dark) {
 :root { --page:#14171a; --text:#e6e9ec; --soft:#a0a8b2; --line:#30363d; --tint:#1d2125; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--page); color:var(--text); font:16px/1.5 system-ui,"Segoe UI",Roboto,sans-serif; }
main { max-width:70rem; margin:0 auto; padding:1.5rem 1rem 4rem; }
h1 { font-size:clamp(1.4rem,1rem + 2vw,2rem); line-height:1.25; margin:.5rem 0; max-width:46rem; text-wrap:balance; }
h2 { font-size:1.15rem; margin:2.5rem 0 .75rem; }
p { max-width:46rem; margin:.5rem 0; } .lead { color:var(--soft); }
.note, details { font-size:.85rem; color:var(--soft); } summary { cursor:pointer; padding:.4rem 0; }
.wide { overflow-x:auto; border:1px solid var(--line); border-radius:.5rem; }
table { border-collapse:collapse; font-size:.85rem; font-variant-numeric:tabular-nums; width:100%; color:var(--text); }
th, td { padding:.45rem .6rem; text-align:right; white-space:nowrap; border-top:1px solid var(--line); }
thead tr:first-child th { border-top:0; } thead th { background:var(--tint); font-weight:600; }
th:first-child { text-align:left; position:sticky; left:0; background:var(--page); }
thead th:first-child { background:var(--tint); } .group { border-left:1px solid var(--line); }
thead .span { text-align:center; }
small { display:block; color:var(--soft); font-size:.9em; font-weight:400; }
tr.paper th, tr.paper td { color:var(--soft); font-weight:400; }
tr.first th, tr.first td { border-top:2px solid var(--soft); } tr.first td { text-align:left; }
.plots { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr)); gap:1.5rem 2rem; }
dl { display:grid; grid-template-columns:max-content 1fr; gap:.3rem 1.2rem; margin:0; font-size:.9rem; }
dt { color:var(--soft); }
dd { margin:0; overflow-wrap:anywhere; font-family:ui-monospace,Menlo,Consolas,monospace; font-size:.95em; }
@media (max-width:40rem) {
 dl { grid-template-columns:1fr; gap:0; } dd { margin-bottom:.6rem; }
 th:first-child { white-space:normal; min-width:6.5rem; } }
"""


def _headline(results: Mapping[str, Any]) -> str:
    """The best method at the fewest shots by H, in words, and the best baseline beside it."""
    k = min(results["shots"])
    at = {method: by_shots[str(k)] for method, by_shots in results["methods"].items()}
    best = max(at, key=lambda m: at[m]["harmonic"]["mean"])
    novel, base, classes = at[best]["novel_top1"], at[best]["base_top1"], results["classes"]
    images = "one image" if k == 1 else f"{k} images"
    title = (
        f"{name_of(best)} names {novel['mean']:.1f}% of images of {classes['novel']} new classes "
        f"after seeing {images} of each"
    )
    text = (
        f"All {classes['base'] + classes['novel']} classes are candidates; ± {novel['ci95']:.1f} points over "
        f"{results['draws']} draws. On the {classes['base']} base classes it is right for {base['mean']:.1f}%."
    )
    others = {m: v for m, v in at.items() if m in ("nn", "mean") and m != best}
    if others:
        rival = max(others, key=lambda m: others[m]["harmonic"]["mean"])
        found = others[rival]
        text += (
            f" The best baseline, {name_of(rival)}, reaches {found['novel_top1']['mean']:.1f}% on the new and "
            f"{found['base_top1']['mean']:.1f}% on the base classes."
        )
    return f"<header><h1>{escape(title)}</h1><p class='lead'>{escape(text)}</p></header>"


def _table(results: Mapping[str, Any]) -> str:
    shots: list[int] = results["shots"]
    methods = results["methods"]
    best = {k: max(methods, key=lambda m: methods[m][str(k)]["harmonic"]["mean"]) for k in shots}
    rows = []
    for method, by_shots in methods.items():
        cells = []
        for k in shots:
            v = by_shots[str(k)]
            cells += [_td(v["base_top1"], v["base_top5"]), _td(v["novel_top1"], v["novel_top5"]), _td(v["harmonic"])]
            if best[k] == method:
                cells[-1] = cells[-1].replace("<td>", "<td><b>").replace("<small>", "</b><small>")
        rows.append(_tr(name_of(method), cells))
    rows.append(
        f"<tr class='paper first'><th>Paper</th><td colspan='{3 * len(shots)}'>{escape(PAPER_SETTING)}</td></tr>"
    )
    for row in paper.COMPARED:
        rows.append(_tr(row.method, [f"<td>{cell}</td>" for k in shots for cell in _paper_cells(row, k)], "paper"))
    return _grid(shots, rows)


def _against(results: Mapping[str, Any]) -> str:
    """The paired differences as a section."""
    rival, rows = against(results)
    if not rows:
        return ""
    heads = [f"<th>{title}</th>" for title in AGAINST.values()]
    lines = [
        _tr(name_of(method), [_td(value, sign="+") for value in values], group=len(heads))
        for method, values in rows.items()
    ]
    return (
        f"<section><h2>Less {escape(name_of(rival))}, draw by draw</h2>{_grid(results['shots'], lines, heads)}"
        f"<p class='note'>Points, with the 95% t-interval of the difference: supports are the same for all. {AUSUC}</p>"
        "</section>"
    )


AUSUC = (
    "AUSUC = area under the curve of base against novel top-1 as a number is added to all novel scores "
    "(Chao et al. 2016), in percent: it does not depend on how a method balances old and new."
)


_TOPS = "<small>top-1 / top-5</small>"
_HEADS = [f"<th>base{_TOPS}</th>", f"<th>novel{_TOPS}</th>", "<th>H</th>"]


def _grid(shots: list[int], rows: list[str], heads: list[str] = _HEADS) -> str:
    """A table with the columns ``heads`` for each number of shots."""
    spans = "".join(f"<th colspan='{len(heads)}' class='group span'>{k}-shot</th>" for k in shots)
    columns = _grouped(heads * len(shots), len(heads))
    return (
        f"<div class='wide'><table><thead><tr><th>Method</th>{spans}</tr><tr><th></th>{columns}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _grouped(cells: list[str], group: int) -> str:
    """Marks the first cell of each group."""
    return "".join(c if n % group else re.sub("^<(t[hd])", r"<\1 class='group'", c) for n, c in enumerate(cells))


def _tr(name: str, cells: list[str], kind: str = "", note: str = "", group: int = len(_HEADS)) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<tr class='{kind}'><th>{escape(name)}{small}</th>{_grouped(cells, group)}</tr>"


def _td(*values: Mapping[str, Any], sign: str = "") -> str:
    means = " / ".join(f"{v['mean']:{sign}.2f}" for v in values)
    halves = " / ".join(f"{v['ci95']:.2f}" for v in values)
    return f"<td>{means}<small>± {halves}</small></td>"


def _paper_table() -> str:
    rows = [
        _tr(
            row.method,
            [f"<td>{cell}</td>" for k in row.shots for cell in _paper_cells(row, k)],
            "",
            f"{row.base_data} of the base data",
        )
        for row in paper.TABLE_1
    ]
    return (
        f"<details><summary>All of the paper's table</summary>{_grid([1, 2, 3], rows)}"
        f"<p>{escape(paper.SOURCE)}. H follows from its figures.</p></details>"
    )


def _colour(method: str, results: Mapping[str, Any]) -> int:
    """By the method's row, so that no two of a chart are alike while there are colours."""
    return list(results["methods"]).index(method) % chart.COLOURS if method in results["methods"] else 0


def _against_shots(results: Mapping[str, Any]) -> str:
    shots: list[int] = sorted(results["shots"])
    plots = []
    for metric, title in (
        ("novel_top1", "Novel top-1 (%)"),
        ("base_top1", "Base top-1 (%)"),
        ("harmonic", "Harmonic mean (%)"),
        ("ausuc", "Area under the seen-unseen curve (%)"),
    ):
        series = []
        for method, by_shots in results["methods"].items():
            values = [by_shots[str(k)][metric] for k in shots]
            points = tuple((float(k), v["mean"]) for k, v in zip(shots, values, strict=True))
            series.append(Series(name_of(method), _colour(method, results), points, tuple(v["ci95"] for v in values)))
        plots.append(line_chart(title, "images a class", series, [float(k) for k in shots]))
    return "".join(plots)


def _old_and_new(results: Mapping[str, Any]) -> str:
    """At the fewest shots: base against novel accuracy, and what the base classes lose as novel ones come."""
    k = str(min(results["shots"]))
    mean = {method: by_shots[k] for method, by_shots in (results.get("curves") or {}).items()}
    plots = []
    for curve, title, x_label in (
        ("seen_unseen", f"{k}-shot: base top-1 (%) as novel scores are raised", "novel top-1 (%)"),
        ("forgetting", f"{k}-shot: base top-1 (%) as novel classes are added", "novel classes"),
    ):
        series = []
        for method, curves in mean.items():
            values = curves[curve]
            if curve == "seen_unseen":  # which ends where no offset gets further
                values = values[: 1 + max((n for n, y in enumerate(values) if y), default=0)]
            points = tuple((float(x), y) for x, y in enumerate(values))
            series.append(Series(name_of(method), _colour(method, results), points))
        plots.append(line_chart(title, x_label, series))
    return "".join(plots)


def _training(curves: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    rows = curves.get("pretrain") or []
    plots = [
        line_chart("Backbone: loss", "step", [_curve(rows, "train/loss", "training", 3)]),
        line_chart(
            "Backbone: base top-1 (%)",
            "step",
            [_curve(rows, "train/top1(%)", "training", 0), _curve(rows, "eval/top1(%)", "validation", 3)],
        ),
        line_chart("Backbone: learning rate", "step", [_curve(rows, "optim/lr", "learning rate", 3)]),
    ]
    learn = curves.get("learn") or {}
    for tag, title in (("train/loss", "Predictors: loss"), ("eval/base_top1(%)", "Predictors: base top-1 (%)")):
        series = [_curve(learn[method], tag, name_of(method), _colour(method, results)) for method in learn]
        plots.append(line_chart(title, "step", series))
    return "".join(plots)


def _curve(rows: Iterable[Mapping[str, float]], tag: str, name: str, colour: int) -> Series:
    return Series(
        name, colour, tuple((float(row["step"]), float(row[tag])) for row in rows if row.get(tag) is not None)
    )


def _provenance(results: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    facts = {key: results[key] for key in ("command", "commit", "split", "shards", "draws", "interval")}
    return "<dl>" + "".join(_fact(key, value) for key, value in {**facts, **provenance}.items()) + "</dl>"


def _fact(key: str, value: Any) -> str:
    text = " · ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
    return f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>"
