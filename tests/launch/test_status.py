"""``dist-train status``: from the run's folder alone."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dist_train.config import Config, to_dict
from launch.cli.main import main
from launch.status import show


def test_a_run_is_followed_from_start_to_end(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert main(["pretrain", "--config", str(path)]) == 0
    text = show(config.run_dir)
    assert "pretrain  done     step 10" in text and "extract   waiting" in text and "left: " in text
    assert main(["run", "--config", str(path)]) == 0
    assert main(["status", str(config.runs)]) == 0
    out = capsys.readouterr().out
    assert out.count("  done") == 4 and "waiting" not in out
    assert "  finished " in out and "left: " not in out, "it was not cut short"


def test_alive_silent_and_dead(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    options = replace(config, pretrain=replace(config.pretrain, epochs=4), max_minutes=0.0001)
    path.write_text(yaml.safe_dump(to_dict(options)))
    assert main(["pretrain", "--config", str(path)]) == 75
    beat_file = config.run_dir / "heartbeat.json"
    beat = json.loads(beat_file.read_text())
    assert beat["left"] and "pretrain  stopped" in show(config.run_dir)
    beat_file.write_text(json.dumps({**beat, "left": False, "time": time.time()}))
    text = show(config.run_dir)
    assert "pretrain  running" in text and "  now: " in text and "checkpoint step-0000000" in text
    beat_file.write_text(json.dumps({**beat, "left": False, "time": time.time() - 500}))
    assert "NO SIGN OF LIFE" in show(config.run_dir)
    (config.run_dir / "error.json").write_text(json.dumps({"time": 0, "rank": 3, "message": "it broke"}))
    assert "died of: rank 3: it broke" in show(config.run_dir)
    assert main(["run", "--config", str(path), "--max_minutes", "60"]) == 0
    assert "died of" not in show(config.run_dir)


def test_a_failed_run_says_why(config: Config, tmp_path: Path, with_backbone: Callable[[Config], Config]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(with_backbone(config))))
    assert main(["learn", "--config", str(path)]) == 1
    assert "died of: rank 0: " in show(config.run_dir) and "extract is not finished" in show(config.run_dir)


def test_a_run_that_never_got_to_work(tmp_path: Path) -> None:
    (tmp_path / "run" / "launch").mkdir(parents=True)
    (tmp_path / "run" / "launch" / "config.yaml").write_text("{}")
    assert "no start of this run has begun to work yet" in show(tmp_path / "run")


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 1
    assert "no run here" in capsys.readouterr().err
