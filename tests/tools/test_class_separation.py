"""tools/class_separation.py against loops over all pairs of images."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dist_train.data.activations import Activations
from dist_train.fewshot.results import Interval
from dist_train.report.comparison import PAIRED_METRICS
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


def test_runs_are_compared_with_the_first_draw_by_draw() -> None:
    one, other = ({name: Interval.of(np.array(draws) + at) for at, name in enumerate(PAIRED_METRICS)}
                  for draws in ([1.0, 5.0, 3.0], [2.0, 6.0, 4.5]))  # fmt: skip
    lines = class_separation.tables(["a", "b"], [[0.1] * 3, [0.2] * 3], [one, other], "φ+ at 1 shot")
    half = Interval.of([1.0, 1.0, 1.5]).half_width
    assert lines[-1] == "| b | " + " | ".join([f"+1.17 ± {half:.2f}"] * 4) + " |"


def test_other_draws_are_refused(whole_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    (other / "evaluate").mkdir(parents=True)
    (other / "extract").symlink_to(whole_run.dir / "extract")
    results = json.loads((whole_run.dir / "evaluate" / "results.json").read_text())
    (other / "evaluate" / "results.json").write_text(json.dumps({**results, "seed": 7}))
    with pytest.raises(SystemExit):
        class_separation.main([str(whole_run.dir), str(other), "--method", "phi2"])
    assert f"{other}: its draws of supports are not those of" in capsys.readouterr().err


def test_the_table_of_a_run(whole_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    class_separation.main([str(whole_run.dir), "--method", "phi2", "--shots", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].count("R²") == 3 and lines[2].count("|") == 9 and lines[2].startswith("| test | 0.")
    assert lines[-1].startswith("φ2 at 2 shots, percent")
    class_separation.main([str(whole_run.dir), str(whole_run.dir), "--method", "phi2"])
    lines = capsys.readouterr().out.splitlines()
    assert "Paired differences from test, draw by draw" in lines[7]
    assert lines[-1] == "| test | " + " | ".join(["+0.00 ± 0.00"] * 4) + " |"
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
