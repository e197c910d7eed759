"""tools/class_separation.py against loops over all pairs of images."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dist_train.data.activations import Activations
from dist_train.runs.run import Run

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import class_separation


def table(counts: list[int], apart: float) -> Activations:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(len(counts)), counts)
    rows = rng.normal(0, 1, (len(labels), 8)) + apart * rng.normal(0, 1, (len(counts), 8))[labels]
    return Activations(rows.astype(np.float16), np.arange(len(labels)), np.concatenate([[0], np.cumsum(counts)]))


def test_the_index_is_that_of_all_pairs() -> None:
    given = table([3, 5, 4], 2.0)
    classes = [given.rows[a:b].astype(np.float64) for a, b in pairwise(given.offsets)]

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        pairs = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in one for b in other]
        return float(np.mean(pairs))

    within = np.mean([distance(own, own) for own in classes])
    total = np.mean([distance(one, other) for one in classes for other in classes])
    assert class_separation.separation(given) == pytest.approx(1 - within / total)


def test_it_grows_with_the_distance_of_classes() -> None:
    found = [class_separation.separation(table([50] * 10, apart)) for apart in (0.0, 0.5, 2.0, 100.0)]
    assert found == sorted(found) and found[0] < 0.05 and found[-1] > 0.99


def test_the_table_of_a_run(whole_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    class_separation.main([str(whole_run.dir), "--method", "phi2", "--shots", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].count("R²") == 3 and lines[2].count("|") == 9 and lines[2].startswith("| test | 0.")
    assert lines[-1].startswith("φ2 at 2 shots, percent")
    for wrong, said in (
        (["--method", "nobody"], "its table has no 'nobody'"),
        (["--method", "phi2", "--shots", "9"], "no 9"),
    ):
        with pytest.raises(SystemExit):
            class_separation.main([str(whole_run.dir), *wrong])
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        class_separation.main([str(whole_run.dir / "nowhere")])
    assert "finish its extract and evaluate" in capsys.readouterr().err
