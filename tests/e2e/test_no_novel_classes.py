"""A run without novel classes: trained on everything, base accuracy alone, and new classes by photos afterwards."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.runs import run_all
from html_pages import parse

from dist_train.config import Config
from dist_train.data.activations import load
from dist_train.data.splits import draw_split, save_split
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.fewshot.results import Results
from dist_train.report.plots import method_labels
from dist_train.runs.run import Run, open_run
from dist_train.stages.done import is_done
from dist_train.stages.evaluate import evaluate
from dist_train.stages.share import Share
from launch.cli.main import main
from launch.grid.report import sweep_table

METHODS = ["nn", "mean", "ridge", "finetune", "logistic", "child", "phi1", "phi_plus", "nn_oracle", "linear_oracle"]
STEPS = {f"{name}_steps": 5.0 for name in ("finetune", "logistic", "child")}


@pytest.fixture(scope="module")
def all_base(small_run: Config, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Make a run of all 9 drawn classes. Tests must not change it."""
    folder = tmp_path_factory.mktemp("all-base")
    classes = sorted(path.name for path in (drawn / "train").iterdir() if path.is_dir())
    save_split(draw_split("all", classes, 0, 0, 0), folder / "all.json")
    config = replace(
        small_run,
        runs=folder / "runs",
        data=replace(small_run.data, split=str(folder / "all.json")),
        learn=replace(small_run.learn, methods=["phi1", "phi_plus"]),
        evaluate=replace(small_run.evaluate, methods=METHODS, options=STEPS, shots=[1, 99]),
    )
    yield run_all(config)


def test_the_table_has_base_accuracy_only(all_base: Run) -> None:
    folder = all_base.dir / "evaluate"
    results = Results.read(folder / "results.json")
    assert Results.from_json(results.to_json()) == results
    assert (results.classes.base, results.classes.novel, results.queries) == (9, 0, results.queries)
    assert list(results.methods) == METHODS[:-2] and list(results.left_out) == METHODS[-2:]
    assert {tuple(r.shots[0]) for r in results.methods.values()} == {("base_top1", "base_top5")}
    text = (folder / "table.md").read_text()
    assert "No novel classes: base accuracy only" in text and "novel top-1" not in text and "±" not in text
    assert "Left out, for want of novel images: the oracles NN + cosine, Linear classifier." in text
    assert not list((all_base.dir / "extract").glob("novel*"))


def test_accuracies_are_counted_from_the_activations(all_base: Run) -> None:
    train, val = (load(all_base.dir / "extract", f"base_{subset}") for subset in ("train", "val"))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train.means(), val.rows.astype(np.float32))]
    order = np.argsort(-(unit[1] @ unit[0].T), axis=1)
    results = Results.read(all_base.dir / "evaluate" / "results.json")
    for k in (1, 5):
        wanted = 100 * (order[:, :k] == val.labels[:, None]).any(1).mean()
        assert results.methods["mean"].shots[0][f"base_top{k}"].mean == pytest.approx(wanted)
    with (all_base.dir / "evaluate" / "per_class.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "mean"]
    assert [row["wnid"] for row in rows] == list(all_base.base) and {row["role"] for row in rows} == {"base"}
    mean = np.mean([float(row["top1"]) for row in rows])
    assert mean == pytest.approx(results.methods["mean"].shots[0]["base_top1"].mean, abs=0.01)


def test_the_report_says_so(all_base: Run) -> None:
    html = (all_base.dir / "evaluate" / "report.html").read_text()
    page = parse(html)
    assert page and "No novel classes: base accuracy only." in html and "new class" not in html.lower()
    assert "<h2>Class by class</h2>" in html and "<h2>Examples of novel classes</h2>" not in html
    assert "0-shot" not in html and "Percent of 54 validation images" in html and "The paper's whole table" not in html
    assert method_labels(Results.read(all_base.dir / "evaluate" / "results.json"))


def test_the_report_says_what_more_photos_bring(all_base: Run) -> None:
    folder = all_base.dir / "evaluate"
    own = parse((folder / "report.html").read_text()).all("section")[0]
    assert own.all("h2")[0].text == "Your classes" and "What more photos would bring" in own.text
    assert "The network itself was trained on all of the photos" in own.text
    curve = json.loads((folder / "figures" / "more_photos.json").read_text())
    assert [point["images"] for point in curve["points"]] == [2, 5, 10, 20] and curve["classes"] == "base"
    assert [len(point["draws"]) for point in curve["points"]] == [5, 5, 5, 1]


def test_another_start_finds_everything_done(all_base: Run) -> None:
    assert is_done(all_base.dir, "evaluate", all_base.config)
    before = {path: path.stat().st_mtime_ns for path in (all_base.dir / "evaluate").rglob("*.json")}
    evaluate(all_base, Context(), StopFlag(Context()))
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_shares_have_one_row_to_find_and_none(all_base: Run, tmp_path: Path) -> None:
    """Nothing is drawn: the first share finds all, and the others nothing."""
    config = replace(all_base.config, runs=tmp_path)
    shutil.copytree(all_base.dir, config.run_dir, ignore=shutil.ignore_patterns("evaluate"))
    run, folder = open_run(config), config.run_dir / "evaluate"
    for share in ("1/2", "0/2"):
        evaluate(run, Context(), StopFlag(Context()), share=Share.parse(share))
        assert len(list(folder.glob("parts/*.npz"))) == (0 if share == "1/2" else len(METHODS) - 2)
    evaluate(run, Context(), StopFlag(Context()))
    merged, whole = (Results.read(path / "evaluate" / "results.json") for path in (config.run_dir, all_base.dir))
    assert merged.methods == whole.methods and merged.left_out == whole.left_out


def test_a_sweep_shows_its_results(all_base: Run, tmp_path: Path) -> None:
    member = tmp_path / "run" / "sweep" / "seed=0" / "evaluate"
    member.mkdir(parents=True)
    (member / "results.json").write_text((all_base.dir / "evaluate" / "results.json").read_text())
    text = sweep_table(tmp_path / "run")
    assert "| setting | method | shots | base top-1 |" in text and "novel" not in text


def test_classes_are_added_from_photos(
    all_base: Run, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = next((drawn / "val" / all_base.base[0]).glob("*.JPEG"))
    assert main(["adapt", str(all_base.dir), "--class", f"new={photo}", "--out", str(tmp_path / "model")]) == 0
    assert "base accuracy" in capsys.readouterr().out
    entry = json.loads((tmp_path / "model" / "model.json").read_text())
    assert len(entry["classes"]) == 10


def test_episodes_need_novel_classes(all_base: Run) -> None:
    config = replace(all_base.config, evaluate=replace(all_base.config.evaluate, methods=["nn"], protocol="episodes"))
    with pytest.raises(UserError, match=r"evaluate.protocol=episodes: split all has no novel classes; give joint"):
        open_run(config)
