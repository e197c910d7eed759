"""tools/plan_start.py: figures computed by hand, relations that must hold, and the same requests as the code makes."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TOOL = Path(__file__).parents[2] / "tools" / "plan_start.py"
sys.path.insert(0, str(TOOL.parent))

import plan_start  # noqa: E402
from plan_start import fair, fill, meet, parse, reached, restart, start, train  # noqa: E402

STEP = ["--batch", "100", "--step-ms", "100", "--gradient-mb", "100"]
# Only the parts that a test names take any time.
FREE = [f"--{name}=0" for name in ("launch-s", "spread-s", "mesh-s", "nccl-s", "hop-us", "index-mb", "open-s", "jitter",
                                   "save-s", "requeue-s", "rank-timeout")]  # fmt: skip
FAST = [f"--{name}=inf" for name in ("store-rate", "hash", "disk", "storage-node", "storage-total", "decode-per-node")]
DATA = ["--dataset", "1000000", "--image-kb", "100", "--shards", "1000"]  # 100 GB
GB = 1e9


def options(*extra: str) -> object:
    return parse([*STEP, *FREE, *FAST, *DATA, *extra])


def test_meeting_by_hand() -> None:
    # 5 to connect, set and add; then its wait, another add, another wait are answered: 10 requests of 0.1 s
    assert meet([3.0], 10) == ([pytest.approx(4.0)], 10)
    assert meet([0.0, 5.0, 2.0], math.inf) == ([5.0, 5.0, 5.0], 30)
    # with --polling: 5 and a set, one look at itself, add, wait
    assert meet([3.0], 10, polling=True) == ([pytest.approx(3.9)], 9)
    # the first looks at t = 0 (2 missing: both asked for), 0.1, 0.2 ... until the second is there
    _, requests = meet([0.0, 0.95], math.inf, polling=True)
    assert requests == 2 * 6 + (2 + 9 * 1 + 1) + 2 + 2 * 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 60), min_size=1, max_size=40), st.floats(100, 1e6), st.booleans())
def test_meeting_never_ends_before_the_last_has_come_and_its_requests_are_answered(
    arrivals: list[float], rate: float, polling: bool
) -> None:
    times, requests = meet(arrivals, rate, polling)
    assert min(times) >= max(arrivals) and max(times) >= min(arrivals) + requests / rate - 1e-6
    assert max(meet(arrivals, 2 * rate)[0]) <= max(meet(arrivals, rate)[0]) + 1e-9, "a faster store is no slower"
    assert polling or requests == 10 * len(arrivals)


def test_among_a_thousand_ranks_polling_was_a_bottleneck_and_counting_is_none() -> None:
    arrivals = [20 * number / 1024 for number in range(1024)]
    before, after = (max(meet(arrivals, 40_000, polling)[0]) - 20 for polling in (True, False))
    assert before > 20 and after < 1
    assert meet(arrivals, 40_000, True)[1] > 1024**2


@settings(max_examples=100, deadline=None)
@given(st.floats(0.1, 100), st.lists(st.floats(0.1, 50), min_size=1, max_size=20))
def test_shares_are_fair(total: float, limits: list[float]) -> None:
    rates = fair(total, limits)
    assert all(rate <= limit * (1 + 1e-9) for rate, limit in zip(rates, limits, strict=True))
    assert sum(rates) == pytest.approx(min(total, sum(limits)))
    held_back = [rate for rate, limit in zip(rates, limits, strict=True) if rate < limit * (1 - 1e-9)]
    assert not held_back or min(held_back) >= max(rates) * (1 - 1e-9), (
        "who gets less than it could gets no less than any"
    )


nodes = st.integers(1, 8).flatmap(
    lambda count: st.tuples(
        *(
            st.lists(st.floats(low, high), min_size=count, max_size=count)
            for low, high in ((0, 30), (0, 100), (0.1, 20))
        )
    )
)


@settings(max_examples=100, deadline=None)
@given(nodes, st.floats(0.1, 50))
def test_filling_brings_every_byte_and_no_more_than_store_and_links_give(
    given_nodes: tuple[list[float], ...], total: float
) -> None:
    starts, amounts, limits = given_nodes
    curves = fill(starts, amounts, limits, total)
    assert [curve[-1][1] for curve in curves] == amounts, "bytes that came are bytes that lacked"
    times = sorted({time for curve in curves for time, _ in curve})
    came = [sum(upto(curve, time) for curve in curves) for time in times]
    for (a, before), (b, after) in zip(
        zip(times, came, strict=True), zip(times[1:], came[1:], strict=True), strict=False
    ):
        assert after - before <= total * (b - a) * (1 + 1e-6) + 1e-6
    for curve, begun, amount, limit in zip(curves, starts, amounts, limits, strict=True):
        assert curve[-1][0] >= begun + amount / limit - 1e-6
        assert curve == sorted(curve)
    slower = fill(starts, amounts, limits, total / 2)
    assert max(c[-1][0] for c in slower) >= max(c[-1][0] for c in curves) - 1e-6


def upto(curve: list[tuple[float, float]], time: float) -> float:
    """Return the bytes that a node has at a time."""
    for (a, low), (b, high) in itertools.pairwise(curve):
        if time <= b:
            return low + (high - low) * max(0.0, time - a) / (b - a) if b > a else high
    return curve[-1][1]


def test_filling_by_hand() -> None:
    # Two share 10: 5 each; at 10 s one has its 50 and the other goes on with 8, its limit
    curves = fill([0, 0], [50, 90], [100, 8], 10)
    assert curves == [[(0, 0), (10, 50)], [(0, 0), (10, 50), (15, 90)]]
    assert reached(curves[1], 70) == 12.5 and reached(curves[1], 0) == 0 and reached(curves[1], 90) == 15


def test_one_node_without_any_limit_starts_at_once_and_loses_nothing() -> None:
    free = options("--gpus-per-node", "1", "--epochs", "0.001")
    begun = start(1, free)
    assert (begun.met, begun.opened, begun.fed, begun.filled) == (0, 0, 0, 0)
    assert begun.first_step == pytest.approx(0.1) and train(1, free, begun, 10) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [1, 4, 16])
def test_half_the_bandwidth_takes_twice_as_long_and_so_do_twice_the_nodes(count: int) -> None:
    def filled(nodes: int, rate: str) -> float:
        return start(nodes, options("--storage-total", rate)).filled

    assert filled(count, "10") == pytest.approx(count * 100 / 10)
    assert filled(count, "5") == pytest.approx(2 * filled(count, "10"))
    assert filled(2 * count, "10") == pytest.approx(2 * filled(count, "10"))


def test_a_nodes_own_limits() -> None:
    assert start(1, options("--storage-node", "10", "--disk", "4")).filled == pytest.approx(25)
    # 4 downloads and 8 ranks, each at 1 / (1/0.1 + 1/0.9) = 0.09 GB/s
    streams = start(1, options("--connection", "0.1", "--hash", "0.9"))
    assert streams.filled == pytest.approx(100 / (12 * 0.09))
    assert start(4, options("--slow-link", "2")).filled == pytest.approx(50)


def test_blocks_let_the_first_step_come_when_a_block_is_there() -> None:
    rate = ["--storage-total", "10", "--gpus-per-node", "1"]
    whole, blocks = start(1, options(*rate)), start(1, options(*rate, "--block-shards", "100"))
    assert blocks.fed == pytest.approx(1.0) and whole.fed == pytest.approx(10 * (1 - 0.999**100))
    assert blocks.filled == whole.filled == pytest.approx(10)
    many = options("--storage-total", "10")  # a batch of 800 on one node; of 25,600 on 32
    assert start(32, many).fed == pytest.approx(320, rel=1e-6), "a batch of all nodes is in all shards"


def test_a_cold_first_epoch_is_as_fast_as_the_store() -> None:
    given_options = options(
        "--storage-total", "10", "--gpus-per-node", "1", "--block-shards", "100", "--step-ms", "1e-6"
    )
    begun = start(1, given_options)
    # 10,000 steps an epoch that take no time: each block's first needs all of the block
    assert train(1, given_options, begun, 10_000) == pytest.approx(10.0, rel=1e-3)
    assert train(1, given_options, begun, 5_000) == pytest.approx(5.0, rel=1e-3)


@pytest.mark.parametrize("percent", [0, 10, 50])
def test_a_straggler_sets_the_pace_of_all(percent: int) -> None:
    slow = options("--slow-node", str(percent), "--inter-bandwidth", "inf", "--intra-bandwidth", "inf",
                   "--inter-latency", "0", "--intra-latency", "0")  # fmt: skip
    assert train(4, slow, start(4, slow), 100) == pytest.approx(10 * (1 + percent / 100))


def test_what_a_lost_node_costs_by_hand() -> None:
    lost = options("--storage-total", "10", "--storage-node", "5", "--checkpoint-every", "100", "--save-s", "3",
                   "--rank-timeout", "60", "--requeue-s", "30", "--launch-s", "7", "--gpus-per-node", "1",
                   "--inter-bandwidth", "inf", "--inter-latency", "0")  # fmt: skip
    fed = 100 / 5 * (1 - 0.999**400)  # the cache of only one of four nodes is empty
    signalled = 0.1 + 3 + 30 + 7 + fed + 0.1
    assert restart(4, lost, 10_000, signalled=True) == pytest.approx(signalled)
    assert restart(4, lost, 10_000, signalled=False) == pytest.approx(signalled - 0.1 - 3 + 60 + 50 * 0.1)
    assert restart(4, lost, 20, signalled=False) == pytest.approx(signalled - 0.1 - 3 + 60 + 10 * 0.1)  # a shorter run


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.floats(1, 100), st.floats(0, 50), st.floats(0, 5), st.integers(0, 99))
def test_more_trouble_is_never_less_time(count: int, rate: float, slow: float, jitter: float, seed: int) -> None:
    def end(nodes: int, rate: float, slow: float, jitter: float) -> float:
        chosen = options(f"--storage-total={rate}", f"--slow-node={slow}", f"--jitter={jitter}", f"--seed={seed}",
                         "--spread-s=10", "--gpus-per-node=1")  # fmt: skip
        return train(nodes, chosen, start(nodes, chosen), 30)

    least = end(count, rate, slow, 0)
    assert end(count, rate / 2, slow, 0) >= least - 1e-9
    assert end(count, rate, slow + 5, 0) >= least - 1e-9
    assert end(count, rate, slow, jitter) == end(count, rate, slow, jitter), "the same seed, the same numbers"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--block-shards 5000", "--block-shards must be from 0 to --shards 1000, got 5000"),
        ("--block-shards -1", "--block-shards must be from 0"),
        ("--nodes 0", "--nodes: must be at least 1"),
        ("--store-rate 0", "--store-rate: must be above 0"),
        ("--launch-s nan", "--launch-s: must be at least 0"),
        ("--seed -1", "--seed must be from 0 to 4294967294, got -1"),
        ("--global-batch 1024", "--global-batch are plan_scale.py's"),
        ("--gpus 8", "--gpus and --global-batch are plan_scale.py's"),
        ("--check", "--check, --gpus"),
        ("--nonsense 3", "unrecognized arguments: --nonsense 3"),
    ],
)
def test_bad_input_is_one_line(extra: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        options(*extra.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and said.count("\n") == 1, said


def test_the_command_line() -> None:
    line = [sys.executable, str(TOOL), *STEP, "--nodes", "1", "2", "--epochs", "1"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [row.split(" | ")[0] for row in done.stdout.splitlines()[2:]] == ["| 1", "| 2"]


def test_measure_asks_a_real_store() -> None:
    here, alone = plan_start.measure(2, 200)
    assert here > 0 and alone > 0
