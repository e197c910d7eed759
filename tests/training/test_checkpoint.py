"""Checkpoints and metrics on the disk: damage, full disks, retention, and what a step waits for."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train.config import Config
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.files import file_sha256
from dist_train.runs.run import open_run
from dist_train.stages.pretrain import pretrain
from dist_train.training import checkpoint, metrics
from dist_train.training.metrics import MetricsWriter, read_metrics


def test_the_step_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, true = threading.Event(), checkpoint.save

    def slow(path: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        assert gate.wait(30)
        true(path, tensors, state)

    monkeypatch.setattr(checkpoint, "save", slow)
    saver, weight = checkpoint.CheckpointSaver(tmp_path, keep=1), torch.ones(3)
    saver.save(1, {"w": weight}, {"step": 1})
    weight.zero_()  # the training goes on in the same memory
    path = tmp_path / "checkpoints" / "step-00000001"
    assert not path.exists()
    gate.set()
    saver.finish()
    assert checkpoint.load(path).tensors["w"].tolist() == [1, 1, 1]
    assert saver.write_seconds > 0 and saver.blocked_ms >= 0
    saver.close()


def test_a_full_disk_is_loud_and_not_fatal_until_the_end(
    small_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk("1m")
    saver = checkpoint.CheckpointSaver(disk, keep=2)
    saver.save(1, {"w": torch.zeros(1000)}, {"step": 1})
    saver.save(2, {"w": torch.zeros(10**6)}, {"step": 2})
    with pytest.raises(UserError, match=r"last checkpoint could not be written.*make room"):
        saver.finish()
    assert saver.failures == 1 and "CHECKPOINT NOT WRITTEN" in caplog.text
    assert [path.name for path in saver.folder.iterdir()] == ["step-00000001"]
    latest = checkpoint.load_latest(saver.folder)
    assert latest and latest.state["step"] == 1
    saver.save(3, {"w": torch.zeros(1000)}, {"step": 3})
    saver.finish()  # there is room again: all is well
    saver.close()


def test_metrics_on_a_full_disk_leave_the_run_alive(
    small_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk("1m")
    metrics = MetricsWriter(disk, 0)
    metrics.write(1, {"train/loss": 1.0})
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    for step in range(2, 400):
        metrics.write(step, {f"a/tag-{n}": 1.0 for n in range(5)})
    assert "NOT WRITTEN" in caplog.text
    filler.unlink()
    metrics.close()
    assert read_metrics(disk / "metrics.jsonl")[0]["step"] == 1


def test_retention(tmp_path: Path) -> None:
    for step in range(1, 11):
        checkpoint.save(checkpoint.step_path(tmp_path, step), {}, {"step": step})
        checkpoint.retain(tmp_path, 2, keep_every=4)
    assert [int(p.name[-8:]) for p in checkpoint.step_checkpoints(tmp_path)] == [4, 8, 9, 10]


def test_a_run_on_a_disk_that_fills_up_ends_with_the_old_checkpoint_and_continues(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    true = checkpoint.save

    def full(path: Path, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        if path.name in ("step-00000008", "step-00000010"):
            raise OSError(28, "No space left on device")
        true(path, tensors, state)

    whole = open_run(replace(config, name="whole"))
    pretrain(whole, Context(), StopFlag(Context()))
    monkeypatch.setattr(checkpoint, "save", full)
    run = open_run(config)
    with pytest.raises(UserError, match="could not be written"):
        pretrain(run, Context(), StopFlag(Context()))
    assert caplog.text.count("CHECKPOINT NOT WRITTEN") == 2
    monkeypatch.setattr(checkpoint, "save", true)
    pretrain(run, Context(), StopFlag(Context()))
    one, other = (checkpoint.load(r.dir / "pretrain" / "final").tensors["model"] for r in (run, whole))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_no_file_of_a_run_is_loaded_as_a_pickle(tmp_path: Path) -> None:
    """A checkpoint whose manifest fits but whose tensors.pt would run code."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    checkpoint.save(tmp_path / "step-00000001", {}, {"step": 1})
    file = tmp_path / "step-00000001" / "tensors.pt"
    torch.save({"w": Bomb()}, file)
    manifest = tmp_path / "step-00000001" / "manifest.json"
    entries = json.loads(manifest.read_text())
    entries["tensors.pt"] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    manifest.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"tensors.pt: .*not only tensors"):
        checkpoint.load(tmp_path / "step-00000001")
    assert not (tmp_path / "ran").exists()


def test_the_whole_program_loads_nothing_unsafely() -> None:
    root = Path(checkpoint.__file__).parents[2]
    for path in [*root.glob("dist_train/**/*.py"), *root.glob("launch/**/*.py")]:
        text = path.read_text()
        assert "allow_pickle=True" not in text and "pickle.load" not in text and "extractall" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True)"), path


def save(folder: Path, step: int) -> None:
    checkpoint.save(checkpoint.step_path(folder, step), {"w": torch.full((3,), float(step))}, {"step": step})


def test_checkpoint_round_trip_and_retention(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) is None
    for step in (1, 2, 10):
        save(tmp_path, step)
    latest = checkpoint.load_latest(tmp_path)
    assert latest and latest.state == {"step": 10} and latest.tensors["w"].tolist() == [10.0] * 3
    checkpoint.retain(tmp_path, 2)
    assert [p.name for p in checkpoint.step_checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    save(tmp_path, 10)  # the same name again
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    file = tmp_path / "step-00000002" / ("manifest.json" if damage == "manifest" else "tensors.pt")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-5])
    else:
        file.unlink()
    latest = checkpoint.load_latest(tmp_path)
    assert latest and latest.state["step"] == 1
    assert "step-00000002" in caplog.text and "falling back" in caplog.text
    with pytest.raises(UserError, match="step-00000002"):
        checkpoint.load(tmp_path / "step-00000002")
    (tmp_path / "step-00000001" / "tensors.pt").unlink()
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        checkpoint.load_latest(tmp_path)


def test_metrics_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    first = metrics.MetricsWriter(tmp_path, 0)
    for step in (2, 4, 6):
        first.write(step, {"train/loss": 1.0 / step})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train')  # killed while writing
    again = metrics.MetricsWriter(tmp_path, 4)
    again.write(6, {"train/loss": 0.5})
    again.close()
    rows = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6] and rows[-1]["train/loss"] == 0.5
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
