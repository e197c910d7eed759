"""The code of a row is everything that can change one of its numbers, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_train.fewshot.methods import METHODS
from dist_train.fewshot.methods.class_mean import ClassMean
from dist_train.stages import row_code
from dist_train.stages.row_code import CARRIERS, code_of
from dist_train.version import PACKAGE

ALL = set(METHODS)
CALIBRATED = {"phi2cal", "phi_plus"}
GAUSSIAN = {"gda", "plda", "plda_own", "plda_rows", "plda_plus", "fecam", "phi_plus_plda", "phi_plus_logistic"}
TEEN = {"phi2_teen", "phi_plus_teen"}
TRAINED_ON = {"phi_plus_held", "phi_plus_logistic", "phi_plus_plda"}
NETWORKS = {"triplet_network", "triplet_network10", "triplet_network1", "finetune_network"}
NEAREST = {"nn", "nn10", "nn1", "nn_oracle", "triplet", "triplet10", "triplet1", *NETWORKS} - {"finetune_network"}


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., set[str]]:
    """Return ``changed(file, old, new)``: the rows whose code differs after this edit in a copy of the package."""

    def edit(file: str, old: str = "", new: str = "\n_ANOTHER = 1\n") -> set[str]:
        copy = tmp_path / str(len(list(tmp_path.iterdir()))) / "dist_train"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new) if old else text + new)
        return {name for name in METHODS if code_of(name, copy) != code_of(name)}

    return edit


@pytest.mark.parametrize(
    "file",
    ["report/chart.py", "report/plots.py", "report/class_vectors.py", "report/page.py", "report/tables.py",
     "report/markdown.py", "report/wording.py", "report/comparison.py", "report/paper.py", "report/per_class.py",
     "report/examples.py", "report/tensorboard.py", "fewshot/results.py", "stages/reporting.py",
     "stages/evaluate.py", "stages/row_store.py", "stages/part_store.py", "stages/share.py",
     "stages/pretrain.py", "stages/networks.py",
     "training/strategies/strategy.py",
     "models/backbones/ours.py",
     "config/fewshot.py", "errors.py"],
)  # fmt: skip
def test_code_that_shows_rows_or_makes_their_inputs_does_not_count(changed: Callable[..., set[str]], file: str) -> None:
    assert changed(file) == set()


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("stages/scoring.py", ALL), ("fewshot/part.py", ALL),
        ("stages/network_scoring.py", NETWORKS), ("stages/network_store.py", NETWORKS),
        ("fewshot/base_head.py", ALL), ("fewshot/methods/finetune_network.py", {"finetune_network"}),
        ("fewshot/protocols/joint.py", ALL), ("fewshot/protocols/low_shot.py", ALL),
        ("fewshot/protocols/episodes.py", ALL), ("fewshot/method.py", ALL), ("models/predictor.py", ALL),
        ("data/activations.py", ALL), ("data/splits.py", ALL), ("fewshot/calibration.py", None),
        ("fewshot/methods/class_mean.py", {"mean"}), ("fewshot/methods/ridge.py", {"ridge"}),
        ("fewshot/methods/gaussian.py", GAUSSIAN),
        ("fewshot/head.py", {*GAUSSIAN, *TEEN, "centred", "teen", "quantile"}),
        ("fewshot/towards_base.py", {"teen", *TEEN, "fecam", "ranpac"}),
        ("fewshot/methods/calibrated.py", {"phi2cal"}), ("fewshot/methods/nearest_neighbour.py", NEAREST),
        ("fewshot/methods/triplet.py", {"triplet", "triplet10", "triplet1"}),
        ("fewshot/methods/last_layer.py", {"finetune", "logistic", "child", "linear_oracle", *TRAINED_ON}),
    ],
)  # fmt: skip
def test_code_that_computes_rows_counts(changed: Callable[..., set[str]], file: str, rows: set[str] | None) -> None:
    found = changed(file)
    # Calibration is part of every method that gives each class rows of its own.
    assert found == rows if rows else found > CALIBRATED and not found & {"mean", "nn", "ridge", "finetune"}


def test_only_code_counts(changed: Callable[..., set[str]]) -> None:
    assert changed("fewshot/protocols/joint.py", new="\n\n# a remark\n") == set()
    assert changed("fewshot/protocols/joint.py", "class Queries:\n", 'class Queries:\n    "Asked."\n') == set()
    assert changed("fewshot/protocols/joint.py", "def support_rows(", "def support_rows(\n    ") == set()
    assert (
        changed("stages/scoring.py", "max(self.config.shots), seed, d)", "max(self.config.shots), seed, d + 1)") == ALL
    )
    assert changed("data/activations.py", "dtype=np.float64", "dtype=np.float32") == ALL


def test_imports_are_followed_where_they_run(tmp_path: Path) -> None:
    """Also within functions, and relative imports; but not those for types only."""
    copy = tmp_path / "dist_train"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    more = "\nif TYPE_CHECKING:\n    from dist_train.report import svg\n"
    more += "else:\n    from dist_train.report import per_class\n"
    more += "\ndef later() -> None:\n    from ..report import class_vectors\n    import dist_train.report.paper\n"
    method = copy / "fewshot" / "method.py"
    method.write_text(method.read_text() + more)
    added = code_of("mean", copy).keys() - code_of("mean").keys()
    assert {f"dist_train.report.{name}" for name in ("per_class", "class_vectors", "paper")} <= added
    assert "dist_train.report.chart" not in added and "dist_train.runs.stage" not in added


def test_a_new_method_counts_with_its_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"__module__": "dist_train.fewshot.methods.mine", "labels": {"mine": "Mine"}, "base_as": "ridge"}
    mine = type("Mine", (ClassMean,), names)
    monkeypatch.setitem(METHODS, "mine", mine)
    seen = []
    for number, (method, helper) in enumerate([("X = 1", "Y = 1"), ("X = 2", "Y = 1"), ("X = 1", "Y = 2")]):
        copy = tmp_path / str(number) / "dist_train"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "fewshot" / "methods" / "mine.py").write_text(f"from dist_train.fewshot import helper\n{method}\n")
        (copy / "fewshot" / "helper.py").write_text(helper)
        seen.append(code_of("mine", copy))
        assert code_of("mean", copy) == code_of("mean")
    assert len({json.dumps(code) for code in seen}) == 3
    # Its base scores are those of another row, which it names and does not import.
    assert {"dist_train.fewshot.helper", "dist_train.fewshot.methods.ridge", "dist_train.stages.scoring"} <= seen[
        0
    ].keys()


def test_no_module_is_missing_and_no_carrier_is_superfluous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with the modules that Python itself loads for scoring and all methods."""
    loading = "import sys, dist_train.stages.scoring; print(*(name for name in sys.modules if 'dist_train' in name))"
    done = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, check=True)
    with_carriers = {module for name in METHODS for module in code_of(name)} | set(CARRIERS)
    direct = {module for name in with_carriers - set(CARRIERS) for module in _imports(name)}
    assert not set(CARRIERS) - direct, "these are imported by none that computes; take them out"
    monkeypatch.setattr(row_code, "CARRIERS", {})
    followed = {module for name in METHODS for module in code_of(name)}
    missing = {name for name in done.stdout.split() if _text(name)} - followed
    assert not missing, "Python loads these, and the imports that are followed do not lead there"
    assert not with_carriers & {f"dist_train.report.{name}" for name in ("markdown", "page", "svg", "paper", "html")}


def _text(module: str) -> str:
    file = row_code._file(module, PACKAGE)
    return file.read_text() if file else ""


def _imports(module: str) -> frozenset[str]:
    file = row_code._file(module, PACKAGE)
    return row_code._read(module, file)[0] if file else frozenset()
