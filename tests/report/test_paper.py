"""The paper's figures as they are copied."""

from __future__ import annotations

import pytest

from dist_train.fewshot.methods import LABELS
from dist_train.report import paper


def test_rows_of_the_papers_tables() -> None:
    assert len(paper.TABLE_1) == 11
    assert paper.TABLE_1["nn"].shots[1] == (71.54, 91.20, 1.72, 5.86)
    assert paper.TABLE_1["phi2"].shots[3] == (72.98, 90.59, 31.20, 61.44)
    assert paper.TABLE_1["triplet_network10"].base_data == "10%" and paper.TABLE_1["nn1"].shots[1][2] == 10.42
    assert {*paper.TABLE_1, *paper.TABLE_2, *paper.LAST_LAYER} <= set(LABELS)
    for row in paper.TABLE_1.values():
        assert sorted(row.shots) == [1, 2, 3]
        for base1, base5, novel1, novel5 in row.shots.values():
            assert base1 < base5 and novel1 < novel5
            assert round(novel1 * 50) == pytest.approx(novel1 * 50)  # a share of 5000 images


def test_the_papers_row_stands_beside_the_method_that_is_nearest_to_it() -> None:
    finetuned = paper.TABLE_1["finetune_network"]
    assert paper.row_beside("finetune", ["finetune", "nn"]) is finetuned
    assert paper.row_beside("finetune_network", ["finetune", "finetune_network"]) is finetuned
    assert paper.row_beside("finetune", ["finetune", "finetune_network"]) is None
    assert paper.row_beside("mean", ["mean"]) is None
