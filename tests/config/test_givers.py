"""Error lines on values of a configuration name the file that gave the value, and none where the command line did."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_train.config import Config
from dist_train.config.givers import naming_files
from dist_train.config.io import list_keys, read_config
from dist_train.errors import UserError
from launch.cli.main import main

WRONG = "pretrain: {epochs: twelve}"
ENDLESS = "nested too deeply, or a named value (&NAME) holds its own name (*NAME); mend that"
OVER = "must be over before pretrain.epochs=3"
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
        ("learn: {lr: .inf}", "learn.lr=inf: must be finite"),
        ("data: {ratio: [1, .inf]}", "data.ratio=[1, inf]: must be finite"),
        ("pack: {train: x, shard_mb: .inf}", "pack.shard_mb=inf: must be > 0 and finite"),
        ("evaluate: {options: {ridge_weight: heavy}}", "evaluate.options: ridge_weight=heavy: must be a number"),
        ("evaluate: {options: {ridge_weight: true}}", "evaluate.options: ridge_weight=true: must be a number"),
        ("pretrain: {pretrain.epochs: 3}", "pretrain.epochs: only options have dots; write it as epochs: 3"),
        ("pretrain: {epochs: null}", "pretrain.epochs has no value; give one, or leave the key out"),
        ("pretrain: &p {epochs: *p}", ENDLESS),
        ("learn: {methods: &m [*m]}", ENDLESS),
        ("[" * 3000, ENDLESS),
        ('{"learn": ' * 3000 + "1" + "}" * 3000, ENDLESS),
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
        ("--config xy.yaml --config x.yaml", "xy.yaml: pretrain.epochs=xy: must be a number"),
        ("--config x.yaml --config xy.yaml", "x.yaml: pretrain.epochs=x: must be a number"),
        ("--config shots.yaml --evaluate.draws 20", "shots.yaml: evaluate.shots=x: must be a whole number"),
        ("--config warm.yaml --pretrain.epochs 3", "pretrain.warmup_epochs=5: must be < pretrain.epochs=3"),
        ("--config ramp.yaml --pretrain.epochs 3 --pretrain.warmup_epochs 0", f"data.ramp_epochs=[11, 13]: {OVER}"),
        ("--config ramp.yaml --config three.yaml", f"data.ramp_epochs=[11, 13]: {OVER}"),
        ("--config three.yaml --config ramp.yaml", f"data.ramp_epochs=[11, 13]: {OVER}"),
        ("--config both.yaml", f"both.yaml: data.ramp_epochs=[11, 13]: {OVER}"),
        ("--config right.yaml --pretrain {epochs:\xa0twelve}", NUMBER),
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
        ("x", "pretrain: {epochs: x}"),
        ("xy", "pretrain: {epochs: xy}"),
        ("shots", "evaluate: {shots: [1, x]}"),
        ("ramp", "data: {ramp_from: 128, ramp_epochs: [11, 13]}"),
        ("warm", "pretrain: {warmup_epochs: 5}"),
        ("three", "pretrain: {epochs: 3, warmup_epochs: 0}"),
        ("both", "data: {ramp_from: 128, ramp_epochs: [11, 13]}\npretrain: {epochs: 3, warmup_epochs: 0}"),
    ):
        (folder / f"{name}.yaml").write_text(content)
    assert error(*(word.replace("\xa0", " ") for word in words.split(" ")), capsys=capsys) == line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"epochs: null", "pretrain.epochs has no value; give one, or leave the key out"),
        (b"epochz: 3", "unknown key 'pretrain.epochz'; did you mean 'pretrain.epochs'?"),
        (b"epochs: 3\nepochs: 4", "line 2: 'epochs' is there twice; keep one of them"),
        (b"pretrain.epochs: 3", "pretrain.epochs: only options have dots; write it as epochs: 3"),
        (b"init.source: x", "pretrain.init.source: only options have dots; write it as init: {source: x}"),
        (b"init: {source: null}", "pretrain.init.source has no value; give one, or leave the key out"),
        (b"\x89PNG\xff\0", "not a text file; give a YAML file"),
        (b"", "no keys in it; give a YAML file of 'key: value' lines"),
        (b"&p {epochs: *p}", ENDLESS),
    ],
)
def test_the_file_of_a_section_is_checked_as_a_configuration_is(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes, line: str
) -> None:
    (folder / "section.yaml").write_bytes(content)
    (folder / "c.yaml").write_text("pretrain: section.yaml")
    for words in (["--pretrain", "section.yaml"], ["--pretrain=section.yaml"], ["--config", "c.yaml"]):
        assert error(*words, capsys=capsys) == f"section.yaml: {line}"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("{epochs: null}", "pretrain.epochs=null: must have a value; give one, or leave the key out"),
        ("{init: {source: null}}", "pretrain.init.source=null: must have a value; give one, or leave the key out"),
        ("&p {epochs: *p}", "pretrain.epochs={epochs: {Ellipsis}}: must be a number"),
    ],
)
def test_a_section_on_the_command_line_is_checked_too(
    folder: Path, capsys: pytest.CaptureFixture[str], value: str, line: str
) -> None:
    assert error("--pretrain", value, capsys=capsys) == line


def test_the_draw_of_pack_is_checked_as_a_section_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "draw.yaml").write_text("novel_clases: 3")
    assert main(["pack", "--train", "x", "--draw", "draw.yaml"]) == 1
    line = "draw.yaml: unknown key 'draw.novel_clases'; did you mean 'draw.novel_classes'?"
    assert capsys.readouterr().err == f"dist-train: error: {line}\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("learn: {methods: [phi9]}", "learn.methods: 'phi9' is not known; give some of "),
        ("evaluate: {options: {ridge_weight: -1}}", "evaluate.options: ridge_weight=-1: must be a number above 0"),
        ("data: {split: nowhere}", "data.split=nowhere: no such file and no published split"),
        ("evaluate: {methods: [phi_plus]}", "evaluate.methods: 'phi_plus' needs 'phi_plus' in learn.methods"),
    ],
)
def test_what_is_checked_after_reading_has_its_file_too(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str, line: str
) -> None:
    (folder / "c.yaml").write_text(content)
    assert error("--config", "c.yaml", capsys=capsys).startswith(f"c.yaml: {line}")


def test_no_file_is_named_where_the_command_line_may_be_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.yaml").write_text("evaluate: {methods: [phi_plus]}")
    line = error("--config", "c.yaml", "--learn.methods", "[phi1]", capsys=capsys)
    assert line == "evaluate.methods: 'phi_plus' needs 'phi_plus' in learn.methods (phi1) too"


def test_a_value_from_a_pipe_has_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.write(writing, WRONG.encode())
    os.close(writing)
    assert error("--config", f"/dev/fd/{reading}", capsys=capsys) == NUMBER
    os.close(reading)


def test_what_goes_wrong_in_a_stage_has_no_file(folder: Path) -> None:
    (folder / "c.yaml").write_text("pretrain: {epochs: 3}")
    for line, named in (("pretrain: out of memory", ""), ("pretrain.epochs=3: too few", "c.yaml: ")):
        with pytest.raises(UserError, match=f"^{named}{line}$"), naming_files(["run", "--config", "c.yaml"]):
            raise UserError(line)
