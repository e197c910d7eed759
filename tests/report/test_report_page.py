"""report.html, read as a page."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from html_pages import Element, parse
from report_samples import make_pictures, metrics

from dist_train.fewshot.methods import LABELS
from dist_train.fewshot.results import Interval, MethodResult, Results, SplitFacts
from dist_train.fewshot.table_row import Curve, Curves
from dist_train.report import paper
from dist_train.report.chart import COLOURS
from dist_train.report.page import Pictures, report_html
from dist_train.report.plots import TrainingCurves, method_labels

NO_CURVES = TrainingCurves()


def section(page: Element, title: str) -> Element:
    """Return the section of this title."""
    (found,) = (part for part in page.all("section") if part.all("h2")[0].text == title)
    return found


def table_rows(part: Element) -> dict[str, list[str]]:
    """Return the rows of a section's first table: the first line of the name -> the first line of each cell."""
    rows = part.all("tbody")[0].all("tr")
    first_line = [
        [next((c if isinstance(c, str) else c.text) for c in cell.children) for cell in row.all("th") + row.all("td")]
        for row in rows
    ]
    return {name: values for name, *values in first_line}


def test_says_what_the_table_says(results: Results, training: TrainingCurves, provenance: dict[str, Any]) -> None:
    page = parse(report_html(results, training, provenance))
    assert page.all("h1")[0].text == "φ2 names 21.5% of images of 20 new classes after seeing 1 image of each"
    assert "Class mean + cosine, reaches 2.5% on the new and 58.0% on the base classes" in page.all("header")[0].text
    accuracy = section(page, "Accuracy")
    assert table_rows(accuracy)["φ2"] == [
        "57.13 / 79.00", "21.50 / 45.00", "31.24", "56.00 / 78.00", "33.33 / 60.00", "41.80"
    ]  # fmt: skip
    assert table_rows(accuracy)["paper"] == ["74.17 / 91.79", "21.58 / 45.82", "33.43", "–", "–", "–"]
    assert [bold.text for bold in accuracy.all("b")] == ["31.24", "41.80"]
    for words in ("± 0.12 / 0.12", "ImageNet 900/100, one draw", "Learning like a Child"):
        assert words in accuracy.text
    differences = table_rows(section(page, "Differences from φ2"))
    assert differences["Class mean + cosine"][:4] == ["+0.88", "-19.00", "-26.45", "-11.00"]
    origin = section(page, "Where the numbers come from").text
    for words in ("torch 2.14 · numpy 2.4", "dist-train run --config a|b", "hash 0123", "seed 7"):
        assert words in origin


def test_a_row_that_is_trained_otherwise_than_the_papers_has_a_footnote(results: Results) -> None:
    assert "¹" not in report_html(results, NO_CURVES, {})
    both = replace(results, methods={**results.methods, "finetune": results.methods["mean"]})
    accuracy = section(parse(report_html(both, NO_CURVES, {})), "Accuracy")
    assert "Fine-tuned (last layer) ¹" in table_rows(accuracy)
    assert "¹ Trains one layer on the frozen activations, where the paper's row trains the whole" in accuracy.text


def test_oracles_stand_beside_the_papers(results: Results) -> None:
    oracles = replace(results, oracles={"nn_oracle": metrics(60, 82, 40.5, 70, 48.36, 30)})
    rows = table_rows(section(parse(report_html(oracles, NO_CURVES, {})), "Oracles: all images of the novel classes"))
    assert rows["NN + cosine"] == ["60.00 / 82.00", "40.50 / 70.00", "48.36"]
    assert rows["paper"] == ["70.25 / 89.98", "52.46 / 80.94", "60.07"]


def test_low_shot_measures_stand_beside_the_published_where_the_split_is_theirs(results: Results) -> None:
    measure = Interval(77.125, 0.5)
    low_shot = {f"{name}_top5": measure for name in ("novel_only", "all", "all_prior")}
    results = replace(
        results,
        methods={
            name: MethodResult({k: {**values, **low_shot} for k, values in result.shots.items()})
            for name, result in results.methods.items()
        },
    )
    ours = table_rows(section(parse(report_html(results, NO_CURVES, {})), "Low-shot ImageNet"))
    assert "77.12" in ours["φ2"] and "wDAE-GNN" not in ours
    theirs = replace(results, split=SplitFacts("theirs", paper.LOW_SHOT_SPLIT))
    rows = table_rows(section(parse(report_html(theirs, NO_CURVES, {})), "Low-shot ImageNet"))
    assert rows["wDAE-GNN"] == ["–", "47.99", "–", "59.02", "–", "–", "70.23", "–", "73.20", "–"]  # n = 1 and 5


def test_needs_nothing_beside_itself(
    results: Results, training: TrainingCurves, provenance: dict[str, Any], pictures: Pictures
) -> None:
    html = report_html(results, training, provenance, pictures)
    assert "://" not in html and "@import" not in html and "url(" not in html and "<script" not in html
    elements = parse(html).all()
    values = {name: [e.attributes[name] or "" for e in elements if name in e.attributes] for name in ("src", "href")}
    assert all(value.startswith("data:image/") for value in values["src"])
    targets = {f"#{element.attributes.get('id')}" for element in elements}
    assert values["href"] and set(values["href"]) <= targets
    assert not [e for e in elements if {"srcset", "onload"} & e.attributes.keys()]
    assert "prefers-color-scheme" in html and "img-src data:" in html and "default-src 'none'" in html


def test_escapes_names(results: Results, training: TrainingCurves) -> None:
    evil = "<script>alert('1')</script>&"
    methods = {**results.methods, evil: results.methods["mean"]}
    results = replace(
        results, methods=methods, oracles={evil: results.methods["mean"].shots[1]}, seconds={evil: 1.0},
        command=evil, commit=evil, interval=evil, split=SplitFacts(evil, evil),
    )  # fmt: skip
    training = replace(training, learn={evil: training.learn["phi2"]})
    html = report_html(results, training, {evil: {evil: evil}, "config": {evil: evil}}, make_pictures(evil))
    assert "<script" not in html and "&lt;script&gt;" in html
    parse(html)


@pytest.mark.parametrize(
    "training",
    [NO_CURVES, TrainingCurves([], {}), TrainingCurves([{"step": 1}], {"phi1": []})],
    ids=["nothing", "empty", "rows without values"],
)
def test_without_curves_there_is_no_training(results: Results, training: TrainingCurves) -> None:
    page = parse(report_html(results, training, {}))
    assert "Training" not in [title.text for title in page.all("h2")]
    assert len(page.all("figure")) == 4


def test_one_method_and_one_number_of_shots(
    results: Results, training: TrainingCurves, provenance: dict[str, Any]
) -> None:
    alone = replace(results, methods={"mean": results.methods["mean"]}, shots=[5])
    text = parse(report_html(alone, training, provenance)).text
    assert "Class mean + cosine names 12.2% of images of 20 new classes after seeing 5 images of each" in text
    assert "best baseline" not in text


def test_the_same_data_make_the_same_page(
    results: Results, training: TrainingCurves, provenance: dict[str, Any], pictures: Pictures
) -> None:
    given = (results, training, provenance, pictures)
    before = copy.deepcopy(given)
    assert report_html(*given) == report_html(*before)
    assert given == before  # nothing is changed


def test_curves_of_old_and_new_classes_end_where_they_reach_zero(results: Results) -> None:
    falling = Curves(Curve((60.0, 30.0, *[0.0] * 99)), Curve((60.0, 58.5, 57.0)))
    zero = Curves(Curve((0.0,) * 101), Curve((0.0,) * 3))
    methods = {
        "phi2": replace(results.methods["phi2"], curves={1: falling, 5: zero}),
        "mean": replace(results.methods["mean"], curves={1: zero}),
    }
    page = parse(report_html(replace(results, methods=methods), NO_CURVES, {}))
    points = {}
    for figure in page.all("figure"):
        lines = [line.attributes["points"] or "" for line in figure.all("polyline")]
        points[figure.all("figcaption")[0].text] = [len(line.split()) for line in lines]
    assert len(points) == 6
    assert points["Seen-unseen, 1-shot: base top-1 (%)"] == [2, 1]
    assert points["Forgetting, 1-shot: base top-1 (%)"] == [3, 3]


def test_check_boxes_of_many_methods_show_the_best_of_each_kind(
    many_methods: Callable[[list[str]], Results],
) -> None:
    results = many_methods(list(LABELS))
    labels = method_labels(results)
    html = report_html(results, NO_CURVES, {})
    page = parse(html)
    checked = {box.attributes["id"] for box in page.all("input") if "checked" in box.attributes}
    assert checked == {f"show-{label.key}" for label in labels.values() if label.shown} and len(checked) == COLOURS
    for label in labels.values():
        assert f"#show-{label.key}:checked) .{label.key} {{" in html
        assert len(page.all("g", kind=label.key)) == 4  # a line in each chart


def test_the_style_sheet_has_all_colours(results: Results) -> None:
    html = report_html(results, NO_CURVES, {})
    for number in range(COLOURS):
        assert len(re.findall(rf"--c{number}: #", html)) == 2  # light and dark
    assert f"--c{COLOURS}:" not in html


def test_map_has_a_mark_for_each_class_in_its_groups_colour(results: Results, pictures: Pictures) -> None:
    maps = section(parse(report_html(results, NO_CURVES, {}, pictures)), "Classes as activations and as classifiers")
    marks = {g.all("title")[0].text: g.attributes for g in maps.all("figure")[0].all("g")}
    assert {name: attributes["class"] for name, attributes in marks.items()} == {
        "cat (animal)": "s g0", "dog (animal)": "s g0", "oak (plant)": "s g1", "jar (other)": "s g2"
    }  # fmt: skip
    assert next(iter(marks)) == "jar (other)"  # below the others
    places = {name.split()[0]: attributes["transform"] or "" for name, attributes in marks.items()}
    # Both axes have one scale.
    assert places["cat"].startswith("translate(12.0 12.0)") and places["dog"].startswith("translate(288.0 12.0)")
    assert places["oak"].startswith("translate(150.0 150.0)") and places["jar"].startswith("translate(150.0 288.0)")


def test_maps_of_many_classes_say_how_many_neighbours_are_shared(results: Results, pictures: Pictures) -> None:
    few = pictures.maps
    assert few is not None
    assert "among those of its" not in report_html(results, NO_CURVES, {}, pictures)  # of four classes, all are
    many = replace(
        few,
        classes=few.classes * 20,
        maps={kind: places * 20 for kind, places in few.maps.items()},
        neighbours={"means": 100.0, "rows": 64.0},
    )
    text = parse(report_html(results, NO_CURVES, {}, Pictures(maps=many))).text
    assert "6.4 are also among those of its rows (by chance 1.3)" in text


def test_classes_are_listed_from_the_best_and_from_the_worst(results: Results, pictures: Pictures) -> None:
    classes = section(parse(report_html(results, NO_CURVES, {}, pictures)), "Class by class")
    lists = {
        part.all("h3")[0].text: [row.all("th")[0].text for row in part.all("tbody")[0].all("tr")]
        for part in classes.all("div")
        if part.all("h3") and len(part.all("table")) == 1
    }
    assert lists["Novel classes: the best"] == ["emu", "fox"] and lists["Novel classes: the worst"] == ["gnu", "fox"]
    assert lists["Base classes that lose most"] == ["dog", "cat"]  # the jar loses nothing
    assert [bold.text for bold in classes.all("b")] == ["emu"]  # a novel class among the answers
    assert "All 6 classes" in classes.text and "per_class.csv" in classes.text


def test_examples_show_answers(results: Results, pictures: Pictures) -> None:
    examples = section(parse(report_html(results, NO_CURVES, {}, pictures)), "Examples of novel classes")
    (card,) = examples.all(kind="card")
    assert card.all("h3")[0].text == "emu 30.0% over all draws"
    assert [answer.text for answer in card.all(kind="right")] == ["✓ emu"]
    assert [answer.text for answer in card.all(kind="wrong")] == ["✗ cat"] and "right: no. 7" in card.text
    assert len(card.all("img")) == 2 and len(card.all(kind="none")) == 1  # an image that could not be read


def test_configuration_and_costs_are_shown(results: Results, provenance: dict[str, Any]) -> None:
    facts = {**provenance, "config": {"pretrain.epochs": 3}, "stages": {"pretrain": "52.0 min"}}
    html = report_html(replace(results, seconds={"phi2": 12.34}), NO_CURVES, facts)
    text = section(parse(html), "Where the numbers come from").text
    assert "pretrain.epochs 3" in text and "pretrain 52.0 min" in text and "φ2 12.3 s" in text
