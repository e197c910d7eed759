"""tools/bench_batch.py on a few drawn photos: all its figures are there."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_batch


def test_every_figure_is_printed(models: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_batch.main([str(models / "phi2"), str(drawn / "train"), "--photos", "40", "--repeats", "1"])
    rows = re.findall(r"^\| (\S.*) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, *_ in rows] == ["the backbone alone", "reading alone", "`predict`, `classify`",
                                             "one after another"]  # fmt: skip
    assert rows[0][2] == "1.00" and all(float(rate) > 0 and float(cpu) > 0 for _, rate, _, cpu in rows)
