"""Error lines on values of a configuration name the file that gave the value, and none where the command line did."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_train.config import Config
from dist_train.config.io import list_keys, read_config
from dist_train.errors import UserError
from launch.cli.main import main

WRONG = "pretrain: {epochs: twelve}"
SECTION = "must be given by its keys, --{}.KEY VALUE, or be a YAML file of them"
NUMBER = "pretrain.epochs=twelve: must be a number"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line that ``dist-train run`` refuses its options with."""
    assert main(["run", *words, "--dry-run"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("dist-train: error: ") and line.count("\n") == 1
    return line.removeprefix("dist-train: error: ").rstrip("\n")


def test_a_value_of_a_wrong_kind_is_named_for_every_key(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for key in list_keys(Config):
        content: Any = [["a"], {}]
        for part in reversed(key.split(".")):
            content = {part: content}
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(UserError) as refused:
            read_config(file)
        line = str(refused.value)
        assert (
            re.match(rf"{file}: {key}=.*: must be (a |one of |text|true or |names and )", line) and "Parser" not in line
        ), line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (WRONG, NUMBER),
        ("data: {train_size: [1]}", "data.train_size=[1]: must be a whole number"),
        ("data: {scale: 3}", "data.scale=3: must be a list: [A, B]"),
        ("evaluate: {draws: x}", "evaluate.draws=x: must be a whole number"),
        ("evaluate: {shots: [1, x]}", "evaluate.shots=x: must be a whole number"),
        ("evaluate.draws: x", "evaluate.draws: only options have dots; write it as evaluate: {draws: x}"),
        ("pretrain.init.source: x",
         "pretrain.init.source: only options have dots; write it as pretrain: {init: {source: x}}"),
        ("pretrain: {init: {source: 5}}", "pretrain.init.source=5: must be text"),
        ("pretrain: {epochs: -3}", "pretrain.epochs=-3: must be > 0"),
        ("runs: 2024", "runs=2024: must be a path; write it in quotes"),
        ("backbone: {source: starter, weights: [a]}", "backbone.weights=[a]: must be a path; write it in quotes"),
        ("features: {train: x.npz}", "features: must have val too"),
        ('{"pretrain": {"epochs": "twelve"}}', NUMBER),
    ],
)  # fmt: skip
def test_the_file_is_named_before_the_key(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str, line: str
) -> None:
    (folder / "c.yaml").write_text(content)
    assert error("--config", "c.yaml", capsys=capsys) == f"c.yaml: {line}"
    assert error("--config=c.yaml", capsys=capsys) == f"c.yaml: {line}"
    with pytest.raises(UserError) as refused:
        read_config(folder / "c.yaml")
    assert str(refused.value) == f"{folder / 'c.yaml'}: {line}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--config right.yaml --config wrong.yaml", f"wrong.yaml: {NUMBER}"),
        ("--config wrong.yaml --config right.yaml", f"wrong.yaml: {NUMBER}"),
        ("--config wrong.yaml --pretrain.epochs 3", f"wrong.yaml: {NUMBER}"),
        ("--config includes.yaml", f"section.yaml: {NUMBER}"),
        ("--config right.yaml --pretrain section.yaml", f"section.yaml: {NUMBER}"),
        ("--config mistyped.yaml", "epoch.yaml: unknown key 'pretrain.epoch'; did you mean 'pretrain.epochs'?"),
        ("--config right.yaml --pretrain.epochs twelve", NUMBER),
        ("--pretrain.epochs twelve --config right.yaml", NUMBER),
        ("--config right.yaml --pretrain.epochs=-3", "pretrain.epochs=-3: must be > 0"),
        ("--config right.yaml --evaluate.draws 0", "evaluate.draws=0: must be >= 2"),
        ("--config right.yaml --seed -1", "seed=-1: must be in [0, 2^32)"),
        ("--features.train x.npz", "features: must have val too"),
        ("--features x.npz", "features=x.npz: " + SECTION.format("features")),
        ("--features there", "features=there: " + SECTION.format("features")),
        ("--pretrain nowhere.yaml", "pretrain=nowhere.yaml: " + SECTION.format("pretrain")),
        ("--pretrain broken.yaml", "pretrain=broken.yaml: " + SECTION.format("pretrain")),
        ("--pretrain.epochs twelve --pretrain broken.yaml", NUMBER),
        ("--pretrain.init.source 5 --pretrain.init.size x", "pretrain.init.size=x: must be a whole number"),
    ],
)
def test_the_file_is_that_which_gave_the_value(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, line: str
) -> None:
    for name, content in (
        ("right", "pretrain: {epochs: 90}"),
        ("wrong", WRONG),
        ("includes", "pretrain: section.yaml"),
        ("section", "epochs: twelve"),
        ("mistyped", "pretrain: epoch.yaml"),
        ("epoch", "epoch: 3"),
        ("broken", "a: ["),
    ):
        (folder / f"{name}.yaml").write_text(content)
    assert error(*words.split(), capsys=capsys) == line


def test_a_value_from_a_pipe_has_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.write(writing, WRONG.encode())
    os.close(writing)
    assert error("--config", f"/dev/fd/{reading}", capsys=capsys) == NUMBER
    os.close(reading)
