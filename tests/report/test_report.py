import copy
import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from dist_train.fewshot.methods import LABELS
from dist_train.report import paper, svg
from dist_train.report.markdown import table_markdown
from dist_train.report.page import report_html
from dist_train.report.plots import method_choices
from dist_train.report.svg import Choice, Series, chips, line_chart, round_marks, scatter

METRICS = ("base_top1", "base_top5", "novel_top1", "novel_top5", "harmonic", "ausuc")
ROWS = [{"step": step, "train/loss": 5 / step, "train/top1(%)": step / 10, "optim/lr": 0.1} for step in range(1, 900)]
CURVES: dict[str, Any] = {
    "pretrain": [*ROWS, {"step": 900, "eval/top1(%)": 61.0}],
    "learn": {"phi2": [{"step": 10, "train/loss": 2.0}, {"step": 20, "train/loss": 1.0, "eval/base_top1(%)": 60.0}]},
}
IMAGE = "data:image/jpeg;base64,AAAA"
FIGURES: dict[str, Any] = {
    "maps": {
        "classes": [
            {"wnid": "n1", "name": "cat", "group": "animal"},
            {"wnid": "n2", "name": "dog", "group": "animal"},
            {"wnid": "n3", "name": "oak", "group": "plant"},
            {"wnid": "n4", "name": "jar", "group": "other"},
        ],
        "maps": {"means": [[0, 0], [4, 0], [2, 2], [2, 4]], "rows": [[0, 0], [1, 0], [1, 1], [0, 1]]},
        "neighbours": {"means": 100.0, "rows": 66.67},
    },
    "channels": {
        "trained": {"mean": 0.02, "std": 0.005, "scaled": 0.9, "sorted": [0.03, 0.02, 0.01]},
        "paper": {"mean": 0.0213, "std": 0.00583, "scaled": 0.964},
    },
    "diagonal": {"sorted": [1.0, 0.9, 0.7], "inside": 33.33, "rest": 0.001, "paper": [0.744, 0.976]},
    "classes": {
        "method": "phi2",
        "shots": 1,
        "rows": [
            {"wnid": f"n{n}", "name": name, "role": role, "answers": 50, "top1": top1, "other_role": other,
             "taken_for": "emu", "taken_for_share": 4.0}
            for n, (name, role, top1, other) in enumerate([
                ("cat", "base", 60.0, 2.0), ("dog", "base", 50.0, 9.0), ("jar", "base", 40.0, 0.0),
                ("emu", "novel", 30.0, 60.0), ("fox", "novel", 20.0, 70.0), ("gnu", "novel", 10.0, 80.0),
            ])
        ],
        "confusions": {
            "novel": [{"truth": "fox", "answer": "dog", "answer_role": "base", "share": 40.0}],
            "base": [{"truth": "dog", "answer": "emu", "answer_role": "novel", "share": 4.0}],
        },
    },
    "examples": {
        "method": "phi2",
        "shots": 1,
        "classes": [{"name": "emu", "top1": 30.0, "supports": [IMAGE], "queries": [
            {"image": IMAGE, "answer": "emu", "rank": 1}, {"image": "", "answer": "cat", "rank": 7},
        ]}],
    },
}  # fmt: skip
PROVENANCE = {"commit": "abc", "versions": {"torch": "2.14", "numpy": "2.4"}, "seeds": {"seed": 7}}


def values(*means: float) -> dict[str, Any]:
    return {
        name: {"mean": mean, "ci95": 0.125, "draws": [mean - 0.5, mean, mean + 0.5]}
        for name, mean in zip(METRICS, means, strict=True)
    }


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "methods": {
            "mean": {"1": values(58.001, 80, 2.5, 9, 4.79, 9), "5": values(58, 80, 12.25, 30, 20.2, 14)},
            "phi2": {"1": values(57.126, 79, 21.5, 45, 31.24, 20), "5": values(56, 78, 33.333, 60, 41.8, 28)},
        },
        "shots": [1, 5],
        "draws": 100,
        "queries": {"base": 9000, "novel": 1000},
        "classes": {"base": 180, "novel": 20},
        "split": {"name": "tiny", "hash": "0123"},
        "shards": "fedc",
        "commit": "abc",
        "command": "dist-train run --config a|b",
        "interval": "95% t-interval over support draws",
    }


class Page(HTMLParser):
    """Tags that are left open, attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in ("meta", "input", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_paper_rows() -> None:
    assert len(paper.TABLE_1) == 11
    assert paper.TABLE_1["nn"].shots[1] == (71.54, 91.20, 1.72, 5.86)
    assert paper.TABLE_1["phi2"].shots[3] == (72.98, 90.59, 31.20, 61.44)
    assert paper.TABLE_1["triplet10"].base_data == "10%" and paper.TABLE_1["nn1"].shots[1][2] == 10.42
    assert {*paper.TABLE_1, *paper.TABLE_2} <= set(LABELS)
    for row in paper.TABLE_1.values():
        assert sorted(row.shots) == [1, 2, 3]
        for base1, base5, novel1, novel5 in row.shots.values():
            assert base1 < base5 and novel1 < novel5
            assert round(novel1 * 50) == pytest.approx(novel1 * 50)  # a share of 5000 images


def test_markdown_figures(results: dict[str, Any]) -> None:
    lines = table_markdown(results).splitlines()
    table = [cells(line) for line in lines if line.startswith("|")]
    table, differences = table[:5], table[5:]
    assert len(table) == 2 + 2 + 1 and {len(row) for row in table} == {1 + 2 * 3}
    assert "φ2, and the others less it, draw by draw (points; 95% t-interval):" in lines
    assert differences[0][1:5] == ["1-shot base top-1", "1-shot novel top-1", "1-shot H", "1-shot AUSUC"]
    signed = [f"{value} ± 0.00" for value in ("+0.88", "-19.00", "-26.45", "-11.00")]
    assert len(differences) == 4 and differences[3][:5] == ["Class mean + cosine", *signed]
    assert differences[2][0] == "φ2" and differences[2][2].startswith("21.50 ±")
    assert table[0][1:4] == ["1-shot base top-1/top-5", "1-shot novel top-1/top-5", "1-shot H"]
    assert table[3] == [
        "φ2",
        "57.13 ± 0.12 / 79.00 ± 0.12", "21.50 ± 0.12 / 45.00 ± 0.12", "31.24 ± 0.12",
        "56.00 ± 0.12 / 78.00 ± 0.12", "33.33 ± 0.12 / 60.00 ± 0.12", "41.80 ± 0.12",
    ]  # fmt: skip
    assert table[4][0] == "φ2 (paper, ImageNet 900/100, one draw)"
    assert table[4][1:] == ["74.17 / 91.79", "21.58 / 45.82", "33.43", "–", "–", "–"]  # it has no 5-shot
    for fact in ("95% t-interval over support draws, 100 draws", "tiny (0123)", "shards fedc", "commit abc", "a|b"):
        assert fact in table_markdown(results)


def test_a_row_that_is_trained_otherwise_than_the_papers_says_so(results: dict[str, Any]) -> None:
    """In the table and in the report; and where there is none, nothing is said."""
    note = "¹ Trains one layer on the frozen activations, where the paper's row trains the whole network."
    assert "¹" not in table_markdown(results) and "¹" not in report_html(results, {}, {})
    for method, name in (("finetune", "Fine-tuned (last layer)"), ("triplet1", "Triplet network, 1% of base")):
        methods = {**results["methods"], method: results["methods"]["mean"]}
        text = table_markdown({**results, "methods": methods})
        assert f"\n| {name} ¹ | " in text and note in text and text.count("¹") == 2
        page = " ".join(Page(report_html({**results, "methods": methods}, {}, {})).text)
        assert f"{name} ¹" in page and note in page
    child = {**results, "methods": {**results["methods"], "child": results["methods"]["mean"]}}
    assert "¹" not in table_markdown(child)  # of which the paper, too, trains the last layer only


def test_oracles_stand_beside_the_papers(results: dict[str, Any]) -> None:
    results["oracles"] = {"nn_oracle": values(60, 82, 40.5, 70, 48.36, 30), "unknown": values(1, 2, 3, 4, 5, 6)}
    lines = [cells(line) for line in table_markdown(results).split("Table 2")[1].splitlines() if line.startswith("|")]
    assert lines[0] == ["method", "base top-1/top-5", "novel top-1/top-5", "H"]
    assert lines[2] == ["NN + cosine", "60.00 / 82.00", "40.50 / 70.00", "48.36"]
    assert lines[3][0] == "unknown" and lines[4][:3] == ["NN + cosine (paper)", "70.25 / 89.98", "52.46 / 80.94"]
    text = " ".join(Page(report_html(results, {}, {})).text)
    assert "Oracles: all images of the novel classes" in text and "60.00 / 82.00" in text and "52.46 / 80.94" in text


def test_low_shot_measures_stand_beside_the_published_where_the_split_is_theirs(results: dict[str, Any]) -> None:
    for by_shots in results["methods"].values():
        for found in by_shots.values():
            for name in ("novel_only", "all", "all_prior"):
                found[f"{name}_top5"] = {"mean": 77.125, "ci95": 0.5, "draws": []}
    title = "<h2>Low-shot ImageNet</h2>"
    page = report_html(results, {}, {})
    assert "77.12" in page.split(title)[1] and "wDAE-GNN" not in page
    results["split"] = {"name": "theirs", "hash": paper.LOW_SHOT_SPLIT, "holdout": "novel"}
    (row,) = re.findall(r"<tr class='published'><th>wDAE-GNN.*?</tr>", report_html(results, {}, {}).split(title)[1])
    shown = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    assert shown == ["–", "47.99", "–", "59.02", "–", "–", "70.23", "–", "73.20", "–"]  # n = 1 and 5


def test_report_says_what_the_table_says(results: dict[str, Any]) -> None:
    page = Page(report_html(results, CURVES, PROVENANCE))
    text = " ".join(page.text)
    assert not page.open
    assert "φ2 names 21.5% of images of 20 new classes after seeing one image of each" in text
    assert "φ2, and the others less it" in text and "-19.00" in text
    assert "Class mean + cosine, reaches 2.5% on the new and 58.0% on the base classes" in text
    for words in (
        "57.13 / 79.00",
        "± 0.12 / 0.12",
        "74.17 / 91.79",
        "ImageNet 900/100, one draw",
        "Learning like a Child",
    ):
        assert words in text
    for words in ("torch 2.14 · numpy 2.4", "dist-train run --config a|b", "0123", "seed 7"):
        assert words in text


def test_report_needs_nothing_beside_itself(results: dict[str, Any]) -> None:
    html = report_html(results, CURVES, PROVENANCE, FIGURES)
    assert "://" not in html and "@import" not in html and "url(" not in html and "<script" not in html
    links = [
        (name, value or "") for name, value in Page(html).attributes if name in ("src", "href", "srcset", "onload")
    ]
    assert links and all(value.startswith("#part-" if name == "href" else "data:image/") for name, value in links)
    ids = {value for name, value in Page(html).attributes if name == "id"}
    assert {value[1:] for name, value in links if name == "href"} <= ids
    assert "prefers-color-scheme" in html and "img-src data:" in html and "default-src 'none'" in html


def evil_twin(value: Any, evil: str) -> Any:
    """The same, with the text in it replaced; keys and images stay."""
    if isinstance(value, dict):
        return {key: evil_twin(item, evil) for key, item in value.items()}
    if isinstance(value, list):
        return [evil_twin(item, evil) for item in value]
    return evil if isinstance(value, str) and value not in ("base", "novel") else value


def test_report_escapes(results: dict[str, Any]) -> None:
    evil = "<script>alert('1')</script>&"
    results["methods"][evil] = results["methods"]["mean"]
    results["oracles"] = {evil: results["methods"]["mean"]["1"]}
    results.update(command=evil, commit=evil, interval=evil, split={"name": evil, "hash": evil}, seconds={evil: 1.0})
    provenance = {evil: {evil: evil}, "config": {evil: evil}}
    html = report_html(results, {"learn": {evil: CURVES["learn"]["phi2"]}}, provenance, evil_twin(FIGURES, evil))
    assert "<script" not in html and "&lt;script&gt;" in html
    assert not Page(html).open
    assert "<script" not in scatter(evil, [[0, 0]], [evil], [None]) + chips(evil, [Choice("m0", evil, 0)])


@pytest.mark.parametrize(
    "curves", [{}, {"pretrain": [], "learn": {}}, {"pretrain": [{"step": 1}], "learn": {"phi1": []}}]
)
def test_report_without_curves(results: dict[str, Any], curves: dict[str, Any]) -> None:
    html = report_html(results, curves, {})
    assert "<h2>Training</h2>" not in html and html.count("<figure>") == 4 and not Page(html).open


def test_report_with_one_method_and_one_shot(results: dict[str, Any]) -> None:
    results["methods"] = {"mean": results["methods"]["mean"]}
    results["shots"] = [5]
    text = " ".join(Page(report_html(results, CURVES, PROVENANCE)).text)
    assert "Class mean + cosine names 12.2% of images of 20 new classes after seeing 5 images of each" in text
    assert "best baseline" not in text


def test_report_is_deterministic_and_changes_nothing(results: dict[str, Any]) -> None:
    before = copy.deepcopy((results, CURVES, PROVENANCE, FIGURES))
    assert report_html(results, CURVES, PROVENANCE, FIGURES) == report_html(*copy.deepcopy(before))
    assert (results, CURVES, PROVENANCE, FIGURES) == before


def test_chart_places_points_and_error_bars() -> None:
    chart = line_chart("t", "x", [Series("a", 1, ((1.0, 0.0), (2.0, 10.0)), (0.0, 2.0))], [1.0, 2.0])
    (x1, y1), (x2, y2) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert float(x1) < float(x2) < svg.WIDTH and float(y1) == svg.HEIGHT - svg.BOTTOM > float(y2)
    assert chart.count('class="bar"') == 1 and "a: 10.00 ± 2.00" in chart


def test_chart_of_many_points_shows_means_and_leaves_out_what_is_not_finite() -> None:
    points = tuple((float(n), 1.0 if n % 2 else 3.0) for n in range(4000))
    holes = ((0.5, float("nan")), (0.6, float("inf")))
    chart = line_chart("t", "x", [Series("a", 0, points + holes)])
    line = re.search(r'<polyline points="([^"]+)"', chart)
    assert line and len(line[1].split()) == svg.MAX_POINTS
    assert "nan" not in chart and "inf" not in chart and len({pair.split(",")[1] for pair in line[1].split()}) == 1
    assert line_chart("t", "x", [Series("a", 0, holes)]) == ""


@pytest.mark.parametrize(
    "low, high", [(0, 5.7), (0, 61), (52.3, 60.9), (0, 1e-3), (0, 75_000), (0, 0), (7, 7), (-3, 2)]
)
def test_round_marks(low: float, high: float) -> None:
    marks = round_marks(low, high, over=True)
    assert 2 <= len(marks) <= 7 and marks[0] <= low and marks[-1] >= high
    assert len({round(b - a, 9) for a, b in itertools.pairwise(marks)}) == 1


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (0.05, "0.05"), (1500, "1.5k"), (75_000, "75k"), (2e6, "2M"), (60, "60")]
)
def test_number(value: float, text: str) -> None:
    assert svg.number(value) == text


def test_curves_of_old_and_new_classes_end_where_they_reach_zero(results: dict[str, Any]) -> None:
    falling = {"seen_unseen": [60.0, 30.0, *[0.0] * 99], "forgetting": [60.0, 58.5, 57.0]}
    none = {"seen_unseen": [0.0] * 101, "forgetting": [0.0] * 3}
    html = report_html({**results, "curves": {"phi2": {"1": falling, "5": none}, "mean": {"1": none}}}, {}, {})
    page = Page(html)
    assert html.count("<figure>") == 6 and not page.open
    titles = re.compile("<figcaption>(?:Seen-unseen|Forgetting), 1-shot")
    lines = [re.findall(r'points="([^"]*)"', figure) for figure in titles.split(html)[1:]]
    assert [len(line.split()) for line in lines[0]] == [2, 1] and [len(line.split()) for line in lines[1]] == [3, 3]


def with_methods(results: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """``names`` from the worst to the best."""
    rows = {name: {k: values(58, 80, 2, 9, 4 + n / 4, 9) for k in ("1", "5")} for n, name in enumerate(names)}
    return {**results, "methods": rows}


def test_up_to_eight_methods_are_shown_in_a_colour_each(results: dict[str, Any]) -> None:
    for names in (["nn", "nn10", "nn1", "imprint", "mean", "phi1", "phi2", "phi2star"], ["nn", "phi2"]):
        choices = list(method_choices(with_methods(results, names)).values())
        assert [choice.colour for choice in choices] == list(range(len(names)))
        assert all(choice.shown and choice.dash == 0 for choice in choices)


def test_of_many_methods_the_best_of_each_kind_is_shown_and_no_two_lines_are_alike(results: dict[str, Any]) -> None:
    names = list(LABELS)
    found = method_choices(with_methods(results, names))
    assert list(found) == names and len(names) > svg.COLOURS
    assert len({(choice.colour, choice.dash) for choice in found.values()}) == len(names)
    assert len({choice.key for choice in found.values()}) == len(names)
    shown = [name for name, choice in found.items() if choice.shown]
    assert len(shown) == svg.COLOURS and "phi2" in shown and all(found[name].dash == 0 for name in shown)
    assert not found["nn"].shown  # two of its kind are better
    html = report_html(with_methods(results, names), {}, {})
    boxes = [dict(Page(tag).attributes) for tag in re.findall(r"<input[^>]*>", html)]
    assert {box["id"] for box in boxes if "checked" in box} == {f"show-{found[name].key}" for name in shown}
    assert all(f"#show-{choice.key}:checked) .{choice.key}{{" in html for choice in found.values())
    assert all(html.count(f'class="s {choice.key}"') == 4 for choice in found.values())


def test_map_has_a_mark_for_each_class_in_its_groups_colour(results: dict[str, Any]) -> None:
    html = report_html(results, {}, {}, FIGURES)
    first = html.split("<figcaption>Means")[1].split("</figure>")[0]
    assert re.findall(r"<title>([^<]*)</title>", first) == [
        "jar (other)",
        "cat (animal)",
        "dog (animal)",
        "oak (plant)",
    ]
    assert [re.findall(r'class="s (g\d)"', first)] == [["g2", "g0", "g0", "g1"]]
    places = [tuple(map(float, place)) for place in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", first)]
    assert places == [(150, 288), (12, 12), (288, 12), (150, 150)]  # of means, by one scale for both axes
    assert "among those of its" not in html  # of four classes all are neighbours
    many = {"classes": FIGURES["maps"]["classes"] * 20, "neighbours": {"means": 100.0, "rows": 64.0}}
    maps = {what: places * 20 for what, places in FIGURES["maps"]["maps"].items()}
    assert "6.4 among those of its rows (by chance 1.3)" in report_html(
        results, {}, {}, {"maps": {**many, "maps": maps}}
    )


def test_classes_are_listed_from_the_best_and_from_the_worst(results: dict[str, Any]) -> None:
    html = report_html(results, {}, {}, FIGURES)
    best, worst, losers = (
        html.split(f"<h3>{title}</h3>")[1].split("</table>")[0]
        for title in ("Novel classes: the best", "Novel classes: the worst", "Base classes that lose most")
    )
    heads = [re.findall(r"<tr><th>([^<]*)</th><td>", part) for part in (best, worst, losers)]
    assert heads == [["emu", "fox"], ["gnu", "fox"], ["dog", "cat"]]  # the jar loses nothing
    assert "<b>emu</b>" in html  # novel, in an answer
    assert "All 6 classes" in html and "per_class.csv" in html


def test_examples_say_what_was_answered(results: dict[str, Any]) -> None:
    text = " ".join(Page(report_html(results, {}, {}, FIGURES)).text)
    assert "✓ emu" in text and "✗ cat" in text and "right: no. 7" in text
    html = report_html(results, {}, {}, FIGURES)
    assert html.count("<img") == 2 and html.count("class='none'") == 1  # an image that could not be read


def test_configuration_and_costs_are_shown(results: dict[str, Any]) -> None:
    provenance = {**PROVENANCE, "config": {"pretrain.epochs": 3}, "stages": {"pretrain": "52.0 min"}}
    html = report_html({**results, "seconds": {"phi2": 12.34}}, {}, provenance)
    text = " ".join(Page(html).text)
    assert "pretrain.epochs 3" in text and "pretrain 52.0 min" in text and "φ2 12.3 s" in text
