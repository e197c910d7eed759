"""What version 0.1.0 (commit b756132) wrote opens, continues and answers as it did there.

``make.py`` made ``artefacts.tar.xz`` and ``expected.json`` with that commit. The commands are run through
``python -m dist_train``'s own entry, so these tests also run, unchanged, on the commit that made the files.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
Command = Callable[..., str]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the files as they were written. Tests must not change it."""
    root = tmp_path_factory.mktemp("artefacts")
    with tarfile.open(HERE / "artefacts.tar.xz") as tar:
        tar.extractall(root, filter="data")
    return root


@pytest.fixture
def folder(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the files and work in the copy, because all paths in them are relative."""
    copy = tmp_path / "copy"
    shutil.copytree(unpacked, copy, symlinks=True)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def dist_train(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """``dist_train("status", "runs/whole")``: run a command that ends well; return what it printed and logged."""

    def run(*arguments: str) -> str:
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["dist-train", *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_module("dist_train", run_name="__main__")
        output = capsys.readouterr()
        assert not left.value.code, output.err
        return output.out + caplog.text

    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "pretrain" / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_shards_and_runs_are_read(dist_train: Command) -> None:
    assert "all is well" in dist_train("verify", "shards")
    assert "evaluate" in dist_train("status", "runs/whole")
    assert "4 of 12" in dist_train("status", "runs/stopped")
    assert "whole" in dist_train("status", "runs")


def test_resuming_is_proven_from_an_old_checkpoint(dist_train: Command) -> None:
    """The checkpoint holds a hash of the batch that was next: of its samples, windows and flips."""
    assert "resuming is exact" in dist_train("verify-resume", "runs/stopped", "--batches", "2")


def test_pretrain_continues_from_an_old_checkpoint(dist_train: Command, folder: Path) -> None:
    assert "continued at step 4" in dist_train("pretrain", "--config", "runs/stopped/config.yaml")
    assert losses(folder / "runs" / "stopped") == pytest.approx(EXPECTED["losses"], rel=0.02)  # other CPUs, other sums


def test_a_finished_run_is_skipped(dist_train: Command, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/whole/*/done.json")}
    (folder / "runs/whole/evaluate/report.html").touch()  # left out of the archive
    said = dist_train("run", "--config", "config.yaml")
    assert all(f"{stage}: done already" in said for stage in ("pretrain", "extract", "learn", "evaluate"))
    assert len(before) == 4 and before == {path: path.stat().st_mtime_ns for path in before}


def test_the_report_is_written_from_old_rows(dist_train: Command, folder: Path) -> None:
    dist_train("evaluate", "--config", "config.yaml")
    made = folder / "runs" / "whole" / "evaluate"
    assert read(made / "results.json")["methods"] == EXPECTED["methods"]
    assert "φ2" in (made / "table.md").read_text() and "<svg" in (made / "report.html").read_text()


def test_a_new_row_joins_old_ones(dist_train: Command, folder: Path) -> None:
    dist_train("evaluate", "--config", "config.yaml", "--evaluate.methods", "[nn, mean, phi1, phi2, ridge]")
    methods = read(folder / "runs" / "whole" / "evaluate" / "results.json")["methods"]
    assert methods.pop("ridge") and methods == EXPECTED["methods"]


def test_old_activations_and_predictors_give_the_same_rows(dist_train: Command, folder: Path) -> None:
    dist_train("evaluate", "--config", "config.yaml", "--redo")
    methods = read(folder / "runs" / "whole" / "evaluate" / "results.json")["methods"]
    for name, by_shots in EXPECTED["methods"].items():
        for shots, metrics in by_shots.items():
            for metric in ("base_top1", "novel_top1"):
                wanted = pytest.approx(metrics[metric]["draws"], abs=100 / 12 + 1e-3)  # an image on a boundary
                assert methods[name][shots][metric]["draws"] == wanted, (name, shots, metric)


def test_the_members_of_an_old_sweep_are_collected(dist_train: Command) -> None:
    assert dist_train("collect", "runs/whole") == EXPECTED["sweep"]


def test_an_old_model_answers_as_it_did(dist_train: Command) -> None:
    said = dist_train("classify", "model", *(f"photos/{number}.jpg" for number in range(3)), "--json")
    answers, wanted = (list(map(json.loads, text.splitlines())) for text in (said, EXPECTED["answers"]))
    assert [answer["image"] for answer in answers] == [answer["image"] for answer in wanted]
    for one, other in zip(answers, wanted, strict=True):
        chances = [{entry["name"]: entry["probability"] for entry in answer["classes"]} for answer in (one, other)]
        assert chances[0] == pytest.approx(chances[1], abs=1e-4)


def test_an_old_run_becomes_the_same_model(dist_train: Command, folder: Path) -> None:
    dist_train("adapt", "runs/whole", "--out", "again", "--method", "phi2")
    names = [
        [entry["name"] for entry in read(folder / model / "model.json")["classes"]] for model in ("again", "model")
    ]
    assert names[0] == [name for name in names[1] if name != "okapi"]
