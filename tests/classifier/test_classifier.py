"""A model answers like the evaluation; classes come and go; model folders are always whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from fixtures.processes import WarmPython
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_train import Classifier, UserError
from dist_train.classifier.from_run import from_run, held_out_activations
from dist_train.classifier.predicted import PredictedHead
from dist_train.distributed.context import Context
from dist_train.errors import WrongValue
from dist_train.fewshot import methods
from dist_train.fewshot.methods.gaussian import BesidePlus
from dist_train.runs.run import Run
from dist_train.stages.scoring import JointScoring


def supports(run: Run, shots: int) -> torch.Tensor:
    scoring = JointScoring(run, Context())
    return scoring.load(scoring.novel_train.rows[scoring.supports[0]])[:, :shots]


@pytest.mark.parametrize("rule", ["max", "mean", "rows"])
@pytest.mark.parametrize("method", ["phi1", "phi2", "phi2cal", "phi_plus", "plda_plus", "phi_plus_plda"])
def test_scores_equal_those_of_the_evaluation(method: str, rule: str, whole_run: Run) -> None:
    from dataclasses import replace

    scoring, shots = JointScoring(whole_run, Context()), supports(whole_run, 3)
    model = from_run(whole_run.config, method, rule)
    for number, photos in enumerate(shots):
        model.add_activations(f"new {number}", photos)
    with torch.inference_mode():
        wanted = methods.make(method, replace(scoring.base, rule=rule))
        queries = scoring.novel_queries.activations
        scores = torch.cat([wanted.base_scores(queries), wanted.take(shots)(queries)], 1)
    assert torch.allclose(model.scores(queries), scores, atol=1e-4)


@pytest.mark.parametrize("method", ["plda_plus", "phi_plus_plda"])
def test_densities_are_kept_with_the_model_and_are_of_the_classes_that_it_has(
    method: str, whole_run: Run, tmp_path: Path
) -> None:
    """Classes of different numbers of photos, one of the run's own among them; then without any class of the run."""
    shots, model = supports(whole_run, 3), from_run(whole_run.config, method)
    queries = shots.flatten(0, 1)
    for number, photos in enumerate(shots[1:], 1):
        model.add_activations(f"new {number}", photos[: number + 1])
    model.add_photo_activations(model.classes[0].name, shots[0])
    model.save(tmp_path / "m")
    again = Classifier.load(tmp_path / "m", "cpu")
    assert again.method == method and torch.equal(again.scores(queries), model.scores(queries))
    for entry in model.classes[:6]:
        model.remove_class(entry.name)
    assert model.scores(queries).isfinite().all() and model.scores(shots[2]).argmax(1).tolist() == [1, 1, 1]
    model.save(tmp_path / "m2")
    alone = Classifier.load(tmp_path / "m2", "cpu")
    assert torch.equal(alone.scores(queries), model.scores(queries))


@pytest.mark.parametrize("method, share", [("plda_plus", 0.0), ("phi_plus_plda", 0.5)])
def test_a_removed_class_of_the_run_leaves_no_density(method: str, share: float, whole_run: Run) -> None:
    """The level of the classes that stay is that of their densities alone."""
    scoring, model, kept = JointScoring(whole_run, Context()), from_run(whole_run.config, method), [0, 1, 2, 3, 5]
    model.remove_class(model.classes[4].name)
    queries = scoring.base_queries.activations
    with torch.inference_mode():
        beside = methods.make("plda_plus", scoring.base)
        assert isinstance(beside, BesidePlus)
        densities = beside.densities(beside.of_queries(queries), beside.means[kept], beside.counts[kept])
        rows = beside.plus.base_scores(queries)[:, kept]
        wanted = rows + (1 - share) * (densities.logsumexp(1) - rows.logsumexp(1))[:, None]
    assert torch.allclose(model.scores(queries), wanted, atol=1e-4)


def test_a_class_scores_as_the_best_of_its_photos(whole_run: Run) -> None:
    """Compare classes of one, two and three photos in the same model with a loop over rows."""
    shots, model = supports(whole_run, 3), from_run(whole_run.config, "phi2")
    for number, photos in enumerate(shots):
        model.add_activations(f"new {number}", photos[: number + 1])
    query = shots[0, 0]
    with torch.inference_mode():
        maker = model.maker
        assert isinstance(maker, PredictedHead)
        phi = maker.phi
        wanted = [float(query @ row) for row in maker.base_rows]
        wanted += [max(float(query @ phi(a)) for a in photos[: n + 1]) for n, photos in enumerate(shots)]
    assert np.allclose(model.scores(query[None])[0], wanted, atol=1e-4)
    best = model.answers(query[None], topk=3)[0]
    order = np.argsort(wanted)[::-1]
    assert [prediction.name for prediction in best] == [model.classes[n].name for n in order[:3]]
    shares = np.exp((np.sort(wanted)[::-1] - max(wanted)) / model.head().doubt.temperature)
    assert np.allclose([prediction.probability for prediction in best], (shares / shares.sum())[:3], atol=1e-5)


def test_an_added_class_is_recognised_without_training(models: Path, drawn: Path) -> None:
    """After a novel class is added from three photos, its other photos are recognised more often than those of another
    class are mistaken for it."""
    model = Classifier.load(models / "phi2")
    assert len(model.classes) == 6 and model.classes[0].wnid and not model.classes[0].added
    novel = json.loads((drawn / "split.json").read_text())["novel"]
    photos = {name: sorted((drawn / "train" / name).iterdir()) for name in novel}
    before = model.logits(photos[novel[0]][3:])
    model.add_class("okapi", photos[novel[0]][:3])
    logits = model.logits(photos[novel[0]][3:])
    assert torch.allclose(logits[:, :6], before) and logits.shape == (17, 7)
    others = model.logits(photos[novel[1]])
    own = lambda scores: (scores.argmax(1) == 6).float().mean()  # noqa: E731
    assert own(logits) > own(others)
    assert len(model.predict(photos[novel[0]][0])) == 1 and len(model.predict(photos[novel[0]], topk=99)[0]) == 7
    assert model.answers(torch.ones(1, 64), topk=np.int64(2)) == model.answers(torch.ones(1, 64), topk=2)
    for topk in (0, -1, 2.5, np.float64(2), "3", True, None, [1]):
        with pytest.raises(WrongValue, match=r"topk .*: must be a whole number >= 1"):
            model.predict(photos[novel[0]], topk=topk)
        with pytest.raises(ValueError, match=r"topk .*: must be a whole number >= 1"):
            model.answers(torch.ones(1, 64), topk=topk)
    assert model.predict([]) == []
    logits += 1  # the tensor is the caller's own, and may be changed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["phi2", "phi_plus", "phi_plus_plda"])
def test_a_gpu_answers_like_the_cpu(method: str, models: Path, tmp_path: Path) -> None:
    photos = [np.random.RandomState(n).randint(0, 256, (50 + n, 60, 3), np.uint8) for n in range(4)]
    model = Classifier.load(models / method, "cuda")
    model.add_class("a", photos[:2])
    model.save(tmp_path / "m")
    other = Classifier.load(tmp_path / "m", "cpu")
    assert torch.allclose(model.logits(photos).cpu(), other.logits(photos), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", ["phi2", "phi_plus", "phi_plus_plda"])
def test_base_accuracy_follows_the_added_classes(method: str, whole_run: Run) -> None:
    shots, model = supports(whole_run, 3), from_run(whole_run.config, method)
    activations, labels = held_out_activations(whole_run.config)
    assert len(labels) == 36
    wanted = []
    for number, photos in enumerate([None, *shots]):
        if photos is not None:
            model.add_activations(f"new {number}", photos)
        wanted.append(100 * float((model.scores(activations).argmax(1) == torch.tensor(labels)).double().mean()))
    assert np.allclose(model.base_accuracy(activations, labels), wanted) and len(wanted) == 4


@pytest.mark.parametrize("method", ["phi2", "phi_plus", "phi_plus_plda"])
def test_removed_classes_leave_no_trace_in_the_scores(method: str, whole_run: Run) -> None:
    shots, model = supports(whole_run, 2), from_run(whole_run.config, method)
    only = from_run(whole_run.config, method)
    for number, photos in enumerate(shots):
        model.add_activations(f"new {number}", photos)
    only.add_activations("new 2", shots[2])
    for name in ("new 0", model.classes[4].wnid, "new 1"):
        model.remove_class(name)
    only.remove_class(only.classes[4].name)
    queries = shots.flatten(0, 1)
    assert model.kept == (0, 1, 2, 3, 5)
    assert [entry.name for entry in model.classes] == [entry.name for entry in only.classes]
    assert torch.equal(model.scores(queries), only.scores(queries))


def test_a_refused_name_changes_nothing(models: Path) -> None:
    model, photo = Classifier.load(models / "phi2"), np.zeros((40, 40, 3), np.uint8)
    model.add_class("okapi", photo)
    before = model.classes
    for name in ("okapi", before[0].name, before[0].wnid):
        with pytest.raises(UserError, match="exists already"):
            model.add_class(name, photo)
        with pytest.raises(UserError, match="exists already"):
            model.rename_class(before[1].name, name)
    for name in ("", " ", " okapi", "a\nb", "x" * 201):
        with pytest.raises(UserError, match="give 1 to 200 printable characters"):
            model.add_class(name, photo)
    with pytest.raises(UserError, match="class 'zebra': no photos"):
        model.add_class("zebra", [])
    with pytest.raises(UserError, match="class 'zebra', photo 2: shape"):
        model.add_class("zebra", [photo, photo[0, 0]])
    for act in (model.remove_class, lambda name: model.rename_class(name, "x")):
        with pytest.raises(UserError, match="class 'zebra': there is none among the 7"):
            act("zebra")
    with pytest.raises(UserError, match="--rule min: give one of"):
        model.rule = "min"
    assert model.classes == before
    model.rename_class("okapi", "okapi")
    for entry in before[1:]:
        model.remove_class(entry.name)
    with pytest.raises(UserError, match="the last one cannot be removed"):
        model.remove_class(before[0].name)
    assert model.predict(photo)[0][0].probability == 1


NAMES = st.sampled_from(["a", "b", "c", "d"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "rename", "save"]), NAMES, NAMES), max_size=12))
def test_any_changes_survive_saving(models: Path, tmp_path: Path, changes: list[tuple[str, str, str]]) -> None:
    """Compare with a dictionary; a loaded model answers like the saved model."""
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    model, wanted = Classifier.load(models / "phi2", "cpu"), dict[str, torch.Tensor]()
    base = [entry.name for entry in model.classes]
    for number, (what, name, other) in enumerate(changes):
        try:
            if what == "add":
                photos = torch.randn(1 + number % 3, 64, generator=torch.Generator().manual_seed(number))
                model.add_activations(name, photos)
                assert name not in wanted
                wanted[name] = photos
            elif what == "remove":
                model.remove_class(name)
                del wanted[name]
            elif what == "rename":
                model.rename_class(name, other)
                wanted = {other if key == name else key: value for key, value in wanted.items()}
            else:
                model.save(tmp_path / "model")
                model = Classifier.load(tmp_path / "model", "cpu")
        except UserError:
            assert (name in wanted) == (what == "add") or (what == "rename" and other in wanted)
    assert [entry.name for entry in model.classes] == [*base, *wanted]
    model.save(tmp_path / "model")
    loaded = Classifier.load(tmp_path / "model", "cpu")
    queries = torch.randn(5, 64, generator=torch.Generator().manual_seed(99))
    assert loaded.classes == model.classes and torch.equal(loaded.scores(queries), model.scores(queries))
    assert loaded.provenance == model.provenance and loaded.provenance["split"]["holdout"] == "novel"
    undone = 0
    while loaded.last_change is not None:
        loaded.undo()
        undone += 1
    files = sorted(path.name.partition("-")[0] for path in (tmp_path / "model").iterdir() if path.name != ".lock")
    activations = files.count("added")  # states with the same activations share a file: a rename changes none
    assert files == [*["added"] * activations, *["model"] * undone, "model.json", "network"]
    assert 1 <= activations <= 1 + undone


@pytest.mark.parametrize(
    "damage, wanted",
    [
        (lambda folder: (folder / "model.json").unlink(), "its model.json is lost; copy it"),
        (lambda folder: [path.unlink() for path in folder.iterdir() if path.is_file()], "not a model (no model.json)"),
        (lambda folder: shutil.rmtree(folder), "no such folder; check the path"),
        (lambda folder: (folder / "model.json").write_text('{"version": 1'), "model.json: damaged"),
        (lambda folder: _edit(folder, version=4), "model.json: version 4, and this dist_train reads 1 to 3"),
        (lambda folder: (folder / "model.json").write_text("[]"), "model.json: damaged"),
        (lambda folder: _file(folder, "network").write_bytes(b"x"), "safetensors: changed or damaged"),
        (lambda folder: _flip(_file(folder, "network")), "safetensors: changed or damaged"),
        (lambda folder: _file(folder, "added").unlink(), "missing, though model.json names it"),
        (lambda folder: _edit(folder, classes=[]), "classes = []"),
        (lambda folder: _edit(folder, files=None), "files = None"),
        (lambda folder: _edit(folder, files={"network": 5}), "files.network = 5"),
        (lambda folder: _edit(folder, base_rows=[0, 1, 2, 3, 4, 9]), "tensor 'base_rows' has 6 rows"),
        (lambda folder: _edit(folder, base_rows=["a"] * 6), "base_rows.0 = 'a'"),
        (lambda folder: _edit(folder, preprocessing={"resize": "x", "size": 1}), "preprocessing.resize = 'x'"),
        (lambda folder: _edit(folder, preprocessing={"resize": 9, "size": -1}), "preprocessing.size = -1"),
        (lambda folder: _edit(folder, classes=[{"name": "a"}] * 6), "classes need different names"),
        (lambda folder: _edit(folder, backbone={"name": "resnet18", "num_classes": 6, "small_stem": False}),
         "do not fit together"),
    ],
)  # fmt: skip
def test_a_changed_model_is_refused_in_one_line(damage: object, wanted: str, models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "phi2", tmp_path / "model")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UserError) as error:
        Classifier.load(folder)
    assert wanted in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def _file(folder: Path, part: str) -> Path:
    return next(folder.glob(f"{part}-*"))


def _edit(folder: Path, **changes: object) -> None:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, **changes}))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


_CHANGES = """
import sys, torch
from dist_train import Classifier
model = Classifier.load(sys.argv[1], "cpu")
print("ready", flush=True)
for number in range(10_000):
    model.add_activations(f"class {number}", torch.randn(1, 64))
    model.save(sys.argv[1])
"""


def test_a_kill_during_a_save_leaves_a_model(models: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    """And a process that reads meanwhile finds a whole model."""
    for turn in range(5):
        folder = shutil.copytree(models / "phi2", tmp_path / f"model {turn}")
        process = subprocess.Popen(
            [warm_python.python, "-c", _CHANGES, str(folder)],
            stdout=subprocess.PIPE,
            env=warm_python.environment(),
        )
        assert process.stdout and process.stdout.readline() == b"ready\n"
        count = 0
        while count < 3 + turn:
            assert process.poll() is None
            names = [entry.name for entry in Classifier.load(folder, "cpu").classes[6:]]
            assert names == [f"class {number}" for number in range(len(names))]
            count = len(names)
        os.kill(warm_python.forked(process.pid), signal.SIGKILL)
        process.wait()
        assert 3 + turn <= count <= len(Classifier.load(folder, "cpu").classes) - 6


def test_two_processes_that_change_a_model_lose_nothing(models: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    """Of two loaded models the second to be saved is refused; so is a save while another process holds the folder."""
    folder = shutil.copytree(models / "phi2", tmp_path / "model")
    first, second = Classifier.load(folder), Classifier.load(folder)
    first.add_activations("a", torch.ones(1, 64))
    first.save(folder)
    first.add_activations("b", torch.ones(1, 64))
    first.copy().save(tmp_path / "model")  # continues from its own save
    second.add_activations("c", torch.ones(1, 64))
    with pytest.raises(UserError, match="was changed since it was loaded; load it again"):
        second.save(folder)
    assert [entry.name for entry in Classifier.load(folder).classes[6:]] == ["a", "b"]
    second.save(tmp_path / "elsewhere")
    with FileLock(folder / ".lock", is_singleton=False), pytest.raises(UserError, match="another process changes"):
        subprocess_save(folder, warm_python.python)


def subprocess_save(folder: Path, python: str) -> None:
    """Load and save in another process, without the ten seconds that a save waits for the lock."""
    code = f"""
import sys
from pathlib import Path
from dist_train import Classifier, UserError
from dist_train.classifier import model_folder
whole = model_folder.lock
model_folder.lock = lambda path, wait=0: whole(path, 0)
try:
    Classifier.load({str(folder)!r}).save({str(folder)!r})
except UserError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise UserError(done.stderr)


def test_wrong_activations_are_refused(models: Path) -> None:
    model = Classifier.load(models / "phi2")
    for bad in (torch.zeros(1, 7), torch.zeros(64), torch.full((1, 64), torch.nan)):
        with pytest.raises(UserError, match=r"give finite activations \[k, 64\]"):
            model.add_activations("x", bad)
    with pytest.raises(UserError, match="too small for half precision"):
        model.add_activations("x", torch.full((2, 64), 5e-9))
    assert len(model.classes) == 6


def test_names_that_look_the_same_are_the_same(models: Path) -> None:
    model = Classifier.load(models / "phi2")
    model.add_activations("caf\u00e9", torch.ones(1, 64))
    with pytest.raises(UserError, match="exists already"):
        model.add_activations("cafe\u0301", torch.ones(1, 64))
    model.remove_class("cafe\u0301")
    assert len(model.classes) == 6


def test_a_full_disk_leaves_the_model_as_it_was(models: Path, small_disk: object) -> None:
    size = sum(path.stat().st_size for path in (models / "phi2").iterdir())
    disk = small_disk(f"{(size + 60_000) // 1024}k")  # type: ignore[operator]
    folder = shutil.copytree(models / "phi2", disk / "model")
    model = Classifier.load(folder)
    model.add_activations("large", torch.randn(2000, 64))
    with pytest.raises(OSError):
        model.save(folder)
    assert len(Classifier.load(folder).classes) == 6
    left = sorted(path.name.partition("-")[0] for path in folder.iterdir() if path.name != ".lock")
    assert left == ["added", "model.json", "network"]
