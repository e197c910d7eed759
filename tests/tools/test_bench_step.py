"""tools/bench_step.py on a tiny model: the printed table, never its speed."""

import re
import sys
from pathlib import Path

import pytest

from dist_train.data.shards.index import ShardSet

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_step
from bench_step import Result, Setting

TINY = ["--size", "32", "--batch", "4", "--steps", "2", "--lead", "1", "--rounds", "1", "--threads", "1"]


@pytest.mark.parametrize("given", [True, False], ids=["given shards", "drawn"])
def test_every_loop_has_its_row(given: bool, shards: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shards", str(shards.root), "--model", "resnet10"] if given else ["--timm", "--no-channels-last"]
    bench_step.main([*TINY, "--precision", "fp32", *options])
    said = capsys.readouterr().out
    setting = f"compile off, channels_last {'on' if given else 'off'}"
    for loop in ("trainer", "trainer + loader", *([] if given else ["timm"])):
        pattern = rf"^\| {setting} \| {re.escape(loop)} \| [\d.]+ \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|"
        (found,) = re.findall(pattern, said, re.MULTILINE)
        assert len(set(found)) == 1  # one round: its own minimum and maximum
    for loop in ("trainer", "trainer + loader"):
        (parts,) = re.findall(rf"^\| {setting} \| {re.escape(loop)} \| ((?:-?[\d.]+ \| ){{6}}-?[\d.]+) \|$", said, re.M)
        wait, forward, backward, optimiser, *_ = map(float, parts.split(" | "))
        assert min(forward, backward, optimiser) > 0 and (loop == "trainer" or wait > 0)


def test_a_ratio_is_the_median_over_pairs_with_an_interval_by_order_statistics() -> None:
    bare = [100.0, 50.0, 10.0, 100.0, 100.0, 100.0]
    result = Result(
        {"bare": bare, "x": [r * f for r, f in zip(bare, (1, 0.9, 0.5, 1.1, 0.98, 1), strict=True)]}, {}, {}
    )
    assert result.ratio("x") == pytest.approx((0.99, 0.5, 1.1))  # 1 - 2 / 2^6 = 97% from minimum to maximum
    many = [float(n) for n in range(1, 32)]
    # P(10 <= Binomial(31, 1/2) <= 21) = 97%
    assert Result({"bare": [1.0] * 31, "x": many}, {}, {}).ratio("x") == (16, 10, 22)


def test_the_matrix_has_all_four_settings() -> None:
    assert len(set(bench_step.settings(bench_step.parse(["--matrix"])))) == 4
    assert bench_step.settings(bench_step.parse(["--compile"])) == [Setting(True, True)]
