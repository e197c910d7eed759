"""adapt, classify and export as they are typed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.processes import WarmPython
from pictures import png_of
from PIL import Image

from dist_train import Classifier
from dist_train.names import path_of
from dist_train.runs.run import Run
from launch.cli.main import main


@pytest.fixture
def album(drawn: Path, tmp_path: Path) -> Path:
    """Make a folder of three novel classes' photos: okapi/, tapir/ and saiga/, five each."""
    novel = json.loads((drawn / "split.json").read_text())["novel"]
    for name, wnid in zip(("okapi", "tapir", "saiga"), novel, strict=True):
        (tmp_path / "album" / name).mkdir(parents=True)
        for photo in sorted((drawn / "train" / wnid).iterdir())[:5]:
            shutil.copy(photo, tmp_path / "album" / name)
    return tmp_path / "album"


ONE_BY_ONE = """
import sys
from launch.cli.main import main
words = []
for word in sys.argv[1:]:
    if word != "THEN":
        words.append(word)
        continue
    print("exit code", main(words), flush=True)
    words = []
"""


def added(model: Path) -> dict[str, int]:
    return {one.name: one.photos for one in Classifier.load(model).classes if one.added}


def test_from_a_run_to_answers(whole_run: Run, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    one = sorted((album / "tapir").iterdir())[0]
    command = ["adapt", str(whole_run.dir), "--out", str(model), "--class", f"okapi={album}/okapi/"]
    assert main([*command, "--class", f"tapir={one}", "--class", f"tapir={album}/t*/*[24]*"]) == 0
    said = capsys.readouterr().out.splitlines()
    table = json.loads((whole_run.dir / "evaluate" / "results.json").read_text())["methods"]
    best = max(("phi2", "phi1", "phi2star", "phi2cal"), key=lambda name: table[name]["3"]["harmonic"]["mean"])
    assert said[0].startswith(f"method: {best}, the best of the run's table at 3 shots: ")
    assert said[1].startswith("okapi: added from 5 photos; base ") and "(" in said[1]
    assert said[3].startswith("base accuracy on 36 held-out images: ")
    assert said[4] == f"{model}: 8 classes, {best}, rule max"
    assert added(model)["okapi"] == 5

    assert main(["adapt", str(model), "--remove", "tapir", "--rename", "okapi=forest giraffe", "--class",
                 f"tapir={one}"]) == 0  # fmt: skip
    assert added(model) == {"forest giraffe": 5, "tapir": 1}
    assert main(["adapt", str(model), "--classes", str(album), "--out", str(tmp_path / "more")]) == 1
    assert "class 'tapir': exists already" in capsys.readouterr().err and not (tmp_path / "more").exists()
    shutil.rmtree(album / "tapir")
    assert main(["adapt", str(model), "--classes", str(album), "--out", str(tmp_path / "more")]) == 1
    assert "class 'okapi': 5 photos of it are in the model already, in class 'forest gi" in capsys.readouterr().err
    shutil.rmtree(album / "okapi")
    assert main(["adapt", str(model), "--classes", str(album), "--out", str(tmp_path / "more")]) == 0
    assert added(tmp_path / "more") == {"forest giraffe": 5, "tapir": 1, "saiga": 5}
    assert len(added(model)) == 2  # the model that it came from is unchanged
    capsys.readouterr()
    assert main(["adapt", str(model), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 8 and listed[-1] == "tapir\t-\t1" and listed[0].endswith("\t-")


@pytest.mark.parametrize("options", [["--method", "phi2", "--rule", "mean"], ["--method", "phi1"]])
def test_method_and_rule_are_chosen(options: list[str], whole_run: Run, album: Path, tmp_path: Path) -> None:
    assert main(["adapt", str(whole_run.dir), "--out", str(tmp_path / "m"), *options]) == 0
    model = Classifier.load(tmp_path / "m")
    assert model.method == options[1] and model.rule == (options[3] if len(options) > 2 else "max")
    assert main(["adapt", str(tmp_path / "m"), "--rule", "rows"]) == 0
    assert Classifier.load(tmp_path / "m").rule == "rows"


def test_held_out_photos_show_what_an_added_class_costs(
    whole_run: Run, album: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model has no images of its own; photos in folders by name or wnid give the accuracies of the run's images."""
    made = ["adapt", str(whole_run.dir), "--method", "phi_plus", "--out"]
    assert main([*made, str(tmp_path / "m")]) == 0
    assert main([*made, str(tmp_path / "n"), "--class", f"okapi={album}/okapi"]) == 0
    wanted = [line for line in capsys.readouterr().out.splitlines() if line.startswith("base accuracy on 36 held-out")]
    assert main(["adapt", str(tmp_path / "m"), "--class", f"okapi={album}/okapi"]) == 0
    assert "held-out" not in capsys.readouterr().out
    assert (
        main(["adapt", str(tmp_path / "m"), "--class", f"tapir={album}/tapir", "--held_out", str(drawn / "val")]) == 0
    )
    said = capsys.readouterr().out.splitlines()
    before = float(said[-3].split(": ")[1].split("%")[0])
    assert len(wanted) == 1 and said[-3].startswith("base accuracy on 36 held-out images")
    assert f"of the photos in {drawn / 'val'}, mean over classes" in said[-2]
    assert abs(before - float(wanted[0].split(", ")[1].split("%")[0])) < 3  # activations are stored as float16


def test_classify_takes_files_folders_patterns_and_standard_input(
    models: Path, album: Path, capsys: pytest.CaptureFixture[str], warm_python: WarmPython
) -> None:
    photos = sorted(album.rglob("*.JPEG"))
    model = str(models / "phi2")
    wanted = [one[0].name for one in Classifier.load(model).predict(photos)]

    def asked(*words: str) -> list[str]:
        assert main(["classify", model, "--topk", "2", "--json", *words]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(len(one["classes"]) == 2 for one in found)
        assert [one["image"] for one in found] == [str(photo) for photo in photos]
        return [one["classes"][0]["name"] for one in found]

    assert asked(*map(str, photos)) == asked(str(album)) == asked(f"{album}/*/*.JPEG") == wanted
    typed = [warm_python.python, "-m", "dist_train", "classify", model, "-", "--topk", "1"]
    paths = "\n".join(map(str, photos)).encode()
    done = subprocess.run(typed, input=paths, capture_output=True, check=True)
    titles = [line.partition("  (")[0] for line in done.stdout.decode().splitlines()[::2]]
    assert titles == [str(photo) for photo in photos]
    assert [line.partition("%  ")[2] for line in done.stdout.decode().splitlines()[1::2]] == wanted
    for given, wrong in ((b"/nowhere.jpg\n" + paths, "/nowhere.jpg: no such file"), (b"", "standard input: empty"),
                         (bytes(99), "standard input: neither an image nor a list of paths")):  # fmt: skip
        done = subprocess.run(typed, input=given, capture_output=True)
        assert done.returncode == 1 and wrong in done.stderr.decode()
        said = done.stderr.decode().splitlines()
        several = ["found 16 files: 15 taken, 1 left out, 0 passed over"] * (paths in given)
        assert said[1:] == several
        assert len(done.stdout.splitlines()) == (2 * len(photos) if paths in given else 0)
    done = subprocess.run(typed, input=photos[0].read_bytes(), capture_output=True, check=True)
    assert done.stdout.decode().partition("  (")[0].splitlines()[0] == "-" and wanted[0] in done.stdout.decode()


def test_classify_passes_over_files_that_are_no_photos(
    models: Path, album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (album / "okapi" / "text.jpg").write_text("I am text")
    (album / "okapi" / "notes.txt").write_text("I am text")
    (album / "okapi" / "gone.jpg").symlink_to("nowhere")
    (album / "okapi" / os.fsdecode(b"caf\xe9\x1b[2J.jpg")).write_text("I am text")
    assert main(["classify", str(models / "phi2"), "/nowhere.jpg", str(album / "okapi")]) == 1
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out.count(".JPEG") == 5 and len(lines) == 6
    assert lines[4] == "found 10 files: 5 taken, 4 left out, 1 passed over (1 .txt)" and "notes.txt" in lines[5]
    assert f"error: {album}/okapi/gone.jpg: a broken link" in said.err
    assert f"error: {album}/okapi/caf\\xe9\\x1b[2J.jpg: not an image" in said.err
    assert "error: /nowhere.jpg: no such file or folder" in said.err
    assert f"error: {album}/okapi/text.jpg: not an image of a known format" in said.err


@pytest.mark.parametrize("kind", ["torchvision", "safetensors", "onnx"])
def test_export_writes_a_file(kind: str, models: Path, resnet_models: Path, album: Path, tmp_path: Path,
                              capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from_models = resnet_models if kind == "torchvision" else models
    model = shutil.copytree(from_models / "phi2", tmp_path / "animals")
    assert main(["adapt", str(model), "--class", f"okapi={album}/okapi"]) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    code = main(["export", str(model), "--format", kind])
    if kind == "torchvision":
        assert code == 1 and "--rule mean or rows" in capsys.readouterr().err and not Path("animals.pth").exists()
        assert main(["export", str(model), "--format", kind, "--rule", "mean", "--out", "a.pth"]) == 0
        assert torch.load("a.pth", weights_only=True)["fc.weight"].shape == (7, 512)
    else:
        assert code == 0 and Path(f"animals.{kind}").stat().st_size > 400_000
        assert f"animals.{kind}" in capsys.readouterr().out


def test_of_two_processes_that_make_a_model_one_is_refused(
    whole_run: Run, album: Path, tmp_path: Path, warm_python: WarmPython
) -> None:
    command = ["adapt", str(whole_run.dir), "--out", str(tmp_path / "m"), "--class"]
    both = [warm_python.start(*command, f"{name}={album}/{name}", stderr=subprocess.PIPE, stdout=subprocess.PIPE)
            for name in ("okapi", "tapir")]  # fmt: skip
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    lost = said[both[0].returncode == 0]
    assert lost.count("\n") == 1 and ("exists; take another folder" in lost or "another process changes" in lost)
    assert list(added(tmp_path / "m")) == [("okapi", "tapir")[both[0].returncode]]


def test_names_with_an_equals_sign_and_odd_files(models: Path, album: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    model = shutil.copytree(models / "phi2", tmp_path / "m")
    first = Classifier.load(model).classes[0].name
    assert main(["adapt", str(model), "--rename", f"{first}=a=b"]) == 0
    assert main(["adapt", str(model), "--rename", "a=b=c=d"]) == 0
    assert Classifier.load(model).classes[0].name == "c=d"
    assert (
        main(["adapt", str(model), "--list_photos", ""]) == 1 and "--list_photos: is empty" in capsys.readouterr().err
    )
    photo = shutil.copy(next(album.rglob("*.JPEG")), tmp_path / "x=1.jpg")
    # A class to list that is not there: nothing is changed.
    assert main(["adapt", str(model), "--class", f"e=f={photo}", "--list_photos", "nosuch"]) == 1
    assert "class 'nosuch': there is none" in capsys.readouterr().err
    assert main(["adapt", str(model), "--class", f"e=f={photo}"]) == 0
    other = shutil.copy(sorted(album.rglob("*.JPEG"))[-1], tmp_path / "2.jpg")
    for where in (str(other), f"{tmp_path}/[3].jpg"):
        assert main(["adapt", str(model), "--class", f"c=d={where}", "--update"]) == 0
        shutil.copy(sorted(album.rglob("*.JPEG"))[-2], tmp_path / "3.jpg")
    assert {entry.name: entry.photos for entry in Classifier.load(model).classes if entry.photos} == {
        "c=d": 2,
        "e=f": 1,
    }
    shutil.copy(next(album.rglob("*.JPEG")), tmp_path / "~nobody.jpg")
    (tmp_path / "bad\nname.jpg").write_text("text")
    capsys.readouterr()
    assert main(["classify", str(model), f"{tmp_path}/~nobody.jpg", str(tmp_path / "bad\nname.jpg")]) == 1
    said = capsys.readouterr()
    assert "bad\\nname.jpg: not an image" in said.err and said.err.count("\n") == 2 and "~nobody.jpg" in said.out


def test_adapt_accounts_for_every_file(models: Path, album: Path, drawn: Path, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Files come through --class, --classes and --held_out; class names are compared in Unicode's composed form."""
    model = shutil.copytree(models / "phi2", tmp_path / "m")
    (album / "okapi" / "Thumbs.db").write_bytes(b"system")
    (album / "okapi" / "@eaDir").mkdir()
    (album / "okapi" / "@eaDir" / "SYNO.jpg").write_bytes(b"system")
    (album / "okapi" / "gone.jpg").symlink_to("nowhere")
    (album / "README.md").write_text("beside the classes")
    (album / "tapir").rename(album / "cafe\u0301")
    (album / "caf\u00e9").mkdir()
    (album / "cafe\u0301" / "a.mpo").write_bytes(next((album / "cafe\u0301").iterdir()).read_bytes())
    next((album / "cafe\u0301").glob("*.JPEG")).rename(album / "caf\u00e9" / "1.jfif")
    held = tmp_path / "held"
    shutil.copytree(drawn / "val", held)
    (held / "unknown").mkdir()
    (held / "unknown" / "1.jpg").write_bytes(b"of no class")
    assert main(["adapt", str(model), "--classes", str(album), "--held_out", str(held), "--class",
                 f"okapi={album}/okapi/*", "--class", f"cafe\u0301={album}/caf*/*.jfif"]) == 0  # fmt: skip
    assert added(model) == {"okapi": 5, "caf\u00e9": 5, "saiga": 5}
    said = capsys.readouterr().err.splitlines()
    of_run = sum(1 for one in Classifier.load(model).classes if not one.added)
    whole = 26 + len(list((drawn / "val").glob("*/*.*")))
    held_of_run = [line for line in said if line.startswith("passed over: 19 in folders of no class")]
    assert of_run == 6 and len(held_of_run) == 1
    total = next(line for line in said if line.startswith("found "))
    numbers = [int(word) for word in total.replace(",", "").replace(":", "").split() if word.isdigit()]
    assert numbers[0] == sum(numbers[1:4]) and numbers[2] == 9 and numbers[0] == whole + 5
    assert sum(f"left out: {album}/okapi/gone.jpg: a broken link" in line for line in said) == 2
    assert any("they are one class" in line for line in said)


@pytest.mark.parametrize("option", ["--classes", "--held_out"])
def test_a_folder_of_subsets_is_no_folder_of_classes(option: str, models: Path, drawn: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "my data").mkdir()
    for name in ("train", "val"):
        (tmp_path / "my data" / name).symlink_to(drawn / name)
    right = f"{option} '{tmp_path}/my data/{'train' if option == '--classes' else 'val'}'"
    command = ["adapt", str(models / "phi2"), "--out", str(tmp_path / "m"), option, f"{tmp_path}/my data"]
    assert main(command) == 1
    assert (
        f"is a level too high, its folder 'train' holds folders and no photo; give {right}" in capsys.readouterr().err
    )


def test_names_that_cannot_be_shown_never_reach_the_terminal(models: Path, album: Path, tmp_path: Path) -> None:
    """These are names of files that classify prints, in text and in JSON, and of classes that do not exist."""
    odd = album / os.fsdecode(b"caf\xe9\xc2\x9b\xe2\x80\xae.png")
    Image.new("RGB", (9, 9)).save(odd, "PNG")
    model = str(models / "phi2")
    commands = [
        ["classify", model, str(odd)],
        ["classify", model, str(odd), "--json"],
        ["adapt", model, "--remove", os.fsdecode(b"\xe9\x1b[2J")],
        ["adapt", model, "--class", os.fsdecode(b"\xe9=") + str(odd)],
    ]
    typed = [word for command in commands for word in (*command, "THEN")]
    done = subprocess.run([sys.executable, "-c", ONE_BY_ONE, *typed], capture_output=True,
                          env={**os.environ, "LC_ALL": "C"})  # fmt: skip
    text = (done.stdout + done.stderr).decode()  # UTF-8 it is
    assert done.returncode == 0 and "Traceback" not in text, text
    assert all(char.isprintable() or char == "\n" for char in text), text
    answers = [answer.splitlines() for answer in done.stdout.decode().split("exit code ")]
    assert [answer[0] for answer in answers[1:]] == ["0", "0", "1", "1"]
    assert done.stderr.decode().count("dist-train: error: ") >= 2
    assert path_of(json.loads(answers[1][1])["image"]) == str(odd)


@pytest.mark.long
def test_thousands_of_classes(models: Path, tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / "many" / f"class {number:04d}").mkdir(parents=True)
        image = Image.fromarray(np.random.RandomState(number).randint(0, 256, (8, 8, 3), np.uint8))
        image.save(tmp_path / "many" / f"class {number:04d}" / "a.png")
    assert main(["adapt", str(models / "phi2"), "--classes", str(tmp_path / "many"), "--out", str(tmp_path / "m")]) == 0
    model = Classifier.load(tmp_path / "m")
    assert len(model.classes) == 2006
    assert len(model.predict(np.zeros((9, 9, 3), np.uint8), topk=3000)[0]) == 2006


def test_bad_input_is_one_line(models: Path, whole_run: Run, album: Path, tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.onnx").mkdir()
    (tmp_path / "cut.jpg").write_bytes(next(album.rglob("*.JPEG")).read_bytes()[:500])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge.png").write_bytes(png_of(30_000, 30_000))
    model, run, other = str(models / "phi2"), str(whole_run.dir), str(tmp_path / "other")
    taken = Classifier.load(model).classes[0].name
    headless = str(shutil.copytree(model, tmp_path / "headless"))  # is not opened
    next(Path(headless).glob("network-*")).unlink()
    lost = str(shutil.copytree(model, tmp_path / "lost"))
    (Path(lost) / "model.json").unlink()
    cases = {
        ("adapt", run): "--out is required",
        ("adapt", run, "--out", str(album)): f"--out {album}: exists; take another folder",
        ("adapt", str(tmp_path), "--out", other): "not a run (no config.yaml) or a model (no model.json); make",
        ("adapt", lost, "--class", f"okapi={album}"): f"{lost}: its model.json is lost; copy it from",
        ("adapt", "nowhere", "--class", f"okapi={album}"): "nowhere: no such run or model",
        ("adapt", "new", "--backbone", "starter", "--classes", str(album)):
            "new: no such run or model; --backbone makes a new model: give its folder by --out new",
        ("adapt", "new", "--backbone", "starter", "--out", other): "--backbone makes a new model: leave new out",
        ("adapt", str(album), "--backbone", "starter"): f"give its photos by --classes {album} and its folder by --out",
        ("adapt", "new", "--weights", "a.pth"): "new: no such run or model; give RUNS/NAME",
        ("adapt", model, "--backbone", "starter"): f"{model} has its own network; leave one of the two out",
        ("adapt", run, "--backbone", "starter"): f"{run} has its own network; leave one of the two out",
        ("adapt", model, "--remove"): "--remove: a value has to follow it; dist-train adapt MODEL --list lists the",
        ("adapt", model, "--list_photos"): "--list_photos: a value has to follow it; dist-train adapt MODEL --list",
        ("adapt", model, "--list_photos", "nobody"): "dist-train adapt MODEL --list lists them",
        ("run", "--config", "demo", "--pretrain.model"): "--pretrain.model: a value has to follow it; see --help",
        ("adapt", model, "--out"): "--out: a value has to follow it; see --help",
        ("adapt", ""): "SOURCE: is empty; give a value or leave it out",
        ("adapt", model, "--remove", ""): "--remove: is empty; give a value",
        ("adapt", model, "--held_out", ""): "--held_out: is empty; give a value or leave it out",
        ("adapt", run, "--out", other, "--method="): "--method: is empty; give a value or leave it out",
        ("create", "", "--out", other): "PHOTOS: is empty; give a value",
        ("create", str(album), "--out", other, "--weights", ""): "--weights: is empty; give a value or leave it out",
        ("create", str(album), "--out", other, "--base", ""): "--base: is empty; give a value or leave it out",
        ("create", str(album), "--out", ""): "--out: is empty; give a value",
        ("create", str(album), "--out", other, "--size", "big"): "--size big: must be a whole number",
        ("adapt", run, "--out", run): f"--out {run}: lies in {run}; take another folder",
        ("adapt", model, "--out", f"{model}/more"): f"lies in {model}; take another folder",
        ("adapt", model, "--out", f"{tmp_path}/cut.jpg"): "cut.jpg: exists; take another folder",
        ("adapt", run, "--out", other, "--method", "nn"): "--method nn: no model is made with it; give one of",
        ("adapt", run, "--out", other, "--method", "ph2"): "no model is made with it; did you mean phi2?",
        ("adapt", run, "--out", other, "--method", "phi2mean"):
            "phi2mean: was not trained; give one of phi_plus_plda, phi_plus, phi2",
        ("adapt", run, "--out", other, "--rule", "min"): "--rule min: give one of max, mean, rows",
        ("adapt", model, "--method", "bogus"): "--method bogus: is chosen when a model is made of a run;",
        ("adapt", headless, "--head", "lda", "--class", "okapi=/nowhere"): "--head lda: is of models of photos alone",
        ("adapt", headless, "--prior", "photos", "--class", "okapi=/nowhere"): "--prior photos: is of models of photos",
        ("adapt", run, "--out", other, "--prior", "photos"): "--prior photos: is of models of photos alone",
        ("adapt", model, "--out", other, "--class", "okapi"): "--class okapi: give NAME=PHOTOS",
        ("adapt", model, "--out", other, "--class", "okapi=/nowhere"): "--class okapi=/nowhere: no such file or folder",
        ("adapt", model, "--out", other, "--class", f"okapi={tmp_path}/empty"): "empty: holds no photos",
        ("adapt", model, "--out", other, "--class", f"okapi={tmp_path}/cut.jpg"): "cut.jpg: damaged or cut off",
        ("adapt", model, "--out", other, "--class", f"okapi={tmp_path}/huge.png"): "900000000 pixels, and 178956970",
        ("adapt", model, "--out", other, "--class", f"{taken}={album}/okapi"): f"class '{taken}': exists already",
        ("adapt", model, "--out", other, "--classes", f"{tmp_path}/empty"): "empty: holds no class folder",
        ("adapt", model, "--out", other, "--remove", "nobody"):
            "class 'nobody': there is none among the 6; dist-train adapt MODEL --list lists them",
        ("adapt", model, "--out", other, "--rename", "nobody"): "--rename nobody: give OLD=NEW",
        ("adapt", model, "--out", other, "--class", f"o={album}/okapi", "--held_out", str(album)):
            "holds no folder with the name or wnid of a class",
        ("classify", str(tmp_path), str(album)): "not a model (no model.json); make a model: dist-train create",
        ("classify", f"{tmp_path}/empty.onnx", str(album)): "empty.onnx: not a model (no model.json); make a model:",
        ("classify", f"{tmp_path}/no", str(album)): "no: no such folder; check the path, or make a model: dist-train",
        ("classify", model, "/nowhere.jpg"): "/nowhere.jpg: no such file or folder",
        ("classify", model, f"{tmp_path}/huge.png"): "huge.png: 900000000 pixels",
        ("classify", model, str(album), "--topk", "0"): "--topk 0: must be a whole number >= 1",
        ("classify", model, str(album), "--topk", "2.5"): "--topk 2.5: must be a whole number",
        ("classify", model, str(album), "--topk", ""): "--topk '': must be a whole number",
        ("classify", model, str(album), "--topk", "True"): "--topk true: must be a whole number",
        ("classify", model, str(album), "--min_confidence", "nan"): "--min_confidence nan: must be a number",
        ("classify", model, str(album), "--min_confidence", "much"): "--min_confidence much: must be a number",
        ("classify", model): "IMAGES is required",
        ("export", model, "--format", "tflite"): "--format tflite: give one of torchvision, timm, safetensors, onnx",
        ("export", model, "--format", "onnx", "--out", str(tmp_path)): "is a folder; give a file to write",
        ("export", model, "--format", "safetensors", "--out", f"{model}/model.json"): "lies in the model",
        ("export", model, "--format", "safetensors", "--out", str(tmp_path / "pipe")): "is no ordinary file",
        ("classify", model, ""): "IMAGES: is empty; give a value",
        ("export", model, "--format", "onnx", "--out", "/no/such/m.onnx"): "no such folder; give a file to write",
    }  # fmt: skip
    for words, wanted in cases.items():
        assert main(words) == 1, words
        said = capsys.readouterr()
        assert wanted in said.err and said.err.count("\n") == 1 and not said.out, (words, said)
    assert not (tmp_path / "other").exists()
