"""An exported ONNX file answers as its model folder does, in a process that never loads torch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fixtures.random_models import random_classifier
from PIL import Image

from dist_train import Classifier, UserError
from dist_train.classifier import batch_run
from dist_train.classifier.answer import Class
from dist_train.classifier.export import write_onnx
from dist_train.classifier.exported import Exported
from dist_train.classifier.fitted import FittedHeads
from launch.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a model of photos alone, which knows when it is not sure."""
    network = random_classifier("conv4", 64, [Class("cat", "n1"), Class("dog", "n2")]).network
    model = Classifier(network, FittedHeads("mean"))
    draw = np.random.RandomState(0)
    for number, name in enumerate(("cat", "sea, lion", "owl")):
        model.add_class(name, [draw.randint(0, 256, (40, 50, 3), np.uint8) // (1 + number) for _ in range(6)])
    path = tmp_path_factory.mktemp("exported") / "model"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    write_onnx(Classifier.load(folder, "cpu"), folder.with_name("model.onnx"))
    return folder.with_name("model.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of photos of several sizes and kinds, one of them turned by its tag, and a damaged one."""
    into = tmp_path / "photos"
    into.mkdir()
    for number, size in enumerate([(40, 60), (33, 32), (200, 150)]):
        pixels = np.random.RandomState(number).randint(0, 256, (*size, 3), np.uint8) // (1 + number)
        Image.fromarray(pixels).save(into / f"{number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(60 * 90 * 3, dtype=np.uint32).reshape(60, 90, 3).astype(np.uint8)).save(
        into / "turned.jpg", exif=exif
    )
    Image.new("L", (50, 40), 90).save(into / "grey.png")
    (into / "bad.jpg").write_bytes(b"text")
    return into


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, Any]], str]:
    """Return the exit code of ``classify``, its lines of JSON, and what it printed on standard error."""
    code = main(["classify", *words, "--json"])
    said = capsys.readouterr()
    return code, [json.loads(line) for line in said.out.splitlines()], said.err


def assert_same_answers(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert [line["image"] for line in one] == [line["image"] for line in other]
    for first, second in zip(one, other, strict=True):
        assert first.get("error") == second.get("error") and first.get("sure") == second.get("sure")
        if "error" in first:
            continue
        assert abs(first["familiarity"] - second["familiarity"]) < 0.5
        shares = [{entry["name"]: entry["probability"] for entry in line["classes"]} for line in (first, second)]
        assert shares[0].keys() == shares[1].keys() and first["classes"][0]["name"] == second["classes"][0]["name"]
        assert max(abs(shares[0][name] - shares[1][name]) for name in shares[0]) < 3e-3


@pytest.mark.parametrize("more", [[], ["--topk", "2"], ["--min_confidence", "0.36"], ["--min_confidence", "1"]])
def test_file_and_folder_give_the_same_answers(
    more: list[str], folder: Path, file: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_file, of_folder = (lines(capsys, str(model), str(photos), *more) for model in (file, folder))
    assert of_file[0] == of_folder[0] == 1 and of_file[2] == of_folder[2], "the damaged photo is named alike"
    assert len(of_file[1]) == 6
    assert_same_answers(of_file[1], of_folder[1])


@pytest.mark.parametrize("method", ["phi2", "phi_plus_plda"])
def test_models_of_a_run_answer_alike(
    method: str, models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_onnx(Classifier.load(models / method, "cpu"), tmp_path / "m.onnx")
    of_file, of_folder = (lines(capsys, str(model), str(photos)) for model in (tmp_path / "m.onnx", models / method))
    assert_same_answers(of_file[1], of_folder[1])


def test_a_model_is_not_sure_of_the_same_photos(folder: Path, file: Path, photos: Path) -> None:
    model, exported = Classifier.load(folder, "cpu"), Exported(file)
    sources = [(path.name, path) for path in sorted(photos.glob("*.png"))]
    for least in (None, 0.0, 0.4, 1.0):
        model.min_confidence = exported.min_confidence = least
        of_both = ([(answer.sure, answer.strange) for answer in one.stream(sources)] for one in (model, exported))
        assert next(of_both) == next(of_both)
    doubt = model.head().doubt
    assert doubt.threshold > 0 and exported._doubt == doubt


def test_an_answer_needs_no_torch(file: Path, photos: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from launch.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'scipy', 'pydantic'} & set(sys.modules), 'loads what takes seconds'; sys.exit(code)"
    )
    words = ["classify", str(file), str(photos / "0.png"), "--csv", str(tmp_path / "table.csv"),
             "--link_to", str(tmp_path / "sorted")]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [row] = csv.DictReader((tmp_path / "table.csv").open(newline=""))
    assert row["photo"] == str(photos / "0.png") and row["class"]
    assert len([path for path in (tmp_path / "sorted").rglob("*") if path.is_symlink()]) == 1


def test_a_run_into_files_goes_on_with_the_same_file_only(
    folder: Path, file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Killed(BaseException):
        pass

    def stop(*_: Any) -> None:
        raise Killed

    table, whole = tmp_path / "table.csv", batch_run.Journal.add
    words = [str(photos / "0.png"), str(photos / "1.png"), "--csv", str(table)]
    monkeypatch.setattr(batch_run.Journal, "add", lambda *given: (whole(*given), stop()))
    with pytest.raises(Killed):
        main(["classify", str(file), *words])
    monkeypatch.setattr(batch_run.Journal, "add", whole)
    assert main(["classify", str(folder), *words]) == 1
    assert "is left over from a run with another model" in capsys.readouterr().err
    assert main(["classify", str(file), *words]) == 0
    assert [row["photo"] for row in csv.DictReader(table.open(newline=""))] == words[:2]


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def without_nearness(file: Path) -> None:
    """Make a file as versions before this one wrote it."""
    graph = onnx.load(file)
    del graph.graph.output[2]
    onnx.save(graph, file)


def without_classes(file: Path) -> None:
    graph = onnx.load(file)
    del graph.metadata_props[:]
    onnx.save(graph, file)


def with_fewer_classes(file: Path) -> None:
    graph = onnx.load(file)
    for entry in graph.metadata_props:
        if entry.key == "classes":
            entry.value = json.dumps(json.loads(entry.value)[:2])
    onnx.save(graph, file)


def with_a_false_threshold(file: Path) -> None:
    graph = onnx.load(file)
    for entry in graph.metadata_props:
        if entry.key == "doubt":
            entry.value = json.dumps({**json.loads(entry.value), "threshold": "high"})
    onnx.save(graph, file)


@pytest.mark.parametrize(
    "damage, wanted",
    [
        (Path.unlink, "no such file; dist-train export MODEL --format onnx writes one"),
        (cut_off, "onnxruntime cannot open it"),
        (without_nearness, "is no export of this version"),
        (without_classes, "is no export of this version"),
        (with_fewer_classes, "is no export of this version"),
        (with_a_false_threshold, "is no export of this version"),
    ],
)
def test_other_files_are_refused_in_a_line(
    damage: Any, wanted: str, file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(file.read_bytes())
    damage(copy)
    assert main(["classify", str(copy), str(photos)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"dist-train: error: {copy}: ") and wanted in said.err and said.err.count("\n") == 1
    assert "--format onnx" in said.err and not said.out


def test_what_is_no_number_is_no_answer(folder: Path, photos: Path, tmp_path: Path) -> None:
    model = Classifier.load(folder, "cpu")
    model.network.backbone.body.requires_grad_(False)
    next(model.network.backbone.body.parameters()).fill_(torch.nan)
    write_onnx(model, tmp_path / "nan.onnx")
    with pytest.raises(UserError, match="the model's scores are not finite"):
        list(Exported(tmp_path / "nan.onnx").stream([("0.png", photos / "0.png")]))


@pytest.mark.parametrize(
    "words",
    [["adapt", "FILE", "--list"], ["export", "FILE", "--format", "timm"], ["evaluate-model", "FILE", "PHOTOS"],
     ["serve", "FILE", "--port", "0"], ["adapt", "FILE", "--class", "new=PHOTOS"]],
)  # fmt: skip
def test_other_commands_need_the_folder(
    words: list[str], file: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("FILE", str(file)).replace("PHOTOS", str(photos)) for word in words]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"dist-train: error: {file}: is a file") and "classify" in said and said.count("\n") == 1
