"""The files that evaluate leaves beside the table: figures, classes, report, TensorBoard."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from html_pages import parse
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_train.config import DrawConfig, PackConfig
from dist_train.data.activations import load
from dist_train.distributed.context import Context
from dist_train.fewshot.methods import make
from dist_train.fewshot.protocols.joint import support_rows
from dist_train.fewshot.results import Results
from dist_train.report.comparison import best_method
from dist_train.report.examples import thumbnails
from dist_train.runs.run import Run
from dist_train.stages.own_photos import _answers, is_of_own_photos
from dist_train.stages.reporting import changed_keys
from dist_train.stages.scoring import JointScoring


@pytest.fixture
def folder(whole_run: Run) -> Path:
    return whole_run.dir / "evaluate"


def test_per_class_agrees_with_the_table(whole_run: Run, folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    with (folder / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 3 * 9 + 9  # methods, shots, classes; and the oracle
    for method, shots, values in [
        *((method, k, by[k]) for method, by in results["methods"].items() for k in by),
        ("nn_oracle", "all", results["oracles"]["nn_oracle"]),
    ]:
        found = [row for row in rows if (row["method"], row["shots"]) == (method, shots)]
        assert [row["wnid"] for row in found] == [*whole_run.base, *whole_run.novel]
        for role in ("base", "novel"):  # classes have as many images each
            mean = np.mean([float(row["top1"]) for row in found if row["role"] == role])
            assert mean == pytest.approx(values[f"{role}_top1"]["mean"], abs=0.01)


def test_figures_are_left_as_numbers(whole_run: Run, folder: Path) -> None:
    found = {path.stem: json.loads(path.read_text()) for path in (folder / "figures").iterdir()}
    assert set(found) == {"maps", "channels", "diagonal", "classes", "more_photos"}
    maps = found["maps"]
    assert [entry["wnid"] for entry in maps["classes"]] == list(whole_run.base)
    assert {entry["group"] for entry in maps["classes"]} == {""}  # drawn classes are in no hierarchy
    assert list(maps["maps"]) == ["mean activations", "trained rows", "rows of φ2"]
    assert all(np.isfinite(places).all() and np.shape(places) == (6, 2) for places in maps["maps"].values())
    # Rows that predictors of their own make; not those of phi2 once more, calibrated.
    assert list(found["channels"]) == ["trained rows", "rows of φ1", "rows of φ2", "rows of φ2*", "paper"]
    assert len(found["diagonal"]["sorted"]) == 64


def test_report_has_every_part_and_stays_small(whole_run: Run, folder: Path) -> None:
    html = (folder / "report.html").read_text()
    parts = re.findall(r"<h2>([^<]*)</h2>", html)
    assert parts == [
        "Your classes",
        "Accuracy",
        "Oracles: all images of the novel classes",
        "Differences from φ2",
        "Examples of novel classes",
        "Curves",
        "Classes as activations and as classifiers",
        "Channels",
        "Class by class",
        "Training",
        "Where the numbers come from",
    ]
    assert len(html) < 2e6
    assert "pretrain.model" in html and "conv4" in html  # it differs from the default


def test_examples_are_the_first_draws_supports(whole_run: Run, folder: Path) -> None:
    (examples,) = (
        part for part in parse((folder / "report.html").read_text()).all("section")
        if part.all("h2")[0].text == "Examples of novel classes"
    )  # fmt: skip
    cards = examples.all(kind="card")
    assert len(cards) == 3
    seen = load(whole_run.dir / "extract", "novel_train")
    rows = support_rows(seen, 3, whole_run.config.evaluate.seed, 0)[:, 0]
    images = thumbnails(whole_run.shards["train"], seen.ids[rows])
    assert len(set(images)) == 3
    for card in cards:
        name = card.all("h3")[0].text.split()[0]
        (shown,) = card.all(kind="shown")
        assert [image.attributes["src"] for image in shown.all("img")] == [images[whole_run.novel.index(name)]]
        assert len(card.all("img")) == 1 + 6


def test_tensorboard_has_the_curves_and_the_classes(whole_run: Run, folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    board = EventAccumulator(str(folder / "tb" / "phi2"), size_guidance={"scalars": 0})
    board.Reload()
    shots = board.Scalars("fewshot/novel_top1(%)")
    assert [event.step for event in shots] == [1, 2, 3]
    assert shots[0].value == pytest.approx(results["methods"]["phi2"]["1"]["novel_top1"]["mean"], abs=1e-4)
    forgetting = board.Scalars("forgetting, 1-shot/base_top1(%) by step (novel classes)")
    assert [event.value for event in forgetting] == pytest.approx(
        results["curves"]["phi2"]["1"]["forgetting"], abs=1e-4
    )
    assert len(board.Scalars("seen_unseen, 3-shot/base_top1(%) by step (novel top-1, %)")) == 101

    projector = (folder / "tb" / "classes" / "projector_config.pbtxt").read_text()
    tables = re.findall(r'tensor_path: "([^"]*)"', projector)
    assert len(tables) == 3
    for name in tables:
        table = folder / "tb" / "classes" / name
        assert np.loadtxt(table).shape == (6, 6)
        lines = (table.parent / "metadata.tsv").read_text().splitlines()
        assert lines[0] == "name\twnid\tgroup" and [line.split("\t")[1] for line in lines[1:]] == list(whole_run.base)


def test_only_differences_from_the_defaults_are_listed(whole_run: Run) -> None:
    found = changed_keys(whole_run.config)
    assert found["pretrain.model"] == "conv4" and found["evaluate.draws"] == 4
    assert not {"pretrain.momentum", "seed", "evaluate.shots", "evaluate.options"} & set(found)


def test_whose_photos_they_are_is_read_from_the_packed_classes(whole_run: Run) -> None:
    def with_classes(*classes: str) -> Run:
        return replace(whole_run, samples=replace(whole_run.shards, classes=classes))

    assert is_of_own_photos(whole_run)
    assert is_of_own_photos(with_classes("cat", "n02084071"))
    assert not is_of_own_photos(with_classes("n02084071", "n02121808"))
    drawn = replace(whole_run.config, pack=PackConfig(draw=DrawConfig()))
    assert not is_of_own_photos(replace(whole_run, config=drawn))


def test_your_classes_show_who_is_taken_for_whom(whole_run: Run, folder: Path) -> None:
    page = parse((folder / "report.html").read_text())
    results = Results.read(folder / "results.json")
    best = best_method(results, 3)
    with np.load(folder / "rows" / f"{best}.npz") as confusions:
        counts = confusions["3"]
    assert page.all("h1")[0].text == f"{100 * np.trace(counts) / counts.sum():.1f}% of your photos are named right"
    own = page.all("section")[0]
    rows = own.all("tbody")[0].all("tr")
    assert len(rows) == 9
    tried = {row.all("th")[0].text.split()[0]: [cell.text for cell in row.all("td")] for row in rows}
    learned = {**dict.fromkeys(whole_run.base, "20"), **dict.fromkeys(whole_run.novel, "3")}
    assert {name: cells[2:4] for name, cells in tried.items()} == {name: ["6", own] for name, own in learned.items()}
    shares = 100 * counts / counts.sum(1, keepdims=True)
    names = [*whole_run.base, *whole_run.novel]
    val = {name: load(whole_run.dir / "extract", f"{name}_val") for name in ("base", "novel")}
    cards = own.all(kind="card")
    assert cards
    for card in cards:
        truth, answer = card.all("h3")[0].text.split(" taken for ")
        answer, share = answer.split(": ")
        number = names.index(truth)
        assert float(share[:-1]) == pytest.approx(shares[number, names.index(answer)], abs=0.051)
        table, place = (val["base"], number) if number < 6 else (val["novel"], number - 6)
        ids = table.ids[table.offsets[place] : table.offsets[place + 1]]
        photos = thumbnails(whole_run.shards["val"], ids)
        shown = [image.attributes["src"] for figure in card.all("figure") if truth in figure.text
                 for image in figure.all("img")]  # fmt: skip
        assert shown and set(shown) <= set(photos)


def test_photos_with_a_cross_got_that_answer(whole_run: Run) -> None:
    scoring = JointScoring(whole_run, Context())
    results = Results.read(whole_run.dir / "evaluate" / "results.json")
    val = load(whole_run.dir / "extract", "base_val")
    rows = {2: val.rows[val.offsets[2] : val.offsets[3]], 0: val.rows[: val.offsets[1]]}
    answers = _answers(whole_run, results, scoring, rows)
    support = scoring.load(scoring.novel_train.rows[scoring.supports[0]])
    method = make(best_method(results, 3), scoring.base)
    for number, own in rows.items():
        scores = method.take(support)(scoring.load(own))
        if not method.moves_base:
            scores = torch.cat([method.base_scores(scoring.load(own)), scores], dim=1)
        assert answers[number].tolist() == scores.argmax(1).tolist()
    slow = replace(results, seconds=dict.fromkeys(results.seconds, 1e6))
    assert _answers(whole_run, slow, scoring, rows) == {}
