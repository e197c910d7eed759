"""tools/bench_serve.py with photos that are not large: all its figures are there."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_serve


def test_every_figure_is_printed(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--clients", "1", "3", "--seconds", "1", "--large", "2", "--megapixels", "17"]
    bench_serve.main([str(models / "phi2"), *small])
    said = capsys.readouterr().out
    rows = re.findall(r"^\| (.+) \| (\d) \|((?: [\d.]+ \|){4})$", said, re.MULTILINE)
    assert [row[:2] for row in rows] == [
        (server, clients) for server in ("dist-train serve", "one at a time") for clients in "13"
    ]
    for _, clients, numbers in rows:
        rate, p50, p99, batch = (float(number) for number in numbers.split("|")[:-1])
        assert rate > 0 and 0 < p50 <= p99 and 1 <= batch <= int(clients)
    [row] = re.findall(r"^\|((?: [\d.]+ \|){6})$", said, re.MULTILINE)
    alone, median, longest, seconds, before, most = (float(number) for number in row.split("|")[:-1])
    assert alone > 0 and 0 < median <= longest <= seconds and 0 < before <= most
