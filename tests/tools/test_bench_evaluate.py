"""tools/bench_evaluate.py on tiny tables: a row for every method, and a second start computes none again."""

import re
import sys
from pathlib import Path

import pytest

from dist_train.fewshot.methods import FROZEN, METHODS

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_evaluate

TINY = ["--base", "5", "--per-class", "8", "--novel", "3", "--novel-per-class", "9", "--val-per-class", "2",
        "--dim", "8", "--draws", "2", "--shots", "1", "3"]  # fmt: skip


def test_every_method_has_its_row_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = [name for name in FROZEN if not any(key.startswith(f"{name}_steps") for key in METHODS[name].numbers)]
    started = []
    for methods in (fast[:2], fast, fast):
        bench_evaluate.main([*TINY, "--folder", str(tmp_path), "--methods", *methods])
        said = capsys.readouterr().out
        started.append(re.findall(r"^\| (\w+) \| (?:[\d.]+ \| ){5}[\d.]+ \|$", said, re.MULTILINE))
    assert started == [fast[:2], fast[2:], []]
