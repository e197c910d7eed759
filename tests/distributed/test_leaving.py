"""Signals, deadlines, dead ranks and hung ranks: all ranks leave, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from rank_process import run_rank_sharing

from dist_train.config import Config, MonitorConfig
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import FAILED, LOST, STOPPED
from dist_train.training import checkpoint
from dist_train.training.metrics import read_metrics, reproducible

Start = Callable[..., Any]
Until = Callable[..., None]


def long(config: Config, **changes: Any) -> Config:
    """Return a pretraining of fifty quick steps, with a checkpoint at every twelfth."""
    options = replace(config.pretrain, epochs=10, checkpoint_every=12, log_every=2, **changes)
    return replace(config, pretrain=options, monitor=MonitorConfig(rank_timeout=6, hang_timeout=600))


def rows(config: Config, stage: str = "pretrain") -> list[dict[str, Any]]:
    return read_metrics(config.run_dir / stage / "metrics.jsonl")


def final(config: Config) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(config.run_dir / "pretrain" / "final").tensors["model"]
    return found


def test_a_signal_to_a_rank_makes_all_save_at_the_same_step_and_the_run_continues_bit_for_bit(
    config: Config, ranks: Start, until: Until
) -> None:
    config = long(config)
    whole = replace(config, name="whole")
    assert ranks(2, whole, "pretrain").wait() == [0, 0]
    before = 0
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        started = ranks(2, config, "pretrain")
        until(partial(more_than, config, before + 1))
        started.signal(number, [1])  # the rank that does not save
        assert started.wait() == [STOPPED, STOPPED]
        assert "saved at step" in started.error(0) and "the same command continues" in started.error(0)
        (saved,) = checkpoint.step_checkpoints(config.run_dir / "pretrain" / "checkpoints")[-1:]
        assert int(saved.name[-8:]) < 50
        before = len(rows(config))
    assert ranks(2, config, "pretrain").wait() == [0, 0]
    assert all(torch.equal(value, final(whole)[name]) for name, value in final(config).items())
    assert reproducible(rows(config)) == reproducible(rows(whole))


def more_than(config: Config, number: int) -> bool:
    return len(rows(config)) > number


def test_the_handler_leaves_at_once_at_the_second_signal(capfd: pytest.CaptureFixture[str]) -> None:
    child = os.fork()
    if child == 0:
        with StopFlag(Context()) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop.requested():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)  # at the same moment: a launcher that passes on
            time.sleep(0.2)
            stop._first -= 2
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
    assert "leaving at once" in capfd.readouterr().err


def test_children_do_not_inherit_the_handlers() -> None:
    with StopFlag(Context()) as stop:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert not stop.requested()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_deadlines(config: Config, ranks: Start) -> None:
    now = time.time()
    assert not StopFlag(Context(), None, {"SLURM_JOB_END_TIME": str(int(now + 500))}).requested()
    assert StopFlag(Context(), None, {"SLURM_JOB_END_TIME": str(int(now + 100))}).requested()
    config = long(config)
    started = ranks(2, config, "pretrain", "--max-minutes", "0.001")
    assert started.wait() == [STOPPED, STOPPED]
    assert "max_minutes=0.001 are over" in started.error(0)
    assert checkpoint.step_checkpoints(config.run_dir / "pretrain" / "checkpoints")


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_dead_rank_is_named_and_the_others_leave(
    config: Config, ranks: Start, until: Until, victim: int, number: int
) -> None:
    """A killed rank's connections close. Those of a machine that is gone do not: only its silence shows it."""
    config = long(config)
    started = ranks(3, config, "pretrain")
    until(lambda: len(rows(config)) >= 2)
    started.signal(number, [victim])
    others = {0, 1, 2} - {victim}
    until(lambda: not any(map(started.running, others)), 45)
    if started.running(victim):
        started.signal(signal.SIGKILL, [victim])
    codes = started.wait()
    assert codes[victim] == -signal.SIGKILL and all(codes[rank] == LOST for rank in others)
    for rank in others:
        text = started.error(rank)
        assert (f"rank {victim}" in text and "is dead" in text) or "is gone" in text, text
        assert "Traceback" not in text, text
    assert json.loads((config.run_dir / "error.json").read_text())["rank"] in others


def test_a_job_that_was_suspended_goes_on(config: Config, ranks: Start, until: Until) -> None:
    """Ctrl-Z or ``scontrol suspend`` stops all ranks for longer than both time-outs."""
    config = replace(long(config), monitor=MonitorConfig(rank_timeout=4, hang_timeout=4))
    started = ranks(2, config, "pretrain")
    until(lambda: len(rows(config)) >= 2)
    started.signal(signal.SIGSTOP)
    time.sleep(7)
    started.signal(signal.SIGCONT)
    assert started.wait() == [0, 0], started.error(0) + started.error(1)


def test_a_rank_that_fails_tells_the_others_why(config: Config, ranks: Start) -> None:
    config = long(config)
    bad = replace(config, data=replace(config.data, shards="nowhere"))
    started = ranks(2, [config, bad], "pretrain")
    assert started.wait(60) == [1, 1]
    assert "nowhere: no index.json" in started.error(1)
    assert "rank 1 failed: nowhere: no index.json" in started.error(0) and "Traceback" not in started.error(0)


def test_a_hang_is_ended_and_says_what_each_rank_was_doing(config: Config, ranks: Start, until: Until) -> None:
    config = long(config)
    config = replace(config, monitor=MonitorConfig(rank_timeout=60, hang_timeout=15))
    started = ranks(2, config, "pretrain")
    until(lambda: len(rows(config)) >= 2)
    started.signal(signal.SIGSTOP, [1])  # silent for less than rank_timeout: rank 0 waits in an exchange
    until(lambda: not started.running(0), 60)
    started.signal(signal.SIGCONT, [1])
    assert started.wait(30) == [LOST, LOST]
    text = started.error(0)
    assert "no progress for" in text and "  rank 0: " in text and "  rank 1: " in text
    assert text.count(" s)") >= 2 and "loop.py" in text  # for how long, and where in the code


def test_agreeing_to_stop_waits_for_no_exchange(config: Config) -> None:
    """A lone process makes no exchange; on many ranks the exchange of a step is read at the next step."""
    stop = StopFlag(Context())
    assert [stop.agreed() for _ in range(3)] == [False] * 3
    stop.reason = "test"
    assert stop.agreed()


def lines(config: Config) -> int:
    return sum(len(rows(config, f"learn/{method}")) for method in ("phi1", "phi2", "phi2star"))


def moved_on(config: Config, started: Any, before: int) -> bool:
    return lines(config) > before or not started.running(0)


def test_learn_stops_and_continues_bit_for_bit(
    config: Config, ranks: Start, until: Until, with_backbone: Callable[..., Config]
) -> None:
    config = replace(config, learn=replace(config.learn, steps=400, log_every=20, checkpoint_every=150))
    whole = replace(config, name="whole")
    for one in (config, whole):
        with_backbone(one, extracted=True)
    assert ranks(2, whole, "learn").wait() == [0, 0]
    stopped = 0
    for last in (False, False, False, True):
        started = ranks(2, config, "learn")
        if not last:
            until(partial(moved_on, config, started, lines(config)))
            started.signal(signal.SIGUSR2, [0])
        codes = started.wait()
        assert codes in ([STOPPED, STOPPED], [0, 0]) and (codes == [0, 0] or not last)
        stopped += codes != [0, 0]
    assert stopped >= 2
    for method in ("phi1", "phi2", "phi2star"):
        assert reproducible(rows(config, f"learn/{method}")) == reproducible(rows(whole, f"learn/{method}"))
        one, other = (checkpoint.load(c.run_dir / "learn" / method / "final").tensors["model"] for c in (config, whole))
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_in_use_is_locked(config: Config, ranks: Start, until: Until) -> None:
    config = long(config)
    first = ranks(1, config, "pretrain")
    until(lambda: len(rows(config)) >= 1)
    second = ranks(1, config, "pretrain")
    assert second.wait() == [1]
    assert "another process is at work on this run" in second.error(0)
    first.signal(signal.SIGKILL)
    first.wait()
    third = ranks(1, config, "pretrain", "--max-minutes", "0.001")
    assert third.wait() == [STOPPED]  # a killed process holds no lock


def test_a_rank_that_never_comes_is_named_in_a_line_after_the_start_timeout(config: Config, ranks: Start) -> None:
    config = replace(config, monitor=MonitorConfig(start_timeout=3, rank_timeout=5))
    late = ranks(2, config, "pretrain")
    late.signal(signal.SIGKILL, [1])
    assert late.wait(40)[0] == LOST
    text = late.error(0)
    assert "did not meet" in text or "is dead" in text or "is gone" in text, text
    assert "Traceback" not in text


def test_ranks_that_share_a_gpu_leave_before_any_work(config: Config, ranks: Start) -> None:
    started = ranks(3, config, "pretrain", target=run_rank_sharing)
    assert started.wait() == [FAILED] * 3
    lines = "".join(started.error(rank) for rank in range(3))
    assert lines.count("ranks 0, 1, 2 on") == 1 and "share one GPU (CPU, GPU-5ec41dd0)" in lines
    assert not (config.run_dir / "pretrain" / "checkpoints").exists()
