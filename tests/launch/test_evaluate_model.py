"""evaluate-model as it is typed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from html_pages import parse
from PIL import Image

from dist_train.classifier.measuring import Measurement
from launch.cli.main import main

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "grey": (130, 120, 130)}


def paint(folder: Path, colour: tuple[int, int, int], count: int, seed: int) -> None:
    """Write noisy photos of a colour."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = np.clip(np.array(colour) + rng.normal(0, 70, (48, 56, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of three colours, of which the last was added later."""
    root = tmp_path_factory.mktemp("measured")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t").state_dict(), root / "resnet10t.pth")
    for seed, name in enumerate(["red", "green", "blue"]):
        paint(root / ("later" if name == "blue" else "first") / name, COLOURS[name], 6, seed)
    words = ["--backbone", "timm:resnet10t", "--size", "64", "--weights", str(root / "resnet10t.pth"), "--head", "mean"]
    assert main(["create", str(root / "first"), *words, "--out", str(root / "model")]) == 0
    assert main(["adapt", str(root / "model"), "--classes", str(root / "later")]) == 0
    return root / "model"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of photos of the three classes and of another, with a damaged photo and a photo in
    the wrong folder."""
    for seed, (name, colour) in enumerate(COLOURS.items()):
        paint(tmp_path / "photos" / name, colour, 4, 10 + seed)
    paint(tmp_path / "other", COLOURS["blue"], 1, 20)
    shutil.move(tmp_path / "other" / "0.png", tmp_path / "photos" / "red" / "wrong.png")
    (tmp_path / "photos" / "red" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    return tmp_path / "photos"


def test_all_classes_are_measured_and_every_file_is_accounted_for(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / name for name in ("m.json", "m.csv", "m.html")}
    words = ["evaluate-model", str(model), str(photos), "--others", str(photos / "grey"), "--json", "--csv", "--report"]
    words = [*words[:5], *(part for pair in zip(words[5:], map(str, files.values()), strict=True) for part in pair)]
    assert main(words) == 0
    said = capsys.readouterr()
    for words_of_line in ("13 photos of 3 of its 3 classes", "% (95% interval ", "photos of no class: 4"):
        assert words_of_line in said.out
    assert "4 in folders of no class of the model" in said.err and "cut.jpg" in said.err
    m = Measurement.from_json(json.loads(files["m.json"].read_text()))
    assert [(row.name, row.photos) for row in m.per_class] == [("green", 4), ("red", 5), ("blue", 4)]
    assert m.others is not None and m.others.photos == 4 and not m.known
    assert len(files["m.csv"].read_text().splitlines()) == 18
    page = files["m.html"].read_text()
    parse(page)
    assert page.count("data:image/jpeg") == len(m.worst(24)) > 0 and "wrong.png" in page
    assert f"{photos}/red/wrong.png: blue, " in said.out


def test_a_class_without_a_usable_photo_is_named_and_the_others_are_measured(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder is empty, holds no photos, or only damaged ones; adapt --held_out says the same."""
    out, words = tmp_path / "m.json", ["evaluate-model", str(model), str(photos), "--json", str(tmp_path / "m.json")]
    shutil.rmtree(photos / "grey")
    for name, data in (("green", b"text"), ("blue", b"\xff\xd8\xff\xe0 no photo")):
        shutil.rmtree(photos / name)
        (photos / name).mkdir()
        if name == "blue":
            (photos / name / "1.jpg").write_bytes(data)
    assert main(words) == 0
    said = capsys.readouterr()
    assert f"{photos}: 2 classes have a folder without a usable photo, not measured: blue, green" in said.err
    assert "5 photos of 1 of its 3 classes" in said.out
    assert [row["name"] for row in json.loads(out.read_text())["per_class"]] == ["red"]
    assert "of no class of the model" not in said.err
    (photos / "green" / "notes.txt").write_text("text")
    (photos / "okapi").mkdir()  # empty, as a folder whose name has a slip
    (photos / "zebra").mkdir()
    copy = tmp_path / "copy"
    assert main(["adapt", str(model), "--out", str(copy), "--held_out", str(photos)]) == 0
    said = capsys.readouterr()
    assert "not measured: blue, green" in said.err and "of the photos in" in said.out
    assert f"{photos}: 2 folders of no class of the model, without a photo: okapi, zebra" in said.err
    out.unlink()
    for broken, wanted in ((True, "no photo in it can be decoded; "), (False, "hold no photo; add some")):
        shutil.rmtree(photos / "red", ignore_errors=True)
        if not broken:
            shutil.rmtree(photos / "blue")
        assert main(words) == 1
        error = capsys.readouterr().err
        assert wanted in error and error.count("\n") == 1 and not out.exists()


def test_photos_of_the_model_are_warned_of(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate-model", str(model), str(model.parent / "later")]) == 0
    assert "warning: of these 6 photos the model has 6 itself, so" in capsys.readouterr().out


def test_bad_input_is_one_line_and_no_file(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.json"
    shutil.copytree(photos / "grey", tmp_path / "strange" / "grey")
    for words, fault in [
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path / "strange")], "holds no folder with the name or wnid of a class"),
        ([str(photos), "--others", str(tmp_path / "nothing")], "no such file or folder"),
        ([str(photos), "--csv", str(tmp_path)], "is a folder, or lies in none"),
    ]:
        assert main(["evaluate-model", str(model), *words, "--json", str(out)]) == 1
        error = capsys.readouterr().err
        assert fault in error and error.count("dist-train: error") == 1 and not out.exists(), error


def test_classify_says_not_sure_below_the_threshold_that_is_given(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for least, unsure in (("0", 0), ("1", 4)):
        assert main(["classify", str(model), str(photos / "green"), "--min_confidence", least]) == 0
        assert capsys.readouterr().out.count("  (not sure") == unsure
    assert main(["classify", str(model), str(photos / "green"), "--json", "--min-confidence", "1"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["sure"] for answer in answers] == [False] * 4 and all("familiarity" in answer for answer in answers)
    assert main(["classify", str(model), str(photos / "green"), "--min_confidence", "1.5"]) == 1
    assert "--min_confidence 1.5: must be a number from 0 to 1" in capsys.readouterr().err


def test_names_that_are_not_utf8_and_files_that_are_the_same(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsdecode(b"wro\xffng.png")
    shutil.move(photos / "red" / "wrong.png", photos / "red" / odd)
    shutil.move(photos / "blue" / "0.png", photos / "red" / "wro\\xffng.png")  # which that must not look like
    files = {name: tmp_path / name for name in ("json", "csv", "report")}
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    assert main(["evaluate-model", str(model), str(photos), *options]) == 0
    names = [Path(result["photo"]).name for result in json.loads(files["json"].read_text())["results"]]
    two = {"wro\\xffng.png", "wro\\\\xffng.png"}
    assert two <= set(names) and len(names) == 13  # no lone surrogate, which most readers of JSON refuse
    read = Measurement.from_json(json.loads(files["json"].read_text()))
    assert all(Path(result.photo).is_file() for result in read.results)
    assert "/wro\\xffng.png,red," in files["csv"].read_text()
    for text in (files["report"].read_text(), capsys.readouterr().out):
        assert two == set(re.findall(r"wro[\\]+xffng.png", text))
    for first, second in (("json", "csv"), ("csv", "report"), ("json", "report")):
        same = ["--" + first, str(tmp_path / "same"), "--" + second, str(tmp_path / "red" / ".." / "same")]
        (tmp_path / "red").mkdir(exist_ok=True)
        assert main(["evaluate-model", str(model), str(photos), *same]) == 1
        assert "is the file of --" in capsys.readouterr().err and not (tmp_path / "same").exists()
