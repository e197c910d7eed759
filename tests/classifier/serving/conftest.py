"""A page of an untrained model, served by a process of its own with the limits that a test gives."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.processes import WarmPython

Page = Callable[..., httpx.Client]

_SERVE = """
import json, sys
from pathlib import Path
from dist_train.classifier.serving.address import PublicURL, parse_network
from dist_train.classifier.serving.connections import ConnectionLimits
from dist_train.classifier.serving.server import ServeOptions, serve
from dist_train.classifier.serving.served_model import Limits
options, limits, connection_limits = map(json.loads, sys.argv[2:])
if "public" in options:
    options["public"] = PublicURL.parse(options["public"])
if "proxies" in options:
    options["proxies"] = [parse_network(text) for text in options["proxies"]]
serve([Path(sys.argv[1])], ServeOptions(**options), Limits(**limits), ConnectionLimits(**connection_limits))
"""


@pytest.fixture(scope="module")
def page(untrained_model: Path, tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython) -> Iterator[Page]:
    """Return ``page(options, limits, header=1, ...)``, which serves a copy of ``untrained_model`` and returns a client.

    ``options`` and ``limits`` are fields of ``ServeOptions`` and ``Limits``, the keywords those of
    ``ConnectionLimits``. The same arguments return the same page. After the last test of a file the servers are ended,
    and none may have printed a traceback.
    """
    started: dict[str, tuple[subprocess.Popen[str], httpx.Client]] = {}

    def begin(
        options: dict[str, Any] | None = None, limits: dict[str, int] | None = None, **connection_limits: float
    ) -> httpx.Client:
        words = [json.dumps(fields) for fields in ({"port": 0, **(options or {})}, limits or {}, connection_limits)]
        if " ".join(words) in started:
            return started[" ".join(words)][1]
        copy = shutil.copytree(untrained_model, tmp_path_factory.mktemp("served") / "model")
        process = subprocess.Popen([warm_python.python, "-c", _SERVE, str(copy), *words], stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, env=warm_python.environment())  # fmt: skip
        assert process.stdout
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert lines[1].startswith("http"), lines + process.stdout.readlines()
        client = httpx.Client(base_url=lines[1].strip().partition("?")[0], timeout=300)
        client.headers["X-Process"] = str(warm_python.forked(process.pid))
        started[" ".join(words)] = process, client
        return client

    yield begin
    for process, client in started.values():
        client.close()
        process.send_signal(signal.SIGINT)
        output = process.stdout.read() if process.stdout else ""
        assert process.wait() == 0 and "Traceback" not in output, output
