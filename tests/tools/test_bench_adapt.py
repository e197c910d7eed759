"""tools/bench_adapt.py on a small network: all its figures are there."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_adapt


@pytest.mark.parametrize("method", ["phi2", "phi_plus", "phi_plus_plda"])
def test_every_figure_is_printed(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_adapt, "ADDED", (1, 3))
    monkeypatch.setattr(bench_adapt, "BATCH", 2)
    small = ["--backbone", "resnet10", "--base", "4", "--per-class", "30", "--resize", "40", "--size", "32"]
    bench_adapt.main([*small, "--method", method, "--repeats", "1"])
    rows = re.findall(r"^\| (1 class|3 classes|1 photo) \|((?: [\d.]+ \|){6})$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in rows] == ["1 class", "3 classes", "1 photo"]
    for _, numbers in rows:
        decode, backbone, prediction, whole, *_ = (float(number) for number in numbers.split("|")[:-1])
        assert abs(decode + backbone + prediction - whole) < 0.03
