"""What those who run a server ask of it: health, metrics, the API's description, the access log, several models."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsers import opened
from clients import connect, files, needs_both_families, photo, refusal, start
from fixtures.processes import WarmPython
from prometheus_client.parser import text_string_to_metric_families

from dist_train.classifier.serving.access import Access
from dist_train.classifier.serving.access_log import AccessLog
from dist_train.classifier.serving.address import PublicURL
from dist_train.classifier.serving.app import create_app
from dist_train.classifier.serving.metrics import Metrics
from dist_train.errors import UserError

Page = Callable[..., httpx.Client]
TOKEN = "a token of more than 16"


def metrics(web: httpx.Client) -> dict[tuple[str, ...], float]:
    """Return {(name, the values of its labels in order of their names): value} of what a server has counted."""
    families = text_string_to_metric_families(web.get("/metrics").raise_for_status().text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_requests_photos_and_batches(page: Page) -> None:
    web = page()
    before, classify = metrics(web), "/api/v1/models/model/classify"
    assert web.post(classify, files=files(photo(81), photo(82), b"text")).status_code == 200
    assert web.post(classify, files=files(photo(81))).status_code == 200
    assert web.post(classify).status_code == 422 and web.get("/secret/path").status_code == 404
    assert web.request("BREW", "/").status_code == 405
    after = metrics(web)

    def grown(*key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    route = "/api/v1/models/{model}/classify"
    assert grown("dist_train_http_requests_total", "200", "POST", route) == 2
    assert grown("dist_train_http_requests_total", "422", "POST", route) == 1
    assert grown("dist_train_http_requests_total", "404", "GET", "other") == 1
    assert not any("BREW" in key or "/secret/path" in key for key in after)  # what clients make up has no row each
    assert grown("dist_train_http_request_seconds_count", route) == 3
    assert grown("dist_train_http_received_bytes_total") > len(photo(81)) * 2 + len(photo(82))
    assert [grown("dist_train_photos_total", "model", result) for result in ("computed", "remembered", "unreadable")] \
        == [2, 1, 1]  # fmt: skip
    assert grown("dist_train_batch_photos_sum", "model") == 2 and grown("dist_train_batch_seconds_count", "model") >= 1
    assert after["dist_train_pending_photos", "model"] == after["dist_train_waiting_photos", "model"] == 0
    assert after["dist_train_model_loads_total", "model"] == 1 and after["dist_train_classes", "model"] == 3


def test_health_goes_through_the_model(page: Page) -> None:
    web = page()
    batches = metrics(web).get(("dist_train_batch_photos_count", "model"), 0)
    answers = [web.get("/health") for _ in range(20)]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"status": "ok"})] * 20
    assert 1 <= metrics(web)["dist_train_batch_photos_count", "model"] - batches < 20  # an outcome holds for a while
    assert web.head("/health").status_code == 200  # as load balancers ask


def test_health_of_a_model_that_cannot_answer(capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    from dist_train.classifier.serving import operations

    class Broken:
        async def try_out(self) -> None:
            raise RuntimeError("the GPU has gone")

    class Stuck:
        async def try_out(self) -> None:
            await asyncio.sleep(600)

    broken = operations.HealthCheck([Broken()])  # type: ignore[list-item]
    assert asyncio.run(broken.fault()).startswith("a model cannot answer")
    assert "the GPU has gone" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "_HEALTH_SECONDS", 0.05)
        stuck = operations.HealthCheck([Stuck()])  # type: ignore[list-item]
        assert asyncio.run(stuck.fault()) == "a model did not answer within 0.05 s"


def test_only_health_is_open_to_all(page: Page) -> None:
    web = page({"token": TOKEN})
    assert web.get("/health").json() == {"status": "ok"}
    for path in ("/metrics", "/openapi.json", "/docs", "/docs/swagger-ui.css", "/api/v1/models", "/health/"):
        assert web.get(path).status_code == 401, path
        assert web.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (200, 307), path
    opened = web.get("/", params={"token": TOKEN, "model": "a b"})
    assert opened.headers["location"] == "./?model=a+b"
    [cookie] = opened.headers.get_list("set-cookie")
    assert web.get("/metrics", headers={"Cookie": cookie.partition(";")[0]}).status_code == 200


def test_the_description_of_the_api_is_whole(page: Page) -> None:
    """Every operation has a name, a summary, and typed answers; every reference leads somewhere."""
    web = page()
    described = web.get("/openapi.json").json()
    operations = {(method, path): operation for path, methods in described["paths"].items()
                  for method, operation in methods.items()}  # fmt: skip
    assert ("post", "/api/v1/models/{model}/classify") in operations and ("get", "/health") in operations
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations) >= 10
    for where, operation in operations.items():
        assert operation["description"].endswith(".") and "(" not in operation["operationId"], where
        content = operation["responses"]["200"].get("content", {})
        assert "schema" not in content.get("application/json", {}) or content["application/json"]["schema"], where
        if where[1].startswith("/api/"):
            assert operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("Fault")
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described)))
    assert references == described["components"]["schemas"].keys() & references and "NamedAnswer" in references
    assert "servers" not in described and "HTTPBearer" not in json.dumps(described)

    behind = Access(TOKEN, "c", None, PublicURL.parse("https://photos.example/animals/"), 1, 1)
    described = create_app([], behind, Metrics()).openapi()
    assert described["servers"] == [{"url": "/animals"}]
    for path in ("/api/v1/models", "/metrics"):
        assert described["paths"][path]["get"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in described["paths"]["/health"]["get"]


def test_the_docs_need_nothing_from_elsewhere(page: Page, browser: Any) -> None:
    web = page()
    asked: list[str] = []
    with opened(browser, "light") as view:
        view.on("request", lambda request: asked.append(request.url))
        view.goto(str(web.base_url.join("/docs")))
        view.wait_for_selector("#operations-default-classify")
        assert view.locator(".opblock").count() >= 10 and view.complaints == []
        block = view.locator("#operations-default-classify")  # a photo can be sent from the page
        block.locator("button").first.click()
        block.locator("button.try-out__btn").click()
        block.locator("input[placeholder=model]").fill("model")
        block.locator("input[type=file]").first.set_input_files(
            {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photo(1)}
        )
        block.locator("button.execute").click()
        block.locator(".live-responses-table", has_text='"predictions"').wait_for()
        # Swagger UI says so of a format that it has no field for before it takes that of files.
        assert set(view.complaints) <= {"Could not find component: JsonSchema_string_binary"}
        assert "blob:" in web.get("/docs").headers["Content-Security-Policy"]  # it shows pictures so
    assert all(url.startswith((str(web.base_url), "data:")) for url in asked), asked


@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=needs_both_families)])
def test_the_access_log(untrained_model: Path, tmp_path: Path, warm_python: WarmPython, host: str) -> None:
    """A line of JSON a request, refused requests too, no token; the file may be moved away meanwhile."""
    model, log = shutil.copytree(untrained_model, tmp_path / "model"), tmp_path / "access.jsonl"
    process, url = start(warm_python, model, "--host", host, "--token", TOKEN, "--access_log", str(log))
    upload = files(photo(1))
    with httpx.Client(base_url=f"http://127.0.0.1:{httpx.URL(url).port}", timeout=60) as web:
        assert web.get("/", params={"token": TOKEN}).status_code == 303
        sent = web.post("/api/v1/models/model/classify", files=upload)
        assert web.get("/api/v1/models/model?token=" + TOKEN).status_code == 200
        for _ in range(1000):  # a line is written once its answer has been sent
            if log.read_bytes().count(b"\n") == 3:
                break
            time.sleep(0.01)
        log.rename(tmp_path / "old.jsonl")
        web.cookies.clear()
        assert web.get('/api/v1/models/%0A"x').status_code == 401
        with connect(web, b"POST /api/v1/models/model/classify HTTP/1.1\r\nHost: a\r\n"):
            pass
        with connect(web, b"hello\r\n\r\n") as raw:
            assert b" 400 " in raw.recv(100)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    lines = [json.loads(line) for line in (tmp_path / "old.jsonl").read_text().splitlines()]
    assert [(line["method"], line["path"], line["code"]) for line in lines] == [
        ("GET", "/", 303), ("POST", "/api/v1/models/model/classify", 200), ("GET", "/api/v1/models/model", 200),
    ]  # fmt: skip
    assert lines[1]["received"] == int(sent.request.headers["content-length"]) and lines[1]["sent"] == len(sent.content)
    assert all(line["client"] == "127.0.0.1" and line["ms"] > 0 and line["time"].endswith("Z") for line in lines)
    refused, no_request = [json.loads(line) for line in log.read_text().splitlines()]
    assert refused["code"] == 401 and refused["path"] == '/api/v1/models/\n"x'
    assert (no_request["method"], no_request["path"], no_request["code"]) == ("", "", 400)
    assert TOKEN not in log.read_text() + (tmp_path / "old.jsonl").read_text()


def test_a_log_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with pytest.raises(UserError, match=r"--access_log .*: No such file or directory; give a file that can be written"):
        AccessLog(str(tmp_path / "none" / "log"))
    full = AccessLog("/dev/full")
    for _ in range(3):
        full.write("127.0.0.1", "GET", "/", 200)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device; its lines are lost" in said
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    AccessLog("-").write("::1", "GET", "/ö", 200, ms=1.5)
    assert json.loads(out.getvalue()) | {"time": ""} == {
        "time": "", "client": "::1", "method": "GET", "path": "/ö", "code": 200, "ms": 1.5,
    }  # fmt: skip


def test_several_models(untrained_model: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    """Each has its own classes and its own folder; names that clash, or a folder that is no model, are refused."""
    models = [shutil.copytree(untrained_model, tmp_path / name) for name in ("birds", "sea life")]
    other = shutil.copytree(untrained_model, tmp_path / "other" / "birds")
    for words, wanted in (
        ([models[0], other], "both are named birds; rename a folder, or give only one"),
        ([models[0], models[0]], "both are named birds"),
        ([models[0], tmp_path / "other"], "other"),
    ):
        done = warm_python.run("serve", *map(str, words), "--port", "0")
        assert done.returncode == 1 and wanted in done.stderr and done.stderr.count("\n") == 1, done.stderr
    process = warm_python.start("serve", "birds", "sea life", "--port", "0", cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout
    lines = [process.stdout.readline().strip() for _ in range(3)]
    assert lines[:2] == ["birds: 3 classes", "sea life: 3 classes"]
    with httpx.Client(base_url=lines[2] + "api/v1/", timeout=60) as web:
        listed = web.get("models").json()["models"]
        assert [(model["name"], model["classes"]) for model in listed] == [("birds", 3), ("sea life", 3)]
        added = web.post("models/sea life/classes", data={"name": "whale"}, files=files(photo(4)))
        assert len(added.json()["classes"]) == 4
        assert [len(web.get(f"models/{name}").json()["classes"]) for name in ("birds", "sea life")] == [3, 4]
        missing = web.get("models/fish")
        assert (missing.status_code, refusal(missing)) == (
            404, "model fish: is not served here; there is birds, sea life")  # fmt: skip
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    names = [[entry["name"] for entry in json.loads((path / "model.json").read_text())["classes"]] for path in models]
    assert "whale" in names[1] and "whale" not in names[0]
