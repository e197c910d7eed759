"""Choices varied over one backbone: what runs, what is skipped, what is refused, and the differences by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from dist_train.config import Config, configs_dir, to_dict
from dist_train.fewshot.results import Counts, Interval, MethodResult, Metrics, Results, SplitFacts
from launch.cli.main import main
from launch.grid.members import Member
from launch.grid.report import write_study
from launch.grid.study import read_study, study_members

STUDY = """
methods: [phi2]
choices:
  - learn.p_mean: [0.0, 0.9]
  - evaluate.rule: [max, mean]
  - methods: [ridge]
    evaluate.options.ridge_weight: [1e-3, 10]
"""


@pytest.fixture
def small(config: Config) -> Config:
    """Return a short configuration; its split marks some of the drawn classes as pseudo-novel."""
    return replace(config, learn=replace(config.learn, steps=20, lr=0.05),
                   evaluate=replace(config.evaluate, shots=[1, 2]))  # fmt: skip


@pytest.fixture
def arguments(small: Config, tmp_path: Path) -> list[str]:
    """Return the arguments of a study, whose configuration leaves data.holdout out."""
    values = to_dict(small)
    del values["data"]["holdout"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "some.yaml").write_text(STUDY)
    return ["study", str(tmp_path / "some.yaml"), "--config", str(tmp_path / "config.yaml")]


def results(run: Path, member: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "study" / "some" / member / "evaluate" / "results.json").read_text())
    return found


def save_results(member: Member, phi2: Metrics, oracle: Metrics) -> None:
    """Write a member's results: those of phi2 at 1 shot, and those of linear_oracle."""
    found = Results(
        methods={"phi2": MethodResult({1: phi2})},
        oracles={"linear_oracle": oracle},
        shots=[1],
        draws=4,
        interval="interval",
        classes=Counts(base=6, novel=3),
        queries=Counts(base=36, novel=18),
        split=SplitFacts("drawn", "0"),
        shards="f",
        commit="abc",
        command="c",
    )
    folder = member.run / "evaluate"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found.to_json()))


def test_a_study_by_hand(small: Config, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--seeds", "2"]) == 0
    run, shown = small.run_dir, capsys.readouterr().out
    folders = sorted(p.name for p in (run / "study" / "some").iterdir())
    settings = ["default", "evaluate.options.ridge_weight=1e-3", "evaluate.rule=mean", "learn.p_mean=0.0"]
    assert folders == sorted(name + again for name in settings for again in ("", ",again=1"))
    assert sorted(p.name for p in run.iterdir() if p.is_dir()) == ["extract", "pretrain", "study"]
    some = run / "study" / "some"
    assert (some / "learn.p_mean=0.0" / "extract").resolve() == (run / "extract").resolve()
    assert (some / "evaluate.rule=mean,again=1" / "learn").resolve() == (some / "default,again=1" / "learn").resolve()
    assert json.loads((run / "pretrain" / "inputs.json").read_text())["data.holdout"] == "pseudo-novel"

    found = json.loads((run / "study" / "some.json").read_text())
    assert found["default"] == {"learn.p_mean": 0.9, "evaluate.rule": "max", "evaluate.options.ridge_weight": 10}
    assert len(found["differences"]) == 3 * 2
    row = next(d for d in found["differences"] if d["setting"] == {"learn.p_mean": 0.0} and d["shots"] == "2")
    for metric in ("base_top1", "novel_top1", "harmonic", "ausuc"):
        draws = [
            [results(run, name + again)["methods"]["phi2"]["2"][metric]["draws"] for again in ("", ",again=1")]
            for name in ("learn.p_mean=0.0", "default")
        ]
        less = (np.array(draws[0]).sum(0) - np.array(draws[1]).sum(0)) / 2
        assert row[metric]["mean"] == pytest.approx(less.mean())
        assert row[metric]["ci95"] == pytest.approx(stats.sem(less) * stats.t.ppf(0.975, 3))
    each = [results(run, f"learn.p_mean=0.0{again}")["methods"]["phi2"]["2"]["novel_top1"]["mean"]
            - results(run, f"default{again}")["methods"]["phi2"]["2"]["novel_top1"]["mean"]
            for again in ("", ",again=1")]  # fmt: skip
    assert row["novel_top1_of_seeds"] == pytest.approx(each)
    assert each[0] != each[1]  # a training of its own, not the same one twice

    text = (run / "study" / "some.md").read_text()
    assert text in shown and f"| `learn.p_mean=0` | {row['base_top1']['mean']:+.2f} ± " in text
    ridge = text.split("## Ridge regression, 1 shot")[1].split("## ")[0]
    assert "Default: `learn.p_mean=0.9`, `evaluate.rule=max`, `evaluate.options.ridge_weight=10`." in text
    assert "ridge_weight=0.001`" in ridge and "rule" not in ridge and "p_mean" not in ridge

    before = {p: p.stat().st_mtime_ns for p in run.rglob("done.json")}
    (some / "learn.p_mean=0.0" / "evaluate" / "done.json").unlink()
    (some / "learn.p_mean=0.0" / "evaluate" / "rows" / "phi2.json").unlink()
    assert main([*arguments, "--seeds", "2"]) == 0
    changed = [p for p, time in before.items() if p.stat().st_mtime_ns != time]
    assert changed == [some / "learn.p_mean=0.0" / "evaluate" / "done.json"]
    assert json.loads((run / "study" / "some.json").read_text()) == found

    assert main([*arguments, "--learn.steps", "10"]) == 1
    assert "(learn.steps: 20 -> 10)" in (message := capsys.readouterr().err)
    assert f"or: delete {some}, and the study makes it again" in message


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (STUDY, ["--data.holdout", "novel"], "data.holdout=novel: choosing on the novel classes is tuning"),
        (STUDY, ["--evaluate.protocol", "episodes"], "evaluate.protocol=episodes: a study compares"),
        (STUDY, ["--seeds", "0"], "--seeds 0: must be >= 1"),
        (STUDY.replace("p_mean", "p_men"), [], "unknown key 'learn.p_men'; did you mean 'learn.p_mean'?"),
        (STUDY.replace("ridge_weight", "ridge_wait"), [], "evaluate.options: 'ridge_wait' is not known"),
        (STUDY.replace("0.9]", "1.5]"), [], "learn.p_mean=1.5: must be in [0, 1]"),
        (STUDY.replace("[ridge]", "[bridge]"), [], "evaluate.methods: 'bridge' is not known"),
        (STUDY.replace("learn.p_mean", "pretrain.lr"), [], "pretrain.lr: members share one backbone"),
        (STUDY.replace("learn.p_mean", "evaluate.seed"), [], "evaluate.seed is the same for all members"),
        (STUDY.replace("[max, mean]", "max"), [], "give KEY: [VALUE, ...]"),
        (STUDY.replace("methods: [phi2]", "method: [phi2]"), [], "unknown key 'method'; did you mean 'methods'?"),
        (STUDY.replace("methods: [phi2]", "methods: [[phi2]]"), [], "methods: [[phi2]]: give names of rows, as in"),
        ("methods: [phi2]\nchoices: 3\n", [], "choices: give a list"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    small: Config, arguments: list[str], capsys: pytest.CaptureFixture[str], text: str, options: list[str], message: str
) -> None:
    Path(arguments[1]).write_text(text)
    assert main([*arguments, *options]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("dist-train: error: ") and message in lines[0]
    assert not small.run_dir.exists()


def test_packaged_studies_fit_the_configuration(config: Config) -> None:
    for path in (configs_dir() / "studies").glob("*.yaml"):
        members = study_members(config, path, read_study(path), 1)
        assert len(members) > 10 and members["default"][0].first == "learn"
        assert f"dist-train study {path.stem} " in path.read_text()


def test_a_choice_of_extract_has_its_own_activations(config: Config, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("methods: [phi2]\nchoices: [{extract.precision: [bf16], learn.bias: [false]}]")
    members = study_members(config, tmp_path / "some.yaml", read_study(tmp_path / "some.yaml"), 1)
    assert [one.first for (one,) in members.values()] == ["learn", "extract"]


def test_the_largest_change_comes_first_and_the_middle_of_the_best_is_named(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(
        "methods: [phi2]\nchoices:\n- learn.p_mean: [0.1, 0.3, 0.5, 0.9]\n- learn.bias: [true, false]\n"
        "- methods: [linear_oracle]\n  evaluate.options.linear_oracle_steps: [10]\n"
    )
    choices = read_study(path)
    members = study_members(config, path, choices, 1)
    novel = {"default": 10.0, "learn.p_mean=0.1": 13.0, "learn.p_mean=0.3": 13.1, "learn.p_mean=0.5": 13.0,
             "learn.bias=false": 2.0, "evaluate.options.linear_oracle_steps=10": 50.0}  # fmt: skip
    noise = {"learn.p_mean=0.3": [1.0, -1.0, 0.5, -0.5]}  # draws cannot tell 13.1 from 13.0
    for name, (member,) in members.items():
        draws = [novel[name] + more for more in noise.get(name, [0.0] * 4)]
        metrics = {key: Interval.of(draws) for key in ("base_top1", "novel_top1", "harmonic")}
        metrics["ausuc"] = Interval.of([1.0] * 4)
        save_results(member, metrics, {key: Interval.of(value.draws[:1]) for key, value in metrics.items()})
    text = write_study(config.run_dir / "study" / "some", choices, members)
    rows = [line.split("|")[1].strip() for line in text.split("## φ2, 1 shot\n")[1].split("##")[0].splitlines()[3:-1]]
    assert rows == ["default", "`learn.bias=false`", "`learn.p_mean=0.3`",
                    "`learn.p_mean=0.1`", "`learn.p_mean=0.5`"]  # fmt: skip
    assert "novel top-1 most is `evaluate.options.linear_oracle_steps=10`: by +40.00 ± 0.00 points, from 10.00" in text
    best = json.loads((config.run_dir / "study" / "some.json").read_text())["chosen"]
    assert best[0]["as_good"] == ["learn.p_mean=0.1", "learn.p_mean=0.3", "learn.p_mean=0.5"]
    assert [one["setting"] for one in best] == ["learn.p_mean=0.3", "learn.bias=true",
                                                "evaluate.options.linear_oracle_steps=10"]  # fmt: skip
    assert "## Linear classifier, all shots" in text


def test_a_choice_of_an_oracle_alone(small: Config, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text(
        "methods: [linear_oracle]\nchoices:\n  - evaluate.options.linear_oracle_steps: [3, 5]\n"
    )
    assert main(arguments) == 0
    text = (small.run_dir / "study" / "some.md").read_text()
    assert "## Linear classifier" in text and "linear_oracle_steps=3" in text
    assert not (
        small.run_dir / "study" / "some" / "default" / "learn" / "phi2"
    ).exists()  # learn needs one method at least
