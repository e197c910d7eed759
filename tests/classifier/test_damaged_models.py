"""A model is checked when it is opened: a damaged model gives a line that names the file and the key; it never gives a
traceback, a hang, or an answer that is not a number."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.processes import WarmPython
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from dist_train import Classifier, UserError
from dist_train.classifier import model_json

Edit = Callable[[dict[str, Any]], object]


def edit(folder: Path, change: Edit) -> None:
    about = json.loads((folder / "model.json").read_text())
    change(about)
    (folder / "model.json").write_text(json.dumps(about))


def retensor(folder: Path, part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Replace tensors, and write the size and hash that belong to them."""
    about = json.loads((folder / "model.json").read_text())
    tensors = load_file(folder / about["files"][part]["file"])
    change(tensors)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    about["files"][part] = {"file": f"{part}-{digest[:16]}.safetensors", "bytes": len(data), "sha256": digest}
    (folder / about["files"][part]["file"]).write_bytes(data)
    (folder / "model.json").write_text(json.dumps(about))


def put(*keys: str | int, value: object) -> Edit:
    def change(about: Any) -> None:
        for key in keys[:-1]:
            about = about[key]
        about[keys[-1]] = value

    return change


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        Classifier.load(folder, "cpu")
    text = str(error.value)
    assert "\n" not in text and text.isprintable() and len(text) < 600, text
    return text


@pytest.fixture
def broken(untrained_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained_model, tmp_path / "model"))


def test_the_undamaged_model_opens(broken: Path) -> None:
    model = Classifier.load(broken, "cpu")
    assert [entry.name for entry in model.classes] == ["cat", "dog", "owl"]
    model.save(broken)
    assert [entry.name for entry in Classifier.load(broken, "cpu").classes] == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    "change, wanted",
    [
        (put("preprocessing", "size", value=100_000), "preprocessing.size = 100000: input should be less than"),
        (put("preprocessing", "size", value=0), "preprocessing.size = 0"),
        (put("classes", 0, "wnid", value="\x1b[2J"), "classes.0.wnid"),
        (put("classes", value=[{"name": "a", "no": 1}] * 200_000), "classes.0"),
        (put("preprocessing", "size", value=True), "preprocessing.size = True"),
        (put("preprocessing", "size", value=32.5), "preprocessing.size = 32.5"),
        (put("preprocessing", "size", value=40), "preprocessing.resize=36: must be from size, 40, to 2048"),
        (put("preprocessing", "resize", value=10**30), "preprocessing.resize"),
        (put("preprocessing", "mean", value=[0.5, 0.5, 1.5]), "preprocessing.mean=[0.5, 0.5, 1.5]: must be three"),
        (put("preprocessing", "std", value=[0.5, 0.0, 0.5]), "preprocessing.std=[0.5, 0, 0.5]: must be three"),
        (put("preprocessing", "interpolation", value="nearest"), "preprocessing.interpolation = 'nearest'"),
        (put("preprocessing", "squash", value=1), "preprocessing.squash = 1"),
        (put("preprocessing", "crop", value="ten"), "preprocessing.crop = 'ten'"),
        (put("preprocessing", "orientation", value="upside down"), "preprocessing.orientation"),
        (put("preprocessing", value=[]), "preprocessing = []"),
        (put("method", "calibration_cost", value=-1), "method.calibration_cost = -1"),
        (put("method", "calibration_cost", value=math.nan), "method.calibration_cost = nan"),
        (put("method", "calibration_cost", value=math.inf), "method.calibration_cost = inf"),
        (put("method", "calibration_cost", value="0.3"), "method.calibration_cost = '0.3'"),
        (put("method", "name", value="nobody"), "method.name = 'nobody': no model is made with it; give one of"),
        (put("method", "rule", value="min"), "method.rule = 'min'"),
        (put("method", "learn", "lr", value=math.inf), "method.learn.lr = inf"),
        (put("method", "learn", "steps", value=-5), "learn.steps=-5: must be >= 1"),
        (put("method", "learn", "bias", value="no"), "method.learn.bias = 'no'"),
        (put("method", "learn", "unknown", value=1), "method.learn.unknown = 1"),
        (put("backbone", "name", value="vgg\x1b[31m"), "backbone.name = 'vgg\\x1b[31m': give one of conv4"),
        (put("backbone", "num_classes", value=10**9), "backbone.num_classes = 1000000000"),
        (put("backbone", "num_classes", value=3), "tensor 'backbone.head.weight' has the shape [2, 64], and [3, 64]"),
        (put("backbone", "name", value="resnet50"), "do not fit together"),
        (put("classes", value=[]), "classes = []"),
        (put("classes", 0, "photos", value=-1), "classes.0.photos = -1"),
        (put("classes", 0, "photos", value=1), "photos must be the 3 photos of classes"),
        (put("classes", 0, "added", value="2026-11-25"), "classes must begin with a class that was not added"),
        (put("photos", value=[]), "photos must be the 2 photos of classes"),
        (put("photos", 0, "id", value="../../etc"), "photos.0.id = '../../etc'"),
        (put("photos", 0, "name", value="a\x1b[2J"), "photos.0.name = 'a\\x1b[2J'"),
        (put("photos", 0, "picture", value="../model"), "photos.0.picture = '../model'"),
        (put("photos", 0, "added", value="today"), "photos.0.added = 'today'"),
        (put("pictures", value=1), "pictures = 1"),
        (put("history", value=[{"time": "today", "text": ""}]), "history.0.time = 'today'"),
        (put("history", 0, "text", value="a\nb"), "history.0.text = 'a\\nb'"),
        (put("history", 0, "parts", value=[{"kind": "eaten"}]), "history.0.parts.0.kind = 'eaten'"),
        (put("history", 0, "parts", value=[{"kind": "rule", "name": "\n"}]), "history.0.parts.0.name = '\\n'"),
        (put("history", 0, "parts", value=[{"kind": "rule"}] * 4), "history.0.parts = "),
        (put("history", 0, "more", value=-1), "history.0.more = -1"),
        (put("past", value=[{"time": "2026-11-25T00:00:00Z", "text": "", "before": 7}]), "past.0.before = 7"),
        (put("classes", 2, "photos", value=0), "classes after those of base_rows need photos"),
        (put("classes", 2, "photos", value=3), "photos must be the 3 photos of classes"),
        (put("classes", 2, "photos", value=1e3), "classes.2.photos = 1000.0"),
        (put("classes", 0, "name", value="a\nb"), "classes.0.name = 'a\\nb'"),
        (put("classes", 0, "name", value="\x1b[2J"), "classes.0.name = '\\x1b[2J'"),
        (put("classes", 0, "name", value="dog"), "classes need different names; two are 'dog'"),
        (put("classes", 0, "name", value="cafe\u0301"), "classes.0.name"),
        (put("classes", 0, "name", value=""), "classes.0.name = ''"),
        (put("classes", 0, "name", value=7), "classes.0.name = 7"),
        (put("classes", 0, "added", value="today"), "classes.0.added = 'today'"),
        (put("classes", 0, "colour\n", value="red"), "classes.0.colour\\n = 'red'"),
        (put("base_rows", value=[0, 0]), "base_rows must grow"),
        (put("base_rows", value=[1, 0]), "base_rows must grow"),
        (put("base_rows", value=[0, -1]), "base_rows.1 = -1"),
        (put("base_rows", value=[0, 2]), "tensor 'base_rows' has 2 rows, and model.json's base_rows name others"),
        (put("base_rows", value=["a", "b"]), "base_rows.0 = 'a'"),
        (put("base_rows", value=list(range(9))), "classes must begin with a class"),
        (put("files", "network", "file", value="../../etc/passwd"), "files.network.file = '../../etc/passwd'"),
        (put("files", "network", "file", value="/dev/zero"), "files.network.file = '/dev/zero'"),
        (put("files", "network", "bytes", value=10**15), "files.network.bytes = 1000000000000000"),
        (put("files", "network", "bytes", value=-1), "files.network.bytes = -1"),
        (put("files", "network", "sha256", value="0"), "files.network.sha256 = '0'"),
        (put("files", "network", value=None), "files.network = None"),
        (put("files", value={}), "files.network"),
        (put("provenance", "rate", value=math.nan), "provenance"),
        (put("provenance", value="run"), "provenance = 'run'"),
        (put("more", value=1), "more = 1"),
        (put("version", value=4), "model.json: version 4, and this dist_train reads 1 to 3"),
        (put("version", value=True), "version True"),
        (lambda about: about.clear(), "version None"),
        (lambda about: about.pop("classes"), "classes"),
    ],
)  # fmt: skip
def test_an_impossible_value_names_its_key(change: Edit, wanted: str, broken: Path) -> None:
    edit(broken, change)
    text = refused(broken)
    assert wanted in text, text
    assert str(broken) in text or ".safetensors" in text


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"version": ' + b"9" * 5000 + b"}", b'{"version": 1}',
     b'{"version": 1e999}', b'{"version": "\\ud800"}', b"NaN", b"{}\0", b" " * ((1 << 26) + 1)],
    ids=range(13),
)  # fmt: skip
def test_a_file_that_is_not_a_model_json(data: bytes, broken: Path) -> None:
    (broken / "model.json").write_bytes(data)
    assert "model.json: " in refused(broken)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "part, name",
    [("network", name) for name in ("backbone.body.0.0.weight", "backbone.body.0.1.running_mean", "base_rows",
                                    "predictor.layers.0.weight", "predictor.layers.1.bias", "sample.activations")]
    + [("added", "activations")],
)  # fmt: skip
def test_values_that_are_not_finite(part: str, name: str, value: float, broken: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[-1] = value

    retensor(broken, part, change)
    text = refused(broken)
    assert f"{part}-" in text and f"tensor {name!r} has values that are not finite" in text


@pytest.mark.parametrize(
    "part, name, make, wanted",
    [
        ("network", "sample.labels", lambda old: old + 5, "must be whole numbers below 2"),
        ("network", "sample.labels", lambda old: -old, "must be whole numbers below 2"),
        ("network", "sample.labels", lambda old: old.float(), "must be of torch.int64"),
        ("network", "sample.labels", lambda old: old[:-1], "has the shape [5], and [6]"),
        ("network", "sample.activations", lambda old: old[:, :7], "has the shape [6, 7], and [6, 64]"),
        ("network", "base_rows", lambda old: old[:1], "has the shape [1, 64], and [2, 64]"),
        ("network", "base_rows", lambda old: old[0, 0], "has the shape []"),
        ("network", "backbone.head.weight", lambda old: old[0, 0], "has the shape []"),
        ("network", "base_rows", lambda old: old.to(torch.complex64), "is of torch.complex64"),
        ("network", "base_rows", lambda old: old.double(), "is of torch.float64"),
        ("network", "backbone.body.0.1.running_var", lambda old: -old, "has negative values, and is a variance"),
        ("network", "backbone.body.0.0.weight", lambda old: old[:3], "do not fit together"),
        ("added", "activations", lambda old: old[:, :3], "has the shape [2, 3], and [2, 64]"),
        ("network", "base_rows", lambda old: old.long(), "is of torch.int64"),
        ("network", "backbone.body.0.0.weight", lambda old: old.long(), "is of torch.int64"),
        ("added", "activations", lambda old: old.long(), "is of torch.int64"),
        ("added", "activations", lambda old: old.double(), "is of torch.float64"),
        ("added", "activations", lambda old: old[:1], "has the shape [1, 64], and [2, 64]"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(part: str, name: str, make: Any, wanted: str, broken: Path) -> None:
    retensor(broken, part, lambda tensors: tensors.update({name: make(tensors[name]).clone()}))
    text = refused(broken)
    assert wanted in text and (name in text or "fit together" in text), text


@pytest.mark.parametrize("name", ["base_rows", "sample.labels", "backbone.head.weight", "predictor.layers.0.bias"])
def test_missing_and_superfluous_tensors(name: str, broken: Path) -> None:
    retensor(broken, "network", lambda tensors: tensors.update({f"{name}.more": torch.zeros(1)}))
    assert "more" in refused(broken)
    retensor(broken, "network", lambda tensors: [tensors.pop(f"{name}.more"), tensors.pop(name)])
    assert name.rpartition(".")[2] in refused(broken)
    retensor(broken, "added", lambda tensors: tensors.clear())
    assert refused(broken)


def test_a_damaged_posterior(models: Path, tmp_path: Path) -> None:
    """A model that scores by densities too has what they need, and another has nothing of it."""
    sound = models / "phi_plus_plda"
    edits: list[tuple[Edit, str]] = [
        (put("method", "plda_power", value=0), "method.plda_power = 0"),
        (
            put("method", "plda_temperature", value=None),
            "plda_power and plda_temperature must be there for phi_plus_plda",
        ),
        (put("method", "name", value="phi_plus"), "plda_power and plda_temperature must not be there for phi_plus"),
    ]
    for number, (change, wanted) in enumerate(edits):
        folder = Path(shutil.copytree(sound, tmp_path / f"json{number}"))
        edit(folder, change)
        assert wanted in refused(folder)
    tensors: list[tuple[Callable[[dict[str, torch.Tensor]], object], str]] = [
        (lambda of: of.pop("posterior.basis"), "'posterior.basis' is not there"),
        (lambda of: of.update({"posterior.basis": of["posterior.basis"][1:]}), "has the shape [63, 64], and [64, 64]"),
        (lambda of: of["posterior.between"].neg_(), "'posterior.between' has values that are not above zero"),
        (lambda of: of["posterior.counts"].zero_(), "'posterior.counts' has values that are not above zero"),
        (lambda of: of["posterior.centre"].fill_(math.nan), "'posterior.centre' has values that are not finite"),
    ]
    for number, (damage, wanted) in enumerate(tensors):
        folder = Path(shutil.copytree(sound, tmp_path / f"tensors{number}"))
        retensor(folder, "network", damage)
        assert wanted in refused(folder)
    folder = Path(shutil.copytree(models / "phi_plus", tmp_path / "without"))
    retensor(folder, "network", lambda of: of.update({"posterior.counts": torch.ones(6)}))
    assert "'posterior.counts' belongs to nothing" in refused(folder)


def test_weights_too_large_for_finite_scores(broken: Path, warm_python: WarmPython) -> None:
    """Every weight is finite, the scores are not. The command line prints an error line, and no invalid JSON."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["backbone.body.0.1.weight"].fill_(3e38)
        tensors["backbone.body.3.1.weight"].fill_(3e38)

    retensor(broken, "network", change)
    photo = broken.parent / "photo.png"
    from PIL import Image

    Image.linear_gradient("L").save(photo)
    with pytest.raises(UserError, match="not finite"):
        Classifier.load(broken, "cpu").predict(photo)
    done = warm_python.run("classify", str(broken), str(photo), "--json")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert "not finite" in done.stderr


@pytest.mark.parametrize("part", ["model.json", "network", "added"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "nowhere", "unreadable"])
def test_files_that_are_not_regular(kind: str, part: str, broken: Path, warm_python: WarmPython) -> None:
    """Try every command that opens a model; none of them may wait."""
    path = next(path for path in broken.iterdir() if path.name.startswith(part))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "nowhere":
        path.symlink_to("nowhere")
    else:
        path.symlink_to("/proc/self/mem")  # claims to be a regular file, and cannot be read
    text = refused(broken)
    assert str(path) in text or (kind == "nowhere" and str(broken) in text), text
    if kind == "pipe" and part == "model.json":
        for name, *options in (("adapt", "--list"), ("serve",)):
            done = warm_python.run(name, str(broken), *options, timeout=300)
            assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
            assert "is no ordinary file" in done.stderr


def test_a_change_of_a_damaged_model_is_refused(broken: Path) -> None:
    model = Classifier.load(broken, "cpu")
    (broken / "model.json").unlink()
    os.mkfifo(broken / "model.json")
    with pytest.raises(UserError, match="is no ordinary file"):
        model.save(broken)


def test_a_model_that_could_not_be_opened_is_not_written(broken: Path, tmp_path: Path) -> None:
    model = Classifier.load(broken, "cpu")
    for value in (math.nan, {"deep": [math.inf]}, "\ud800"):
        model.provenance["rate"] = value
        with pytest.raises(UserError, match=r"model.json: (provenance|damaged)"):
            model.save(tmp_path / "other")
        assert [path.name for path in (tmp_path / "other").iterdir() if path.name != ".lock"] == []


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.sampled_from([10**400, -1, 0, 1, 2, 3, 512, "max", "resnet18", "\x1b[0m", 1e308, [[]], {"a": None}]),
)  # fmt: skip


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a JSON document, as keys and indices."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in ((*before, key), *places(item, (*before, key)))]


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_change_of_model_json_gives_an_error_line_or_a_model(untrained_model: Path, data: st.DataObject) -> None:
    """Replace, remove or add a value anywhere, or change bytes of the file."""
    text = (untrained_model / "model.json").read_text()
    about: Any = json.loads(text)
    original = copy.deepcopy(about)
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.sampled_from(places(about) or [("version",)]))
            holder = about
            for key in place[:-1]:
                holder = holder[key]
            what = data.draw(st.sampled_from(["replace", "remove", "add"]))
            if what == "replace":
                holder[place[-1]] = data.draw(LEAVES)
            elif what == "remove":
                del holder[place[-1]]
            elif isinstance(holder, dict):
                holder[data.draw(st.text(max_size=5))] = data.draw(LEAVES)
        changed = json.dumps(about).encode()
    else:
        raw = bytearray(text.encode())
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        changed = bytes(raw)
    try:
        parsed = model_json.parse(changed, "model.json")
    except UserError as error:
        line = str(error)
        assert "\n" not in line and line.isprintable() and line.startswith("model.json: ")
        return
    _opens_or_is_refused(untrained_model, changed)
    if changed == text.encode():
        assert parsed.model_dump(mode="json")["classes"] == original["classes"]


def _opens_or_is_refused(untrained_model: Path, changed: bytes) -> None:
    folder = untrained_model.with_name("changed")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(untrained_model, folder)
    (folder / "model.json").write_bytes(changed)
    with contextlib.suppress(UserError):
        model = Classifier.load(folder, "cpu")
        shares = [prediction.probability for prediction in model.answers(torch.ones(1, 64), topk=99)[0]]
        assert math.isclose(sum(shares), 1, abs_tol=1e-3)
        json.dumps(model.about(), allow_nan=False, ensure_ascii=False).encode()
