"""A model to change, and a page of one as a process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.head import Class
from dist_train.classifier.network import Network, build_untrained
from dist_train.classifier.photos import Preprocess
from dist_train.config import LearnConfig

Page = Callable[..., httpx.Client]

_SERVE = """
import json, sys
from pathlib import Path
from dist_train.classifier.serving.address import PublicURL, parse_network
from dist_train.classifier.serving.connections import ConnectionLimits
from dist_train.classifier.serving.server import ServeOptions, serve
from dist_train.classifier.serving.served_model import Limits
place, limits, patience = map(json.loads, sys.argv[2:])
place["public"] = PublicURL.parse(place["public"]) if "public" in place else None
place |= {"proxies": [parse_network(text) for text in place["proxies"]]} if "proxies" in place else {}
serve(Path(sys.argv[1]), ServeOptions(**place), Limits(**limits), ConnectionLimits(**patience))
"""


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "phi2", tmp_path / "model"))


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, two classes of a run and one that was added; not to be changed."""
    torch.manual_seed(0)
    rows, learn = torch.randn(2, 512), LearnConfig()
    backbone, phi = build_untrained({"name": "resnet10", "num_classes": 2, "small_stem": False}, "phi2", rows, learn)
    sample = torch.randn(6, 512).half().float(), torch.tensor([0, 1] * 3)
    network = Network(backbone, "phi2", phi, learn, rows, sample, 0.3, Preprocess(36, 32)).on(torch.device("cpu"))
    made = Classifier(network, [Class("cat", "n1"), Class("dog", "n2")], range(2), provenance={"seed": 0})
    made.add_activations("owl", torch.randn(2, 512))
    folder = tmp_path_factory.mktemp("untrained") / "model"
    made.save(folder)
    return folder


@pytest.fixture(scope="module")
def page(untrained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """``page(place, limits, header=1, ...)``: a client of a page of a copy of ``untrained_model``, with the fields of
    ``ServeOptions`` and ``Limits`` that are given, and those of ``ConnectionLimits`` by name. The same page where the
    same is asked for. Ended, and its words looked at, after the last test of a file."""
    started: dict[str, tuple[subprocess.Popen[str], httpx.Client]] = {}

    def begin(place: dict[str, Any] | None = None, limits: dict[str, int] | None = None, **patience: float) -> Any:
        words = [json.dumps(fields) for fields in ({"port": 0, **(place or {})}, limits or {}, patience)]
        if " ".join(words) in started:
            return started[" ".join(words)][1]
        copy = shutil.copytree(untrained_model, tmp_path_factory.mktemp("served") / "model")
        process = subprocess.Popen([sys.executable, "-c", _SERVE, str(copy), *words], stdout=subprocess.PIPE, text=True,
                                   stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        assert process.stdout
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert lines[1].startswith("http"), lines + process.stdout.readlines()
        client = httpx.Client(base_url=lines[1].strip().partition("?")[0], timeout=300)
        client.headers["X-Process"] = str(process.pid)
        started[" ".join(words)] = process, client
        return client

    yield begin
    for process, client in started.values():
        client.close()
        process.send_signal(signal.SIGINT)
        said = process.stdout.read() if process.stdout else ""
        assert process.wait() == 0 and "Traceback" not in said, said
