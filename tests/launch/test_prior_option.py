"""create and adapt --prior as they are typed: every door gives the same probabilities, and changes keep the prior."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from fixtures.random_models import random_classifier
from PIL import Image
from starlette.testclient import TestClient

from dist_train import Classifier, UserError
from dist_train.classifier.answer import Class
from dist_train.classifier.serving.app import create_app
from dist_train.classifier.serving.served_model import Limits, ServedModel, Shared
from dist_train.classifier.serving.server import ServeOptions
from launch.cli.main import main

PHOTOS = {"red": 7, "green": 3, "blue": 1}


def paint(folder: Path, seed: int, count: int) -> Path:
    """Write noisy photos of a colour that is near those of other seeds."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    colour = 100 + 30 * np.eye(3)[seed % 3]
    for number in range(count):
        pixels = np.clip(colour + rng.normal(0, 60, (48, 56, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the photos of three classes (photos), with others of two of them (test), and the models lda
    and imprint of the former, which take classes to be equally frequent; it must not be changed."""
    root = tmp_path_factory.mktemp("prior")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t").state_dict(), root / "w.pth")
    for seed, (name, count) in enumerate(PHOTOS.items()):
        paint(root / "photos" / name, seed, count)
    for seed, name in enumerate(("red", "green")):
        paint(root / "test" / name, 3 + seed, 2)
    words = ["--backbone", "timm:resnet10t", "--size", "64", "--weights", str(root / "w.pth")]
    for head in ("lda", "imprint"):
        assert main(["create", str(root / "photos"), *words, "--head", head, "--out", str(root / head)]) == 0
    return root


def weighted(model: Classifier, photos: Any) -> list[dict[str, float]]:
    """Return the probability of each class of each photo, from those of equal classes, one by one."""
    equal = model.copy()
    equal.prior = "equal"
    found = []
    for answer in equal.predict(photos, topk=99):
        counts = {entry.name: entry.photos for entry in equal.classes}
        products = {one.name: one.probability * counts[one.name] for one in answer}
        found.append({name: product / sum(products.values()) for name, product in products.items()})
    return found


def agree(found: list[dict[str, float]], wanted: list[dict[str, float]], within: float = 1e-4) -> bool:
    assert len(found) == len(wanted)
    return all(one == pytest.approx(other, abs=within) for one, other in zip(found, wanted, strict=True))


def listed(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, float]]:
    """Return what classify says of photos."""
    capsys.readouterr()
    assert main(["classify", *map(str, words), "--json", "--topk", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [{one["name"]: one["probability"] for one in line["classes"]} for line in lines]


@pytest.mark.parametrize("head", ["lda", "imprint"])
def test_every_door_gives_the_same_probabilities(
    head: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m"
    assert main(["adapt", str(root / head), "--prior", "photos", "--out", str(model)]) == 0
    assert f"m: 3 classes, {head}, prior photos" in capsys.readouterr().out
    opened, files = Classifier.load(model, "cpu"), sorted((root / "test").rglob("*.png"))
    wanted = weighted(opened, files)
    assert not agree([{one.name: one.probability for one in answer}
                      for answer in Classifier.load(root / head, "cpu").predict(files)], wanted, 0.02)  # fmt: skip
    assert agree([{one.name: one.probability for one in answer} for answer in opened.predict(files)], wanted)
    assert agree(listed(capsys, model, root / "test"), wanted)

    assert main(["export", str(model), "--format", "onnx", "--out", str(tmp_path / "m.onnx")]) == 0
    assert agree(listed(capsys, tmp_path / "m.onnx", root / "test"), wanted, 0.01)

    assert main(["evaluate-model", str(model), str(root / "test"), "--csv", str(tmp_path / "m.csv")]) == 0
    rows = {Path(row["photo"]).parent.name + Path(row["photo"]).name: row
            for row in csv.DictReader((tmp_path / "m.csv").open())}  # fmt: skip
    for file, shares in zip(files, wanted, strict=True):
        row = rows[file.parent.name + file.name]
        assert row["answer"] == max(shares, key=lambda name: shares[name])
        assert float(row["probability"]) == pytest.approx(max(shares.values()), abs=1e-3)

    limits, shared = Limits(), Shared()
    app = create_app([ServedModel(model, limits, shared)], ServeOptions().access(80, None, limits, 4), shared.metrics)
    with TestClient(app, base_url="http://localhost") as web:
        sent = [("images", (file.name, file.read_bytes())) for file in files]
        results = web.post("/api/v1/models/m/classify", files=sent).raise_for_status().json()["results"]
        assert agree([{one["name"]: one["probability"] for one in each["predictions"]} for each in results], wanted)
        assert web.get("/api/v1/models/m").json()["prior"] == "photos"

    if head == "lda":  # the other is no linear layer
        assert main(["export", str(model), "--format", "timm", "--out", str(tmp_path / "m.pth")]) == 0
        network = timm.create_model("resnet10t", num_classes=3).eval()
        network.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True))
        images = opened.network.preprocess.batch([opened.pixels(file) for file in files])
        with torch.inference_mode():
            shares = network(images).softmax(1).tolist()
        names = [entry.name for entry in opened.classes]
        assert agree([dict(zip(names, own, strict=True)) for own in shares], wanted, 1e-3)


def test_a_model_keeps_its_prior_through_changes_until_it_is_given_another(root: Path, tmp_path: Path) -> None:
    model, files = tmp_path / "m", sorted((root / "test").rglob("*.png"))
    first = ["adapt", str(root / "lda"), "--prior", "photos", "--out", str(model)]
    more = paint(tmp_path / "more" / "green", 7, 2)
    changes = [
        ["--class", f"grey={paint(tmp_path / 'grey', 8, 2)}"],
        ["--class", f"green={more}", "--update"],
        ["--remove_photo", "red=0.png"],
        ["--rename", "red=fire"],
        ["--remove", "green"],
        ["--undo"],
        ["--head", "mean"],
    ]
    for words in [first, *(["adapt", str(model), *change] for change in changes)]:
        assert main(words) == 0
        opened = Classifier.load(model, "cpu")
        assert opened.prior == "photos"
        answers = [{one.name: one.probability for one in answer} for answer in opened.predict(files)]
        assert agree(answers, weighted(opened, files)), words
        assert opened.threshold == pytest.approx(_refitted(opened).threshold, abs=1e-6)
    assert {entry.name: entry.photos for entry in opened.classes} == {"blue": 1, "green": 5, "fire": 6, "grey": 2}
    before = opened.scores(torch.eye(opened.network.backbone.dim))
    with pytest.raises(UserError, match="class 'blue': would have no photo left; remove the whole class instead"):
        opened.remove_photos("blue", "0.png")
    assert main(["adapt", str(model), "--prior", "equal"]) == 0
    equal = Classifier.load(model, "cpu")
    assert equal.prior == "equal" and equal.history[-1].text == "prior equal"
    assert main(["adapt", str(model), "--prior", "equal"]) == 0
    assert len(Classifier.load(model, "cpu").history) == len(equal.history)  # what is so already is no change
    assert equal.undo() == "prior equal" and equal.prior == "photos"
    assert torch.equal(equal.scores(torch.eye(equal.network.backbone.dim)), before)


def _refitted(model: Classifier) -> Classifier:
    """Return the model with a head that is fitted anew, and not read."""
    fresh = model.copy()
    fresh.prior = "equal"
    fresh.prior = "photos"
    return fresh


def test_the_estimates_say_which_prior_they_are_of(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--backbone", "timm:resnet10t", "--size", "64", "--weights", str(root / "w.pth"), "--head", "mean"]
    shown = {}
    for prior in ("equal", "photos"):
        given = ["--prior", prior] if prior == "photos" else []
        page, out = tmp_path / f"{prior}.html", tmp_path / prior
        line = ["create", str(root / "photos"), *words, *given, "--out", str(out), "--report", str(page)]
        assert main(line) == 0
        said = capsys.readouterr().out
        assert f"{prior}: 3 classes, mean, prior {prior}" in said
        assert ("mean over 2 of 3 classes, each weighted by its photos, by" in said) == (prior == "photos")
        shown[prior] = " ".join(page.read_text().split())
        assert json.loads((out / "model.json").read_text())["method"]["prior"] == prior
    assert "Every class counts the same" in shown["equal"] and "as frequent as their photos" not in shown["equal"]
    assert (
        "Every photo counts the same" in shown["photos"] and "over 2 classes, each weighted by its" in shown["photos"]
    )


def test_the_price_of_new_classes_is_that_of_the_prior(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By photos, the line has the share of the old classes' photos that are right, and not the mean over classes."""
    model = tmp_path / "m"
    assert main(["adapt", str(root / "lda"), "--prior", "photos", "--out", str(model)]) == 0
    assert main(["adapt", str(model), "--class", f"rose={paint(tmp_path / 'rose', 9, 12)}"]) == 0  # which looks as red
    said = capsys.readouterr().out
    answers = _refitted(Classifier.load(model, "cpu")).head().answers
    assert answers is not None and answers.sum(1).tolist() == [0, 3, 7, 12]  # the only photo of blue is not held out
    green, red = answers[1, 1], answers[2, 2]
    assert green / 3 != red / 7 and f"{10 * float(green + red):.1f}% beside the new classes" in said


def test_a_model_of_before_takes_its_classes_to_be_equal(root: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(root / "lda", tmp_path / "m"))
    about = json.loads((model / "model.json").read_text())
    assert about["method"].pop("prior") == "equal"
    (model / "model.json").write_text(json.dumps(about))
    old, new = Classifier.load(model, "cpu"), Classifier.load(root / "lda", "cpu")
    queries = torch.eye(old.network.backbone.dim)
    assert old.prior == "equal" and torch.equal(old.scores(queries), new.scores(queries))
    old.rename_class("red", "fire")
    old.save(model)
    assert json.loads((model / "model.json").read_text())["method"]["prior"] == "equal"
    (model / "model.json").write_text(json.dumps({**about, "method": {**about["method"], "prior": "often"}}))
    with pytest.raises(UserError, match=r"model.json: method.prior = 'often': .*'equal' or 'photos'"):
        Classifier.load(model, "cpu")


def test_a_model_from_a_run_has_no_photos_to_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_classifier("conv4", 64, [Class("cat", "n1"), Class("dog", "n2")])
    model.save(tmp_path / "m")
    before = (tmp_path / "m" / "model.json").read_bytes()
    why = "--prior photos: is of models of photos alone; a model from a run keeps no photos of the run's classes"
    assert main(["adapt", str(tmp_path / "m"), "--prior", "photos"]) == 1
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1 and (tmp_path / "m" / "model.json").read_bytes() == before
    with pytest.raises(UserError, match=why):
        model.prior = "photos"
    assert model.prior == ""


@pytest.mark.parametrize("words", [["create", "NO", "--out", "OUT"], ["adapt", "MODEL", "--classes", "NO"]])
def test_another_prior_is_refused_before_photos_are_read(
    words: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"NO": str(tmp_path / "no"), "OUT": str(tmp_path / "out"), "MODEL": str(root / "lda")}
    assert main([*(places.get(word, word) for word in words), "--prior", "often"]) == 1
    assert "--prior often: give one of equal, photos" in capsys.readouterr().err and not (tmp_path / "out").exists()
