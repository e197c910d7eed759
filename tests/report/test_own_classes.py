"""The part of the report that speaks to the owner of the photos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from html_pages import Element, parse
from report_samples import IMAGE, metrics

from dist_train.fewshot.learning_curve import CurvePoint, LearningCurve
from dist_train.fewshot.results import Counts, Interval, MethodResult, Results
from dist_train.report.own_classes import ConfusedPair, OwnClasses, finding, own_class_rows, right_share
from dist_train.report.page import Pictures, report_html
from dist_train.report.per_class import ClassList, most_confused
from dist_train.report.plots import TrainingCurves

CLASSES = ClassList(("cat", "dog", "emu"), ("cat", "dog", "emu"), base=2)
COUNTS = np.array([[12, 6, 2], [0, 19, 1], [10, 0, 10]], np.int32)  # over two draws of ten photos a class


def curve(gain: float, half: float, novel: bool = True) -> LearningCurve:
    points = tuple(CurvePoint(k, Interval(40 + k, 1.5)) for k in (1, 5))
    return LearningCurve(points, Interval(gain, half), novel)


def own(text: str = "{}") -> OwnClasses:
    names = ClassList(CLASSES.wnids, tuple(text.format(name) for name in CLASSES.names), 2)
    pairs = [
        ConfusedPair(names.names[2], names.names[0], 50.0, [IMAGE, ""], True, [IMAGE]),
        ConfusedPair(names.names[0], names.names[1], 30.0, [IMAGE], False, [IMAGE]),
    ]
    rows = own_class_rows(COUNTS, names, [40, 30, 5], 2)
    return OwnClasses("phi2", 5, right_share(COUNTS), rows, pairs, curve(4, 1), True)


def first_section(html: str) -> Element:
    return parse(html).all("section")[0]


def test_counts_become_rows_and_pairs() -> None:
    rows = own_class_rows(COUNTS, CLASSES, [40, 30, 5], 2)
    assert [(row.name, row.new, row.learned, row.photos, row.right) for row in rows] == [
        ("emu", True, 5, 10, 50.0), ("cat", False, 40, 10, 60.0), ("dog", False, 30, 10, 95.0)
    ]  # fmt: skip
    assert (rows[0].taken_for, rows[0].taken_for_share) == ("cat", 50.0)
    assert (rows[0].low, rows[0].high) == pytest.approx((23.7, 76.3), abs=0.1)  # of 10 photos, not of 20 answers
    assert right_share(COUNTS) == pytest.approx(100 * 41 / 60)
    assert most_confused(COUNTS, range(3), 3) == [(2, 0, 50.0), (0, 1, 30.0), (0, 2, 10.0)]
    assert most_confused(COUNTS, range(1, 2), 9) == [(1, 2, 5.0)]


def test_the_page_speaks_to_the_owner_first(results: Results) -> None:
    html = report_html(results, TrainingCurves(), {}, Pictures(own=own()))
    page = parse(html)
    assert page.all("h1")[0].text == "68.3% of your photos are named right"
    lead = page.all(kind="lead")[0].text
    for words in ("30 validation photos", "interval is 50 to 82%", "All 3 classes", "φ2, the best of 2",
                  "seen 5 photos each", "33.3 ± 0.1%", "56.0%"):  # fmt: skip
        assert words in lead
    titles = [part.all("h2")[0].text for part in page.all("section")]
    assert titles[:2] == ["Your classes", "Accuracy"]
    section = page.all("section")[0]
    rows = section.all("tbody")[0].all("tr")
    assert [row.all("th")[0].text for row in rows] == ["emu new", "cat", "dog"]
    assert [cell.text for cell in rows[0].all("td")] == ["50.0%", "24 to 76%", "10", "5", "cat 50.0%"]
    cards = section.all(kind="card")
    assert [card.all("h3")[0].text for card in cards] == ["emu taken for cat: 50.0%", "cat taken for dog: 30.0%"]
    assert [len(card.all(kind="wrong")) for card in cards] == [2, 0]  # no cross where the answer is not known
    assert len(cards[0].all("img")) == 2 and len(cards[0].all(kind="none")) == 1
    assert "in place of 1, 4.0 points more" in section.text and len(section.all("svg")) == 1


def test_the_tables_after_it_are_those_of_any_run(results: Results, training: TrainingCurves) -> None:
    plain = parse(report_html(results, training, {})).all("section")
    ours = parse(report_html(results, training, {}, Pictures(own=own()))).all("section")[1:]
    assert [part.text for part in ours] == [part.text for part in plain] and plain[0].all("h2")[0].text == "Accuracy"
    assert "your" not in report_html(results, training, {}).lower()


def test_without_novel_classes(results: Results) -> None:
    base = replace(
        results, shots=[0], draws=1, classes=Counts(3, 0), queries=Counts(30, 0),
        methods={"mean": MethodResult({0: dict(list(metrics(60, 90, 0, 0, 0, 0).items())[:2])})},
    )  # fmt: skip
    alone = replace(own(), method="mean", shots=0, curve=curve(0.5, 2.0, novel=False))
    html = report_html(base, TrainingCurves(), {}, Pictures(own=alone))
    text = first_section(html).text
    assert "which may be chance" in text and "fitted to an eighth" in text and "new class" not in html.lower()
    assert "was trained on all of the photos" in text
    elsewhere = report_html(base, TrainingCurves(), {}, Pictures(own=replace(alone, trained_here=False)))
    assert "was trained on all of the photos" not in elsewhere
    nothing = report_html(base, TrainingCurves(), {}, Pictures(own=replace(alone, curve=None, pairs=[])))
    assert "more photos would bring" not in nothing and "Most confused" not in nothing


@pytest.mark.parametrize(
    ("gain", "half", "words"),
    [
        (4.0, 1.0, "4.0 points more are named right (95% interval +3.0 to +5.0): the curve is still rising"),
        (-4.0, 1.0, "4.0 points fewer are named right (95% interval -5.0 to -3.0)"),
        (1.0, 2.0, "changes by +1.0 points (95% interval -1.0 to +3.0), which may be chance"),
        (0.0, 0.0, "changes by +0.0 points"),
    ],
)
def test_what_is_found_is_said_no_more(gain: float, half: float, words: str) -> None:
    assert words in finding(curve(gain, half)) and "With 5 photos of each new class in place of 1" in finding(
        curve(gain, half)
    )


def test_names_are_text(results: Results, provenance: dict[str, Any]) -> None:
    html = report_html(results, TrainingCurves(), provenance, Pictures(own=own("<b>{}</b>&\"'")))
    assert "<b>cat" not in html and "&lt;b&gt;cat&lt;/b&gt;&amp;" in html
