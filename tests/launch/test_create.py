"""create and adapt --backbone as they are typed: from a folder of photos to a model, its changes and its exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from fixtures.downloads import WeightServer
from PIL import Image
from safetensors.torch import save as saved_tensors

from dist_train import Classifier, UserError
from launch.cli.main import main

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
TIMM = ["--backbone", "timm:resnet10t", "--size", "64"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of random weights of a small network of timm."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "resnet10t.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), file)
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three classes of six noisy photos of one colour; it must not be changed."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(6):
            pixels = np.clip(np.array(colour) + rng.normal(0, 60, (70, 90, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def own(photos: Path, tmp_path: Path) -> Path:
    """Return a copy of the photos, which may be changed."""
    return Path(shutil.copytree(photos, tmp_path / "own"))


@pytest.fixture(scope="module")
def made(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of two of the classes, with a discriminant; it must not be changed."""
    out = tmp_path_factory.mktemp("made") / "model"
    words = [*TIMM, "--weights", str(weights), "--head", "lda", "--out", str(out)]
    assert main(["adapt", *words, "--class", f"red={photos / 'red'}", "--class", f"green={photos / 'green'}"]) == 0
    return out


def test_a_folder_becomes_a_model_with_a_page(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "model", tmp_path / "page.html"
    assert main(["create", str(photos), *TIMM, "--weights", str(weights), "--out", str(out),
                 "--report", str(page)]) == 0  # fmt: skip
    said = capsys.readouterr()
    assert "found 18 files: 18 taken" in said.err and said.out.count("(chosen)") == 1
    for title in ("class mean", "imprinting", "discriminant", "logistic probe"):
        assert f"{title}: " in said.out
    model = Classifier.load(out, "cpu")
    assert [(entry.name, entry.photos) for entry in model.classes] == [("blue", 6), ("green", 6), ("red", 6)]
    assert model.provenance["backbone"]["source"].startswith("timm:resnet10t")
    assert len(model.provenance["backbone"]["sha256"]) == 64
    best = model.predict(sorted((photos / "red").iterdir()), topk=1)
    assert [answer[0].name for answer in best] == ["red"] * 6
    assert "photos that it was not fitted on" in page.read_text() and "blue" in page.read_text()


@pytest.mark.parametrize("several, over", [(["red"], "1 of 2 classes"), (["red", "green"], "2 of 3 classes")])
def test_the_estimate_says_which_classes_it_is_of(
    several: list[str], over: str, own: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in {*COLOURS} - {*several, "blue"}:
        shutil.rmtree(own / name)
    for photo in sorted((own / "blue").iterdir())[1:]:
        photo.unlink()
    page = tmp_path / "page.html"
    assert main(["create", str(own), *TIMM, "--weights", str(weights), "--head", "mean", "--out", str(tmp_path / "m"),
                 "--report", str(page)]) == 0  # fmt: skip
    said, shown = capsys.readouterr().out, " ".join(page.read_text().split())
    assert f"of held-out photos, mean over {over}, by leave-one-out" in said
    assert "1 class of a single photo, which cannot be held out, not judged: blue" in said
    assert f"was not fitted on, of {over.replace('of ', 'of its ')}" in shown
    assert ("a single class is judged" in said) == (len(several) == 1)
    assert ("As a single class is judged" in shown) == (len(several) == 1)


def test_classes_come_and_go(made: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(shutil.copytree(made, tmp_path / "model"))
    before = Classifier.load(model, "cpu").logits(photos / "red" / "0.png")
    assert main(["adapt", str(model), "--class", f"sky={photos / 'blue'}", "--rename", "red=fire",
                 "--held_out", str(photos)]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert re.search(r"^[\d.]+% \(95% interval [\d.]+ to [\d.]+%\) of the photos in ", said, re.MULTILINE)
    assert "sky: added from 6 photos" in said and "model: 3 classes, lda" in said
    assert "mean over classes" in said.splitlines()[-2] and "photos in" in said.splitlines()[-2]
    grown = Classifier.load(model, "cpu")
    assert grown.answers(grown.activations(photos / "blue" / "3.png"))[0][0].name == "sky"
    assert "; of these 6 photos the model has 6 itself, so they say nothing" in said
    kept = (model / "model.json").read_bytes()
    shutil.copytree(photos / "green", tmp_path / "copies")
    assert main(["adapt", str(model), "--class", f"leaf={tmp_path / 'copies'}"]) == 1
    refused = "class 'leaf': 6 photos of it are in the model already, in class 'green'; leave each in one class"
    assert refused in capsys.readouterr().err and (model / "model.json").read_bytes() == kept
    assert main(["adapt", str(model), "--remove", "sky", "--rename", "fire=red"]) == 0
    again = Classifier.load(model, "cpu")
    assert torch.allclose(again.logits(photos / "red" / "0.png"), before, atol=1e-4)
    kept = (model / "model.json").read_bytes()
    assert main(["adapt", str(model), "--remove", "green"]) == 1
    assert "class 'red': is the only class" in capsys.readouterr().err
    assert (model / "model.json").read_bytes() == kept
    assert main(["adapt", str(model), "--head", "mean"]) == 0
    assert Classifier.load(model, "cpu").method == "mean"


def test_photos_are_seen_up_to_their_edge(made: Path) -> None:
    """A frame of 2 of 200 pixels would be cut off by the crop of 0.95 that is resnet10t's own."""
    model = Classifier.load(made, "cpu")
    plain, framed = torch.full((2, 3, 200, 200), 120, dtype=torch.uint8)
    framed[0] = 255
    framed[:, 2:-2, 2:-2] = 120
    activations = model.activations([plain, framed])
    assert float((activations[0] - activations[1]).norm() / activations[0].norm()) > 1e-3


def test_saved_models_answer_the_same(made: Path, photos: Path, tmp_path: Path) -> None:
    model = Classifier.load(made, "cpu")
    wanted = model.logits(photos / "green" / "0.png")
    twin = model.copy()
    twin.add_class("blue", sorted((photos / "blue").iterdir()))
    assert len(model.classes) == 2 and torch.equal(model.logits(photos / "green" / "0.png"), wanted)
    twin.save(tmp_path / "twin")
    reloaded = Classifier.load(tmp_path / "twin", "cpu")
    assert torch.equal(reloaded.logits(photos / "green" / "0.png"), twin.logits(photos / "green" / "0.png"))
    assert reloaded.head().estimates == twin.head().estimates
    with pytest.raises(UserError, match="--rule mean: is of models from a run"):
        reloaded.rule = "mean"


def test_an_estimate_is_printed_with_an_interval_within_0_to_100(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, page = tmp_path / "model", tmp_path / "page.html"
    assert (
        main(["create", str(photos), *TIMM, "--weights", str(weights), "--out", str(model), "--report", str(page)]) == 0
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if "of held-out photos" in line]
    pattern = r"[\w ]+: ([\d.]+)% \(95% interval ([\d.]+) to ([\d.]+)%\) of held-out photos, mean over classes, by .*"
    for line, estimate in zip(lines, Classifier.load(model, "cpu").head().estimates, strict=True):
        found = re.fullmatch(pattern, line)
        assert found and 0 <= float(found[2]) <= float(found[1]) <= float(found[3]) <= 100, line
        assert f"{estimate.low:.1f} to {estimate.high:.1f}%" in page.read_text()
    assert "±" not in page.read_text()


def test_models_with_a_half_width_in_place_of_an_interval_open(made: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(made, tmp_path / "model")) / "model.json"
    about = json.loads(file.read_text())
    [estimate] = about["method"]["estimates"]
    ends = {key: estimate.pop(key) for key in ("low", "high")}
    estimate |= {"accuracy": 90, "half_width": 17.1}
    file.write_text(json.dumps(about))
    [read] = Classifier.load(file.parent, "cpu").head().estimates
    assert (read.low, read.high) == (pytest.approx(72.9), 100)
    estimate |= ends
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match="low and high must be there, or half_width in their place"):
        Classifier.load(file.parent, "cpu")


def loaded_elsewhere(code: str, *arguments: object) -> str:
    """Run code in a fresh process that does not find this project."""
    clean = f"import sys; sys.path = [p for p in sys.path if p]; {code}"
    done = subprocess.run([sys.executable, "-I", "-c", clean, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_timm_loads_equal_logits_elsewhere(made: Path, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "linear.pth"
    assert main(["export", str(made), "--format", "timm", "--out", str(file)]) == 0
    model = Classifier.load(made, "cpu")
    images = model.network.preprocess.batch([model.pixels(path) for path in sorted((photos / "red").iterdir())])
    torch.save(images, tmp_path / "images.pt")
    logits = loaded_elsewhere(
        "import timm, torch, json; net = timm.create_model('resnet10t', num_classes=2).eval(); "
        "net.load_state_dict(torch.load(sys.argv[1], weights_only=True)); "
        "print(json.dumps(net(torch.load(sys.argv[2])).tolist()))", file, tmp_path / "images.pt",
    )  # fmt: skip
    assert np.allclose(json.loads(logits), model.scores(model.embed(images)).numpy(), atol=1e-3)


def test_torchvision_takes_the_weights_of_its_own_networks(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = torchvision.models.mobilenet_v3_small().state_dict()
    weights["classifier.0.weight"] *= 1e8  # untrained, it gives activations of 5e-9
    torch.save(weights, tmp_path / "w.pth")
    words = ["--backbone", "torchvision:mobilenet_v3_small", "--weights", str(tmp_path / "w.pth"), "--size", "64"]
    model = tmp_path / "model"
    assert main(["create", str(photos), *words, "--head", "lda", "--out", str(model)]) == 0
    assert main(["export", str(model), "--format", "torchvision", "--out", str(tmp_path / "linear.pth")]) == 0
    network = torchvision.models.get_model("mobilenet_v3_small", num_classes=3).eval()
    network.load_state_dict(torch.load(tmp_path / "linear.pth", weights_only=True))
    opened = Classifier.load(model, "cpu")
    images = opened.network.preprocess.batch([opened.pixels(photos / "red" / "0.png")])
    with torch.inference_mode():
        assert torch.allclose(network(images), opened.scores(opened.embed(images)), atol=1e-3)


def test_onnx_answers_from_pixels(made: Path, photos: Path, tmp_path: Path) -> None:
    assert main(["export", str(made), "--format", "onnx", "--out", str(tmp_path / "m.onnx")]) == 0
    model, pixels = Classifier.load(made, "cpu"), np.array(Image.open(photos / "red" / "0.png"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    scores, shares, _ = session.run(None, {"images": pixels[None]})
    wanted = model.logits(pixels)
    assert np.abs(scores - wanted.numpy()).max() < 1e-3
    assert np.abs(shares - wanted.softmax(1).numpy()).max() < 1e-3


def test_a_head_of_normalised_queries_is_no_linear_layer(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(made, tmp_path / "model"))
    assert main(["adapt", str(model), "--head", "imprint"]) == 0
    assert main(["export", str(model), "--format", "timm", "--out", str(tmp_path / "x.pth")]) == 1
    assert "adapt MODEL --head lda" in capsys.readouterr().err and not (tmp_path / "x.pth").exists()
    assert main(["export", str(model), "--format", "torchvision", "--out", str(tmp_path / "x.pth")]) == 1
    assert "take --format timm" in capsys.readouterr().err


def test_what_cannot_be_used_is_left_out_by_name(
    own: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    shutil.copy(own / "red" / "0.png", own / "red" / "again.png")
    out = tmp_path / "model"
    assert main(["create", str(own), *TIMM, "--weights", str(weights), "--head", "mean", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    for line in ("20 files: 18 taken, 2 left out", "broken.jpg: not an image", "the same photo as"):
        assert line in said
    assert [entry.photos for entry in Classifier.load(out, "cpu").classes] == [6, 6, 6]


def _one_class(own: Path) -> None:
    shutil.rmtree(own / "red")
    shutil.rmtree(own / "green")


def _no_photos(own: Path) -> None:
    shutil.rmtree(own)
    own.mkdir()


def _in_two_classes(own: Path) -> None:
    shutil.copy(own / "red" / "0.png", own / "blue" / "red.png")


@pytest.mark.parametrize(
    "change, options, wanted",
    [
        (_one_class, [], "class 'blue': is the only class; give photos of two classes or more"),
        (_no_photos, [], "holds no class folder"),
        (_in_two_classes, [], "a photo is in two classes: "),
        (None, ["--head", "best"], "--head best: give one of auto, mean, imprint, lda, probe"),
        (None, ["--base_features", "FEATURES"], "has activations of 7 numbers; give those of this network, of 512"),
        (None, ["--base_features", "UNNAMED"], "has no array 'activations' (it has x); write it under this name"),
        (None, ["--base_features", "LABELS"], "has 4 rows of activations, but labels [3]"),
        (None, ["--base_features", "EQUAL"], "all images of a class have the same activations"),
        (None, ["--base_features", "README.md"], "--base_features README.md: not a file of features by its name"),
        (None, ["--base_features", "none.npy"], "--base_features none.npy: no such file; give an .npz, .npy"),
        (None, ["--base_features", "FEATURES", "--head", "mean"], "only the head lda takes it into account"),
        (None, ["--base", "shards", "--head", "probe"], "--base shards: only the head lda takes it into account"),
        (None, ["--size", "8"], "error: --size 8: must be from 32 to 1024"),
        (None, ["--size", "5000"], "error: --size 5000: must be from 32 to 1024"),
        (None, ["--download"], "error: --download: must be left out where --weights names a file"),
        (None, ["--backbone", "timm:resnet5"], "error: --backbone timm:resnet5: timm "),
        (None, ["--backbone", "starter:x"], "error: --backbone starter:x: "),
        (None, ["--weights", "NAN"], "nan.pth: layer1.0.conv1.weight: values that are not finite"),
        (None, ["--report", "nowhere/page.html"], "--report nowhere/page.html"),
    ],
)  # fmt: skip
def test_bad_input_makes_nothing(
    change: object, options: list[str], wanted: str, own: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if callable(change):
        change(own)
    np.savez(tmp_path / "features.npz", activations=np.zeros((4, 7), np.float32), labels=np.zeros(4))
    np.savez(tmp_path / "unnamed.npz", x=np.zeros((4, 7), np.float32))
    np.savez(tmp_path / "labels.npz", activations=np.zeros((4, 512), np.float32), labels=np.zeros(3))
    np.savez(tmp_path / "equal.npz", activations=np.ones((4, 512), np.float32), labels=np.zeros(4))
    state = torch.load(weights, weights_only=True)
    state["layer1.0.conv1.weight"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    files = {name.upper(): f"{name}.npz" for name in ("features", "labels", "equal", "unnamed")} | {"NAN": "nan.pth"}
    files = {word: str(tmp_path / name) for word, name in files.items()}
    words = [files.get(word, word) for word in options]
    out = tmp_path / "model"
    assert main(["create", str(own), *TIMM, "--weights", str(weights), "--out", str(out), *words]) == 1
    said = capsys.readouterr().err
    assert wanted in said and said.splitlines()[-1].startswith("dist-train: error: ") and not out.exists()


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["create", "NOWHERE", "--out", "OUT", "--head", "best"], "--head best: give one of auto"),
        (["create", "NOWHERE", "--out", "OUT", "--backbone", "timm:resnet5"], "--backbone timm:resnet5: timm "),
        (["create", "NOWHERE", "--out", "OUT", "--backbone", "torchvision:net"], "--backbone torchvision:net: "),
        (["create", "NOWHERE", "--out", "OUT", "--backbone", "mine"], "--backbone mine: give timm:NAME"),
        (["create", "NOWHERE", "--out", "OUT", *TIMM, "--weights", "NOWHERE"], "no such file of weights"),
        (["create", "NOWHERE", "--out", "OUT", "--size", "8"], "--size 8: must be from 32 to 1024"),
        (["adapt", "--out", "OUT", "--backbone", "mine", "--classes", "NOWHERE"], "--backbone mine: give timm:NAME"),
        (["adapt", "--out", "OUT", *TIMM, "--head", "best", "--classes", "NOWHERE"], "--head best: give one of auto"),
        (["adapt", "DAMAGED", "--head", "best", "--classes", "NOWHERE"], "--head best: give one of auto"),
        (["adapt", "DAMAGED", "--rule", "best", "--classes", "NOWHERE"], "--rule best: give one of max, mean, rows"),
        (["adapt", "DAMAGED", "--rule", "mean", "--classes", "NOWHERE"], "--rule mean: is of models from a run"),
        (["adapt", "DAMAGED", "--method", "phi2"], "--method phi2: is chosen when a model is made of a run"),
        (["create", "NOWHERE", "--out", "OUT", "--base_features", "no.npz"], "--base_features no.npz: no such file"),
        (["classify", "DAMAGED", "NOWHERE", "--topk", "0"], "--topk 0: must be a whole number"),
        (["export", "DAMAGED", "--format", "onnx", "--rule", "best"], "--rule best: give one of max, mean, rows"),
        (["export", "DAMAGED", "--format", "onnx", "--rule", "mean"], "--rule mean: is of models from a run"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_before_photos_are_read_and_networks_are_loaded(
    words: list[str], wanted: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of photos is not there, and the network's file is damaged: neither is what the line names."""
    damaged = Path(shutil.copytree(made, tmp_path / "damaged"))
    next(damaged.glob("network-*")).write_bytes(b"damaged")
    places = {"DAMAGED": str(damaged), "NOWHERE": str(tmp_path / "no"), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in words]) == 1
    error = capsys.readouterr().err
    assert wanted in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["MODEL", "--backbone", "starter"], "--backbone: a new model is made with it"),
        (["MODEL", "--rule", "mean"], "--rule mean: is of models from a run"),
        (["--backbone", "starter", "--out", "OUT"], "--classes is required with --backbone"),
        (["--class", "a=b"], "SOURCE is required"),
        (["--backbone", "starter", "--classes", "x"], "--out is required"),
        (["--backbone", "starter", "--classes", "x", "--out", "OUT", "--method", "phi2"], "--method: is of a run"),
    ],
)  # fmt: skip
def test_options_that_do_not_belong_together_are_refused(
    words: list[str], wanted: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": str(made), "OUT": str(tmp_path / "out")}
    assert main(["adapt", *(places.get(word, word) for word in words)]) == 1
    assert wanted in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_background_of_features_lies_in_the_model(made: Path, photos: Path, weights: Path, tmp_path: Path) -> None:
    model = Classifier.load(made, "cpu")
    rows = [model.activations(sorted((photos / name).iterdir())) for name in COLOURS]
    np.savez(tmp_path / "f.npz", activations=torch.cat(rows).numpy(), labels=np.repeat(list(COLOURS), 6))
    words = ["--weights", str(weights), "--head", "lda", "--base_features", str(tmp_path / "f.npz")]
    assert main(["create", str(photos), *TIMM, *words, "--out", str(tmp_path / "m")]) == 0
    first = Classifier.load(tmp_path / "m", "cpu")
    first.remove_class("blue")
    first.save(tmp_path / "m")
    second = Classifier.load(tmp_path / "m", "cpu")
    assert torch.equal(first.logits(photos / "red" / "0.png"), second.logits(photos / "red" / "0.png"))
    plain = Classifier.load(made, "cpu").logits(photos / "red" / "0.png")
    assert not torch.allclose(second.logits(photos / "red" / "0.png"), plain, atol=1e-3)


@pytest.mark.parametrize("command", ["create", "adapt"])
def test_weights_are_downloaded_where_that_is_asked_for(
    command: str, photos: Path, weight_server: WeightServer, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    network = timm.create_model("test_resnet").eval()
    path = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    words = ["create", str(photos)] if command == "create" else ["adapt", "--classes", str(photos)]
    words += ["--backbone", "timm:test_resnet", "--head", "mean", "--out", str(tmp_path / "model")]
    wanted = f"fetch {weight_server.url}{path} and name the file with --weights FILE, or allow it with --download\n"
    assert main(words) == 1 and capsys.readouterr().err.endswith(wanted)
    assert main([*words, "--download"]) == 1
    failed = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot download {weight_server.url}{path} (" in failed
    assert (
        failed.endswith("; fetch it elsewhere and name the file with --weights FILE")
        and not (tmp_path / "model").exists()
    )
    weight_server.files[path] = saved_tensors(network.state_dict())
    assert main([*words, "--download"]) == 0
    assert f"downloading {weight_server.url}{path}" in caplog.text
    model = Classifier.load(tmp_path / "model", "cpu")
    photo = sorted((photos / "red").iterdir())[0]
    with torch.no_grad():
        wanted_row = network.forward_head(
            network.forward_features(model.network.preprocess.batch([model.pixels(photo, "photo")])), pre_logits=True
        )
    torch.testing.assert_close(model.activations([photo]), wanted_row, rtol=1e-4, atol=1e-4)
    weight_server.files.clear()
    assert main([*words[:-1], str(tmp_path / "again")]) == 0  # from the cache
