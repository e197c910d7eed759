"""tools/bench_serve.py with photos that are not large: all its figures are there."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_serve


def test_every_figure_is_printed(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_serve.main([str(models / "phi2"), "--large", "2", "--megapixels", "17"])
    [row] = re.findall(r"^\|((?: [\d.]+ \|){6})$", capsys.readouterr().out, re.MULTILINE)
    alone, median, longest, seconds, before, most = (float(number) for number in row.split("|")[:-1])
    assert alone > 0 and 0 < median <= longest <= seconds and 0 < before <= most
