"""The server as a process, over real sockets: simultaneous, cut off and oversized requests, tokens, a full disk."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import numpy as np
import pytest
from clients import added_names, files, photo, refusal, start
from fixtures.processes import WarmPython
from PIL import Image

from dist_train import Classifier

Serve = Callable[..., httpx.Client]


@pytest.fixture
def serve(model: Path, warm_python: WarmPython) -> Iterator[Serve]:
    started: list[tuple[subprocess.Popen[str], httpx.Client]] = []

    def begin(*options: str) -> httpx.Client:
        process, url = start(warm_python, model, *options)
        client = httpx.Client(base_url=url.partition("?")[0], timeout=120)
        started.append((process, client))
        return client

    yield begin
    for process, client in started:
        client.close()
        process.send_signal(signal.SIGINT)
        output = process.stdout.read() if process.stdout else ""
        assert process.wait() == 0 and "Traceback" not in output, output


def test_photos_are_classified_and_a_class_is_added(serve: Serve, model: Path) -> None:
    web = serve()
    page = web.get("/")
    assert page.status_code == 200 and "page/main.js" in page.text
    asked = web.post("/api/v1/models/model/classify", files=files(photo(1), b"text", photo(2))).json()["results"]
    assert asked[1] == {"name": "photo 1.jpg", "error": "photo 1.jpg: not an image of a known format; convert it to "
                                                        "JPEG or PNG", "code": "photo.format",
                        "values": {"photo": "photo 1.jpg"}}  # fmt: skip
    own = Classifier.load(model, "cpu")
    wanted = own.predict(photo(1))[0]
    assert [prediction["name"] for prediction in asked[0]["predictions"]] == [prediction.name for prediction in wanted]
    assert np.allclose(
        [prediction["probability"] for prediction in asked[0]["predictions"]],
        [prediction.probability for prediction in wanted],
    )

    added = web.post("/api/v1/models/model/classes", data={"name": "öwl + 猫"}, files=files(photo(1), photo(3)))
    assert added.status_code == 200 and added.json()["classes"][-1]["photos"] == 2
    now = web.post(
        "/api/v1/models/model/predictions", json={"ids": [asked[0]["id"], "unknown", asked[2]["id"]]}
    ).json()["results"]
    assert now[1] is None and len(now[0]["predictions"]) == 5
    own.add_class("öwl + 猫", [photo(1), photo(3)])
    assert [prediction["name"] for prediction in now[2]["predictions"]] == [
        prediction.name for prediction in own.predict(photo(2))[0]
    ]
    assert added_names(model) == ["öwl + 猫"]  # on disk when the answer came

    assert web.post("/api/v1/models/model/rename", json={"name": "öwl + 猫", "new": "cat"}).status_code == 200
    archive = web.get("/api/v1/models/model/download")
    with zipfile.ZipFile(io.BytesIO(archive.content)) as file:
        file.extractall(model.parent / "unpacked")
    assert added_names(model.parent / "unpacked" / "model") == ["cat"]
    assert web.post("/api/v1/models/model/remove", json={"name": "cat"}).status_code == 200 and added_names(model) == []


def test_a_refused_request_changes_nothing(serve: Serve, model: Path) -> None:
    web = serve("--max_upload_mb", "1", "--max_megapixels", "1", "--max_classes", "8")
    first = Classifier.load(model, "cpu").classes[0].name

    def code_and_detail(response: httpx.Response) -> tuple[int, str]:
        return response.status_code, refusal(response)

    def add(name: str, *photos: bytes) -> tuple[int, str]:
        return code_and_detail(web.post("/api/v1/models/model/classes", data={"name": name}, files=files(*photos)))

    assert add(first, photo(1)) == (422, f"class '{first}': exists already; take another name, or remove or rename "
                                         f"that one first")  # fmt: skip
    assert add("x", photo(1), photo(2)[:300])[1].startswith("photo 1.jpg: damaged or cut off")
    assert add("x", b"")[1].startswith("photo 0.jpg: not an image of a known format")
    assert add(" ", photo(1))[1].startswith("class name ' ': it begins or ends with a space; give 1 to 200")
    assert add("", photo(1)) == (422, "name: Field required")
    assert code_and_detail(web.post("/api/v1/models/model/classes", data={"name": "x"})) == (
        422,
        "images: Field required",
    )
    large = io.BytesIO()
    Image.new("RGB", (1001, 1000)).save(large, "PNG")
    assert add("x", large.getvalue()) == (
        422,
        "photo 0.jpg: 1001 x 1000 pixels, and 1000000 are the limit; make it smaller",
    )
    wanted = "the upload is over 1 MB, the limit of this server; send fewer or smaller photos"
    assert add("x", bytes(1_000_001)) == (413, wanted)
    boundary = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'

    def endless() -> Iterator[bytes]:
        yield boundary
        for _ in range(50):
            yield bytes(100_000)

    head = {"Content-Type": "multipart/form-data; boundary=b"}
    assert code_and_detail(web.post("/api/v1/models/model/classify", content=endless(), headers=head)) == (413, wanted)
    assert code_and_detail(web.post("/api/v1/models/model/remove", json={"name": "nobody"}))[1].startswith(
        "class 'nobody': there is none"
    )
    assert code_and_detail(web.post("/api/v1/models/model/remove", json={}))[0] == 422
    assert web.get("/api/nothing").json() == {"detail": "Not Found", "code": "request.wrong", "values": {}}
    assert code_and_detail(web.post("/api/v1/models/model/classify", files=files(*[b"x"] * 1001)))[0] == 400
    assert added_names(model) == []
    assert web.post("/api/v1/models/model/classes", data={"name": "7"}, files=files(photo(7))).status_code == 200
    assert web.post("/api/v1/models/model/classes", data={"name": "8"}, files=files(photo(8))).status_code == 200
    assert add("9", photo(9))[1] == "8 classes: the limit of this server; remove some first"
    assert added_names(model) == ["7", "8"]


def test_simultaneous_additions_lose_nothing(serve: Serve, model: Path) -> None:
    web = serve()

    def add(number: int) -> int:
        data, name = photo(number % 50), f"class {number % 40}"
        return web.post("/api/v1/models/model/classes", data={"name": name}, files=files(data)).status_code

    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(add, range(80)))  # each name twice
    assert sorted(codes) == [200] * 40 + [422] * 40
    assert sorted(added_names(model)) == sorted(f"class {number}" for number in range(40))
    served = web.get("/api/v1/models/model").json()["classes"]
    assert [entry["name"] for entry in served[6:]] == added_names(model)


def test_an_upload_that_is_cut_off_changes_nothing(serve: Serve, model: Path) -> None:
    web = serve()
    where = urlsplit(str(web.base_url))
    body = web.build_request(
        "POST", "/api/v1/models/model/classes", data={"name": "cut"}, files=files(photo(1, 400))
    ).read()
    for kept in (200, len(body) // 2, len(body) - 3):
        with socket.create_connection((where.hostname or "", where.port or 0)) as raw:
            head = f"POST /api/v1/models/model/classes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            kind = f"Content-Type: multipart/form-data; boundary={body[2:34].decode()}\r\n\r\n"
            raw.sendall((head + kind).encode() + body[:kept])
    assert web.post("/api/v1/models/model/classes", data={"name": "whole"}, files=files(photo(2))).status_code == 200
    assert added_names(model) == ["whole"]


def test_the_server_ends_while_an_upload_stalls(model: Path, warm_python: WarmPython) -> None:
    process, url = start(warm_python, model)
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as raw:
        raw.sendall(
            b"POST /api/v1/models/model/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n--x"
        )
        time.sleep(0.5)
        process.terminate()
        process.wait(60)


def test_a_model_changed_by_another_process_is_not_overwritten(serve: Serve, model: Path, models: Path) -> None:
    web = serve()
    shutil.rmtree(model)
    assert refusal(web.get("/api/v1/models/model/download")).startswith("the model cannot be read")
    other = Classifier.load(models / "phi2")
    other.add_class("stolen", photo(5))
    other.save(model)
    refused = web.post("/api/v1/models/model/classes", data={"name": "x"}, files=files(photo(1)))
    assert refused.status_code == 422 and "was changed since it was loaded" in refusal(refused)
    assert added_names(model) == ["stolen"]


def test_other_web_sites_cannot_reach_the_server(serve: Serve, model: Path) -> None:
    """A site cannot do so by a name of its own for 127.0.0.1, nor by a request from its page."""
    web = serve()
    assert web.get("/api/v1/models/model", headers={"Host": "evil.example"}).status_code == 421
    ask: dict[str, Any] = {"data": {"name": "x"}, "files": files(photo(1))}
    refused = web.post("/api/v1/models/model/classes", headers={"Origin": "http://evil.example"}, **ask)
    assert refused.status_code == 403 and "may not change this model" in refusal(refused)
    for broken in ({"Host": "[::1"}, {"Host": "localhost", "Origin": "http://[::1"}):
        assert web.post("/api/v1/models/model/classes", headers=broken, **ask).status_code in (421, 403)
    assert web.head("/").status_code == 200
    own = f"http://{web.base_url.host}:{web.base_url.port}"
    assert web.post("/api/v1/models/model/classes", headers={"Origin": own}, **ask).status_code == 200
    assert web.get("/", headers={"Host": "localhost:1"}).headers["Content-Security-Policy"].startswith("default-src")


def test_a_server_open_to_a_network_asks_for_a_token(model: Path, warm_python: WarmPython) -> None:
    process, url = start(warm_python, model, "--host", "0.0.0.0", "--token", "long enough to be one / and odd?")
    port, token = urlsplit(url).port, unquote(url.rpartition("=")[2])
    assert token == "long enough to be one / and odd?"
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as web:
        assert web.get("/").status_code == 401 and "page/login.js" in web.get("/").text
        for path in ("/api/v1/models/model", "/api/v1/models/model/download"):
            assert web.get(path).status_code == 401
            assert web.get(path, headers={"Authorization": "Bearer " + "x" * 32}).status_code == 401
            assert web.get(path, params={"token": token}).status_code == 401  # in the address of the page only
        assert web.post("/api/v1/models/model/remove", json={"name": "x"}).status_code == 401
        assert web.get("/api/v1/models/model", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        opened = web.get("/", params={"token": token})
        assert opened.status_code == 303 and token not in opened.headers["location"]
        cookie = opened.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert web.get("/").status_code == 200 and web.get("/api/v1/models/model").status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


def test_a_served_model_is_not_served_or_changed_twice(serve: Serve, model: Path, warm_python: WarmPython) -> None:
    serve()
    for command in (["serve", str(model), "--port", "0"], ["adapt", str(model), "--remove", "x"]):
        done = warm_python.run(*command)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and "another process changes or serves this model" in done.stderr


@pytest.mark.parametrize(
    "options, wanted",
    [
        (["--host", "127.0.0.1", "--port", "70000"], "--port 70000: must be in 0..65535"),
        (["--host", "203.0.113.7"], "--host 203.0.113.7 --port 8000: Cannot assign requested address"),
        (["--host", "[::1]"], "--host [::1]: leave the brackets out: --host ::1"),
        (["--host", "0.0.0.0", "--token", "short"], "--token: give at least 16 characters"),
        (["--max_classes", "0"], "--max_upload_mb, --max_megapixels and --max_classes: must be >= 1"),
    ],
)
def test_wrong_options_give_a_single_line(
    options: list[str], wanted: str, model: Path, warm_python: WarmPython
) -> None:
    done = warm_python.run("serve", str(model), *options)
    assert done.returncode == 1 and wanted in done.stderr and done.stderr.count("\n") == 1


def test_a_full_disk_gives_an_error_and_changes_nothing(
    serve: Serve, models: Path, model: Path, small_disk: Callable[[str], Path]
) -> None:
    size = sum(path.stat().st_size for path in (models / "phi2").iterdir())
    disk = small_disk(f"{(size + 30_000) // 1024}k")
    shutil.rmtree(model)
    shutil.copytree(models / "phi2", disk / "model")
    model.symlink_to(disk / "model")
    web = serve()
    refused = web.post("/api/v1/models/model/classes", data={"name": "x"}, files=files(*(photo(n) for n in range(30))))
    assert refused.status_code == 507 and "No space left" in refusal(refused)
    assert refused.json()["code"] == "disk.full"
    assert json.loads((model / "model.json").read_text())["classes"][-1]["wnid"] and added_names(model) == []
    assert len(web.get("/api/v1/models/model").json()["classes"]) == 6
