"""Accuracy and confusions of each class."""

from __future__ import annotations

import csv
import io
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.report.per_class import ClassList, accuracy_per_class, confusions, csv_text

CLASSES = ClassList(("n0", "n1", "n2", "n3"), ("cat", "crane, bird", 'the "dog"', "emu"), base=2)
COUNTS = np.array([[6, 1, 3, 0], [0, 10, 0, 0], [5, 2, 2, 1], [0, 4, 4, 2]], np.int32)


def test_accuracy_per_class() -> None:
    rows = accuracy_per_class(COUNTS, CLASSES)
    assert [row.top1 for row in rows] == [60.0, 100.0, 20.0, 20.0]
    assert [row.other_role for row in rows] == [30.0, 0.0, 70.0, 40.0]
    assert [row.taken_for for row in rows] == ['the "dog"', "", "cat", "crane, bird"]
    assert [row.taken_for_share for row in rows] == [30.0, 0.0, 50.0, 40.0]
    assert [row.role for row in rows] == ["base", "base", "novel", "novel"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=16, max_size=16))
def test_confusions_are_the_largest_off_the_diagonal(values: list[int]) -> None:
    counts = np.array(values, np.int32).reshape(4, 4)
    by_role = confusions(counts, CLASSES, most=3)
    assert list(by_role) == ["base", "novel"]
    for pairs, truths in zip(by_role.values(), ((0, 1), (2, 3)), strict=True):
        expected = [
            (100 * counts[t, a] / counts[t].sum(), t, a)
            for t, a in product(truths, range(4))
            if t != a and counts[t, a]
        ]
        expected.sort(key=lambda pair: (-pair[0], pair[1:]))
        assert [(pair.truth, pair.answer, pair.answer_role, pair.share) for pair in pairs] == [
            (CLASSES.names[t], CLASSES.names[a], CLASSES.role(a), round(share, 2)) for share, t, a in expected[:3]
        ]


def test_csv_reads_back() -> None:
    text = csv_text([("phi2", "1", accuracy_per_class(COUNTS, CLASSES))])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in rows] == list(CLASSES.names) and {row["method"] for row in rows} == {"phi2"}
    by_wnid = {row["wnid"]: row for row in rows}
    assert by_wnid["n2"]["taken_for_share"] == "50.0" and by_wnid["n3"]["taken_for"] == "crane, bird"
