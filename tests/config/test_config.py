"""config.yaml of a run: a person can read it, and it is read back equal."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dist_train.config import (
    BackboneConfig,
    CacheConfig,
    Config,
    DataConfig,
    DrawConfig,
    EvaluateConfig,
    LearnConfig,
    MonitorConfig,
    PackConfig,
    PretrainConfig,
    to_dict,
    to_yaml,
)
from dist_train.config.checks import require, typed
from dist_train.config.io import load_config, read_config
from dist_train.errors import UserError
from launch.cli.main import main

_LIKE_OTHERS = (
    *("1e3", "1e-3", "0x1f", "0o7", "1_000", "12:30", "2001-01-01", "null", "~", "yes", "no", "true", ".inf", "-", "="),
    *("<<", "", " a", "a: b", "#a", "a #b", "'a'", '"a"', "{a}", "[a]", "*a", "&a", "!a", "%a", "@a", "é", "象"),
)
text = st.sampled_from(_LIKE_OTHERS) | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
names = text.filter(lambda n: bool(n) and "/" not in n and n not in (".", "..") and n.isprintable() and len(n) < 40)
paths = names.map(lambda name: Path("/tmp") / name)
positive = st.floats(1e-12, 1e12) | st.sampled_from([1e-5, 1e-3, 1e16, 0.1, 1 / 3]) | st.integers(1, 10**9)


@pytest.mark.parametrize(
    ("value", "text"),
    [("conv4", "conv4"), (Path("a/b"), "a/b"), ("a b", "a b"), ("", "''"), (" a", "' a'"), ("a\n", "'a\\n'"),
     (True, "true"), (None, "null"), (0.1, "0.1"), (60.0, "60"),
      (1 / 3, "0.3333333333333333"), ([1, "a", None], "[1, a, null]"),
     ((0.5, 1.0), "[0.5, 1]"), ({"a": [False]}, "{a: [false]}")],
)  # fmt: skip
def test_values_stand_in_messages_as_in_a_file(value: object, text: str) -> None:
    assert typed(value) == text
    with pytest.raises(ValueError, match=re.escape(f"a.key={text}: must be other")):
        require(False, "a.key", value, "other")


def test_no_value_stands_behind_its_key_as_python_has_it() -> None:
    folders = ("dist_train", "launch")
    files = [path for folder in folders for path in (Path(__file__).parents[2] / folder).rglob("*.py")]
    files = [path for path in files if path.name != "export.py"]  # which writes Python for its readers
    wrong = [f"{path}:{number}" for path in files for number, line in enumerate(path.read_text().splitlines(), 1)
             if re.search(r"[a-z_}]=\{[^{}]*!r\}", line)]  # fmt: skip
    assert len(files) > 200 and not wrong, f"write these values by config.checks.typed: {wrong}"


@st.composite
def configs(draw: Callable[..., Any]) -> Config:
    drawing = DrawConfig(base_classes=draw(st.integers(1, 9)), seed=draw(st.integers(0, 2**32 - 1)))
    pack = PackConfig(train=draw(st.none() | paths), val_share=draw(st.none() | st.floats(1e-9, 0.9)),
                      draw=draw(st.sampled_from([None, drawing])))  # fmt: skip
    low, high = sorted(draw(st.lists(st.floats(1e-6, 1), min_size=2, max_size=2)))
    options = draw(st.dictionaries(names, positive, max_size=3))
    deepspeed = draw(
        st.dictionaries(
            st.sampled_from(["aio", "timers"]),
            st.dictionaries(
                st.sampled_from(["one", "two"]),
                st.booleans() | positive | st.none() | st.sampled_from(["a", "sum of all"]),
            ),
        )
    )
    return Config(
        name=draw(names), runs=draw(paths), seed=draw(st.integers(0, 2**32 - 1)),
        pack=draw(st.sampled_from([None, pack])),
        max_minutes=draw(st.none() | positive),
        data=DataConfig(shards=draw(text.filter(bool)), split=draw(text), scale=(low, high),
                        ramp_from=draw(st.none() | st.integers(1, 224)), max_bad_fraction=draw(st.floats(0, 1))),
        cache=CacheConfig(dir=draw(paths), gb=draw(positive)),
        monitor=MonitorConfig(hang_timeout=draw(st.floats(1, 1e9))),
        pretrain=PretrainConfig(lr=draw(positive), milestones=sorted(draw(st.lists(st.floats(1e-3, 80)))),
                                strategy="zero1", deepspeed=deepspeed, offload=draw(st.booleans())),
        learn=LearnConfig(lr=draw(positive), methods=draw(st.lists(names, min_size=1, unique=True))),
        evaluate=EvaluateConfig(options=options, shots=draw(st.lists(st.integers(1, 50), min_size=1, unique=True))),
    )  # fmt: skip


def written(config: Config, text: str, folder: Path) -> Config:
    """Open a run with this text in its config.yaml, under the name and folder of ``config``."""
    (folder / "config.yaml").write_text(text)
    return replace(load_config(folder), name=config.name, runs=config.runs)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs())
@example(Config())
def test_a_configuration_is_read_back_equal(tmp_path: Path, config: Config) -> None:
    for text in (to_yaml(config), json.dumps(to_dict(config))):  # the second form is that of older versions
        assert written(config, text, tmp_path) == config


def test_it_is_written_for_people(tmp_path: Path) -> None:
    config = Config(name="1e3", runs=tmp_path, pretrain=PretrainConfig(lr=1e-5, model="resnet18"))
    text = to_yaml(config)
    lines = text.splitlines()
    assert "name: '1e3'" in lines and "  model: resnet18" in lines and "  shots: [1, 2, 3]" in lines
    assert [line.partition(":")[0] for line in lines if line[0] != " "] == list(Config.__dataclass_fields__)
    assert not any(sign in text.replace("{}", "") for sign in ('"', "{", "!!"))
    assert yaml.safe_load(text)["pretrain"]["lr"] == 1e-5  # in YAML 1.1 1e-5 would be text


def test_keys_that_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of an older version opens; a file or an option of a user's own gets one line with what to give instead."""
    values = to_dict(Config())
    values["pretrain"]["tf32"] = True
    old = json.dumps(values)
    assert written(Config(), old, tmp_path) == Config()
    (tmp_path / "mine.yaml").write_text("pretrain: {tf32: false}\n")
    for given_ in (["--config", str(tmp_path / "mine.yaml")], ["--pretrain.tf32", "false"], ["--pretrain.tf32=true"]):
        assert main(["pretrain", *given_]) == 1
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and "pretrain.tf32: is a value of pretrain.precision now" in error[0], error


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "train_size", 192),
        ("data", "scale", (0.35, 1.0)),
        ("data", "augment", "randaugment"),
        ("data", "ramp_from", 160),
        ("pretrain", "epochs", 30),
    ],
)
def test_what_only_training_obeys_is_refused_beside_a_trained_network(section: str, key: str, value: object) -> None:
    given = {section: replace(getattr(Config(), section), **{key: value})}
    with pytest.raises(ValueError, match=rf"{section}\.{key}.*nothing is trained"):
        Config(backbone=BackboneConfig(source="starter"), **given)
    Config(data=DataConfig(block_shards=2), backbone=BackboneConfig(source="starter"))


@pytest.mark.parametrize(
    ("options", "beside", "message"),
    [
        ("--pretrain.epochs 3", "backbone", "pretrain.epochs=3: must be left out where backbone names"),
        ("--pretrain.model conv4 --pretrain.small_stem true", "backbone", "pretrain.model=conv4: must be left out"),
        ("--pretrain.freeze layer1", "backbone", "pretrain.freeze=layer1: must be left out where backbone names"),
        ("--pretrain.init.source timm:b", "backbone", "pretrain.init.source=timm:b: must be left out where backbone"),
        ("--data.train_size 100 --data.ramp_from 160", "backbone", "data.train_size=100: must be left out where"),
        ("--data.eval_size 300", "backbone", "data.eval_size=300: must be left out: the preprocessing of the trained"),
        ("--data.eval_size 300", "pretrain.init", "data.eval_size=300: must be left out: the preprocessing of the"),
        ("--pretrain.model conv4 --pretrain.small_stem true", "pretrain.init", "pretrain.model=conv4: must be left"),
        ("--pretrain.epochs 3", "features", "pretrain.epochs=3: must be left out beside features"),
        ("--backbone.source timm:b", "features", "backbone.source=timm:b: must be left out beside features"),
        (
            "--pretrain.init.source timm:b",
            "features",
            "pretrain.init.source=timm:b: must be left out beside features",
        ),
        ("--data.eval_size 300", "features", "data.eval_size=300: must be left out beside features"),
        ("--extract.views ten", "features", "extract.views=ten: must be left out beside features"),
        ("--networks.draws 3", "features", "networks.draws=3: must be left out beside features"),
        ("--pack.train x", "features", "pack=...: must be left out beside features"),
    ],
)
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "file"])
def test_a_key_without_a_meaning_is_named_before_its_value_is_judged(
    options: str, beside: str, message: str, typed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"features": {"train": "a.npz", "val": "b.npz"}}.get(beside, {"source": "timm:a"})
    words, file = [word for key, value in others.items() for word in (f"--{beside}.{key}", value)] + options.split(), ""
    if not typed:
        content: dict[str, Any] = {}
        for key, value in zip(words[::2], words[1::2], strict=True):
            *sections, name = key[2:].split(".")
            section = functools.reduce(lambda tree, part: tree.setdefault(part, {}), sections, content)
            section[name] = yaml.safe_load(value)
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
        words, file = ["--config", str(tmp_path / "own.yaml")], f"{tmp_path / 'own.yaml'}: "
    assert main(["run", "--runs", str(tmp_path / "runs"), *words]) == 1
    assert capsys.readouterr().err.startswith(f"dist-train: error: {file}{message}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text, key",
    [("pretrain: 5", "pretrain=5"), ("data: [1]\nbackbone: {source: starter}", "data=[1]"), ("pack: 5", "pack=5"),
     ("pretrain: {init: abc}", "pretrain.init=abc"), ("monitor: x", "monitor=x"), ("backbone: true", "backbone=true")],
)  # fmt: skip
def test_one_value_where_a_section_has_keys_is_named(tmp_path: Path, text: str, key: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        read_config(file)
    assert str(refused.value).startswith(f"{file}: {key}: must be a section")


@pytest.mark.parametrize(
    "text, line",
    [("learn: {steps: true}", "learn.steps=true: must be a whole number"),
     ("evaluate: {draws: false}", "evaluate.draws=false: must be a whole number"),
     ("pack: {workers: [true, 2]}", "pack.workers=[true, 2]: must be a whole number")],
)  # fmt: skip
def test_a_value_of_another_kind_is_named_as_yaml_has_it(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        read_config(tmp_path / "c.yaml")
    assert line in str(refused.value)
