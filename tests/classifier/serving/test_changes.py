"""Changes over the API: photos of a class, pictures, undo and history, and many changes at a time."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import signal
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import files, photo, refusal, start
from fixtures.processes import WarmPython
from PIL import Image

from dist_train import Classifier

API = "/api/v1/models/model"


@pytest.fixture
def folder(untrained_model: Path, tmp_path: Path) -> Path:
    """Return a model with the classes cat and dog of a run and the added class owl; the page changes it."""
    return Path(shutil.copytree(untrained_model, tmp_path / "model"))


@pytest.fixture
def web(folder: Path, warm_python: WarmPython) -> Iterator[httpx.Client]:
    process, url = start(warm_python, folder)
    with httpx.Client(base_url=url, timeout=300) as client:
        yield client
    process.send_signal(signal.SIGINT)
    output = process.stdout.read() if process.stdout else ""
    assert process.wait() == 0 and "Traceback" not in output, output


def counts(folder: Path) -> dict[str, int]:
    return {entry.name: entry.photos for entry in Classifier.load(folder, "cpu").classes}


def test_photos_come_and_go_and_changes_are_undone(web: httpx.Client, folder: Path) -> None:
    assert web.post(f"{API}/classes", data={"name": "okapi"}, files=files(photo(1), photo(2))).status_code == 200
    about = web.post(f"{API}/photos", data={"name": "okapi"}, files=[("images", ("new.jpg", photo(3)))]).json()
    assert counts(folder)["okapi"] == 3 and about["last_change"] == "added 1 photo to okapi"
    about = web.post(f"{API}/photos", data={"name": "n1"}, files=files(photo(4))).json()
    assert about["classes"][0]["photos"] == 1 and counts(folder)["cat"] == 1  # a class of the run, by its wnid
    own = Classifier.load(folder, "cpu")
    listed = web.get(f"{API}/photos", params={"name": "okapi"}).json()["photos"]
    assert [one["name"] for one in listed] == ["photo 0.jpg", "photo 1.jpg", "new.jpg"]
    assert [one["id"] for one in listed] == [one.id for one in own.photos("okapi")]
    shown = web.get(f"{API}/pictures/{listed[0]['picture']}")
    assert shown.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(shown.content)).size == (60, 60)
    pictures = {entry["name"]: entry["picture"] for entry in web.get(API).json()["classes"]}
    assert pictures["okapi"] == listed[0]["picture"] and pictures["owl"] is None

    asked = {"name": "okapi", "ids": [listed[0]["id"], listed[2]["id"]]}
    assert web.post(f"{API}/photos/remove", json=asked).json()["classes"][-1]["photos"] == 1
    assert counts(folder)["okapi"] == 1
    for wanted in ({"okapi": 3, "cat": 1}, {"okapi": 3, "cat": 0}, {"okapi": 2, "cat": 0}):
        assert web.post(f"{API}/undo", json={}).status_code == 200
        assert {name: count for name, count in counts(folder).items() if name in wanted} == wanted
    texts = [change["text"] for change in web.get(f"{API}/history").json()["changes"]]
    assert texts[-6:] == ["added 1 photo to okapi", "added 1 photo to cat", "removed 2 photos of okapi",
                          "undid: removed 2 photos of okapi", "undid: added 1 photo to cat",
                          "undid: added 1 photo to okapi"]  # fmt: skip


def test_the_download_is_the_model_as_it_is(web: httpx.Client, folder: Path, tmp_path: Path) -> None:
    web.post(f"{API}/classes", data={"name": "okapi"}, files=files(photo(1), photo(2)))
    listed = web.get(f"{API}/photos", params={"name": "okapi"}).json()["photos"]
    web.post(f"{API}/photos/remove", json={"name": "okapi", "ids": [listed[0]["id"]]})
    with zipfile.ZipFile(io.BytesIO(web.get(f"{API}/download").content)) as archive:
        archive.extractall(tmp_path / "unpacked")
    files_there = [path for path in (tmp_path / "unpacked" / "model").rglob("*") if path.is_file()]
    assert len(files_there) == 4  # no state of before, and no picture of the photo that was removed
    copy = Classifier.load(tmp_path / "unpacked" / "model", "cpu")
    assert copy.classes[-1].photos == 1 and copy.picture(listed[1]["picture"]) and copy.last_change is None


def test_a_refused_change_changes_nothing(web: httpx.Client, folder: Path) -> None:
    web.post(f"{API}/classes", data={"name": "okapi"}, files=files(photo(1)))
    kept = (folder / "model.json").read_bytes()
    (only,) = web.get(f"{API}/photos", params={"name": "okapi"}).json()["photos"]

    def refused(path: str, **request: Any) -> str:
        answer = web.post(f"{API}/{path}", **request)
        assert answer.status_code == 422, answer.text
        return refusal(answer)

    add = {"data": {"name": "okapi"}}
    assert "photo 0.jpg is in it already" in refused("photos", **add, files=files(photo(1)))
    assert "photo 1.jpg is given twice, as photo 0.jpg" in refused("photos", **add, files=files(photo(2), photo(2)))
    assert "not an image" in refused("photos", **add, files=files(photo(2), b"text"))
    other = "a photo of it is in the model already, in class 'okapi'; leave each in one class"
    for path, name in (("classes", "zebra"), ("photos", "n1")):
        assert other in refused(path, data={"name": name}, files=files(photo(2), photo(1)))
    assert "there is none among the 4" in refused("photos", data={"name": "nobody"}, files=files(photo(2)))
    assert "would have no photo left" in refused("photos/remove", json={"name": "okapi", "ids": [only["id"]]})
    assert "has no photo ../x" in refused("photos/remove", json={"name": "okapi", "ids": ["../x"]})
    assert "ids" in refused("photos/remove", json={"name": "okapi", "ids": []})
    assert (folder / "model.json").read_bytes() == kept
    web.post(f"{API}/undo", json={})
    assert "nothing to undo" in refused("undo", json={})
    assert "there is none" in refusal(web.get(f"{API}/photos", params={"name": "nobody"}))
    for wrong in ("0" * 32, "..%2Fmodel", "x"):
        assert web.get(f"{API}/pictures/{wrong}").status_code == 404
    assert "there is none of this id" in refusal(web.get(f"{API}/pictures/x"))


def test_sixty_changes_at_a_time_are_made_one_after_the_other(web: httpx.Client, folder: Path) -> None:
    """Each is answered; the history is their order, which gives the model on disk, which is the model that answers."""
    begun, first = counts(folder), len(web.get(f"{API}/history").json()["changes"])
    for name in ("a", "b", "c"):
        web.post(f"{API}/classes", data={"name": name}, files=files(photo(400 + ord(name)), photo(500 + ord(name))))

    def change(number: int) -> httpx.Response:
        rng = random.Random(number)
        name = rng.choice("abcdef")
        what = ["add", "update", "update", "rename", "remove", "undo"][number % 6]
        if what == "add":
            return web.post(f"{API}/classes", data={"name": name}, files=files(photo(number)))
        if what == "update":
            return web.post(f"{API}/photos", data={"name": name}, files=files(photo(200 + number)))
        if what == "rename":
            return web.post(f"{API}/rename", json={"name": name, "new": rng.choice("abcdef")})
        return web.post(f"{API}/undo", json={}) if what == "undo" else web.post(f"{API}/remove", json={"name": name})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(change, range(60)))
    assert {answer.status_code for answer in answers} == {200, 422}
    texts = [one["text"] for one in web.get(f"{API}/history").json()["changes"]][first:]
    renames = sum(answer.status_code == 200 and answer.url.path.endswith("rename") for answer in answers)
    to_itself = renames - sum(text.startswith("renamed") for text in texts)  # which changes nothing
    assert len(texts) - 3 + to_itself == sum(answer.status_code == 200 for answer in answers)
    assert replayed(begun, texts) == counts(folder)
    own, about = Classifier.load(folder, "cpu"), web.get(API).json()
    assert [(entry["name"], entry["photos"]) for entry in about["classes"]] == list(counts(folder).items())
    assert about["last_change"] == own.last_change
    asked = web.post(f"{API}/classify", files=files(photo(7))).json()["results"][0]["predictions"]
    assert [one["name"] for one in asked] == [one.name for one in own.predict(photo(7))[0]]
    assert json.loads((folder / "model.json").read_text())["version"] == 3


def replayed(classes: dict[str, int], texts: list[str]) -> dict[str, int]:
    """Return {class: photos} after the changes of a history, in their order."""
    past = list[dict[str, int]]()
    for text in texts:
        before = dict(classes)
        if undone := re.fullmatch("undid: (.*)", text):
            classes = past.pop() if past else pytest.fail(f"nothing to undo before {undone[1]}")
            continue
        if added := re.fullmatch(r"added (\w+) \((\d+) photos?\)", text):
            assert added[1] not in classes
            classes[added[1]] = int(added[2])
        elif more := re.fullmatch(r"added (\d+) photos? to (\w+)", text):
            classes[more[2]] += int(more[1])
        elif renamed := re.fullmatch(r"renamed (\w+) to (\w+)", text):
            assert renamed[2] not in classes
            classes = {renamed[2] if name == renamed[1] else name: count for name, count in classes.items()}
        else:
            removed = re.fullmatch(r"removed (\w+)", text)
            assert removed, text
            del classes[removed[1]]
        past = [*past, before][-10:]
    return classes
