"""A run on changing numbers of ranks, and ``verify-resume``, which proves it for a user's own run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import Config
from dist_train.data.splits import make_view
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import STOPPED, UserError
from dist_train.runs.run import open_run
from dist_train.stages import pretrain
from dist_train.stages.pretrain import base_order
from dist_train.stages.verify_resume import verify_resume
from dist_train.training import checkpoint
from dist_train.training.metrics import read_metrics
from launch.cli.main import main


@pytest.mark.parametrize("blocks", [0, 2])
def test_other_ranks_see_the_same_samples_and_pixels_from_any_step(
    config: Config, blocks: int, global_batches: Callable[..., list[dict[int, bytes]]]
) -> None:
    run = open_run(replace(config, data=replace(config.data, block_shards=blocks)))
    view, data = run.view("train", "base"), run.config.data
    whole = global_batches(view, base_order(run), data, 1, 0, 8)
    for world, start in ((2, 3), (4, 5), (1, 6)):
        assert global_batches(view, base_order(run), data, world, start, 8) == whole[start:]


@pytest.mark.parametrize("worlds", [(1, 2, 4), (4, 2, 1)])
def test_a_run_continues_on_other_ranks_in_the_middle_of_an_epoch(
    config: Config, ranks: Callable[..., Any], until: Callable[..., None], worlds: tuple[int, ...]
) -> None:
    config = replace(config, pretrain=replace(config.pretrain, epochs=4, checkpoint_every=7, log_every=7))
    run = open_run(config)
    order, total = base_order(run), base_order(run).steps(4)
    for part, world in enumerate(worlds):
        last = part == len(worlds) - 1
        minutes = ["--max-minutes", "0.0001"] if not last else []  # a step or two, then stop
        assert set(ranks(world, config, "pretrain", *minutes).wait()) == {0 if last else STOPPED}
        newest = checkpoint.load_latest(config.run_dir / "pretrain" / "checkpoints")
        assert newest and newest.state["step"] > 0
        assert newest.state["next"] == pretrain.fingerprint(run, order, newest.state["step"])
    steps = [row["step"] for row in read_metrics(config.run_dir / "pretrain" / "metrics.jsonl") if "train/loss" in row]
    assert steps == [*range(7, total, 7), total]
    assert main(["verify-resume", str(config.run_dir), "--batches", "1"]) == 0  # also of a finished run


# The second case has a ramp, whose last step up is among the batches that are compared.
@pytest.mark.parametrize("options", [{}, {"augment": "randaugment", "ramp_from": 16, "ramp_epochs": (1, 1.5)}])
def test_verify_resume_proves_it_and_fails_on_a_difference(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    config = replace(config, data=replace(config.data, **options))
    run = open_run(config)
    with pytest.raises(UserError, match="no checkpoint yet"):
        verify_resume(run, 2)
    pretrain.pretrain(run, Context(), StopFlag(Context()))
    assert main(["verify-resume", str(run.dir), "--batches", "2"]) == 0
    out = capsys.readouterr().out
    assert "resuming is exact, on 1, 2 and 4 ranks" in out and out.count("+") >= 4

    # A loader whose windows depend on the rank gives a rank of two other pixels.
    import dist_train.data.loading.plan as plan

    true = plan.train_windows

    def wrong(view, ids, epochs, data, seed):  # type: ignore[no-untyped-def]
        return true(view, ids, epochs, data, seed + (len(ids) == 12))

    monkeypatch.setattr(plan, "train_windows", wrong)
    assert main(["verify-resume", str(run.dir), "--batches", "2"]) == 1
    assert "on 2 ranks: sample" in (out := capsys.readouterr().out) and "has other pixels" in out
    monkeypatch.setattr(plan, "train_windows", true)

    # The run recorded other augmentations and another side.
    order, step = base_order(run), 10
    recorded = pretrain.fingerprint(run, order, step)
    for key, value in {"augment": "trivialaugment", "train_size": 48}.items():
        other = replace(run, config=replace(config, data=replace(run.config.data, **{key: value})))
        assert pretrain.fingerprint(other, order, step) != recorded

    # The checkpoint records other samples.
    newest = checkpoint.step_checkpoints(run.dir / "pretrain" / "checkpoints")[-1]
    saved = checkpoint.load(newest)
    checkpoint.save(newest, saved.tensors, {**saved.state, "next": "0" * 64})
    assert main(["verify-resume", str(run.dir)]) == 1
    assert "not those that the run recorded" in capsys.readouterr().out


def test_a_checkpoint_of_other_data_split_or_model_is_refused(
    config: Config, with_backbone: Callable[[Config], Config]
) -> None:
    run = open_run(with_backbone(config))
    other = replace(config, name="other", pretrain=replace(config.pretrain, lr=0.01))
    target = other.run_dir / "pretrain" / "checkpoints"
    target.parent.mkdir(parents=True)
    (run.dir / "pretrain" / "checkpoints").rename(target)
    with pytest.raises(UserError, match=r"checkpoint is from another run \(pretrain.lr: 0.05 -> 0.01\)"):
        pretrain.pretrain(open_run(other), Context(), StopFlag(Context()))


def test_verify_resume_refuses_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-resume", str(tmp_path)]) == 1
    assert "not a run (no config.yaml)" in capsys.readouterr().err


def test_blocks_keep_the_working_set_small_and_see_every_sample_once(config: Config) -> None:
    run = open_run(replace(config, data=replace(config.data, block_shards=2)))
    view, order = make_view(run.shards["train"], run.shards.classes, run.base, "s"), base_order(run)
    shards = run.shards["train"].samples["shard"][view.ids]
    for epoch in range(3):
        positions = order.epoch(epoch)
        assert sorted(positions) == list(range(len(view)))
        changes = [int(shards[p]) for p in positions]
        first = {s: changes.index(s) for s in set(changes)}
        last = {s: len(changes) - 1 - changes[::-1].index(s) for s in set(changes)}
        open_at = [sum(first[s] <= n <= last[s] for s in first) for n in range(len(changes))]
        assert max(open_at) <= 2
