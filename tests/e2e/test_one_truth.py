"""The accuracies that a run reports are those of its model's answers to the same images as files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_train.config import Config, Orientation, PackConfig
from dist_train.data import activations
from dist_train.data.images import orientation
from dist_train.data.packing.pack import pack
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot.protocols.joint import support_rows
from dist_train.runs.run import Run, open_run
from dist_train.stages.evaluate import evaluate
from dist_train.stages.extract import extract
from dist_train.stages.learn import learn
from dist_train.stages.pretrain import pretrain
from launch.cli.main import main


def turned(source: Path, target: Path) -> None:
    """Write the same photos as a turned camera stores them, with tags that say how they stand upright."""
    for number, path in enumerate(sorted(source.glob("*/*.*"))):
        tag = 1 + number % 8
        stored = orientation.turn(np.array(Image.open(path).convert("RGB")), orientation.inverse(tag))
        exif = Image.Exif()
        exif[orientation.TAG] = tag
        to = target / path.relative_to(source).with_suffix(".jpg")
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(stored)).save(to, quality=95, exif=exif)


@pytest.fixture(scope="module", params=["exif", "stored"])
def run(
    request: pytest.FixtureRequest, drawn: Path, small_run: Config, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Make a run on photos that are stored turned."""
    root = tmp_path_factory.mktemp("turned")
    for subset in ("train", "val"):
        turned(drawn / subset, root / subset)
    rule: Orientation = request.param
    pack(PackConfig(train=root / "train", val=root / "val", workers=1, orientation=rule), root / "shards", False)
    config = replace(
        small_run,
        runs=root / "runs",
        pretrain=replace(small_run.pretrain, epochs=6),
        data=replace(small_run.data, shards=str(root / "shards"), eval_resize=36),
        learn=replace(small_run.learn, methods=["phi2", "phi_plus"]),
        evaluate=replace(small_run.evaluate, methods=["phi2", "phi_plus", "phi_plus_plda"], draws=2),
    )
    made = open_run(config)
    for stage in (pretrain, extract, learn, evaluate):
        stage(made, Context(), StopFlag(Context()))
    return made


def files(run: Run, subset: str, role: str) -> Iterator[tuple[str, Path]]:
    """Yield class and file of each image of a view."""
    view, root = run.view(subset, role), Path(run.config.data.shards).parent
    for sample, label in zip(view.ids.tolist(), view.labels.tolist(), strict=True):
        yield view.classes[label], root / subset / view.subset.path_of(sample)


def right(model: Path, photos: list[tuple[str, Path]], capsys: pytest.CaptureFixture[str]) -> float:
    """Return the percentage of photos whose first answer is their class."""
    assert main(["classify", str(model), *(str(path) for _, path in photos), "--json", "--topk", "1"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [answer["image"] for answer in answers] == [str(path) for _, path in photos]
    correct = [answer["classes"][0]["name"] == name for (name, _), answer in zip(photos, answers, strict=True)]
    return 100 * sum(correct) / len(correct)


@pytest.mark.parametrize("method", ["phi2", "phi_plus", "phi_plus_plda"])
def test_classify_gives_the_base_top1_that_the_run_reports(
    run: Run, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", str(run.dir), "--method", method, "--out", str(tmp_path / "model")]) == 0
    row = json.loads((run.dir / "evaluate" / "rows" / f"{method}.json").read_text())
    photos = list(files(run, "val", "base"))
    # Before any novel class is added: the forgetting curve's first point.
    reported = row["curves"]["1"]["forgetting"]
    assert right(tmp_path / "model", photos, capsys) == pytest.approx(_first(reported), abs=0.01)
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert about["preprocessing"]["orientation"] == run.shards.orientation


def test_resuming_is_exact_with_turned_photos(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-resume", str(run.dir), "--batches", "2"]) == 0
    assert "resuming is exact, on 1, 2 and 4 ranks" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["phi2", "phi_plus_plda"])
def test_a_draws_supports_as_files_give_the_accuracies_of_that_draw(
    run: Run, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = activations.load(run.dir / "extract", "novel_train")
    rows = support_rows(bank, 1, run.config.evaluate.seed, 0)
    subset, root = run.shards["train"], Path(run.config.data.shards).parent
    added = [
        word
        for wnid, (row,) in zip(run.novel, rows, strict=True)
        for word in ("--class", f"{wnid}={root / 'train' / subset.path_of(int(bank.ids[row]))}")
    ]
    assert main(["adapt", str(run.dir), "--method", method, "--out", str(tmp_path / "model"), *added]) == 0
    results = json.loads((run.dir / "evaluate" / "results.json").read_text())["methods"][method]["1"]
    for role in ("base", "novel"):
        photos = list(files(run, "val", role))
        reported = results[f"{role}_top1"]["draws"][0]
        assert right(tmp_path / "model", photos, capsys) == pytest.approx(reported, abs=0.01)


def _first(curve: object) -> float:
    return float(curve["mean"][0] if isinstance(curve, dict) else curve[0])  # type: ignore[index]
