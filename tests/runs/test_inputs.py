"""Inputs of a stage: a change that affects the result is reported, any other change is accepted."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
import torch

from dist_train.config import STAGES, Config, Precision, PretrainConfig, to_dict
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.runs import inputs
from dist_train.runs.run import Run, open_run
from dist_train.runs.stage import Stage
from dist_train.training import checkpoint
from dist_train.training.precision import MixedPrecision, exact_products, round_products


@pytest.fixture
def run(config: Config) -> Run:
    """Make a run whose pretrain stage was started."""
    run = open_run(config)
    Stage(run, "pretrain", Context())
    return run


def other(run: Run, section: str, **values: Any) -> Run:
    config = replace(run.config, **{section: replace(getattr(run.config, section), **values)})
    return replace(run, config=config)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("pretrain", {"precision": "tf32"}),
        ("pretrain", {"precision": "bf16"}),
        ("pretrain", {"compile": True}),
        ("pretrain", {"strategy": "zero1", "deepspeed": {"communication_data_type": "fp16"}}),
        ("pretrain", {"channels_last": False}),
        ("data", {"decoder": "cpu"}),
        ("data", {"train_size": 31}),
    ],
)
def test_a_change_that_affects_the_result_stops_and_is_named(run: Run, section: str, values: dict[str, Any]) -> None:
    key = list(values)[-1]
    with pytest.raises(
        UserError, match=rf"was made from other inputs \({section}\.{key}: .* -> .*\); take another --name"
    ):
        inputs.check_inputs(other(run, section, **values), "pretrain")
    saved = checkpoint.Checkpoint({}, {"inputs": inputs.stage_inputs(run, "pretrain")})
    with pytest.raises(UserError, match=rf"its checkpoint is from another run \({section}\.{key}: "):
        now = inputs.stage_inputs(other(run, section, **values), "pretrain")
        inputs.check_checkpoint(saved, now, run.dir)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("pretrain", {"strategy": "zero1", "offload": True}),
        ("pretrain", {"checkpoint_every": 7, "keep": 3, "keep_every": 5, "log_every": 3}),
        ("data", {"threads": 3, "prefetch": 4, "max_bad_fraction": 0.5}),
        ("monitor", {"hang_timeout": 5.0}),
    ],
)
def test_a_neutral_change_is_accepted(run: Run, section: str, values: dict[str, Any]) -> None:
    inputs.check_inputs(other(run, section, **values), "pretrain")


def test_a_record_of_an_older_version(run: Run) -> None:
    """It lacks keys, which had their default then, and has keys that are neutral or gone."""
    path = run.dir / "pretrain" / "inputs.json"
    before = json.loads(path.read_text())
    lacking = {"pretrain.compile", "pretrain.deepspeed", "pretrain.loss", "data.block_shards"}
    old = {
        **{key: value for key, value in before.items() if key not in lacking},
        "pretrain.tf32": True,
        "data.threads": 9,
    }
    path.write_text(json.dumps(old))
    inputs.check_inputs(run, "pretrain")
    inputs.check_checkpoint(checkpoint.Checkpoint({}, {"inputs": old}), before, run.dir)
    stage = Stage(run, "pretrain", Context())
    stage.done = True
    (run.dir / "pretrain" / "done.json").write_text("{}")
    stage.reopen()
    assert json.loads(path.read_text()) == old  # rows refer to the record by its digest
    with pytest.raises(UserError, match=r"pretrain.compile: false -> true"):
        inputs.check_inputs(other(run, "pretrain", compile=True), "pretrain")
    for key in ("split", "data.train_size"):  # a key without a default, and a key whose default differs
        path.write_text(json.dumps({name: value for name, value in before.items() if name != key}))
        with pytest.raises(UserError, match=rf"\({key}: "):
            inputs.check_inputs(run, "pretrain")


def test_auto_is_the_precision_that_a_training_began_with(run: Run) -> None:
    automatic, folder = other(run, "learn", precision="auto"), run.dir / "learn"
    for stage in ("learn", "evaluate"):
        assert inputs.stage_inputs(automatic, stage)["learn.precision"] == "auto"
    folder.mkdir()
    for began, different in (("bf16", "fp32"), ("fp32", "bf16")):  # bf16 was the default of older versions
        now = {**inputs.stage_inputs(automatic, "learn"), "learn.precision": began}
        (folder / "inputs.json").write_text(json.dumps(now))
        for stage in ("learn", "evaluate"):
            assert inputs.stage_inputs(automatic, stage)["learn.precision"] == began
        inputs.check_inputs(automatic, "learn")
        inputs.check_checkpoint(checkpoint.Checkpoint({}, {"inputs": now}), now, folder)
        with pytest.raises(UserError, match=f"learn.precision: {began} -> {different}"):
            inputs.check_inputs(other(run, "learn", precision=different), "learn")


def test_every_neutral_key_is_a_key() -> None:
    """None of them selects a number type."""
    hints = get_type_hints(PretrainConfig)
    assert "tf32" not in hints and "tf32" in get_args(hints["precision"])
    for section, keys in inputs._NEUTRAL.items():
        assert set(keys) <= to_dict(Config())[section].keys(), section
    assert set(inputs._NEUTRAL) == {"data", *STAGES}
    assert not {"compile", "precision", "deepspeed"} & set(inputs._NEUTRAL["pretrain"])
    assert all(dataclasses.is_dataclass(getattr(Config(), section)) for section in inputs._NEUTRAL)


@pytest.fixture
def products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def rounded() -> tuple[bool, bool]:
    return torch.get_float32_matmul_precision() != "highest", torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("products")
def test_products_are_rounded_in_training_and_nowhere_else(whole_run: Run) -> None:
    from dist_train.classifier.from_run import from_run
    from dist_train.stages import learn, scoring

    for precision in get_args(Precision):
        if precision == "fp16":  # refused on most CPUs
            continue
        MixedPrecision(precision, torch.device("cpu"))
        assert rounded() == (precision == "tf32",) * 2
    round_products(True)
    seen = []
    bank = learn.open_bank(whole_run, Context())

    class Model:
        def __call__(self, means: torch.Tensor, single: torch.Tensor) -> torch.Tensor:
            seen.append(rounded())
            return means

        def query(self, queries: torch.Tensor) -> torch.Tensor:
            return queries

    assert learn.base_top1(Model(), bank, Context()) > 0  # type: ignore[arg-type]
    assert seen == [(False, False)] and rounded() == (True, True)  # exact within, then as the training is
    for begin in (lambda: scoring.JointScoring(whole_run, Context()), lambda: from_run(whole_run.config)):
        round_products(True)
        begin()
        assert rounded() == (False, False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    with exact_products():
        assert rounded() == (False, False)
    assert rounded() == (False, True)  # PyTorch's default, which differs between the two


def test_the_remedy_repeats_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank or a job, which has another command line, says that the options are the same."""
    given = ["--config", "my config.yaml", "--name", "it's", "--learn.steps", "41"]
    of_shares = (["evaluate", "--share", "0/3", *given], ["evaluate", *given, "--share=0/3"])
    for words in (["run", *given], ["learn", *given, "--redo"], *of_shares):
        monkeypatch.setattr("sys.argv", ["dist-train", *words])
        assert shlex.split(inputs.same_options("learn", "--redo")) == ["dist-train", "learn", *given, "--redo"]
    for words in ([], ["-c"], ["launch", "local", *given]):
        monkeypatch.setattr("sys.argv", ["dist-train", *words])
        assert inputs.same_options("learn", "--redo") == "dist-train learn --redo, with the same options,"
