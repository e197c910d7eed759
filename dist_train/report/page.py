"""The results of a run for people: ``report.html``, which needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from dist_train.fewshot.protocols.low_shot import PRIOR
from dist_train.report import html, paper, plots, svg
from dist_train.report.class_vectors import NEIGHBOURS
from dist_train.report.comparison import (
    LOW_SHOT_MEASURES,
    PAIRED_METRICS,
    best_method,
    paired_differences,
    published_low_shot,
)
from dist_train.report.html import facts, grid, listing, meter, plain, td, tr
from dist_train.report.markdown import paper_cells
from dist_train.report.wording import describe_figures, display_name, footnote, marked_name

_LISTED = 8  # of the best and the worst classes


def report_html(
    results: Mapping[str, Any],
    curves: Mapping[str, Any],
    provenance: Mapping[str, Any],
    figures: Mapping[str, Any] | None = None,
) -> str:
    """One HTML page: headline, tables beside the paper's, curves, pictures, classes, training, provenance.

    Args:
        results: as for ``table_markdown``.
        curves: {"pretrain": rows, "learn": {method: rows}}, rows of metrics.jsonl; any may be missing.
        provenance: values may be mappings, shown in a line each.
        figures: what stages/reporting.py leaves in ``evaluate/figures``, by file name; any may be missing.
    """
    figures = figures or {}
    methods, groups = plots.method_choices(results), plots.group_choices(figures.get("maps") or {})
    note = f"<p class='note'>{escape(f'{describe_figures(results)} {footnote(results)}'.strip())}</p>"
    parts = {
        "Accuracy": _table(results) + note + _paper_table(),
        "Low-shot ImageNet": _low_shot(results),
        "Oracles: all images of the novel classes": _oracles(results),
        f"{display_name(paired_differences(results)[0])}, and the others less it": _against(results),
        "What it sees and says": _examples(figures.get("examples") or {}, results),
        "Curves": _method_plots(results, methods),
        "Classes as activations and as classifiers": _maps(figures.get("maps") or {}, groups),
        "Channels": _channels(figures),
        "Class by class": _classes(figures.get("classes") or {}, results),
        "Training": _plots(plots.training(curves, methods)),
        "Where the numbers are from": _provenance(results, provenance),
    }
    titles = [title for title, content in parts.items() if content]
    links = "".join(f"<a href='#part-{n}'>{escape(title)}</a>" for n, title in enumerate(titles))
    sections = [
        f"<section id='part-{n}'><h2>{escape(title)}</h2>{parts[title]}</section>" for n, title in enumerate(titles)
    ]
    title = f"Few-shot accuracy: {escape(results['split']['name'])}"
    style = html.STYLE + svg.style([*methods.values(), *groups.values()])
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{title}</title><style>{style}</style></head>\n"
        "<body><main>\n" + "\n".join([_headline(results, links), *sections]) + "\n</main></body></html>\n"
    )


def _headline(results: Mapping[str, Any], links: str) -> str:
    """The best method at the fewest shots by H, in words, the best baseline beside it, and links to the parts."""
    k = min(results["shots"])
    at = {method: by_shots[str(k)] for method, by_shots in results["methods"].items()}
    best = best_method(results)
    novel, base, classes = at[best]["novel_top1"], at[best]["base_top1"], results["classes"]
    images = "one image" if k == 1 else f"{k} images"
    title = (
        f"{display_name(best)} names {novel['mean']:.1f}% of images of {classes['novel']} new classes "
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
            f" The best baseline, {display_name(rival)}, reaches {found['novel_top1']['mean']:.1f}% on the new and "
            f"{found['base_top1']['mean']:.1f}% on the base classes."
        )
    return f"<header><h1>{escape(title)}</h1><p class='lead'>{escape(text)}</p><nav>{links}</nav></header>"


# ---- tables


def _table(results: Mapping[str, Any]) -> str:
    """Each method, and below it the paper's row that it is to be compared with."""
    shots: list[int] = results["shots"]
    methods = results["methods"]
    best = {k: max(methods, key=lambda m: methods[m][str(k)]["harmonic"]["mean"]) for k in shots}
    rows = []
    for method, by_shots in methods.items():
        cells = []
        for k in shots:
            cells += _cells(by_shots[str(k)])
            if best[k] == method:
                cells[-1] = cells[-1].replace("<td>", "<td><b>").replace("<small>", "</b><small>")
        rows.append(tr(marked_name(method), cells, "best" if method == best_method(results) else ""))
        if method in paper.TABLE_1:
            row = paper.TABLE_1[method]
            rows.append(tr("paper", [c for k in shots for c in plain(paper_cells(row.shots.get(k)))], "paper"))
    return grid([f"{k}-shot" for k in shots], rows)


def _cells(values: Mapping[str, Any], interval: bool = True) -> list[str]:
    return [
        td(values["base_top1"], values["base_top5"], interval=interval),
        td(values["novel_top1"], values["novel_top5"], interval=interval),
        td(values["harmonic"], interval=interval),
    ]


def _oracles(results: Mapping[str, Any]) -> str:
    rows = []
    for method, values in (results.get("oracles") or {}).items():
        rows.append(tr(display_name(method), _cells(values, interval=False)))
        if method in paper.TABLE_2:
            rows.append(tr("paper", plain(paper_cells(paper.TABLE_2[method])), "paper"))
    if not rows:
        return ""
    return (
        "<p class='note'>Shown every training image of the novel classes, on the same backbone, which was trained on "
        f"the base classes alone (the paper's Table 2). No draws, so no interval.</p>{grid([''], rows)}"
    )


def _low_shot(results: Mapping[str, Any]) -> str:
    """The measures of that benchmark, top-5, where the split is by halves as its own."""
    shots: list[int] = results["shots"]
    if "all_top5" not in next(iter(results["methods"].values()))[str(shots[0])]:
        return ""
    rows = []
    for method, by_shots in results["methods"].items():
        cells = [td(by_shots[str(k)][f"{key}_top5"]) for k in shots for key in LOW_SHOT_MEASURES]
        rows.append(tr(display_name(method), cells, group=len(LOW_SHOT_MEASURES)))
    for row in published_low_shot(results):
        values = [row.top5.get(title, {}).get(k) for k in shots for title in LOW_SHOT_MEASURES.values()]
        cells = plain(["–" if value is None else f"{value:.2f}" for value in values])
        rows.append(tr(row.method, cells, "published", f"published, {row.backbone}", len(LOW_SHOT_MEASURES)))
    heads = [f"<th>{escape(title)}</th>" for title in LOW_SHOT_MEASURES.values()]
    return (
        f"{grid([f'n = {k}' for k in shots], rows, heads)}<p class='note'>Top-5. Joint: among all classes; novel-only: "
        f"among novel classes; prior: P(novel) = {PRIOR} (docs/methods.md). Top-1 is in table.md.</p>"
    )


def _against(results: Mapping[str, Any]) -> str:
    """The paired differences."""
    rival, rows = paired_differences(results)
    if not rows:
        return ""
    own = [results["methods"][rival][str(k)][metric] for k in results["shots"] for metric in PAIRED_METRICS]
    heads = ["<th>base<small>top-1</small></th>", "<th>novel<small>top-1</small></th>", "<th>H</th>", "<th>AUSUC</th>"]
    lines = [tr(display_name(rival), [td(value) for value in own], group=len(heads))]
    lines += [
        tr(display_name(method), [td(value, sign="+") for value in values], group=len(heads))
        for method, values in rows.items()
    ]
    return (
        f"{grid([f'{k}-shot' for k in results['shots']], lines, heads)}"
        f"<p class='note'>Points, draw by draw, with the 95% t-interval of the difference: supports are the "
        f"same for all. {AUSUC}</p>"
    )


AUSUC = (
    "AUSUC = area under the curve of base against novel top-1 as a number is added to all novel scores "
    "(Chao et al. 2016), in percent: it does not depend on how a method balances old and new."
)


def _paper_table() -> str:
    rows = [
        tr(
            row.method,
            [c for f in row.shots.values() for c in plain(paper_cells(f))],
            "",
            f"{row.base_data} of the base data",
        )
        for row in paper.TABLE_1.values()
    ]
    return (
        f"<details><summary>All of the paper's table</summary>{grid(['1-shot', '2-shot', '3-shot'], rows)}"
        f"<p>{escape(paper.SOURCE)}, Table 1: {escape(paper.SETTING)}. H follows from its figures.</p></details>"
    )


# ---- pictures


def _plots(inside: str) -> str:
    return f"<div class='plots'>{inside}</div>" if inside else ""


def _method_plots(results: Mapping[str, Any], choices: Mapping[str, svg.Choice]) -> str:
    """Under one line of check boxes, which stays in sight."""
    chips = svg.chips("methods shown", list(choices.values()))
    charts = plots.against_shots(results, choices) + plots.old_and_new(results, choices)
    return f"<div class='stick'>{chips}</div>{_plots(charts)}"


def _maps(maps: Mapping[str, Any], choices: Mapping[str, svg.Choice]) -> str:
    if not maps:
        return ""
    (first, _), *others = maps["neighbours"].items()
    count = len(maps["classes"])
    text = "t-SNE of the base classes: one mark a class, the same in each map (the paper's Figure 2). "
    if count > 3 * NEIGHBOURS:  # among fewer, everyone is a neighbour
        shares = " and ".join(f"{share / 100 * NEIGHBOURS:.1f} among those of its {what}" for what, share in others)
        text += (
            f"Of the {NEIGHBOURS} nearest neighbours of a class by its {first}, {shares} "
            f"(by chance {NEIGHBOURS**2 / (count - 1):.1f}): that activations and classifiers lie alike is what the "
            "predictor builds on."
        )
    return (
        f"<p class='note'>{escape(text)}</p>"
        + (svg.chips("groups shown", list(choices.values()), marks=True) if choices else "")
        + f"<div class='three'>{plots.class_maps(maps, choices)}</div>"
    )


def _channels(figures: Mapping[str, Any]) -> str:
    charts = plots.channels(figures)
    if not charts:
        return ""
    table = note = ""
    if impact := figures.get("channels"):
        lines = [
            (escape(what), f"{v['mean']:.2e}", f"{v['std']:.2e}", f"{v['scaled']:.2f}") for what, v in impact.items()
        ]
        table = f"<div>{listing(['unit rows', 'mean |w|', 'std', '× √C'], lines)}</div>"
        note = (
            "Channel impact (the paper's Figure 5): |w| of the unit rows, averaged over the base classes; mean and "
            f"standard deviation over channels. The paper has {paper.CHANNEL_IMPACT[2]} channels; times √C the mean "
            "does not depend on their number. "
        )
    if found := figures.get("diagonal"):
        values = found["sorted"]
        note += (
            f"φ1's diagonal goes from {min(values):.3f} to {max(values):.3f}, {found['inside']:.0f}% of it within the "
            f"paper's range; beside the diagonal |w| is {found['rest']:.1e} in the mean."
        )
    return f"{_plots(charts + table)}<p class='note'>{escape(note)}</p>"


def _examples(examples: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    if not examples.get("classes"):
        return ""
    k, cards = examples["shots"], []
    for entry in examples["classes"]:
        shown = "".join(f"<figure>{_image(uri)}<figcaption>seen</figcaption></figure>" for uri in entry["supports"])
        asked = "".join(_answer(query) for query in entry["queries"])
        cards.append(
            f"<div class='card'><h3>{escape(entry['name'])} <span>{entry['top1']:.1f}% over all draws</span></h3>"
            f"<div><div class='shown'>{shown}</div><div>{asked}</div></div></div>"
        )
    images = "image" if k == 1 else f"{k} images"
    return (
        f"<p class='note'>{len(cards)} of {results['classes']['novel']} novel classes, from the best to the worst of "
        f"{escape(display_name(examples['method']))} at equal distances: the support {images} of the first draw, "
        "then the class's first validation images with the answer; where it is wrong, the place of the right class "
        f"among all {sum(results['classes'].values())}.</p><div class='cards'>{''.join(cards)}</div>"
    )


def _image(uri: str) -> str:
    return f"<img alt='' src='{escape(uri)}'>" if uri else "<span class='none'></span>"


def _answer(query: Mapping[str, Any]) -> str:
    if query["rank"] == 1:
        said = f"<span class='right'>✓ {escape(query['answer'])}</span>"
    else:
        said = f"<span class='wrong'>✗ {escape(query['answer'])}</span><small>right: no. {query['rank']}</small>"
    return f"<figure>{_image(query['image'])}<figcaption>{said}</figcaption></figure>"


# ---- classes


def _classes(found: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    if not found:
        return ""
    rows = found["rows"]
    novel = sorted((r for r in rows if r["role"] == "novel"), key=lambda r: -r["top1"])
    base = sorted((r for r in rows if r["role"] == "base"), key=lambda r: -r["top1"])
    losers = [r for r in sorted(base, key=lambda r: -r["other_role"]) if r["other_role"] > 0]
    name, k = display_name(found["method"]), found["shots"]
    some = min(_LISTED, -(-len(novel) // 2))
    taken, mixed = ["class", "right", "often taken for"], ["truth", "share", "answer"]
    pairs = {
        role: [(escape(c["truth"]), meter(c["share"]), _marked(c)) for c in found["confusions"][role][:_LISTED]]
        for role in ("novel", "base")
    }
    lost = [(escape(r["name"]), meter(r["other_role"]), f"{r['top1']:.1f}%") for r in losers[:_LISTED]]
    lists = [
        ("Novel classes: the best", taken, [_class_cells(row) for row in novel[:some]]),
        ("Novel classes: the worst", taken, [_class_cells(row) for row in novel[::-1][:some]]),
        ("Novel images: what they are taken for", mixed, pairs["novel"]),
        ("Base classes: the worst", taken, [_class_cells(row) for row in base[::-1][:_LISTED]]),
        ("Base classes that lose most", ["class", "taken for novel", "right"], lost),
        ("Base images: what they are taken for", mixed, pairs["base"]),
    ]
    tables = "".join(f"<div><h3>{title}</h3>{listing(heads, cells)}</div>" for title, heads, cells in lists if cells)
    every = listing(
        ["class", "", "right", "taken for the other kind", "often taken for"],
        [(escape(r["name"]), r["role"], meter(r["top1"]), f"{r['other_role']:.1f}%", _taken(r)) for r in novel + base],
        tall=True,
    )
    return (
        f"<p class='note'>{escape(name)}, {k}-shot, over all {results['draws']} draws; percent of a class's images. "
        "A novel class in an answer is in bold. All methods and shots: per_class.csv beside this page.</p>"
        f"<div class='three'>{tables}</div>"
        f"<details><summary>All {len(rows)} classes</summary>{every}</details>"
    )


def _class_cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return escape(row["name"]), meter(row["top1"]), _taken(row)


def _taken(row: Mapping[str, Any]) -> str:
    return f"{escape(row['taken_for'])} <small>{row['taken_for_share']:.1f}%</small>" if row["taken_for"] else "–"


def _marked(pair: Mapping[str, Any]) -> str:
    name = escape(pair["answer"])
    return f"<b>{name}</b>" if pair["answer_role"] == "novel" else name


# ---- provenance


def _provenance(results: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    known = {key: results[key] for key in ("command", "commit", "split", "shards", "draws", "interval")}
    rest = {**known, **provenance}
    changed, seconds = rest.pop("config", {}), results.get("seconds") or {}
    text = facts(rest)
    if changed:
        text += f"<h3>Set otherwise than by default</h3>{facts(changed)}"
    if seconds:
        cost = {display_name(method): f"{value:,.1f} s" for method, value in seconds.items()}
        text += f"<details><summary>Seconds that each row took</summary>{facts(cost)}</details>"
    return text
