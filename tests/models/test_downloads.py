"""Downloads of a library's own weights from a real server: whole, once, and one line where they fail."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from fixtures.downloads import WeightServer, use
from fixtures.processes import WarmPython
from safetensors.torch import save as saved_tensors

from dist_train.config import BackboneConfig
from dist_train.errors import UserError
from dist_train.models.backbones import fetching, open_pretrained

TIMM, TORCHVISION = "timm:test_resnet.r160_in1k", "torchvision:shufflenet_v2_x0_5"
ON_HUB = "/timm/test_resnet.r160_in1k/resolve/main/"
State = dict[str, torch.Tensor]


def random_weights(source: str) -> State:
    torch.manual_seed(0)
    library, _, name = source.partition(":")
    network = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, weights=None)
    state: State = network.state_dict()
    return state


def pickled(state: State) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.fixture(params=[TIMM, TORCHVISION, "without a hash"])
def offered(request: pytest.FixtureRequest, weight_server: WeightServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Offer the weights of a network. Returns its source, its tensors, and the path of its file on the server."""
    source = TIMM if request.param == TIMM else TORCHVISION
    state = random_weights(source)
    if source == TIMM:
        path, content = f"{ON_HUB}model.safetensors", saved_tensors(state)
    else:
        content = pickled(state)
        digest = f"-{hashlib.sha256(content).hexdigest()[:8]}" if request.param == TORCHVISION else ""
        path = f"/models/shufflenet{digest}.pth"
        entry: Any = torchvision.models.get_model_weights("shufflenet_v2_x0_5")["IMAGENET1K_V1"].value
        monkeypatch.setattr(entry, "url", weight_server.url + path)
    weight_server.files[path] = content
    return SimpleNamespace(source=source, state=state, path=path, content=content)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client ask again at once, as it otherwise does after seconds."""
    clock = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)


def files(folder: Path) -> set[str]:
    """Return the names of the files in both caches that hold content of weights, whole or not."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000}


def test_weights_are_fetched_once_and_are_the_servers(
    offered: Any, weight_server: WeightServer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(f"fetch {weight_server.url}{offered.path} and name the file with")):
        open_pretrained(BackboneConfig(source=offered.source))
    assert not weight_server.asked
    for download in (True, False, True):
        opened = open_pretrained(BackboneConfig(source=offered.source, download=download))
        weights = opened.backbone.state_dict()
        names = {f"head.{part}": f"fc.{part}" for part in ("weight", "bias")}
        for name, tensor in weights.items():
            assert torch.equal(tensor, offered.state[names.get(name, name.removeprefix("body."))]), name
        assert opened.origin.sha256 == hashlib.sha256(offered.content).hexdigest()
        assert weight_server.fetched() == 1
        weight_server.files.clear()  # a second start needs no network
    assert len(files(tmp_path)) in (1, 2)  # the hub's cache has a link to its file


def test_an_old_upload_of_the_hub_is_taken(weight_server: WeightServer) -> None:
    state = random_weights(TIMM)
    weight_server.files[f"{ON_HUB}pytorch_model.bin"] = pickled(state)
    for download in (True, False):
        opened = open_pretrained(BackboneConfig(source=TIMM, download=download))
        assert torch.equal(opened.backbone.head.weight, state["fc.weight"])
    assert weight_server.fetched() == 1


def missing(server: WeightServer, offered: Any, _: pytest.MonkeyPatch) -> str:
    server.files.clear()
    return "404"


def cut(server: WeightServer, offered: Any, _: pytest.MonkeyPatch) -> str:
    server.cut = 5000
    return "peer closed connection" if offered.source == TIMM else f"5000 of {len(offered.content)} bytes came"


def silent(server: WeightServer, offered: Any, patch: pytest.MonkeyPatch) -> str:
    server.slow = 60
    patch.setattr(fetching, "_TIMEOUT", 0.2)
    patch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    return "timed out"


@pytest.mark.parametrize("fault", [missing, cut, silent], ids=lambda fault: fault.__name__)
def test_a_download_that_fails_is_a_line_and_leaves_nothing(
    fault: Any, offered: Any, weight_server: WeightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        reason = fault(weight_server, offered, patch)
        assert reason in refused(offered.source, f"{weight_server.url}{offered.path}")
    assert not files(tmp_path)
    weight_server.files[offered.path], weight_server.cut, weight_server.slow = offered.content, None, 0
    opened = open_pretrained(BackboneConfig(source=offered.source, download=True))
    assert opened.origin.sha256 == hashlib.sha256(offered.content).hexdigest()


def refused(source: str, url: str) -> str:
    """Try a download of ``url``, and return the reason that the error gives."""
    with pytest.raises(UserError) as caught:
        open_pretrained(BackboneConfig(source=source, download=True))
    line = str(caught.value)
    remedy = "fetch it elsewhere and name the file with --backbone.weights FILE"
    matched = re.fullmatch(rf"{re.escape(source)}\S*: cannot download {re.escape(url)} \((.*)\); {remedy}", line)
    assert matched, line
    return matched[1]


@pytest.mark.parametrize("offered", [TORCHVISION, "without a hash"], indirect=True)
def test_the_next_download_removes_what_a_killed_one_left(
    offered: Any, weight_server: WeightServer, tmp_path: Path, warm_python: WarmPython
) -> None:
    """A process is killed as it waits for the content; the file of a download of another name stays."""
    weight_server.slow = 60
    call = f"url_file('', {weight_server.url + offered.path!r}, True)"
    code = f"from dist_train.models.backbones.fetching import url_file; {call}"
    killed = subprocess.Popen([warm_python.python, "-c", code], env=warm_python.environment())
    while not begun(tmp_path):
        assert killed.poll() is None
        time.sleep(0.05)
    os.kill(warm_python.forked(killed.pid), signal.SIGKILL)
    killed.wait()
    [left] = begun(tmp_path)
    other = left.with_name(".other.pth.tmp-1-a")
    other.write_text("of a download that goes on")
    weight_server.slow = 0
    open_pretrained(BackboneConfig(source=offered.source, download=True))
    assert begun(tmp_path) == [other]


def begun(folder: Path) -> list[Path]:
    """Return the files of downloads that are not done."""
    return [path for path in folder.rglob("*") if ".tmp-" in path.name]


@pytest.mark.parametrize("offered", [TORCHVISION], indirect=True)
def test_a_file_whose_hash_is_not_that_of_its_name_is_refused(
    offered: Any, weight_server: WeightServer, tmp_path: Path
) -> None:
    weight_server.files[offered.path] = offered.content[::-1]
    assert refused(offered.source, weight_server.url + offered.path).startswith("its sha256 begins with ")
    assert not files(tmp_path)


@pytest.mark.parametrize("offered", [TIMM, TORCHVISION], indirect=True)
def test_without_a_network_the_line_says_so(offered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9"
    use(nowhere, tmp_path, monkeypatch)
    entry: Any = torchvision.models.get_model_weights("shufflenet_v2_x0_5")["IMAGENET1K_V1"].value
    monkeypatch.setattr(entry, "url", nowhere + offered.path)
    assert "refused" in refused(offered.source, nowhere + offered.path)


def test_a_connection_to_the_hub_that_breaks_once_goes_on(weight_server: WeightServer) -> None:
    state = random_weights(TIMM)
    weight_server.files[f"{ON_HUB}model.safetensors"] = saved_tensors(state)
    weight_server.cut, weight_server.cuts = 5000, 1
    opened = open_pretrained(BackboneConfig(source=TIMM, download=True))
    assert torch.equal(opened.backbone.head.weight, state["fc.weight"]) and weight_server.fetched() == 2
