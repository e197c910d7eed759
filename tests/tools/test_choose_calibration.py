"""tools/choose_calibration.py: wrong input is a line, before anything is scored."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.config import to_yaml
from dist_train.runs.run import Run

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import choose_calibration


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "nobody"], "--method: invalid choice: 'nobody'"),
        (["--method", "nn"], "--method: invalid choice: 'nn'"),  # it has no calibration
        (["--beside", "nobody"], "--beside: invalid choice: 'nobody'"),
        (["--costs", "0.3", "-0.1"], "--costs -0.1: must be above 0"),
        ([], "choices are made on pseudo-novel classes"),
    ],
)
def test_wrong_options_are_a_line(
    whole_run: Run, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        choose_calibration.main([str(whole_run.dir), *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--draws", "1"], "evaluate.draws=1: must be >= 2"),
        (["--shots", "0"], "evaluate.shots=[0]: must be positive numbers"),
    ],
)
def test_options_that_a_run_cannot_have_are_a_line(
    whole_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    config = replace(whole_run.config, data=replace(whole_run.config.data, holdout="pseudo-novel"))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(SystemExit) as ended:
        choose_calibration.main([str(tmp_path), *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_without_a_run_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        choose_calibration.main([str(tmp_path / "nowhere")])
    assert ended.value.code == 2 and "not a run (no config.yaml)" in capsys.readouterr().err
