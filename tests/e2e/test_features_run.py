"""Runs of features from elsewhere: the same numbers as from images, every method, and what they cannot do."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from fixtures.runs import run_all

from dist_train.config import Config, DataConfig, EvaluateConfig, FeaturesConfig, LearnConfig, to_dict
from dist_train.data.activations import load
from dist_train.data.splits import Split, save_split
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.fewshot.methods import FROZEN, LEARNED
from dist_train.fewshot.results import Results
from dist_train.runs.run import Run, open_run
from dist_train.stages.dry_run import dry_run
from dist_train.stages.pretrain import pretrain
from launch.cli.main import main

TorchRun = Callable[..., subprocess.CompletedProcess[str]]
CLASSES = [f"class {n}" for n in range(9)]
STEPS = {f"{name}_steps": 5.0 for name in ("finetune", "logistic", "child", "linear_oracle", "held")}
STEPS["ranpac_features"] = 64.0


def export(run: Run, subset: str, path: Path) -> Path:
    """Write a run's activations with the names of their classes, as another program might have: no class by class."""
    tables = [(load(run.dir / "extract", f"{role}_{subset}"), getattr(run, role)) for role in ("base", "novel")]
    activations = np.concatenate([table.rows for table, _ in tables]).astype(np.float32)
    labels = np.array([classes[label] for table, classes in tables for label in table.labels])
    within = np.concatenate([n for table, _ in tables for n in map(np.arange, np.diff(table.offsets))])
    order = np.lexsort((labels, within))  # the first image of each class, the second of each, ...
    np.savez(path, activations=activations[order], labels=labels[order])
    return path


def test_numbers_are_those_of_the_images(whole_run: Run, tmp_path: Path) -> None:
    before = whole_run.config
    names = ["nn", "nn1", "mean", "ridge", "phi1", "phi2", "phi2star", "phi2cal", "nn_oracle"]  # need no trained rows
    config = Config(
        name="features",
        runs=tmp_path,
        data=DataConfig(split=before.data.split),
        features=FeaturesConfig(
            train=export(whole_run, "train", tmp_path / "train.npz"), val=export(whole_run, "val", tmp_path / "val.npz")
        ),
        learn=replace(before.learn, methods=["phi1", "phi2", "phi2star"]),
        evaluate=replace(before.evaluate, methods=names),
    )
    run = run_all(config)
    for table in ("base_train", "base_val", "novel_train", "novel_val"):
        ours, theirs = (load(r.dir / "extract", table) for r in (run, whole_run))
        assert np.array_equal(ours.rows, theirs.rows) and np.array_equal(ours.offsets, theirs.offsets)
    ours, theirs = (Results.read(r.dir / "evaluate" / "results.json") for r in (run, whole_run))
    assert ours.methods == {name: theirs.methods[name] for name in names[:-1]} and ours.oracles == theirs.oracles
    assert (ours.queries, ours.classes) == (theirs.queries, theirs.classes)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """Configure a run of random clusters: 5 base classes, 2 novel ones, and 2 that the split does not use."""
    folder = tmp_path_factory.mktemp("clusters")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((9, 24))
    for name, count in (("train", 12), ("val", 4)):
        labels = np.repeat(np.arange(9), count)
        rng.shuffle(labels)
        rows = centres[labels] + 0.5 * rng.standard_normal((len(labels), 24))
        np.savez(folder / name, activations=rows, labels=labels, classes=np.array(CLASSES))
    save_split(Split("s", tuple(CLASSES[:5]), tuple(CLASSES[5:7])), folder / "split.json")
    yield Config(
        name="clusters",
        runs=folder / "runs",
        data=DataConfig(split=str(folder / "split.json")),
        features=FeaturesConfig(train=folder / "train.npz", val=folder / "val.npz"),
        learn=LearnConfig(methods=list(LEARNED), steps=10, precision="fp32"),
        evaluate=EvaluateConfig(draws=3, methods=FROZEN, shots=[1, 2], options=STEPS),
    )


def test_every_method_from_the_command_line(
    clusters: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dist_train")
    assert clusters.features
    files = ["--features.train", str(clusters.features.train), "--features.val", str(clusters.features.val)]
    options = {"name": clusters.name, "runs": clusters.runs, "data.split": clusters.data.split, "learn.steps": 10,
               "learn.precision": "fp32", "evaluate.draws": 3, "evaluate.shots": [1, 2],
               "evaluate.methods": json.dumps(FROZEN), "evaluate.options": json.dumps(STEPS)}  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["run", "--config", "features", *files, *words]) == 0
    assert (
        "24 rows of" in caplog.text
        and "are left out: the split does not use their classes class 7, class 8" in caplog.text
    )
    folder = clusters.run_dir / "evaluate"
    results = Results.read(folder / "results.json")
    assert Results.from_json(results.to_json()) == results and results.samples == "features"
    assert {*results.methods, *results.oracles} == {*FROZEN}
    for name in ("mean", "ridge", "phi2", "imprint", "logistic"):  # clusters far apart: well above chance, a seventh
        metrics = results.methods[name].shots[2]
        assert metrics["base_top1"].mean > 60 and metrics["novel_top1"].mean > 40, name
    table, page = ((folder / name).read_text() for name in ("table.md", "report.html"))
    first = "The activations are features from elsewhere; it is not known whether novel classes were in the training"
    assert table.startswith(first) and first in page and f"features {results.shards}" in table
    assert "no examples are shown" in page and "<h2>Examples of novel classes</h2>" not in page
    provenance = json.loads((clusters.run_dir / "provenance.json").read_text())
    assert provenance["features"] == results.shards and provenance["files"]["train"] == files[1]
    assert capsys.readouterr().out.count(table) == 1

    before = {path: path.stat().st_mtime_ns for path in clusters.run_dir.rglob("done.json")}
    assert main(["run", "--config", "features", *files, *words]) == 0 and "evaluate: done already" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 4
    assert main(["adapt", str(clusters.run_dir), "--class", "x=y.jpg", "--out", str(tmp_path / "model")]) == 1
    assert "is of features from elsewhere; it has no network" in capsys.readouterr().err
    assert main(["verify-resume", str(clusters.run_dir)]) == 1
    assert "this run is of features, it has no images" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_the_content_decides_and_not_the_path(clusters: Config, tmp_path: Path) -> None:
    def started(features: FeaturesConfig) -> None:
        run = open_run(replace(clusters, name="content", features=features))
        pretrain(run, Context(), StopFlag(Context()))

    assert clusters.features
    started(clusters.features)
    copy = tmp_path / "copy.npz"
    copy.write_bytes(clusters.features.train.read_bytes())
    started(replace(clusters.features, train=copy))
    with pytest.raises(UserError, match=r"made from other inputs \(features.scale: 1 -> 2\)"):
        started(replace(clusters.features, scale=2.0))
    with np.load(copy) as arrays:
        np.savez(copy, **{**arrays, "activations": 2 * arrays["activations"]})
    with pytest.raises(UserError, match=r"made from other inputs \(features: [0-9a-f]{16} -> [0-9a-f]{16}\)"):
        started(replace(clusters.features, train=copy))


def test_a_bad_value_is_told_before_anything_is_made(clusters: Config, tmp_path: Path) -> None:
    assert clusters.features
    path = tmp_path / "bad.npz"
    with np.load(clusters.features.val) as arrays:
        changed = arrays["activations"].copy()
        changed[-1, 0] = np.nan
        np.savez(path, **{**arrays, "activations": changed})
    config = replace(clusters, runs=tmp_path / "runs", features=replace(clusters.features, val=path))
    run = open_run(config)
    with pytest.raises(UserError, match=r"bad.npz: row 35 has a value that is not a finite number"):
        pretrain(run, Context(), StopFlag(Context()))
    assert not run.dir.exists()


def test_keys_that_would_do_nothing_are_refused(clusters: Config) -> None:
    for section, values in (("data", {"shards": "x"}), ("pretrain", {"epochs": 30}), ("extract", {"views": "ten"})):
        changed = replace(getattr(clusters, section), **values)
        with pytest.raises(ValueError, match=rf"{section}\.{next(iter(values))}=.*left out beside features"):
            replace(clusters, **{section: changed})


def test_the_dry_run_counts_rows(clusters: Config) -> None:
    lines = dry_run(clusters, 1)
    assert "60 rows of 5 base classes, 24 activations each" in lines[1] and "nothing is trained" in lines[2]


def test_a_split_of_features(clusters: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clusters.features
    out = tmp_path / "split.json"
    assert main(["split", "--features", str(clusters.features.train), "--novel", "3", "--out", str(out)]) == 0
    assert "6 base (0 pseudo-novel), 3 novel" in capsys.readouterr().out
    entry = json.loads(out.read_text())
    assert sorted(entry["base"] + entry["novel"]) == CLASSES


def test_two_ranks_share_the_work(clusters: Config, tmp_path: Path, torchrun: TorchRun) -> None:
    learned = replace(clusters.learn, methods=["phi1"])
    scored = replace(clusters.evaluate, methods=["mean", "ridge", "phi1"])
    config = replace(clusters, runs=tmp_path, learn=learned, evaluate=scored)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(replace(config, name="two"))))
    torchrun(2, "-m", "dist_train", "run", "--config", str(path))
    runs = run_all(replace(config, name="alone")).dir, tmp_path / "two"
    by_one_rank, by_two = (Results.read(folder / "evaluate" / "results.json").methods for folder in runs)
    assert set(by_two) == {"mean", "ridge", "phi1"}
    for name in ("mean", "ridge"):  # phi1's sums are taken in another order
        assert by_one_rank[name] == by_two[name]


def test_a_class_of_one_row_no_novel_classes_and_a_repeated_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    train, val = rng.standard_normal((9, 6)), rng.standard_normal((3, 6))
    val[1], train[0] = train[4], 0
    np.savez(tmp_path / "train", activations=train, labels=np.array([*"aaaabbbbc"]))
    np.savez(tmp_path / "val", activations=val, labels=np.array([*"abc"]))
    save_split(Split("all", ("a", "b", "c"), ()), tmp_path / "split.json")
    config = Config(
        runs=tmp_path,
        data=DataConfig(split=str(tmp_path / "split.json")),
        features=FeaturesConfig(train=tmp_path / "train.npz", val=tmp_path / "val.npz"),
        learn=LearnConfig(methods=["phi_plus"], steps=5, precision="fp32"),
        evaluate=EvaluateConfig(methods=["nn", "mean", "ridge", "imprint", "phi_plus", "nn_oracle"]),
    )
    run = run_all(config)
    results = Results.read(run.dir / "evaluate" / "results.json")
    assert results.base_only and results.queries and results.queries.base == 3
    assert results.methods["nn"].shots[0]["base_top5"].mean == 100
    assert "1 of 9 rows of" in caplog.text and "are all zeros" in caplog.text
    assert "1 of 3 validation rows are among the training rows too" in caplog.text
    text = (run.dir / "evaluate" / "table.md").read_text()
    assert text.startswith("The activations are features from elsewhere.\n") and "base accuracy only" in text
