"""Evaluations that are stopped, continued and extended."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from dist_train.config import Config, to_yaml
from dist_train.config.io import load_config
from dist_train.data.splits import draw_split, save_split
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import UserError
from dist_train.fewshot.methods import FROZEN, METHODS
from dist_train.fewshot.methods.last_layer import LastLayer
from dist_train.runs.run import open_run
from dist_train.stages import row_store
from dist_train.stages.done import is_done
from dist_train.stages.evaluate import evaluate
from dist_train.stages.extract import extract
from dist_train.stages.learn import learn
from dist_train.stages.row_code import code_of
from dist_train.stages.scoring import EpisodeScoring, JointScoring, Scoring
from dist_train.stages.share import Share
from launch.cli.main import main
from launch.status import show


class StopAtTurn(StopFlag):
    """Request a stop when asked for the ``turn``-th time."""

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


def test_a_stopped_or_extended_evaluation_equals_an_uninterrupted_one(
    config: Config, with_backbone: Callable[[Config], Config]
) -> None:
    steps = {f"{name}_steps": 5.0 for name in ("finetune", "linear_oracle")}
    # In the same process nn_oracle reuses the base scores of nn; it computes them where nn's row exists already.
    names = ["nn", "finetune", "linear_oracle", "ridge", "nn_oracle"]
    options = replace(config.evaluate, methods=names, options=steps)
    run = open_run(with_backbone(replace(config, evaluate=options)))
    for stage in (extract, learn, evaluate):
        stage(run, Context(), StopFlag(Context()))
    folder = run.dir / "evaluate"
    whole = results(folder)
    assert set(whole["methods"]) == {"nn", "finetune", "ridge"}
    assert set(whole["oracles"]) == {"linear_oracle", "nn_oracle"}

    shutil.rmtree(folder)
    # nn asks twice for each of its 6 base classes, ridge once, each method once for each draw that it lacks.
    for turn, kept, parts in (
        (3, [], []),
        (8, [], []),
        (14, [], ["nn.0"]),
        (18, ["nn"], ["finetune.0", "nn.0"]),
        (6, ["finetune", "linear_oracle", "nn"], ["finetune.0", "nn.0"]),
    ):
        with pytest.raises(Stopped, match="what is complete is kept"):
            evaluate(run, Context(), StopAtTurn(turn))
        assert sorted(path.stem for path in folder.glob("rows/*.json")) == kept
        assert sorted(path.stem for path in folder.glob("parts/*.npz")) == parts
        assert not (folder / "done.json").exists()
    evaluate(run, Context(), StopFlag(Context()))
    assert results(folder) == whole and not (folder / "parts").exists()

    before = {path: path.stat().st_mtime_ns for path in folder.glob("rows/*")}
    more = replace(config, evaluate=replace(options, methods=["imprint", *options.methods]))
    evaluate(open_run(more), Context(), StopFlag(Context()))
    after = {path: path.stat().st_mtime_ns for path in folder.glob("rows/*")}
    assert before == {path: time for path, time in after.items() if path.stem != "imprint"}
    assert len(after) == len(before) + 2
    extended = results(folder)
    assert extended["methods"].pop("imprint") and extended["curves"].pop("imprint")
    assert extended == whole


@pytest.fixture
def learned(config: Config, with_backbone: Callable[[Config], Config]) -> Config:
    """Make a run that lacks only its evaluation, of four methods."""
    names, steps = ["nn", "mean", "ridge", "finetune"], {"finetune_steps": 5.0}
    config = replace(config, evaluate=replace(config.evaluate, methods=names, options=steps))
    run = open_run(with_backbone(config))
    for stage in (extract, learn):
        stage(run, Context(), StopFlag(Context()))
    return config


def score(config: Config) -> Path:
    run = open_run(config)
    evaluate(run, Context(), StopFlag(Context()))
    return run.dir / "evaluate"


def test_only_what_is_missing_is_computed(learned: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dist_train")
    folder = score(learned)
    first, names = results(folder), sorted(learned.evaluate.methods)

    def changed(config: Config, act: Callable[[], object]) -> list[str]:
        """Return the rows that the next start writes again; the others stay."""
        before = {path: path.stat().st_mtime_ns for path in folder.glob("rows/*.json")}
        caplog.clear()
        act()
        score(config)
        return sorted(name for name in names if before.get(path := folder / "rows" / f"{name}.json")
                      != path.stat().st_mtime_ns)  # fmt: skip

    # Another option of one method, and back.
    other = replace(learned, evaluate=replace(learned.evaluate, options={"ridge_weight": 0.1, "finetune_steps": 5.0}))
    assert is_done(learned.run_dir, "evaluate", learned) and not is_done(learned.run_dir, "evaluate", other)
    assert changed(other, lambda: None) == ["ridge"] and "(ridge_weight 10.0 -> 0.1)" in caplog.text
    assert results(folder)["methods"]["ridge"] != first["methods"]["ridge"]
    assert load_config(learned.run_dir).evaluate.options["ridge_weight"] == 0.1
    assert "ridge_weight=0.1, " in (folder / "table.md").read_text()
    assert changed(learned, lambda: None) == ["ridge"] and results(folder) == first
    # Damaged or deleted files.
    rows = folder / "rows"
    for act in (
        lambda: (rows / "mean.json").write_text("{}"),
        lambda: (rows / "mean.json").write_text('{"shots": '),
        lambda: (rows / "mean.npz").write_bytes(b"PK nothing"),
        lambda: (rows / "mean.npz").write_bytes(
            bytes(0 if 60 < place < 90 else byte for place, byte in enumerate((rows / "mean.npz").read_bytes()))
        ),
        lambda: (rows / "mean.npz").unlink(),
    ):
        assert changed(learned, act) == ["mean"] and "rows/mean.json: damaged" in caplog.text
    for name in ("table.md", "report.html", "done.json"):
        assert changed(learned, (folder / name).unlink) == [] and (folder / name).is_file()
    assert changed(learned, lambda: (folder / "done.json").write_text("{")) == []
    assert results(folder) == first
    # Rows of other code are kept and named.
    row = json.loads((rows / "mean.json").read_text())
    (rows / "mean.json").write_text(json.dumps({**row, "code": "0", "commit": "0123456789ab"}))
    for act in (lambda: None, (folder / "table.md").unlink):
        assert changed(learned, act) == [] and "stay: mean (0123456789ab: made by an older version)" in caplog.text
    assert " (Class mean + cosine of 0123456789ab), command" in (folder / "table.md").read_text()
    code = {**code_of("mean"), "dist_train.fewshot.protocols.joint": "0"}
    (rows / "mean.json").write_text(json.dumps({**row, "code": code}))
    assert changed(learned, lambda: None) == [] and ": dist_train.fewshot.protocols.joint). To make" in caplog.text
    # Rows that a killed --redo left behind.
    more = replace(learned, evaluate=replace(learned.evaluate, draws=5))
    (folder / "inputs.json").unlink()
    kept = (folder / "done.json").read_bytes()
    (folder / "done.json").unlink()
    assert changed(more, lambda: None) == names and "made from other inputs" in caplog.text
    (folder / "done.json").write_bytes(kept)
    (folder / "inputs.json").unlink()
    with pytest.raises(UserError, match=r"inputs.json: missing, so that the inputs of this stage are unknown"):
        score(more)


def compute(config: Config, share: str, stop: StopFlag | None = None) -> None:
    evaluate(open_run(config), Context(), stop or StopFlag(Context()), share=Share.parse(share))


def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that gets (method, draw) for each draw that is computed from now on."""
    computed: list[tuple[str, int]] = []
    drawn = JointScoring._drawn

    def noting(self: JointScoring, scorer: Any, name: str, number: int) -> Any:
        computed.append((name, number))
        return drawn(self, scorer, name, number)

    monkeypatch.setattr(JointScoring, "_drawn", noting)
    return computed


def test_shares_of_the_draws_are_merged_into_the_table_of_one_process(
    learned: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = learned.evaluate.methods
    folder = score(learned)
    whole, confusions = results(folder), {name: read_confusions(folder, name) for name in names}
    shutil.rmtree(folder)

    compute(learned, "0/3")
    with pytest.raises(Stopped):  # of the second element's draw of nn nothing is there yet
        compute(learned, "1/3", StopAtTurn(13))
    compute(learned, "2/3")
    assert not (folder / "rows").exists() and not (folder / "results.json").exists()
    assert not (folder / "done.json").exists() and not is_done(learned.run_dir, "evaluate", learned)
    computed = scored(monkeypatch)
    compute(learned, "0/3")
    assert not computed, "it is complete"
    compute(learned, "1/3")
    assert computed == [(name, 1) for name in names]
    computed.clear()
    assert results(score(learned)) == whole and not computed
    for name in names:
        assert all(np.array_equal(counts, confusions[name][k]) for k, counts in read_confusions(folder, name).items())
    assert not (folder / "parts").exists()
    # One more method, for a table that is done: its row alone.
    more = replace(learned, evaluate=replace(learned.evaluate, methods=[*names, "imprint"]))
    compute(more, "1/2")
    assert computed == [("imprint", 1), ("imprint", 3)] and is_done(learned.run_dir, "evaluate", learned)
    computed.clear()
    found = results(score(more))
    assert computed == [("imprint", 0), ("imprint", 2)], "what a share has not made, the table's start computes"
    assert found["methods"].pop("imprint") and found["curves"].pop("imprint") and found == whole


def read_confusions(folder: Path, name: str) -> dict[str, Any]:
    with np.load(folder / "rows" / f"{name}.npz") as confusions:
        return dict(confusions)


def test_parts_that_do_not_fit_are_not_taken(
    learned: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(learned, evaluate=replace(learned.evaluate, methods=["mean", "ridge"]))
    whole = results(score(config))
    folder = config.run_dir / "evaluate"
    parts, computed = folder / "parts", scored(monkeypatch)

    def taken(act: Callable[[], object], then: Config = config) -> list[tuple[str, int]]:
        """Return the draws that are computed after two shares, one of each method, and an act."""
        shutil.rmtree(folder)
        for share in ("0/2", "1/2"):
            compute(config, share)
        act()
        computed.clear()
        score(then)
        return sorted(computed)

    assert taken(lambda: None) == [] and results(folder) == whole
    for act in (
        (parts / "mean.1.npz").unlink,
        lambda: (parts / "mean.1.npz").write_bytes(b""),
        lambda: (parts / "mean.1.npz").write_bytes((parts / "mean.1.npz").read_bytes()[:-100]),
        lambda: (parts / "mean.1.npz").write_bytes((parts / "mean.0.npz").read_bytes()),  # the same draws twice
    ):
        assert taken(act) == [("mean", 1), ("mean", 3)] and results(folder) == whole
    other = replace(config, evaluate=replace(config.evaluate, options={"ridge_weight": 0.1}))
    assert taken(lambda: None, other) == [("ridge", number) for number in range(4)]
    assert "ridge.0.npz: made from other inputs, options or code" in caplog.text
    # The activations are other ones.
    everything = [(name, number) for name in ("mean", "ridge") for number in range(4)]
    again = replace(config, evaluate=replace(config.evaluate, seed=1))
    assert taken((folder / "inputs.json").unlink, again) == everything and results(folder) != whole
    with monkeypatch.context() as edited:
        edited.setattr(row_store, "code_of", lambda name: {**code_of(name), "dist_train.stages.scoring": "0"})
        assert taken(lambda: edited.undo()) == everything


@pytest.mark.parametrize("text", ["", "1", "3/3", "0/0", "-1/3", "a/3", "1/3/4", "1.0/3", "1/b"])
def test_a_wrong_share_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=rf"--share {re.escape(text)}: must be NUMBER/COUNT") as error:
        Share.parse(text)
    assert str(error.value).count("\n") == 0


def test_a_share_that_is_refused_changes_nothing(
    learned: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong share, --redo, more shares than draws, one that is at work elsewhere, and a run that is not there."""
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(learned))
    compute(learned, "0/2")
    parts = learned.run_dir / "evaluate" / "parts"
    (parts / "1-of-2").mkdir()
    capsys.readouterr()
    before = sorted(learned.run_dir.rglob("*"))
    with FileLock(parts / "1-of-2" / ".lock"):
        for words, wanted in (
            (["--share", "2/2"], "--share 2/2: must be NUMBER/COUNT"),
            (["--share", "4/5"], "--share 4/5: there are more shares than evaluate.draws=4; choose at most that"),
            (["--share", "0/5"], "--share 0/5: there are more shares than evaluate.draws=4"),
            (["--share", "1/3", "--evaluate.draws", "2"], "more shares than evaluate.draws=2"),
            (
                ["--share", "0/2", "--redo"],
                f"--share 0/2: --redo would delete {learned.run_dir / 'evaluate'}, which has",
            ),
            (
                ["--share", "1/2"],
                "1-of-2: another process is at work on this share; wait for it, or find another share",
            ),
            (["--share", "1/2", "--name", "nosuch"], "nosuch/pretrain: pretrain is not finished"),
        ):
            assert main(["evaluate", "--config", str(path), *words]) == 1
            error = capsys.readouterr().err
            assert wanted in error and error.count("\n") == 1, error
    new = {found.name for found in learned.run_dir.rglob("*") if found not in before}
    assert new <= {".lock", "heartbeat.json", "error.json"} and not (learned.runs / "nosuch").exists()
    assert main(["evaluate", "--config", str(path), "--redo"]) == 0
    assert not parts.exists()


def test_a_stop_says_how_many_draws_of_the_row_are_there(learned: Config) -> None:
    config = replace(learned, evaluate=replace(learned.evaluate, methods=["mean"]))
    for turn in (2, 1):  # the first draw, then none
        context = Context()
        with pytest.raises(Stopped, match="stopped in mean after 1 of 2 draws; what is complete is kept"):
            evaluate(open_run(config), context, StopAtTurn(turn), share=Share(0, 2))
        assert context.progress.text == "evaluate mean: 1 of 2 draws"


def test_a_stop_in_a_preparation_says_how_many_draws_are_there(learned: Config) -> None:
    """The preparation itself is lost; the draws of earlier rows, and of earlier starts, are not."""
    context, wanted = Context(), "0 of 2 draws, in its preparation, which begins anew; of all rows 2 of 4"
    config = replace(learned, evaluate=replace(learned.evaluate, methods=["mean", "ridge"]))
    with pytest.raises(Stopped, match=f"stopped in ridge after {wanted}; what is complete is kept"):
        evaluate(open_run(config), context, StopAtTurn(3 + 2), share=Share(0, 2))  # in the second base class
    assert context.progress.text == f"evaluate ridge: {wanted}"
    with pytest.raises(Stopped, match="stopped in ridge after 1 of 2 draws; of all rows 3 of 4"):
        evaluate(open_run(config), context, StopAtTurn(6 + 2), share=Share(0, 2))  # before the second draw
    with pytest.raises(Stopped, match="stopped in ridge after 1 of 2 draws, in its preparation"):
        evaluate(open_run(config), context, StopAtTurn(1), share=Share(0, 2))


def test_a_table_without_novel_classes_has_no_shares(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(config)
    save_split(draw_split("all", [*run.base, *run.novel], 0, 0, 0), tmp_path / "all.json")
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(replace(config, data=replace(config.data, split=str(tmp_path / "all.json")))))
    assert main(["evaluate", "--config", str(path), "--share", "0/2"]) == 1
    error = capsys.readouterr().err
    assert "--share 0/2: split all has no novel classes" in error and error.count("\n") == 1
    assert not config.run_dir.exists()


def test_status_shows_the_shares_of_a_table(
    learned: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three shares one is stopped by hand, one is done and one has not started; then all are done."""
    path = tmp_path / "run.yaml"
    methods = ["mean", "ridge"]  # which are stopped in their draws
    path.write_text(to_yaml(replace(learned, evaluate=replace(learned.evaluate, methods=methods))))
    table = ["dist-train", "evaluate", "--config", str(path)]
    (learned.run_dir / "heartbeat.json").write_text(
        json.dumps(
            {"time": time.time() - 50, "left": True, "doing": "an older start", "ranks": 1, "host": "h", "job": ""}
        )
    )
    (learned.run_dir / "error.json").write_text(json.dumps({"time": 0, "rank": 0, "message": "an older error"}))

    def start(number: int, *options: str) -> int:
        monkeypatch.setattr("sys.argv", [*table, *options, "--share", f"{number}/3"])
        return main([*table[1:], *options, "--share", f"{number}/3"])

    assert "  left: an older start (" in show(learned.run_dir)
    assert start(1, "--max_minutes", "0.000001") == 75 and start(0) == 0
    text, left = show(learned.run_dir), f"{shlex.join(table)} --max_minutes 0.000001 --share 1/3 continues"
    assert re.search(
        rf"\n  share 1 stopped: evaluate mean: 0 of 1 draw; of all rows 0 of 2 \(.*\); {re.escape(left)}\n", text
    ), text
    assert text.endswith("\n  of 3 shares: 1 done (0), 1 stopped (1), 1 not started (2)")
    assert "  evaluate  stopped" in text and "older" not in text and "share 0" not in text and "share 2" not in text
    # One that was killed has not said that it left.
    beat_file = learned.run_dir / "evaluate" / "parts" / "1-of-3" / "heartbeat.json"
    beat = json.loads(beat_file.read_text())
    beat_file.write_text(json.dumps({**beat, "left": False, "time": time.time() - 500}))
    text = show(learned.run_dir)
    assert "  share 1 NO SIGN OF LIFE: evaluate mean: " in text and text.count(left) == 1
    assert text.endswith("1 done (0), 1 silent (1), 1 not started (2)")
    beat_file.write_text(json.dumps({**beat, "left": False, "time": time.time()}))
    text = show(learned.run_dir)
    assert "  evaluate  running" in text and "  share 1 now: evaluate mean: " in text and "older" not in text, text
    assert start(1) == start(2) == 0
    text = show(learned.run_dir)
    assert text.endswith(f"\n  of 3 shares: 3 done (0-2); {shlex.join(table)} makes the table"), text
    assert main(table[1:]) == 0
    text = show(learned.run_dir)
    assert "  share " not in text and "shares:" not in text and "  finished " in text, text
    # There is nothing to find for a table that is done.
    assert start(0) == 0 and not (learned.run_dir / "evaluate" / "parts").exists()
    assert show(learned.run_dir).splitlines()[:-1] == text.splitlines()[:-1]  # the last has a time


def test_rows_with_the_same_training_are_trained_once(
    config: Config, with_backbone: Callable[[Config], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    names = ["logistic", "phi_plus_logistic"]
    options = {f"{name}_steps": 3.0 for name in ("logistic", "finetune")}
    train = LastLayer._train

    def counted(method: LastLayer, supports: Sequence[torch.Tensor]) -> Any:
        if len(supports) == 3:  # of a draw; pages of the report show a set of supports
            trained.append(method.name)
        return train(method, supports)

    monkeypatch.setattr(LastLayer, "_train", counted)
    made: list[Scoring] = []
    prepare = Scoring.prepare
    monkeypatch.setattr(
        Scoring,
        "prepare",
        lambda scoring, *given, **named: (made.append(scoring), prepare(scoring, *given, **named))[1],
    )
    config = replace(
        config,
        learn=replace(config.learn, methods=["phi_plus"], steps=5),
        evaluate=replace(config.evaluate, methods=names, options=options, draws=2),
    )
    run = open_run(with_backbone(config))
    for stage in (extract, learn):
        stage(run, Context(), StopFlag(Context()))

    def table(*methods: str) -> tuple[int, dict[str, Any]]:
        """Return how many trainings a table takes, and its rows."""
        trained.clear()
        shutil.rmtree(run.dir / "evaluate", ignore_errors=True)
        folder = score(replace(config, evaluate=replace(config.evaluate, methods=list(methods))))
        return len(trained), results(folder)["methods"]

    alone = {name: table(name, "mean") for name in names}
    assert [count for count, _ in alone.values()] == [2, 2], "one for each draw"
    for methods in (names, names[::-1]):
        count, rows = table(*methods)
        assert count == 2 and rows == {name: alone[name][1][name] for name in methods}
    assert table("logistic", "finetune", "phi_plus_logistic")[0] == 4, "another training is not shared"

    # Rows that are there already, and stops, leave no training behind.
    for order in (names, names[::-1]):
        both = replace(config, evaluate=replace(config.evaluate, methods=order))
        shutil.rmtree(run.dir / "evaluate")
        score(replace(config, evaluate=replace(config.evaluate, methods=order[:1])))
        assert results(score(both))["methods"] == rows and not any(made[-1].base.trainings.values())
        shutil.rmtree(run.dir / "evaluate")
        with pytest.raises(Stopped):
            evaluate(open_run(both), Context(), StopAtTurn(2))
        assert [len(kept) for kept in made[-1].base.trainings.values()] == [1], "for the row after it"
        assert results(score(both))["methods"] == rows and not any(made[-1].base.trainings.values())

    # Episodes keep none: they have thousands.
    shutil.rmtree(run.dir / "evaluate")
    score(replace(config, evaluate=replace(config.evaluate, methods=names, protocol="episodes", ways=2, queries=2)))
    assert isinstance(made[-1], EpisodeScoring) and not any(made[-1].base.trainings.values())


def test_scores_that_are_not_finite_end_the_evaluation(learned: Config) -> None:
    for name, options in (("finetune", {"finetune_lr": 1e38, "finetune_steps": 5.0}), ("child", {"child_lr": 1e38})):
        wild = replace(learned, evaluate=replace(learned.evaluate, methods=["mean", name], options=options))
        with pytest.raises(UserError, match=rf"evaluate: {name}: scores are not finite .*; lower its rate"):
            score(wild)
        assert [path.stem for path in learned.run_dir.glob("evaluate/rows/*.json")] == ["mean"]


def test_every_method_gives_a_row(config: Config, with_backbone: Callable[[Config], Config]) -> None:
    small = {f"{name}_steps": 3.0 for name in ("finetune", "child", "logistic", "linear_oracle", "held")}
    small["ranpac_features"] = 32.0
    learned = [name for name in METHODS if name in METHODS[name].learns]
    config = replace(
        config,
        learn=replace(config.learn, methods=learned, steps=10),
        evaluate=replace(config.evaluate, methods=FROZEN, options=small, draws=2),
    )
    run = open_run(with_backbone(config))
    for stage in (extract, learn, evaluate):
        stage(run, Context(), StopFlag(Context()))
    found = results(run.dir / "evaluate")
    shutil.rmtree(run.dir / "evaluate")
    for share in ("0/3", "1/3", "2/3"):  # the last has no draw
        compute(config, share)
    assert results(score(config)) == found, "the table of shares is that of one process"
    assert set(found["methods"]) | set(found["oracles"]) == set(FROZEN)
    for values in found["methods"].values():
        assert list(values) == ["1", "2", "3"] and all(len(v["draws"]) == 2 for v in values["3"].values())
