"""table.md of joint scoring."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_samples import metrics

from dist_train.fewshot.results import BackboneFacts, MethodResult, Results
from dist_train.report.markdown import joint_markdown


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each table of a text, without the lines below the headers."""
    found: list[list[list[str]]] = []
    previous = ""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            if not previous.startswith("| "):
                found.append([])
            found[-1].append(cells(line))
        previous = line
    return found


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (
            BackboneFacts("starter", "ImageNet-1k", 0),
            "The backbone is starter, which was trained elsewhere (ImageNet-1k); none of the 100 novel classes was in "
            "that training.",
        ),
        (
            BackboneFacts("starter", fine_tuned=True),
            "The backbone began as starter, which was trained elsewhere; it is not known whether novel classes were in "
            "that training.",
        ),
        (
            BackboneFacts("starter", "ImageNet-1k", 7, fine_tuned=True),
            "Novel is not novel to the backbone: 7 of its 100 novel classes were in the training of starter "
            "(ImageNet-1k), as which it began.",
        ),
    ],
)
def test_the_first_line_says_what_the_backbone_has_seen(results: Results, facts: BackboneFacts, line: str) -> None:
    results = replace(results, backbone=facts)
    assert joint_markdown(results).splitlines()[0] == line.replace("100", str(results.classes.novel))
    assert Results.from_json(results.to_json()) == results


def test_figures(results: Results) -> None:
    text = joint_markdown(results)
    accuracy, differences = tables(text)
    assert accuracy[0][:4] == ["method", "1-shot base top-1/top-5", "1-shot novel top-1/top-5", "1-shot H"]
    rows = {row[0]: row[1:] for row in accuracy[1:]}
    assert list(rows) == ["Class mean + cosine", "φ2", "φ2 (paper, ImageNet 900/100, one draw)"]
    assert rows["φ2"] == [
        "57.13 ± 0.12 / 79.00 ± 0.12", "21.50 ± 0.12 / 45.00 ± 0.12", "31.24 ± 0.12",
        "56.00 ± 0.12 / 78.00 ± 0.12", "33.33 ± 0.12 / 60.00 ± 0.12", "41.80 ± 0.12",
    ]  # fmt: skip
    # The paper has no 5-shot.
    assert rows["φ2 (paper, ImageNet 900/100, one draw)"] == [
        "74.17 / 91.79", "21.58 / 45.82", "33.43", "–", "–", "–"
    ]  # fmt: skip
    assert (
        "φ2 in percent, and the paired differences of the other methods from it, draw by draw (points; 95% t-interval):"
        in text.splitlines()
    )
    titles = ["base top-1", "novel top-1", "H", "AUSUC"]
    assert differences[0] == ["method", *(f"{k}-shot {title}" for k in (1, 5) for title in titles)]
    rows = {row[0]: row[1:] for row in differences[1:]}
    assert list(rows) == ["φ2", "Class mean + cosine"] and rows["φ2"][1].startswith("21.50 ±")
    assert rows["Class mean + cosine"][:4] == [f"{value} ± 0.00" for value in ("+0.88", "-19.00", "-26.45", "-11.00")]
    for fact in ("95% t-interval over support draws, 100 draws", "tiny (0123)", "shards fedc", "commit abc", "a|b"):
        assert fact in text


def test_a_row_that_is_trained_otherwise_than_the_papers_has_a_footnote(results: Results) -> None:
    note = "¹ Trains one layer on the frozen activations, where the paper's row trains the whole network."
    assert "¹" not in joint_markdown(results)
    for method, name in (("finetune", "Fine-tuned (last layer)"), ("triplet1", "Triplet (last layer), 1% of base")):
        text = joint_markdown(replace(results, methods={**results.methods, method: results.methods["mean"]}))
        assert f"\n| {name} ¹ | " in text and note in text and text.count("¹") == 2
    child = replace(results, methods={**results.methods, "child": results.methods["mean"]})
    assert "¹" not in joint_markdown(child)  # the paper, too, trains its last layer only


def test_oracles_stand_beside_the_papers(results: Results) -> None:
    oracles = {"nn_oracle": metrics(60, 82, 40.5, 70, 48.36, 30), "unknown": metrics(1, 2, 3, 4, 5, 6)}
    text = joint_markdown(replace(results, oracles=oracles))
    (table, _) = tables(text.split("Table 2")[1])
    assert table == [
        ["method", "base top-1/top-5", "novel top-1/top-5", "H"],
        ["NN + cosine", "60.00 / 82.00", "40.50 / 70.00", "48.36"],
        ["unknown", "1.00 / 2.00", "3.00 / 4.00", "5.00"],
        ["NN + cosine (paper)", "70.25 / 89.98", "52.46 / 80.94", "60.07"],
    ]


def test_a_single_method_has_no_differences(results: Results) -> None:
    alone = replace(results, methods={"mean": MethodResult(results.methods["mean"].shots)})
    assert "draw by draw" not in joint_markdown(alone)
