"""classify with files: tables, photos sorted into folders, and runs that are killed and go on."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.random_models import random_classifier
from PIL import Image

from dist_train import Classifier
from dist_train.classifier.classifier import Answer, Class
from dist_train.names import path_of
from launch.cli.main import main


class Killed(BaseException):
    """Ends a run at once: nobody handles it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained model with three classes."""
    classes = [Class("cat", "n1"), Class("dog", "n2"), Class("sea, lion", "n3")]
    made = random_classifier("conv4", 64, classes)
    made.save(tmp_path_factory.mktemp("made") / "model")
    return tmp_path_factory.getbasetemp() / "made0" / "model"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 6 photos in two folders, with two names twice, a damaged photo and a file that is none."""
    for number, name in enumerate(("a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png", "4.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(number).randint(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels // (1 + 3 * (number % 3))).save(path)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"text")
    (tmp_path / "photos" / "notes.txt").write_text("text")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model unsure of the photos named 2.png."""
    whole = Classifier.stream

    def stream(self: Classifier, *arguments: Any) -> Iterator[Answer]:
        for answer in whole(self, *arguments):
            yield replace(answer, sure=not answer.fault and Path(answer.photo).name != "2.png")

    monkeypatch.setattr(Classifier, "stream", stream)


def contents(folder: Path) -> dict[str, bytes]:
    """Return {path within the folder: its bytes} of all files that links and names lead to."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_predict_takes_folders_and_names_faults(model: Path, photos: Path) -> None:
    classifier = Classifier.load(model, "cpu")
    answers = classifier.predict(photos)
    assert [answer.photo for answer in answers] == [str(photos / name) for name in
        ("4.png", "a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png", "bad.jpg")]  # fmt: skip
    assert [len(answer) for answer in answers] == [3] * 6 + [0]
    assert answers[-1].fault.startswith("not an image of a known format") and not answers[-1].sure
    singly = [classifier.predict(answer.photo)[0] for answer in answers]
    assert [answer.fault for answer in singly] == [answer.fault for answer in answers]
    for one, other in zip(singly[:-1], answers, strict=False):
        assert np.allclose([p.probability for p in one], [p.probability for p in other], atol=1e-5)
    mixed = classifier.predict(["/nowhere.jpg", np.zeros((9, 9, 3), np.uint8), photos / "a", b"bytes", photos / "no"])
    assert [answer.photo for answer in mixed[:2]] == ["/nowhere.jpg", ""] and len(mixed) == 6
    assert [bool(answer.fault) for answer in mixed] == [True, False, False, False, True, True]
    assert mixed[4].fault == "not an image of a known format; convert it to JPEG or PNG"
    (photos / "empty").mkdir()
    [empty] = classifier.predict(photos / "empty")
    assert empty.photo == str(photos / "empty") and empty.fault.startswith("holds no photos")


def test_tables_have_a_row_for_each_photo(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, other = photos.parent / "table.csv", photos.parent / "table.parquet"
    words = ["classify", str(model), str(photos), "--csv", str(table), "--parquet", str(other), "--topk", "2", "--json"]
    assert main(words) == 1  # as a photo cannot be read
    said = capsys.readouterr()
    assert "found 8 files: 6 taken, 1 left out, 1 passed over (1 .txt)" in said.err
    assert f"error: {photos}/bad.jpg: not an image of a known format" in said.err
    lines = [json.loads(line) for line in said.out.splitlines()]
    rows = list(csv.DictReader(table.open(newline="")))
    assert list(rows[0]) == ["photo", "class", "wnid", "probability", "sure", "familiarity", "fault", "class_2",
                             "probability_2"]  # fmt: skip
    assert [row["photo"] for row in rows] == [line["image"] for line in lines] and len(rows) == 7
    for row, line in zip(rows, lines, strict=True):
        if "error" in line:
            assert row["fault"] == line["error"] and row["class"] == row["sure"] == row["probability_2"] == ""
            continue
        assert [row["class"], row["class_2"]] == [entry["name"] for entry in line["classes"]]
        assert abs(float(row["probability"]) - line["classes"][0]["probability"]) < 1e-5
        assert row["sure"] == str(int(line["sure"])) and row["fault"] == ""
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(other).to_pydict()
    assert columns["photo"] == [row["photo"] for row in rows] and columns["sure"].count(None) == 1
    assert columns["class_2"] == [row["class_2"] or None for row in rows]
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos", "table.csv", "table.parquet"]


@pytest.mark.parametrize("option", ["--move_to", "--link_to"])
def test_photos_are_sorted_and_nothing_is_overwritten(
    option: str, model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = contents(photos), photos.parent / "sorted"
    best = {answer.photo: answer[0].name for answer in Classifier.load(model).predict(photos) if not answer.fault}
    for group in ("cat", "dog", "sea, lion", "not sure"):  # of another photo
        (out / group).mkdir(parents=True)
        (out / group / "1.png").write_bytes(b"mine")
    assert main(["classify", str(model), str(photos), option, str(out)]) == 1
    after = contents(out)
    assert sum(data == b"mine" for data in after.values()) == 4 and len(after) == 4 + 6
    assert sorted(data for data in after.values() if data != b"mine") == sorted(
        data for name, data in before.items() if name.endswith("png")
    )
    names = {Path(name).name for name in after}
    assert "1 (2).png" in names and {Path(name).parent.name for name in after if "/2" in name} == {"not sure"}
    for photo, group in best.items():
        if not photo.endswith("2.png"):
            data = before[str(Path(photo).relative_to(photos))]
            assert any(data == other for name, other in after.items() if name.startswith(group + "/"))
    said = capsys.readouterr().err
    assert f"{out}: 6 photos {'moved' if option == '--move_to' else 'linked to'}" in said and "2  not sure" in said
    left = contents(photos)
    assert left == ({"bad.jpg": b"text", "notes.txt": b"text"} if option == "--move_to" else before)
    if option == "--link_to":
        assert main(["classify", str(model), str(photos), option, str(out)]) == 1
        assert contents(out) == after  # a second time adds nothing


@pytest.mark.parametrize("after", [0, 1, 4, 7, 9, 12])
def test_a_run_that_is_killed_goes_on(
    after: int, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after so many lines of its journal, the last of them written in half; the same command does the rest."""
    from dist_train.classifier.batch_run import Journal

    before, out, table = contents(photos), photos.parent / "sorted", photos.parent / "table.csv"
    words = ["classify", str(model), str(photos), "--csv", str(table), "--move_to", str(out)]
    write, lines = Journal._write, list[str]()

    def failing(self: Journal, line: dict[str, Any]) -> None:
        if len(lines) == after:
            self._file.write(json.dumps(line)[:9])
            self._file.flush()
            raise Killed
        lines.append(json.dumps(line))
        write(self, line)

    monkeypatch.setattr(Journal, "_write", failing)
    with pytest.raises(Killed):
        main(words)
    moved = len(contents(out)) if out.exists() else 0
    assert moved >= max(0, after - 8)
    monkeypatch.setattr(Journal, "_write", write)
    assert main(words) == 1
    rows = list(csv.DictReader(table.open(newline="")))
    assert len({row["photo"] for row in rows}) == len(rows) == 7
    assert sorted(contents(out).values()) == sorted(data for name, data in before.items() if name.endswith("png"))
    assert sorted(contents(photos)) == ["bad.jpg", "notes.txt"]
    assert not list(photos.parent.glob(".*")) and "6 photos moved" in capsys.readouterr().err


def test_what_cannot_be_written_is_refused_before_any_work(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, both = str(photos / "sorted"), str(photos.parent / "x")
    for options, wanted in (
        (["--csv", str(photos)], "is a folder, or lies in none"),
        (["--parquet", "/nowhere/a.parquet"], "--parquet /nowhere/a.parquet: is a folder, or lies in none"),
        (["--move_to", inside], f"--move_to {inside}: lies in {photos}, whose photos are asked for"),
        (["--link_to", str(photos)], "lies in"),
        (["--link_to", str(model / "model.json")], "is no folder"),
        (["--move_to", both, "--link_to", both], "is given together with --move_to"),
        (["--csv", both, "--parquet", both], f"--parquet {both}: is the file of --csv too"),
    ):
        assert main(["classify", str(model), str(photos), *options]) == 1
        said = capsys.readouterr()
        assert wanted in said.err and said.err.count("\n") == 1 and not said.out
    journal = photos.parent / ".t.csv.part"
    journal.write_text('{"run": {"model": "another"}}\n')
    assert main(["classify", str(model), str(photos), "--csv", str(photos.parent / "t.csv")]) == 1
    assert "is left over from a run with another model or other options" in capsys.readouterr().err
    assert journal.exists()


@pytest.mark.parametrize("form", ["files", "folders", "patterns", "standard input"])
def test_photos_that_a_killed_run_has_moved_are_not_missed(
    form: str, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dist_train.classifier import sorting

    out, table = photos.parent / "sorted", photos.parent / "table.csv"
    files = [str(photos / name) for name in ("4.png", "a/1.png", "a/2.png", "b/1.png")]
    patterns = [str(photos / pattern) for pattern in ("*.png", "a/?.png", "[b]/1.*")]
    words = {"files": files, "folders": [str(photos / "a"), files[0], files[3]], "standard input": ["-"],
             "patterns": patterns}[form]  # fmt: skip
    command = ["classify", str(model), *words, "--csv", str(table), "--move_to", str(out)]
    replace_file, moved = sorting.os.replace, list[Path]()

    def failing(source: Path, target: Path) -> None:
        if len(moved) == 3:
            raise Killed
        moved.append(target)
        replace_file(source, target)

    def run() -> int:
        monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO("\n".join(files).encode())))
        return main(command)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(sorting.os, "replace", lambda a, b: (failing if out in Path(b).parents else replace_file)(a, b))
        run()
    assert len(moved) == 3 and not any(os.path.exists(name) for name in files[:2])
    capsys.readouterr()
    assert run() == 0, capsys.readouterr().err
    rows = list(csv.DictReader(table.open(newline="")))
    assert sorted(row["photo"] for row in rows) == files and not any(row["fault"] for row in rows)
    assert len(contents(out)) == 4 and "4 photos moved" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--move_to", "--link_to"])
def test_a_photo_on_standard_input_cannot_be_sorted(
    option: str, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table, path = photos.parent / "sorted", photos.parent / "t.csv", photos / "a" / "1.png"
    monkeypatch.chdir(photos.parent)
    Path("-").write_bytes(path.read_bytes())  # another file, which no word names
    before = contents(photos.parent)
    for words in (["-", option, str(out)], [str(path), "-", option, str(out), "--csv", str(table)]):
        monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(path.read_bytes())))
        assert main(["classify", str(model), *words]) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"dist-train: error: {option} {out}: the photo on standard input is no file")
        assert said.err.count("\n") == 1 and not said.out
        assert contents(photos.parent) == before and not out.exists()
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(path.read_bytes())))
    assert main(["classify", str(model), str(path), "-", "--csv", str(table)]) == 0
    assert [row["photo"] for row in csv.DictReader(table.open(newline=""))] == [str(path), "-"]


def test_what_standard_input_holds_is_classified_anew(model: Path, photos: Path) -> None:
    from dist_train.classifier.batch_run import Journal

    journal = Journal(photos.parent / "j", {})
    [answer] = Classifier.load(model).predict((photos / "4.png").read_bytes())
    journal.add(replace(answer, photo="-"))
    assert not journal.has("-") and [name for name, _ in journal.without_answers([("-", b"other")])] == ["-"]


def test_of_two_processes_that_write_the_same_answers_one_is_refused(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dist_train.classifier.batch_run import Journal

    table = photos.parent / "t.csv"
    journal = Journal(table.with_name(".t.csv.part"), {})
    command = ["classify", str(model), str(photos), "--csv", str(table)]
    assert main(command) == 1 and not table.exists()
    assert "another process writes these answers" in capsys.readouterr().err
    journal.remove()
    assert main(command) == 1 and table.exists()  # as a photo cannot be read


def test_folders_that_cannot_be_are_refused_before_any_work(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, wanted in (("not sure", "of the folder for photos that the model is not sure of"),
                         ("ß" * 130, "has 260 bytes, and that of a folder at most 255")):  # fmt: skip
        renamed = Classifier.load(model)
        renamed.rename_class("cat", name)
        renamed.save(tmp_path / "renamed")
        for option in ("--move_to", "--link_to"):
            assert main(["classify", str(tmp_path / "renamed"), str(photos), option, str(tmp_path / "out")]) == 1
            said = capsys.readouterr().err
            assert wanted in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
        shutil.rmtree(tmp_path / "renamed")


@pytest.mark.parametrize("room", [0, 300, 5000])
def test_a_full_disk_is_named_and_the_same_command_goes_on(
    room: int, model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit of a file's size stands for the disk: too little for the first answer, the second, and the report."""
    import resource

    from dist_train.files import write_text

    table, large = photos.parent / "table.csv", photos.parent / "large.txt"
    command = ["classify", str(model), str(photos), "--csv", str(table)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        code = main(command)
        with pytest.raises(OSError, match=str(large)):
            write_text(large, "x" * 100_000)
        if room < 5000:
            with pytest.raises(OSError, match=str(large)):
                write_text(large, "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert code == 1 and ("make room, and the same command goes on" in said) == (room < 5000)
    assert main(command) == 1 and len(list(csv.DictReader(table.open(newline="")))) == 7
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos", "table.csv"]


def test_a_long_name_that_is_taken_gets_its_number(photos: Path) -> None:
    from dist_train.classifier.sorting import _numbered

    for name in ("x" * 251 + ".png", "é" * 125 + ".jpeg", "a.b.png"):
        _, second, *_ = (path for path, _ in zip(_numbered(photos, name), range(2), strict=False))
        (photos / second.name).touch()
        assert second.stem.endswith(" (2)") and second.suffix == Path(name).suffix


def test_a_table_has_no_columns_for_classes_that_are_not_there(model: Path, photos: Path) -> None:
    table = photos.parent / "table.csv"
    assert main(["classify", str(model), str(photos / "a"), "--csv", str(table), "--topk", "99"]) == 0
    assert table.read_text().splitlines()[0].endswith(",class_2,probability_2,class_3,probability_3")


def test_names_that_are_not_utf8_are_found_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file that classify writes is UTF-8 without lone surrogates, and names the same photos; a name that looks
    like the spelling of another is no other."""
    names = [b"caf\xe9.png", b"caf\\xe9.png", b"a\\b\xff\xfe.png", b"a\\b.png", "é\\x41.png".encode(), b"\\\xe9.png"]
    (tmp_path / "odd").mkdir()
    for number, name in enumerate(names):
        pixels = np.random.RandomState(number).randint(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(data := BytesIO(), "PNG")
        (tmp_path / "odd" / os.fsdecode(name)).write_bytes(data.getvalue())
    (tmp_path / "odd" / os.fsdecode(b"bad\xe9.jpg")).write_bytes(b"text")
    table, other = tmp_path / "table.csv", tmp_path / "table.parquet"
    words = ["classify", str(model), str(tmp_path / "odd"), "--csv", str(table), "--parquet", str(other), "--json"]
    assert main(words) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert json.dumps(lines, ensure_ascii=False).encode()  # which a lone surrogate does not let
    found = [os.fsencode(path_of(line["image"])) for line in lines]
    assert main(["classify", str(model), str(tmp_path / "odd"), "--topk", "1"]) == 1  # text has the same names
    said = capsys.readouterr()
    printed = [line.partition("  (")[0] for line in said.out.splitlines()[::2]]
    assert sorted(printed) == sorted(line["image"] for line in lines if "error" not in line)
    assert f"error: {tmp_path}/odd/bad\\xe9.jpg: " in said.err
    wanted = [*names, b"bad\xe9.jpg"]
    assert sorted(found) == sorted(os.fsencode(tmp_path / "odd") + b"/" + name for name in wanted)
    import pyarrow.parquet

    assert [row["photo"] for row in csv.DictReader(table.open(newline="", encoding="utf-8"))] == [
        line["image"] for line in lines
    ] == pyarrow.parquet.read_table(other).to_pydict()["photo"]  # fmt: skip
    for text, path in zip([line["image"] for line in lines], found, strict=True):
        if re.search(r"\\x[89a-f]", text):  # as docs/photos.md tells to find it
            assert subprocess.run(["bash", "-c", 'printf %b "$1"', "-", text], capture_output=True).stdout == path


def test_a_photo_unlike_all_classes_is_called_so(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said beside "not sure", and alone where only a threshold of one's own counts."""
    unlike = {"1.png": 4.4, "2.png": 0.0}
    whole = Classifier.stream

    def stream(self: Classifier, *arguments: Any) -> Iterator[Answer]:
        for answer in whole(self, *arguments):
            yield replace(answer, familiarity=unlike.get(Path(answer.photo).name, 5.0))

    monkeypatch.setattr(Classifier, "stream", stream)
    assert main(["classify", str(model), str(photos / "b"), "--topk", "1"]) == 0
    said = [line.removeprefix(str(photos)) for line in capsys.readouterr().out.splitlines()[::2]]
    assert said == [
        "/b/1.png  (unlike its classes, familiarity 4%)",
        "/b/2.png  (not sure; unlike its classes, familiarity 0%)",
        "/b/3.png",
    ]


def test_the_empty_path_is_no_folder(model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos / "a")
    [answer] = Classifier.load(model).predict("")
    assert answer.fault and len(Classifier.load(model).predict(".")) == 2


def test_a_photo_that_was_changed_is_classified_again(model: Path, photos: Path) -> None:
    from dist_train.classifier.batch_run import Journal

    journal = Journal(photos.parent / "j", {})
    for answer in Classifier.load(model).predict(photos / "a"):
        journal.add(answer)
    names = [str(photos / "a" / name) for name in ("1.png", "2.png")]
    del journal  # which holds its file
    again = Journal(photos.parent / "j", {})
    assert all(map(again.has, names)) and [len(answer) for answer in again.answers.values()] == [3, 3]
    shutil.copy(photos / "b" / "3.png", names[0])
    os.utime(names[0], (1, 1))
    assert [again.has(name) for name in names] == [False, True]
