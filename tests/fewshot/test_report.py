import copy
import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from dist_train.fewshot import chart, paper
from dist_train.fewshot.chart import Series, line_chart, round_marks
from dist_train.fewshot.report import report_html, table_markdown

METRICS = ("base_top1", "base_top5", "novel_top1", "novel_top5", "harmonic", "ausuc")
ROWS = [{"step": step, "train/loss": 5 / step, "train/top1(%)": step / 10, "optim/lr": 0.1} for step in range(1, 900)]
CURVES: dict[str, Any] = {
    "pretrain": [*ROWS, {"step": 900, "eval/top1(%)": 61.0}],
    "learn": {"phi2": [{"step": 10, "train/loss": 2.0}, {"step": 20, "train/loss": 1.0, "eval/base_top1(%)": 60.0}]},
}
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
        if tag != "meta":
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
    assert [row.method for row in paper.COMPARED] == ["NN + cosine", "φ1", "φ2", "φ2*"]
    assert paper.COMPARED[0].shots[1] == (71.54, 91.20, 1.72, 5.86)
    assert paper.COMPARED[2].shots[3] == (72.98, 90.59, 31.20, 61.44)
    for row in paper.TABLE_1:
        assert sorted(row.shots) == [1, 2, 3]
        for base1, base5, novel1, novel5 in row.shots.values():
            assert base1 < base5 and novel1 < novel5
            assert round(novel1 * 50) == pytest.approx(novel1 * 50)  # a share of 5000 images


def test_markdown_figures(results: dict[str, Any]) -> None:
    lines = table_markdown(results).splitlines()
    table = [cells(line) for line in lines if line.startswith("|")]
    table, differences = table[:8], table[8:]
    assert len(table) == 2 + 2 + 4 and {len(row) for row in table} == {1 + 2 * 3}
    assert "Less φ2, draw by draw (points; 95% t-interval of the difference):" in lines
    assert differences[0][1:5] == ["1-shot base top-1", "1-shot novel top-1", "1-shot H", "1-shot AUSUC"]
    signed = [f"{value} ± 0.00" for value in ("+0.88", "-19.00", "-26.45", "-11.00")]
    assert len(differences) == 3 and differences[2][:5] == ["Class mean + cosine", *signed]
    assert table[0][1:4] == ["1-shot base top-1/top-5", "1-shot novel top-1/top-5", "1-shot H"]
    assert table[3] == [
        "φ2",
        "57.13 ± 0.12 / 79.00 ± 0.12", "21.50 ± 0.12 / 45.00 ± 0.12", "31.24 ± 0.12",
        "56.00 ± 0.12 / 78.00 ± 0.12", "33.33 ± 0.12 / 60.00 ± 0.12", "41.80 ± 0.12",
    ]  # fmt: skip
    assert table[4][0] == "NN + cosine (paper, ImageNet 900/100, one draw)"
    assert table[6][1:] == ["74.17 / 91.79", "21.58 / 45.82", "33.43", "–", "–", "–"]  # it has no 5-shot
    for fact in ("95% t-interval over support draws, 100 draws", "tiny (0123)", "shards fedc", "commit abc", "a|b"):
        assert fact in table_markdown(results)


def test_report_says_what_the_table_says(results: dict[str, Any]) -> None:
    page = Page(report_html(results, CURVES, PROVENANCE))
    text = " ".join(page.text)
    assert not page.open
    assert "φ2 names 21.5% of images of 20 new classes after seeing one image of each" in text
    assert "Less φ2, draw by draw" in text and "-19.00" in text
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
    html = report_html(results, CURVES, PROVENANCE)
    assert "://" not in html and "@import" not in html and "url(" not in html and "<script" not in html
    assert not {"src", "href", "srcset", "xlink:href", "onload"} & {name for name, _ in Page(html).attributes}
    assert "prefers-color-scheme" in html


def test_report_escapes(results: dict[str, Any]) -> None:
    evil = "<script>alert('1')</script>&"
    results["methods"][evil] = results["methods"]["mean"]
    results.update(command=evil, commit=evil, interval=evil, split={"name": evil, "hash": evil})
    html = report_html(results, {"learn": {evil: CURVES["learn"]["phi2"]}}, {evil: {evil: evil}})
    assert "<script" not in html and "&lt;script&gt;" in html
    assert not Page(html).open


@pytest.mark.parametrize(
    "curves", [{}, {"pretrain": [], "learn": {}}, {"pretrain": [{"step": 1}], "learn": {"phi1": []}}]
)
def test_report_without_curves(results: dict[str, Any], curves: dict[str, Any]) -> None:
    html = report_html(results, curves, {})
    assert "<h2>Training</h2>" not in html and html.count("<svg") == 4 and not Page(html).open


def test_report_with_one_method_and_one_shot(results: dict[str, Any]) -> None:
    results["methods"] = {"mean": results["methods"]["mean"]}
    results["shots"] = [5]
    text = " ".join(Page(report_html(results, CURVES, PROVENANCE)).text)
    assert "Class mean + cosine names 12.2% of images of 20 new classes after seeing 5 images of each" in text
    assert "best baseline" not in text


def test_report_is_deterministic_and_changes_nothing(results: dict[str, Any]) -> None:
    before = copy.deepcopy((results, CURVES, PROVENANCE))
    assert report_html(results, CURVES, PROVENANCE) == report_html(*copy.deepcopy(before))
    assert (results, CURVES, PROVENANCE) == before


def test_chart_places_points_and_error_bars() -> None:
    svg = line_chart("t", "x", [Series("a", 1, ((1.0, 0.0), (2.0, 10.0)), (0.0, 2.0))], [1.0, 2.0])
    (x1, y1), (x2, y2) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert float(x1) < float(x2) < chart.WIDTH and float(y1) == chart.HEIGHT - chart.BOTTOM > float(y2)
    assert svg.count('class="bar"') == 1 and "a: 10.00 ± 2.00" in svg


def test_chart_of_many_points_shows_means_and_leaves_out_what_is_not_finite() -> None:
    points = tuple((float(n), 1.0 if n % 2 else 3.0) for n in range(4000))
    holes = ((0.5, float("nan")), (0.6, float("inf")))
    svg = line_chart("t", "x", [Series("a", 0, points + holes)])
    line = re.search(r'<polyline[^>]* points="([^"]+)"', svg)
    assert line and len(line[1].split()) == chart.MAX_POINTS
    assert "nan" not in svg and "inf" not in svg and len({pair.split(",")[1] for pair in line[1].split()}) == 1
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
    assert chart.number(value) == text


def test_curves_of_old_and_new_classes_end_where_they_reach_zero(results: dict[str, Any]) -> None:
    falling = {"seen_unseen": [60.0, 30.0, *[0.0] * 99], "forgetting": [60.0, 58.5, 57.0]}
    none = {"seen_unseen": [0.0] * 101, "forgetting": [0.0] * 3}
    html = report_html({**results, "curves": {"phi2": {"1": falling, "5": none}, "mean": {"1": none}}}, {}, {})
    page = Page(html)
    assert html.count("<svg") == 6 and not page.open
    lines = [re.findall(r'points="([^"]*)"', figure) for figure in html.split("<figcaption>1-shot: base top-1")[1:]]
    assert [len(line.split()) for line in lines[0]] == [2, 1] and [len(line.split()) for line in lines[1]] == [3, 3]


def test_no_two_methods_of_a_chart_have_one_colour(results: dict[str, Any]) -> None:
    names = ["nn", "nn10", "nn1", "imprint", "mean", "phi1", "phi2", "phi2star"]
    for some in (names, ["nn", "mean", "phi1", "phi2", "phi2star"]):
        html = report_html({**results, "methods": dict.fromkeys(some, results["methods"]["phi2"])}, {}, {})
        colours = re.findall(r'class="line" style="stroke:([^"]*)"', html.split("<figcaption>")[1])
        assert len(colours) == len(set(colours)) == len(some)
        assert all(f"{colour.removeprefix('var(').removesuffix(')')}:#" in html for colour in colours)
