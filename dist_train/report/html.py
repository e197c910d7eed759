"""Parts of the report's page: its style sheet, and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme:light dark; --page:#fff; --text:#1c2024; --soft:#5b636d; --line:#dfe3e8; --tint:#f5f7f9;
 --faint:#d3d8de; --good:#15803d; --bad:#be123c; }
@media (prefers-color-scheme:dark) {
 :root { --page:#14171a; --text:#e6e9ec; --soft:#a0a8b2; --line:#30363d; --tint:#1d2125;
 --faint:#3a4149; --good:#4ade80; --bad:#fb7185; } }
* { box-sizing:border-box; } html { scroll-padding-top:3.5rem; }
body { margin:0; background:var(--page); color:var(--text); font:16px/1.5 system-ui,"Segoe UI",Roboto,sans-serif; }
main { max-width:72rem; margin:0 auto; padding:1.5rem 1rem 4rem; } a { color:inherit; }
h1 { font-size:clamp(1.4rem,1rem + 2vw,2rem); line-height:1.25; margin:.5rem 0; max-width:46rem; text-wrap:balance; }
h2 { font-size:1.2rem; margin:2.75rem 0 .75rem; } h3 { font-size:.95rem; margin:1.5rem 0 .5rem; }
p { max-width:46rem; margin:.5rem 0; } .lead { color:var(--soft); }
nav { display:flex; flex-wrap:wrap; gap:.2rem 1.1rem; margin:1rem 0 0; font-size:.9rem; }
nav a { color:var(--soft); text-underline-offset:.2em; }
.note, details { font-size:.85rem; color:var(--soft); } summary { cursor:pointer; padding:.4rem 0; }
.wide { overflow-x:auto; border:1px solid var(--line); border-radius:.5rem; } .tall { max-height:32rem; overflow:auto; }
table { border-collapse:collapse; font-size:.85rem; font-variant-numeric:tabular-nums; width:100%; color:var(--text); }
th, td { padding:.4rem .6rem; text-align:right; white-space:nowrap; border-top:1px solid var(--line); }
thead tr:first-child th { border-top:0; } thead th { background:var(--tint); font-weight:600; }
th:first-child { text-align:left; position:sticky; left:0; background:var(--page); z-index:1; white-space:normal; }
thead th:first-child { background:var(--tint); } .group { border-left:1px solid var(--line); }
thead .span { text-align:center; }
.text td:last-child, .text thead th:last-child { text-align:left; white-space:normal; } .text small { display:inline; }
.plots .text thead th, .plots .text tbody th { white-space:nowrap; }
small { display:block; color:var(--soft); font-size:.9em; font-weight:400; }
tr.paper th, tr.paper td { color:var(--soft); font-weight:400; border-top:0; padding-top:0; }
tr.paper th { padding-left:1.2rem; } tr.published th, tr.published td { color:var(--soft); font-weight:400; }
tr.best th:first-child { box-shadow:inset 3px 0 var(--c0); }
.plots, .three { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr)); gap:1.5rem 2rem; }
.three { grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr)); gap:1.25rem 1.5rem; }
.plots > *, .three > * { min-width:0; }
.stick { position:sticky; top:0; z-index:2; background:var(--page); border-bottom:1px solid var(--line);
 margin-bottom:1rem; }
.meter { display:inline-block; width:3.5rem; height:.55em; margin-right:.5em; border-radius:1em; overflow:hidden;
 background:var(--tint); box-shadow:inset 0 0 0 1px var(--line); }
.meter i { display:block; height:100%; background:var(--c0); }
.cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,30rem),1fr)); gap:1rem; }
.card { border:1px solid var(--line); border-radius:.6rem; padding:.8rem; min-width:0; }
.card h3 { margin:0 0 .5rem; } .card h3 span { font-weight:400; color:var(--soft); }
.card > div { display:flex; gap:.7rem; } .card > div > div { display:grid; gap:.6rem; align-content:start; flex:1;
 grid-template-columns:repeat(auto-fill,minmax(4.8rem,1fr)); }
.card > div > div.shown { flex:0 0 5.5rem; border-right:2px solid var(--line); padding-right:.7rem;
 box-sizing:content-box; }
.card img, .card .none { display:block; width:100%; max-width:5.5rem; aspect-ratio:1; border-radius:.35rem;
 background:var(--tint); }
.card figcaption { font-size:.75rem; font-weight:400; line-height:1.3; margin-top:.25rem; overflow-wrap:anywhere; }
.card .right { color:var(--good); } .card .wrong { color:var(--bad); }
.card small { font-size:.7rem; white-space:nowrap; }
dl { display:grid; grid-template-columns:minmax(8rem,max-content) 1fr; gap:.3rem 1.2rem; margin:0; font-size:.9rem; }
dt { color:var(--soft); overflow-wrap:anywhere; }
dd { margin:0; overflow-wrap:anywhere; font-family:ui-monospace,Menlo,Consolas,monospace; font-size:.95em; }
@media (max-width:40rem) {
 dl { grid-template-columns:1fr; gap:0; } dd { margin-bottom:.6rem; }
 .stick .chips { flex-wrap:nowrap; overflow-x:auto; } th:first-child { min-width:6.5rem; }
 .card > div > div { grid-template-columns:repeat(auto-fill,minmax(4rem,1fr)); }
 .card > div > div.shown { flex-basis:4rem; } }
"""

_TOPS = "<small>top-1 / top-5</small>"
HEADS = [f"<th>base{_TOPS}</th>", f"<th>novel{_TOPS}</th>", "<th>H</th>"]


def grid(spans: Sequence[str], rows: list[str], heads: list[str] = HEADS) -> str:
    """A table with the columns ``heads`` below each of ``spans``; no line of spans for a single empty one."""
    columns = grouped(heads * len(spans), len(heads))
    if list(spans) == [""]:
        head = f"<tr><th>Method</th>{columns}</tr>"
    else:
        above = "".join(f"<th colspan='{len(heads)}' class='group span'>{escape(span)}</th>" for span in spans)
        head = f"<tr><th>Method</th>{above}</tr><tr><th></th>{columns}</tr>"
    return f"<div class='wide'><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"


def grouped(cells: list[str], group: int) -> str:
    """Marks the first cell of each group."""
    return "".join(c if n % group else re.sub("^<(t[hd])", r"<\1 class='group'", c) for n, c in enumerate(cells))


def tr(name: str, cells: list[str], kind: str = "", note: str = "", group: int = len(HEADS)) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<tr class='{kind}'><th>{escape(name)}{small}</th>{grouped(cells, group)}</tr>"


def td(*values: Mapping[str, Any], sign: str = "", interval: bool = True) -> str:
    means = " / ".join(f"{v['mean']:{sign}.2f}" for v in values)
    halves = " / ".join(f"{v['ci95']:.2f}" for v in values)
    return f"<td>{means}<small>± {halves}</small></td>" if interval else f"<td>{means}</td>"


def plain(values: Sequence[str]) -> list[str]:
    return [f"<td>{escape(value)}</td>" for value in values]


def listing(heads: Sequence[str], rows: Sequence[Sequence[str]], tall: bool = False) -> str:
    """A table of ready-made cells (HTML); the last column is text."""
    head = "".join(f"<th>{escape(title)}</th>" for title in heads)
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    kind = "wide tall" if tall else "wide"
    return f"<div class='{kind}'><table class='text'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def meter(percent: float) -> str:
    """A number with a bar."""
    return f"<span class='meter'><i style='width:{percent:.1f}%'></i></span>{percent:.1f}%"


def facts(values: Mapping[str, Any]) -> str:
    """Names and values; a value that is a mapping becomes one line."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            text = " · ".join(f"{k} {v}" for k, v in value.items())
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        lines.append(f"<dt>{escape(str(name))}</dt><dd>{escape(text)}</dd>")
    return f"<dl>{''.join(lines)}</dl>"
