"""What a model keeps of its photos: more photos for a class, single photos removed, pictures, undo and history."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from fixtures.processes import WarmPython
from PIL import Image

from dist_train import Classifier, UserError
from dist_train.classifier import export
from dist_train.classifier.predicted import PredictedHead, Responses
from launch.cli.main import main


def picture(seed: int) -> npt.NDArray[np.uint8]:
    """Return a photo of noise around a colour."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.integers(40, 216, 3) + rng.normal(0, 50, (60, 80, 3)), 0, 255).astype(np.uint8)


def folder_of(root: Path, name: str, *seeds: int) -> Path:
    """Return a folder with the photos of these seeds, as SEED.png."""
    (root / name).mkdir(parents=True)
    for seed in seeds:
        Image.fromarray(picture(seed)).save(root / name / f"{seed}.png")
    return root / name


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of photos alone with the classes red and green, of three photos each; it must not be changed."""
    root = tmp_path_factory.mktemp("fitted")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t").state_dict(), root / "w.pth")
    folder_of(root / "photos", "red", 1, 2, 3)
    folder_of(root / "photos", "green", 4, 5, 6)
    words = ["--backbone", "timm:resnet10t", "--size", "64", "--weights", f"{root}/w.pth", "--head", "lda"]
    assert main(["create", f"{root}/photos", *words, "--out", f"{root}/model"]) == 0
    return root / "model"


@pytest.fixture(params=["of a run", "of photos"])
def model(request: pytest.FixtureRequest, untrained_model: Path, fitted: Path, tmp_path: Path) -> Path:
    """Return a copy of a model of each kind. Both have an added class that is called owl or red."""
    kind = untrained_model if request.param == "of a run" else fitted
    return Path(shutil.copytree(kind, tmp_path / "model"))


def opened(folder: Path) -> Classifier:
    return Classifier.load(folder, "cpu")


def queries(model: Classifier) -> torch.Tensor:
    return torch.randn(7, model.network.backbone.dim, generator=torch.Generator().manual_seed(3)).abs()


def last_of(model: Classifier) -> str:
    return model.classes[-1].name


# Photos of a class.


def test_more_photos_are_as_if_given_at_once(model: Path) -> None:
    """And the saved model answers as the model in memory, exactly, as activations are rounded once."""
    at_once, later = opened(model), opened(model)
    at_once.add_class("okapi", [picture(n) for n in (20, 21, 22)])
    later.add_class("okapi", picture(20))
    later.add_photos("okapi", [picture(21), picture(22)])
    assert torch.equal(at_once.scores(queries(at_once)), later.scores(queries(later)))
    assert at_once.classes == later.classes and later.classes[-1].photos == 3
    later.save(model)
    assert torch.equal(opened(model).scores(queries(later)), later.scores(queries(later)))
    assert opened(model).classes == later.classes and opened(model).photos("okapi") == later.photos("okapi")


def test_photos_of_a_class_of_the_run_stand_beside_its_row(untrained_model: Path, tmp_path: Path) -> None:
    model, query = opened(untrained_model), queries(opened(untrained_model))
    before = model.scores(query)
    model.add_photos("n1", [picture(1), picture(2)])
    assert [(entry.name, entry.photos, entry.added) for entry in model.classes[:2]] == [("cat", 2, ""), ("dog", 0, "")]
    after, maker = model.scores(query), model.maker
    assert isinstance(maker, PredictedHead)
    rows = maker.phi(model.activations([picture(1), picture(2)]).half().float())
    _, _, *offsets = model.head().offset  # the run's two rows have none, and all predicted rows the same
    assert len(set(map(float, offsets))) == 1
    wanted = torch.cat([before[:, :1], query @ rows.T + offsets[0]], 1).amax(1)
    assert torch.allclose(after[:, 0], wanted, atol=1e-4) and torch.allclose(after[:, 1:], before[:, 1:])
    model.save(tmp_path / "m")
    assert torch.equal(opened(tmp_path / "m").scores(query), after)
    model.remove_photos("cat", [photo.id for photo in model.photos("cat")])  # all of them: its own row is left
    assert torch.equal(model.scores(query), before)


@pytest.mark.parametrize("name", ["safetensors", "onnx"])
def test_a_class_of_several_rows_is_exported(name: str, untrained_model: Path, tmp_path: Path) -> None:
    model = opened(untrained_model)
    model.add_photos("cat", [picture(1), picture(2)])
    model.network.backbone.architecture["name"] = "resnet18"  # which torchvision has
    with pytest.raises(UserError, match="class 'cat' counts by the largest response of its photos and its row of the"):
        export.write_torchvision(model, tmp_path / "m.pth")
    export.FORMATS[name][1](model, tmp_path / "m")
    if name == "onnx":
        import onnxruntime

        scores, _, _ = onnxruntime.InferenceSession(tmp_path / "m").run(None, {"images": picture(9)[None]})
        assert np.allclose(scores, model.logits(picture(9)), atol=1e-3)


def test_predicted_rows_win_no_more_images_of_other_classes_than_the_calibration_allows() -> None:
    """Compare the running maxima with those over all classes, after rows came and were replaced."""
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 8, generator=draws) for n in (2, 0, 3, 1)]
    query, labels = torch.randn(50, 8, generator=draws), torch.randint(0, 4, (50,), generator=draws)
    responses = Responses(query, labels, rows)
    for place in (1, 2, 0):
        rows[place] = torch.randn(2, 8, generator=draws)
        responses.replace(place, rows[place])
        largest = torch.stack([(query @ each.T).amax(1) for each in rows], 1)
        own = torch.nn.functional.one_hot(labels, 4).bool()
        assert torch.equal(responses.of_own, largest.masked_fill(~own, -torch.inf).amax(1))
        assert torch.equal(responses.of_others, largest.masked_fill(own, -torch.inf).amax(1))
    assert responses.classes == 4


def test_the_effect_of_photos_on_the_run_s_classes(untrained_model: Path) -> None:
    model = opened(untrained_model)
    before = model.copy()
    images = torch.cat([model.activations([picture(n) for n in range(30, 60)]), queries(model)])
    labels = [n % 2 for n in range(len(images))]
    model.add_photos("dog", [picture(n) for n in (30, 32)])
    middle = model.copy()
    model.add_class("okapi", picture(34))
    wanted = [100 * float((each.scores(images)[:, :].argmax(1) == torch.tensor(labels)).double().mean())
              for each in (before, middle, model)]  # fmt: skip
    assert np.allclose(model.base_accuracy(images, labels, before), wanted) and len(set(wanted)) > 1


def test_the_same_photo_twice_is_refused(model: Path, tmp_path: Path) -> None:
    """As pixels, as a file of another name, and as an activation, which is all that an old model has."""
    folder_of(tmp_path, "more", 20, 21)
    mine = opened(model)
    mine.add_class("okapi", [tmp_path / "more" / "20.png"])
    for again in (picture(20), tmp_path / "more" / "20.png"):
        with pytest.raises(UserError, match=r"class 'okapi': (photo 1|20\.png) is in it already.*give each photo once"):
            mine.add_photos("okapi", again)
    with pytest.raises(UserError, match=r"is in it already, as 20\.png"):
        mine.add_photo_activations("okapi", mine.activations(picture(20)))
    with pytest.raises(UserError, match="photo 2 is given twice"):
        mine.add_photos("okapi", [picture(21), picture(21)])
    with pytest.raises(UserError, match="photo 2 is given twice"):
        mine.add_class("tapir", [picture(21), picture(21)])
    assert mine.classes[-1].photos == 1
    mine.add_photos("okapi", picture(21))


def test_photos_are_removed_by_id_or_name(model: Path, tmp_path: Path) -> None:
    folder_of(tmp_path, "a", 20, 21)
    folder_of(tmp_path, "b", 22)
    shutil.copy(tmp_path / "b" / "22.png", tmp_path / "b" / "20.png")
    mine, only = opened(model), opened(model)
    mine.add_class("okapi", [tmp_path / "a" / "20.png", tmp_path / "a" / "21.png", tmp_path / "b" / "20.png"])
    only.add_class("okapi", [tmp_path / "b" / "22.png"])
    with pytest.raises(UserError, match=r"2 photos are called 20\.png; give one of their ids: [0-9a-f]{16}, "):
        mine.remove_photos("okapi", ["20.png"])
    with pytest.raises(UserError, match=r"class 'okapi': has no photo 99\.png"):
        mine.remove_photos("okapi", ["21.png", "99.png"])
    assert mine.classes[-1].photos == 3
    mine.remove_photos("okapi", ["21.png", mine.photos("okapi")[0].id])
    # In a batch of another size activations differ by roundings.
    assert torch.allclose(mine.scores(queries(mine)), only.scores(queries(only)), rtol=1e-3, atol=1e-2)
    with pytest.raises(UserError, match="would have no photo left; remove the whole class instead"):
        mine.remove_photos("okapi", [mine.photos("okapi")[0].id])


def test_activations_are_rounded_to_float16_and_must_fit(model: Path) -> None:
    mine = opened(model)
    dim = mine.network.backbone.dim
    mine.add_activations("thirds", torch.full((1, dim), 1 / 3))
    mine.save(model)
    assert torch.equal(opened(model).scores(queries(mine)), mine.scores(queries(mine)))
    with pytest.raises(UserError, match="of at most 65504"):
        mine.add_photo_activations("thirds", torch.full((1, dim), 1e5))


# Pictures.


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_small_pictures_come_and_go_with_their_photos(model: Path, tmp_path: Path) -> None:
    mine = opened(model)
    mine.add_class("okapi", [picture(20), picture(21)])
    kept = mine.photos("okapi")
    data = mine.picture(kept[0].picture)
    assert data is not None and mine.pictures[-1] == kept[0].picture
    mine.save(model)
    assert opened(model).picture(kept[0].picture) == data and len(data) < 6000
    with Image.open(model / "pictures" / f"{kept[0].picture}.jpg") as image:
        assert image.size == (80, 60)
        assert np.abs(np.asarray(image.resize((8, 6))) - picture(20)[5::10, 5::10].astype(int)).mean() < 60
    mine.save(tmp_path / "copy")  # which takes the pictures along
    assert opened(tmp_path / "copy").picture(kept[1].picture)
    mine.save(model)
    mine.remove_photos("okapi", [kept[0].id])
    mine.save(model)
    assert mine.picture(kept[0].picture)  # undo would need it
    for number in range(10):
        mine.rename_class(last_of(mine), f"okapi {number}")
        mine.save(model)
    assert mine.picture(kept[0].picture) is None and mine.picture(kept[1].picture)
    for wrong in ("../model", "", "x" * 32, kept[0].picture + "\0"):
        assert mine.picture(wrong) is None
    (model / "pictures" / f"{kept[1].picture}.jpg").unlink()
    assert opened(model).picture(kept[1].picture) is None  # a lost picture is no damage
    mine.save(model)


def test_a_model_without_pictures_stays_so(model: Path, tmp_path: Path) -> None:
    folder_of(tmp_path, "okapi", 20, 21)
    assert main(["adapt", str(model), "--class", f"okapi={tmp_path}/okapi"]) == 0
    assert len(list((model / "pictures").iterdir())) >= 2
    assert main(["adapt", str(model), "--no_pictures"]) == 0
    folder_of(tmp_path, "tapir", 22)
    assert main(["adapt", str(model), "--class", f"tapir={tmp_path}/tapir"]) == 0
    assert main(["adapt", str(model), "--undo"]) == main(["adapt", str(model), "--undo"]) == 0
    assert not (model / "pictures").exists() and not any(photo.picture for photo in opened(model).photos("okapi"))


def test_lists_come_after_the_changes_of_their_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was done is said beside a list, on standard error; a list alone says nothing else."""

    def typed(*words: str) -> tuple[list[str], list[str]]:
        assert main(["adapt", str(model), *words]) == 0
        said = capsys.readouterr()
        return said.out.splitlines(), said.err.splitlines()

    before, nothing = typed("--list")
    assert nothing == [] and not any(line.startswith("tapir\t") for line in before)
    add = ("--class", f"tapir={folder_of(tmp_path, 'tapir', 22, 23)}")
    listed, done = typed(*add, "--list", "--list_photos", "tapir", "--history")
    assert [line.split("\t")[0] for line in listed[: len(before) + 1]] == [
        *(line.split("\t")[0] for line in before),
        "tapir",
    ]
    assert [line.split("\t")[1] for line in listed[len(before) + 1 :][:2]] == ["22.png", "23.png"]
    assert listed[-1].endswith("\tadded tapir (2 photos)")
    assert "tapir: added from 2 photos" in done and any(line.startswith(f"{model}: ") for line in done)
    listed, done = typed("--undo", "--list")
    assert listed == before and done[0] == "undone: added tapir (2 photos)"
    alone, nothing = typed("--history")
    assert alone[-1].endswith("\tundid: added tapir (2 photos)") and nothing == []
    copied, done = typed("--list", "--out", str(tmp_path / "copy"))
    assert copied == before and done[-1].startswith(f"{tmp_path / 'copy'}: ")


# Undo and history.


def test_undo_restores_each_of_the_last_ten_states(model: Path) -> None:
    mine = opened(model)
    start, states = len(mine.history), []
    for number in range(13):
        states.append((mine.classes, mine.scores(queries(mine)), mine.method, mine.rule))
        if number % 3 == 1:
            mine.add_photos("class 0", picture(50 + number))
        elif number % 5 == 4:
            mine.rename_class("class 3", f"class {3 + 10 * number}") if number == 4 else mine.remove_class("class 6")
        else:
            mine.add_class(f"class {number}", picture(50 + number))
        mine.save(model)
    assert len(list(model.glob("model-*.json"))) == 10
    for back in range(1, 11):
        mine = opened(model)
        text = mine.undo()
        assert mine.classes == states[-back][0] and (mine.method, mine.rule) == states[-back][2:]
        assert torch.equal(mine.scores(queries(mine)), states[-back][1])
        mine.save(model)
        assert opened(model).history[-1].text == f"undid: {text}" and len(mine.history) == start + 13 + back
    with pytest.raises(UserError, match="nothing to undo"):
        mine.undo()
    assert not list(model.glob("model-*.json")) and len(list(model.glob("added-*"))) == 1


def test_the_choices_of_a_model_are_undone_too(model: Path) -> None:
    mine = opened(model)
    before = mine.scores(queries(mine))
    if mine.fitted:
        mine.choose_head("mean")
    else:
        mine.rule = "rows"
        mine.rule = "rows"  # it is so already, and nothing to undo
    mine.save(model)
    again = opened(model)
    assert again.undo() in ("head mean", "rule rows")
    assert torch.equal(again.scores(queries(again)), before) and again.rule in ("", "max")


def test_undo_takes_unsaved_changes_first(model: Path) -> None:
    mine = opened(model)
    before = [entry.name for entry in mine.classes]
    mine.add_class("okapi", picture(20))
    mine.save(model)
    mine.add_class("tapir", picture(21))
    mine.add_class("saiga", picture(22))
    twin = mine.copy()
    assert mine.last_change == mine.undo() == "added tapir (1 photo); added saiga (1 photo)"
    assert [entry.name for entry in mine.classes] == [*before, "okapi"]
    assert mine.undo() == "added okapi (1 photo)" and [entry.name for entry in mine.classes] == before
    mine.add_class("eland", picture(23))  # on the restored state, which this change may be undone to
    mine.save(model)
    assert opened(model).history[-1].text == "undid: added okapi (1 photo); added eland (1 photo)"
    again = opened(model)
    assert again.undo() == "added eland (1 photo)" and [entry.name for entry in again.classes] == before
    assert len(twin.classes) == len(before) + 3  # a copy has its own history


def test_a_change_has_parts_for_texts_in_other_languages(model: Path) -> None:
    """Its first three parts and the number of the others; a change by an older version, without parts, has none when it
    is undone."""
    mine = opened(model)
    mine.add_class("okapi", [picture(20), picture(24)])
    for fresh in ("b", "c", "d"):
        mine.rename_class(mine.classes[-1].name, fresh)
    mine.save(model)
    [*_, change] = opened(model).history
    assert [(deed.kind, deed.name, deed.new, deed.photos) for deed in change.parts] == [
        ("added", "okapi", "", 2), ("renamed", "okapi", "b", 0), ("renamed", "b", "c", 0)]  # fmt: skip
    assert change.more == 1 and change.text.endswith("; 1 more")
    mine.undo()
    mine.remove_class(mine.classes[0].name)
    mine.save(model)
    [*_, change] = opened(model).history
    assert [deed.undone for deed in change.parts] == [True] * 3 and change.more == 2
    about = json.loads((model / "model.json").read_text())
    for entry in (*about["history"], *about["past"]):
        entry.pop("parts", None), entry.pop("more", None)
    (model / "model.json").write_text(json.dumps(about))
    mine = opened(model)
    assert mine.last_told is not None and mine.last_told.parts == () and mine.undo().startswith("removed ")
    mine.save(model)
    assert opened(model).history[-1].parts == () and opened(model).history[-1].text.startswith("undid: removed ")


def test_a_model_that_is_left_with_one_class_is_saved(model: Path) -> None:
    mine = opened(model)
    for entry in mine.classes[1:]:
        mine.remove_class(entry.name)
    mine.save(model)
    [answer] = opened(model).predict(picture(20))
    assert [best.name for best in answer] == [mine.classes[0].name] and answer[0].probability == 1


def test_a_copy_in_another_folder_begins_with_nothing_to_undo(model: Path, tmp_path: Path) -> None:
    mine = opened(model)
    mine.add_class("okapi", picture(20))
    mine.save(model)
    mine.add_class("tapir", picture(21))
    mine.save(tmp_path / "copy")
    copy = opened(tmp_path / "copy")
    assert copy.last_change is None and copy.history[-1].text == "added tapir (1 photo)"
    assert {name.split("-")[0].split("/")[0] for name in files(tmp_path / "copy")} == {
        "added", "model.json", "network", "pictures",
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "gone", "activations gone", "of another model"])
def test_a_damaged_state_is_not_restored(damage: str, model: Path, untrained_model: Path) -> None:
    mine = opened(model)
    kept = next(model.glob("added-*"))
    mine.add_class("okapi", picture(20))
    mine.save(model)
    state = next(model.glob("model-*.json"))
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:-9])
    elif damage == "of another model":
        state.write_bytes((untrained_model / "model.json").read_bytes() + b" ")
    else:
        (state if damage == "gone" else kept).unlink()
    with pytest.raises(UserError, match="the change after it cannot be undone"):
        opened(model).undo()
    assert opened(model).classes[-1].name == "okapi"  # the model itself is whole
    mine.rename_class("okapi", "eland")
    mine.save(model)


def test_a_model_of_an_old_version_is_continued(untrained_model: Path, tmp_path: Path) -> None:
    """Version 2 had activations as float32 and no photos; it can be the state that undo restores."""
    from safetensors.torch import load_file, save

    folder = Path(shutil.copytree(untrained_model, tmp_path / "model"))
    about: dict[str, Any] = json.loads((folder / "model.json").read_text())
    for key in ("photos", "pictures", "history", "past"):
        del about[key]
    rows = load_file(folder / about["files"]["added"]["file"])["activations"].float() + 1e-5
    data = save({"activations": rows})
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    about |= {"version": 2}
    about["files"]["added"] = {"file": f"added-{digest[:16]}.safetensors", "bytes": len(data), "sha256": digest}
    (folder / about["files"]["added"]["file"]).write_bytes(data)
    (folder / "model.json").write_text(json.dumps(about))
    old = opened(folder)
    before = old.scores(queries(old))
    old.save(folder)
    assert torch.equal(opened(folder).scores(queries(old)), before)
    assert len({photo.id for photo in old.photos("owl")}) == 2 and old.photos("owl")[0].name == ""
    (folder / "model.json").write_text(json.dumps(about))
    old = opened(folder)
    old.remove_photos("owl", [old.photos("owl")[0].id])
    old.save(folder)
    again = opened(folder)
    again.undo()
    assert torch.equal(again.scores(queries(again)), before)


def test_a_model_that_was_damaged_since_it_was_loaded_is_not_replaced(model: Path) -> None:
    """The page meets this, and has it in its own language."""
    mine = opened(model)
    mine.rename_class(last_of(mine), "okapi")
    (model / "model.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.json: damaged") as caught:
        mine.save(model)
    assert caught.value.kind == "model.unreadable" and (model / "model.json").read_text() == "{"


def test_names_that_look_alike_are_kept_apart(model: Path, tmp_path: Path) -> None:
    """A byte that is not UTF-8, and the text that stands for one; each is removed by its file's or the kept name."""
    names = [b"a\xe9.png", b"a\\xe9.png", b"b\\\xe9.png", b"plain\\e.png"]
    (tmp_path / "odd").mkdir()
    for seed, name in enumerate(names, 30):
        shutil.copy(_one(tmp_path, seed), tmp_path / "odd" / os.fsdecode(name))
    mine = opened(model)
    mine.add_class("okapi", sorted((tmp_path / "odd").iterdir()))
    mine.save(model)
    kept = sorted(photo.name for photo in opened(model).photos("okapi"))
    assert kept == ["a\\\\xe9.png", "a\\xe9.png", "b\\\\\\xe9.png", "plain\\e.png"]
    with pytest.raises(UserError, match="2 photos are called"):  # by its file's name one, by the kept name another
        mine.remove_photos("okapi", ["a\\xe9.png"])
    mine.remove_photos("okapi", ["a\\\\xe9.png", os.fsdecode(names[2])])
    assert sorted(photo.name for photo in mine.photos("okapi")) == ["a\\xe9.png", "plain\\e.png"]
    mine.remove_photos("okapi", ["a\\xe9.png"])
    assert [photo.name for photo in mine.photos("okapi")] == ["plain\\e.png"]


# On the command line.


def test_photos_are_added_listed_removed_and_undone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = last_of(opened(model))
    count = opened(model).classes[-1].photos
    more = folder_of(tmp_path, "more", 20, 21, 22)
    (more / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    shutil.copy(more / "20.png", more / "twin.png")
    word = f"{name}={more}"

    def typed(*words: str, code: int = 0) -> str:
        assert main(["adapt", str(model), *words]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    assert f"class '{name}': exists already; give --update to add these photos to it" in typed("--class", word, code=1)
    assert main(["adapt", str(model), "--class", word, "--update"]) == 0
    said = capsys.readouterr()
    assert f"{name}: 3 photos added, {count + 3} now" in said.out
    assert "5 files: 3 taken, 2 left out" in said.err and "the same photo as" in said.err
    assert "no photo for it can be used" in typed("--class", word, "--update", code=1)  # it has all of them
    assert "okapi: a new class, added from 1 photo" in typed("--class", f"okapi={_one(tmp_path, 30)}", "--update")
    assert "class 'okapi'" in typed("--class", f"{name}={_one(tmp_path, 30)}", "--update", code=1)  # in another class
    listed = [line.split("\t") for line in typed("--list_photos", name).splitlines()]
    assert [line[1] for line in listed[-3:]] == ["20.png", "21.png", "22.png"] and len(listed) == count + 3
    typed("--remove_photo", f"{name}=21.png", "--remove_photo", f"{name}={listed[-1][0]}")
    assert opened(model).classes[-2].photos == count + 1
    assert "remove the whole class instead" in typed("--remove_photo", "okapi=30.png", code=1)
    assert "has no photo nobody" in typed("--remove_photo", "okapi=nobody", code=1)
    assert "give NAME=PHOTO" in typed("--remove_photo", "okapi", code=1)
    assert f"undone: removed 1 photo of {name}; removed 1 photo of {name}" in typed("--undo")
    assert opened(model).classes[-2].photos == count + 3
    history = typed("--history").splitlines()
    assert history[-1].endswith(f"\tundid: removed 1 photo of {name}; removed 1 photo of {name}"), history
    assert history[-1].startswith("20") and f"added 3 photos to {name}" in history[-4]
    for others in (["--remove", "okapi"], ["--no_pictures"], ["--update", "--class", word]):
        assert "--undo: is a change of its own" in typed("--undo", *others, code=1)
    assert "--update: gives photos to classes that exist" in typed("--update", code=1)


def _one(tmp_path: Path, seed: int) -> Path:
    return (tmp_path / str(seed) if (tmp_path / str(seed)).exists() else folder_of(tmp_path, str(seed), seed)) / (
        f"{seed}.png"
    )


def test_what_undo_cannot_do_is_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if opened(model).last_change is None:
        assert main(["adapt", str(model), "--undo"]) == 1
        assert "nothing to undo" in capsys.readouterr().err
    assert main(["adapt", "--backbone", "starter", "--classes", str(tmp_path), "--out", "x", "--undo"]) == 1
    assert "--undo: is of a run or of a model that is there" in capsys.readouterr().err


# Kills.

_CHANGES = """
import json, random, sys
import torch
from dist_train import Classifier, UserError
from dist_train.classifier.kept import NewPhoto
folder, rng = sys.argv[1], random.Random(int(sys.argv[2]))
model = Classifier.load(folder, "cpu")
dim, number = model.network.backbone.dim, 0
print("ready", flush=True)
while True:
    number += 1
    rows = torch.rand(1, dim, generator=torch.Generator().manual_seed(rng.randrange(10**9)))
    photos = [NewPhoto(f"{rng.randrange(16**16):016x}", f"{number}.jpg", bytes([number % 250]) * 3000)]
    names = [entry.name for entry in model.classes if entry.added]
    single = [entry.name for entry in model.classes if entry.added and entry.photos == 1]
    what = rng.choice(["add", "update", "update", "undo", "undo", "remove"])
    if what == "add" or (what == "remove" and not single):
        model.add_activations(f"class {rng.randrange(10**9)}", rows, photos)
    elif what == "update":
        model.add_photo_activations(rng.choice(names), rows, photos)
    elif what == "remove":
        model.remove_class(rng.choice(single))
    elif model.last_change is not None:
        model.undo()
    print(json.dumps([[entry.name, entry.photos] for entry in model.classes]), flush=True)
    model.save(folder)
    print("saved", flush=True)
"""


def test_a_kill_at_any_moment_loses_nothing_that_was_confirmed(
    model: Path, tmp_path: Path, warm_python: WarmPython
) -> None:
    """Of additions, updates, removals and undos; each state that undo can restore is whole too."""
    moments = random.Random(0)
    for turn in range(8):
        process = subprocess.Popen([warm_python.python, "-c", _CHANGES, str(model), str(turn)],
                                   stdout=subprocess.PIPE, text=True, env=warm_python.environment())  # fmt: skip
        assert process.stdout and process.stdout.readline() == "ready\n"
        before = [[entry.name, entry.photos] for entry in opened(model).classes]
        time.sleep(moments.uniform(0.05, 0.9))
        os.kill(warm_python.forked(process.pid), signal.SIGKILL)
        lines = [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.wait()
        states = [before, *(json.loads(line) for line in lines if line != "saved\n")]
        confirmed = states[lines.count("saved\n")]
        mine = opened(model)
        assert [[entry.name, entry.photos] for entry in mine.classes] in (confirmed, states[-1])
        while mine.last_change is not None:
            mine.undo()
            assert bool(mine.scores(queries(mine)).isfinite().all())
    mine = opened(model)
    mine.rename_class(last_of(mine), "renamed")
    mine.save(model)  # removes what the kills have left
    about = json.loads((model / "model.json").read_text())
    states = [about, *(json.loads((model / entry["before"]["file"]).read_text()) for entry in about["past"])]
    named = {"model.json", about["files"]["network"]["file"], *(state["files"]["added"]["file"] for state in states)}
    named |= {entry["before"]["file"] for entry in about["past"]}
    named |= {f"pictures/{photo['picture']}.jpg" for state in states for photo in state["photos"] if photo["picture"]}
    assert files(model) == named
