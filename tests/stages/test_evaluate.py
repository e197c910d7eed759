"""Evaluations that are stopped, go on, and get more methods."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import Config
from dist_train.context import Context
from dist_train.engine.preempt import Stopped, Stopper
from dist_train.fewshot.methods import METHODS
from dist_train.stages import common, evaluate, extract, learn, pretrain


class Told(Stopper):
    """Says stop when it is asked for the ``turn``-th time."""

    def __init__(self, turn: int) -> None:
        super().__init__(Context())
        self.turns = turn

    def requested(self) -> bool:
        self.turns -= 1
        return self.turns <= 0


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    del found["seconds"]
    return found


def test_a_stopped_or_extended_evaluation_is_a_whole_one(config: Config) -> None:
    steps = {f"{name}_steps": 5.0 for name in ("finetune", "linear_oracle")}
    # In one go nn_oracle takes its base scores from nn, and asks for them where nn's row is there already.
    names = ["nn", "finetune", "linear_oracle", "ridge", "nn_oracle"]
    options = replace(config.evaluate, methods=names, options=steps)
    run = common.open_run(replace(config, evaluate=options))
    for chapter in (pretrain, extract, learn, evaluate):
        chapter.run(run, Context(), Stopper(Context()))
    folder = run.dir / "evaluate"
    whole = results(folder)
    assert set(whole["methods"]) == {"nn", "finetune", "ridge"}
    assert set(whole["oracles"]) == {"linear_oracle", "nn_oracle"}

    shutil.rmtree(folder)
    # nn asks once for each of its 6 base classes, each method once for each of 4 draws, an oracle once.
    for turn, kept in ((3, []), (8, []), (12, ["nn"]), (7, ["finetune", "linear_oracle", "nn"])):
        with pytest.raises(Stopped, match="the methods before it are kept"):
            evaluate.run(run, Context(), Told(turn))
        assert sorted(path.stem for path in folder.glob("rows/*.json")) == kept
        assert not (folder / "done.json").exists()
    evaluate.run(run, Context(), Stopper(Context()))
    assert results(folder) == whole

    before = {path: path.stat().st_mtime_ns for path in folder.glob("rows/*")}
    more = replace(config, evaluate=replace(options, methods=["imprint", *options.methods]))
    evaluate.run(common.open_run(more), Context(), Stopper(Context()))
    after = {path: path.stat().st_mtime_ns for path in folder.glob("rows/*")}
    assert before == {path: time for path, time in after.items() if path.stem != "imprint"}
    assert len(after) == len(before) + 2
    extended = results(folder)
    assert extended["methods"].pop("imprint") and extended["curves"].pop("imprint")
    assert extended == whole


def test_every_method_gives_a_row(config: Config) -> None:
    small = {f"{name}_steps": 3.0 for name in ("finetune", "child", "logistic", "linear_oracle")}
    learned = [name for name in METHODS if name in METHODS[name].learns]
    config = replace(
        config,
        learn=replace(config.learn, methods=learned, steps=10),
        evaluate=replace(config.evaluate, methods=list(METHODS), options=small, draws=2),
    )
    run = common.open_run(config)
    for chapter in (pretrain, extract, learn, evaluate):
        chapter.run(run, Context(), Stopper(Context()))
    found = results(run.dir / "evaluate")
    assert set(found["methods"]) | set(found["oracles"]) == set(METHODS)
    for values in found["methods"].values():
        assert list(values) == ["1", "2", "3"] and all(len(v["draws"]) == 2 for v in values["3"].values())
