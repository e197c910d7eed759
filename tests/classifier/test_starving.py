"""Nobody keeps a visitor of the page waiting: real sockets that send half, drip, stall, or do not read; and photos that
take long. What is short in these tests is the server's patience."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.requests import ClientDisconnect

from dist_train.classifier.serving.app import unless_disconnected
from dist_train.classifier.serving.connections import client_key
from dist_train.classifier.serving.scheduling import SMALL, BatchedNetwork, DecodingPools, FairPool
from dist_train.classifier.serving.served_model import EmbeddedPhoto, Limits, ServedModel

Page = Callable[..., httpx.Client]

SHORT = {"header": 1, "body": 1, "rate": 1000, "answer": 1}
HALF = b"GET /api/model HTTP/1.1\r\nHost: localhost\r\nX-Long: a"
WHOLE = b"GET /api/model HTTP/1.1\r\nHost: localhost\r\n\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
FILE = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
UPLOAD = b"POST /api/classify HTTP/1.1\r\nHost: localhost\r\n" + FORM


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def connect(web: httpx.Client, data: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", web.base_url.port or 80), 60, (source, 0))
    raw.sendall(data)
    return raw


def wait_until_read(web: httpx.Client, raw: socket.socket) -> None:
    """Until the server has read what was sent, by the kernel's table of both ends of the connection."""
    own, other = f"{raw.getsockname()[1]:04X}", f"{web.base_url.port:04X}"
    while True:
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        queues = {line[1][-4:]: line[4].split(":") for line in lines if {line[1][-4:], line[2][-4:]} == {own, other}}
        assert own in queues, "the server has closed it"
        if len(queues) == 2 and int(queues[own][0], 16) == int(queues[other][1], 16) == 0:  # sent, received
            return
        time.sleep(0.05)


def answer(raw: socket.socket) -> tuple[int, str]:
    """Code and text of an answer, read to the end of the connection; 0 where there is none."""
    data = b""
    try:
        while part := raw.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body.decode()) if head else (0, "")


def png(side: int, grey: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (grey, grey, grey)).save(out, "PNG")
    return out.getvalue()


_FORM = (FILE + png(7000) + b"\r\n") * 4 + b"--b--\r\n"
LONG = UPLOAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(_FORM) + _FORM
"""A request that is answered after some seconds: four photos of 49 megapixels."""

# Connections.


@pytest.mark.parametrize("clients", [1, 8])
def test_half_sent_headers_keep_nobody_out(page: Page, clients: int) -> None:
    """205 connections of one client, and 240 of eight, which are over the limit of all: a visitor gets an answer, and
    an upload that another had begun is not what gives way."""
    web = page(header=600, body=600)
    with ExitStack() as stack:
        data = png(40)
        form = FILE + data + b"\r\n--b--\r\n"
        head = UPLOAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(form)
        begun = stack.enter_context(connect(web, head, "127.0.0.99"))
        for number in range(240 if clients > 1 else 205):
            stack.enter_context(connect(web, HALF, f"127.0.0.{2 + number % clients}"))
        for _ in range(5):
            assert web.get("/api/model", headers={"Connection": "close"}).status_code == 200
        begun.sendall(form)
        code, body = answer(begun)
        assert code == 200 and "predictions" in body


def test_a_client_has_so_many_connections(page: Page) -> None:
    """Of more, the oldest that waits for its client gives way; the one that is being answered stays."""
    web = page(client=4, header=60)
    with ExitStack() as stack:
        at_work = stack.enter_context(connect(web, LONG))
        wait_until_read(web, at_work)
        half = [stack.enter_context(connect(web, HALF)) for _ in range(6)]
        assert [answer(raw)[0] for raw in half[:3]] == [0, 0, 0]
        half[-1].sendall(b"\r\nConnection: close\r\n\r\n")
        assert answer(half[-1])[0] == 200
        assert answer(at_work)[0] == 200


def test_with_all_at_work_the_new_client_is_told(page: Page) -> None:
    web = page(client=2)
    with ExitStack() as stack:
        at_work = [stack.enter_context(connect(web, LONG)) for _ in range(2)]
        for raw in at_work:
            wait_until_read(web, raw)
        late = stack.enter_context(connect(web, WHOLE))
        assert answer(late) == (503, '{"detail": "too many connections; try again in a few seconds"}')
        assert [answer(raw)[0] for raw in at_work] == [200, 200]


LATE = (408, '{"detail": "the request did not come whole in time; send it again"}')


def drip(raw: socket.socket, data: bytes, every: float = 0.1) -> tuple[int, str]:
    """The answer to what comes a byte at a time until there is one."""
    raw.settimeout(every)
    for byte in data:
        try:
            raw.sendall(bytes([byte]))
            if raw.recv(1, socket.MSG_PEEK) is not None:
                break
        except TimeoutError:
            continue
        except OSError:
            break
    raw.settimeout(60)
    return answer(raw)


@pytest.mark.parametrize(
    "start, more, wanted",
    [
        (b"", b"", (0, "")),
        (HALF, b"", LATE),
        (HALF, b"a" * 10_000, LATE),
        (b"", b"GET", LATE),
        (UPLOAD + b"Content-Length: 900000\r\n\r\n", b"", LATE),
        (UPLOAD + b"Content-Length: 900000\r\n\r\n" + FILE, b"a" * 10_000, LATE),
        (UPLOAD + CHUNKED + b"\r\n" + chunk(FILE), b"1\r\na\r\n" * 2000, LATE),
        (b"POST /api/remove HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n", b" " * 10_000, LATE),
        (WHOLE + HALF, b"", LATE),
    ],
    ids=["nothing", "half a header", "a header that drips", "a method", "no body", "a body that drips",
         "chunks that drip", "JSON that drips", "half a second header"],
)  # fmt: skip
def test_what_does_not_come_in_time_is_ended(page: Page, start: bytes, more: bytes, wanted: tuple[int, str]) -> None:
    web = page(**SHORT)
    with connect(web, start) as raw:
        if start.startswith(WHOLE):  # answered, and then left
            while b"provenance" not in (part := raw.recv(1 << 16)) and b"limits" not in part:
                pass
        assert (drip(raw, more) if more else answer(raw)) == wanted
    assert web.get("/api/model").status_code == 200


def test_a_slow_body_above_the_rate_is_answered(page: Page) -> None:
    """Twice as long as a body without bytes may take."""
    web = page(**SHORT)
    form = FILE + png(40) + bytes(20_000) + b"\r\n--b--\r\n"
    with connect(web, UPLOAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(form)) as raw:
        for start in range(0, len(form), len(form) // 20):
            raw.sendall(form[start : start + len(form) // 20])
            time.sleep(0.1)
        code, body = answer(raw)
    assert code == 200 and "predictions" in body


def test_an_idle_connection_is_ended_and_one_in_use_is_not(page: Page) -> None:
    web = page(**SHORT)
    came = b""
    with connect(web, WHOLE) as raw:
        for _ in range(6):
            came += raw.recv(1 << 16)  # an answer, or its first part
            time.sleep(0.3)
            raw.sendall(WHOLE)
        while part := raw.recv(1 << 16):
            came += part
    assert came.count(b"HTTP/1.1 200 ") == 7  # and then the end


def test_an_answer_that_is_not_taken_is_ended(page: Page) -> None:
    """A download of 20 MB of which nothing is read, and many answers before one byte is read."""
    web = page(**SHORT)
    for sent in (b"GET /api/download HTTP/1.1\r\nHost: localhost\r\n\r\n", WHOLE * 20_000):
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", web.base_url.port or 80))
        raw.settimeout(0.5)
        with raw:
            for start in range(0, len(sent), 65536):
                try:
                    raw.sendall(sent[start : start + 65536])
                except TimeoutError:
                    break
            while _open(web, raw):
                time.sleep(0.2)
    assert web.get("/api/model").status_code == 200


def _open(web: httpx.Client, raw: socket.socket) -> bool:
    """Whether the server still has the connection, by the kernel's table."""
    port = f":{raw.getsockname()[1]:04X}"
    fds = Path(f"/proc/{web.headers['X-Process']}/fd")
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    nodes = {line[9] for line in lines if line[2].endswith(port)}
    return any(f"socket:[{node}]" in {_target(fd) for fd in fds.iterdir()} for node in nodes)


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except FileNotFoundError:
        return ""


def test_who_counts_as_one_client() -> None:
    assert client_key("10.0.0.1") == "10.0.0.1" != client_key("10.0.0.2")
    assert client_key("2001:db8:1:2::3") == client_key("2001:db8:1:2:ffff::4") != client_key("2001:db8:1:3::3")
    assert client_key("fe80::1%eth0") == client_key("fe80::2") and client_key("unix") == "unix"


# The token, and requests of one client.

TOKEN = "a token of more than 16"
AUTHORISED = f"Authorization: Bearer {TOKEN}\r\n".encode()


def test_the_token_is_asked_before_anything_is_counted(page: Page) -> None:
    """Uploads without it are refused before their body, and do not count as requests of their address."""
    web = page({"token": TOKEN, "host": "0.0.0.0"}, {"upload": 1000}, client=2)
    with ExitStack() as stack:
        for length in (500, 10**9):
            raw = stack.enter_context(connect(web, UPLOAD + b"Content-Length: %d\r\n\r\n" % length))
            assert raw.recv(1 << 16).startswith(b"HTTP/1.1 401 ")
        with connect(web, UPLOAD + AUTHORISED + b"Content-Length: 1000000000\r\n\r\n") as raw:
            assert raw.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        with connect(web, WHOLE[:-2] + AUTHORISED + b"\r\n") as raw:
            assert raw.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("believed", [True, False])
def test_behind_a_proxy_the_client_is_whom_it_names(page: Page, believed: bool) -> None:
    """Its connections are not limited, the requests of each that it names are; nobody else's word is taken."""
    place = {"token": TOKEN, "public": "https://photos.example", "port": _free()}
    web = page(place if believed else {**place, "proxies": ["192.0.2.0/24"]}, client=2)
    web = httpx.Client(base_url=f"http://127.0.0.1:{place['port']}", headers=dict(web.headers))

    def stalled(source: str) -> socket.socket:
        named = f"X-Forwarded-For: 198.51.100.7, {source}\r\nContent-Length: 99\r\n\r\n".encode()
        return connect(web, UPLOAD + AUTHORISED + named)

    def ask(source: str) -> int:
        with connect(web, b"GET /api/model HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + AUTHORISED
                     + f"X-Forwarded-For: 198.51.100.7, {source}\r\n\r\n".encode()) as raw:  # fmt: skip
            return answer(raw)[0]

    with ExitStack() as stack:
        held = [stack.enter_context(stalled("203.0.113.1")) for _ in range(2)]
        for raw in held:
            wait_until_read(web, raw)
        if believed:
            assert (ask("203.0.113.1"), ask("203.0.113.2")) == (429, 200)
            more = [stack.enter_context(stalled(f"203.0.113.{n}")) for n in range(3, 40)]
            assert ask("203.0.113.2") == 200
            held[0].close()
            while ask("203.0.113.1") != 200:
                time.sleep(0.1)
            assert all(_open(web, raw) for raw in more)
        else:  # all from one address: its oldest gave way
            assert ask("203.0.113.2") == 200
            assert answer(held[0]) == (0, "")


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


# How much is sent.

TOO_LONG = '{"detail":"the upload is over 1 MB, the limit of this server; send fewer or smaller photos"}'


@pytest.mark.parametrize(
    "head, sent",
    [
        (b"Content-Length: 1000001\r\n", b""),
        (b"Content-Length: 99999999999999999999\r\n", b""),
        (b"Content-Length: 2000000\r\nExpect: 100-continue\r\n", b""),
        (CHUNKED, b"%x\r\n%b" % (1 << 40, FILE + bytes(1_000_000))),
        (CHUNKED, chunk(FILE) + chunk(bytes(255)) * 4000),
        (CHUNKED + b"Expect: 100-continue\r\n", b"%x\r\n%b" % (1 << 40, FILE + bytes(1_000_000))),
        (CHUNKED + b"Content-Length: 5\r\n", b"%x\r\n%b" % (1 << 40, FILE + bytes(1_000_000))),
    ],
    ids=["named", "more than a number", "asks first", "one chunk", "small chunks", "chunks, asks first", "both"],
)
@pytest.mark.parametrize("path", ["/api/classify", "/api/classes", "/api/remove"])
def test_too_much_is_413_before_it_is_read_through(page: Page, path: str, head: bytes, sent: bytes) -> None:
    """None of these bodies ever ends. The connection does, as nothing else is to be told from what comes next."""
    web = page({}, {"upload": 1_000_000}, **SHORT)
    kind = b"Content-Type: application/json\r\n" if path == "/api/remove" else FORM
    if path == "/api/remove":
        sent = sent.replace(chunk(FILE), chunk(b'{"name": "')).replace(FILE, b'{"name": "')
    with connect(web, f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + kind + head + b"\r\n" + sent) as raw:
        code, body = answer(raw)
    assert (code, body) in [(413, TOO_LONG), (100, body)] and body.endswith(TOO_LONG)
    assert web.get("/api/model").status_code == 200


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_who_sends_too_much_is_told_and_not_reset(page: Page, close: bytes) -> None:
    """A client that reads nothing until it has sent all, as many do."""
    web = page({}, {"upload": 1_000_000})
    with connect(web, UPLOAD + close + b"Content-Length: 60000000\r\n\r\n") as raw:
        for _ in range(60):
            raw.sendall(bytes(1_000_000))
        raw.shutdown(socket.SHUT_WR)
        assert answer(raw) == (413, TOO_LONG)


def test_a_length_that_is_not_that_of_the_body(page: Page) -> None:
    """Too short: the rest is half a request, which does not come whole. Too long: nor does it. None: no body."""
    web = page({}, {"upload": 1_000_000}, **SHORT)
    body = b'{"name": "nobody"}'
    head = b"POST /api/remove HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for length, codes in ((len(body) - 5, [b"422", b"408"]), (len(body) + 5, [b"408"]), (None, [b"422", b"408"])):
        named = b"" if length is None else b"Content-Length: %d\r\n" % length
        with connect(web, head + named + b"\r\n" + body) as raw:
            data = b""
            while part := raw.recv(1 << 16):
                data += part
        assert re.findall(rb"HTTP/1\.1 (\d+)", data) == codes, data


# Photos.


def test_a_small_photo_does_not_wait_for_large_ones(page: Page) -> None:
    """Eight of 62 megapixels, each in a request of its own; a small one, and a request of several, are answered while
    most of these wait. One at a time they are decoded, so the memory is that of one."""
    web = page()
    assert classify(web, png(39)).status_code == 200
    before = memory(web)
    with ThreadPoolExecutor(8) as pool:
        photos = [png(7874, grey) for grey in range(8)]
        large = [pool.submit(classify, web, photo) for photo in photos]
        results = classify(web, *(png(40, grey) for grey in range(6))).json()["results"]
        assert sum(one.done() for one in large) <= 4
        assert len(results) == 6 and all("predictions" in result for result in results)
        assert all("predictions" in one.result().json()["results"][0] for one in large)
    assert memory(web) - before < 2200


def classify(web: httpx.Client, *photos: bytes) -> httpx.Response:
    return web.post("/api/classify", files=[("images", (f"{n}.png", photo)) for n, photo in enumerate(photos)])


def memory(web: httpx.Client) -> int:
    """The most that the server has held, in megabytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{web.headers['X-Process']}/status").read_text())
    assert found
    return int(found[1]) // 1000


def test_photos_of_one_request_are_answered_as_one_by_one(page: Page) -> None:
    """In their order, whatever lane they take, however many, with the bad ones among them."""
    web = page({}, {"pixels": 20_000_000})
    photos = [noise(seed) for seed in range(40)]
    photos[3:3] = [png(4100), b"text", png(4500), png(100)[:60]]
    together = classify(web, *photos).json()["results"]
    assert [result["name"] for result in together] == [f"{n}.png" for n in range(len(photos))]
    errors = [result.get("error", "")[:30] for result in together[3:7]]
    assert errors[0] == "" and "known format" in together[4]["error"] and "20000000" in together[5]["error"]
    assert "damaged" in together[6]["error"]
    for photo, result in zip(photos, together, strict=True):
        alone = classify(web, photo).json()["results"][0]
        assert alone.get("id") == result.get("id")
        if "id" in alone:
            assert [a["name"] for a in alone["predictions"]] == [b["name"] for b in result["predictions"]]
            shares = [[one["probability"] for one in answers["predictions"]] for answers in (alone, result)]
            assert np.allclose(*shares, atol=1e-5)


def noise(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (50, 60, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_a_lane_works_side_by_side_and_shares() -> None:
    """Two at a time; a client with one waits for two of another's fifty at most."""
    both, done = threading.Barrier(2, timeout=60), list[str]()

    def work(name: str, meet: bool) -> str:
        if meet:
            both.wait()
        time.sleep(0.005)
        done.append(name)
        return name

    async def all_of_it() -> list[str]:
        pool = FairPool(2)
        await asyncio.gather(pool.run("a", work, "a", True), pool.run("b", work, "b", True))
        done.clear()
        many = [asyncio.create_task(pool.run("many", work, "many", False)) for _ in range(50)]
        await asyncio.sleep(0)
        one = asyncio.create_task(pool.run("one", work, "one", False))
        return await asyncio.gather(*many, one)

    assert asyncio.run(all_of_it()) == ["many"] * 50 + ["one"]
    assert done.index("one") <= 4
    pools = DecodingPools()
    assert pools.for_size(SMALL) is pools.small is pools.for_size(0) and pools.for_size(SMALL + 1) is not pools.small


def test_batches_take_what_waits() -> None:
    sizes = list[int]()

    def embed(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        time.sleep(0.01)
        if bool((images == 77).any()):
            raise ValueError("77")
        return images.flatten(1) * 2

    async def ask(numbers: Iterator[int]) -> list[Any]:
        batches = BatchedNetwork(embed, 32)
        images = [torch.full((1, 1, 1, 1), float(number)) for number in numbers]
        tasks = [asyncio.create_task(batches.activation(image)) for image in images]
        await asyncio.sleep(0)
        tasks[0].cancel()  # its client has left
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(ask(iter(range(70))))
    assert isinstance(found[0], asyncio.CancelledError)
    assert [float(row) for row in found[1:]] == [2 * number for number in range(1, 70)]
    assert sizes == [32, 32, 6]
    found = asyncio.run(ask(iter(range(60, 130))))
    assert [isinstance(row, ValueError) for row in found[1:]] == [True] * 31 + [False] * 38


def test_a_client_with_many_photos_has_a_batch_of_them_in_work(untrained_model: Path) -> None:
    """Another's photo waits for two batches at most, and what waits does not grow with the request."""
    service, embedded = ServedModel(untrained_model, Limits()), list[int]()
    embed, share = service._batches._embed, service.model.network.batch

    def slow(images: torch.Tensor) -> torch.Tensor:
        embedded.append(len(images))
        time.sleep(0.05)
        return embed(images)

    service._batches._embed = slow

    async def both() -> tuple[int, int]:
        many = asyncio.create_task(
            service.embed([(f"{n}.png", io.BytesIO(noise(n))) for n in range(6 * share)], "many")
        )
        while not embedded:
            await asyncio.sleep(0.01)
        before, waiting = sum(embedded), len(service._batches._waiting)
        assert isinstance((await service.embed([("one.png", io.BytesIO(noise(9999)))], "one"))[0], EmbeddedPhoto)
        after = sum(embedded)
        assert all(isinstance(photo, EmbeddedPhoto) for photo in await many)
        return after - before, waiting

    between, waiting = asyncio.run(both())
    assert between <= 2 * share + 1 and waiting <= share
    assert sum(embedded) == 6 * share + 1


def test_work_for_a_client_that_has_left_ends() -> None:
    class Left:
        looks = 0

        async def is_disconnected(self) -> bool:
            self.looks += 1
            return self.looks > 1

    ended = list[str]()

    async def work() -> str:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("work")
        return "done"

    async def quick() -> str:
        return "done"

    with pytest.raises(ClientDisconnect):
        asyncio.run(unless_disconnected(Left(), work()))  # type: ignore[arg-type]
    assert ended == ["work"]
    assert asyncio.run(unless_disconnected(Left(), quick())) == "done"  # type: ignore[arg-type]


def test_json_of_an_error_is_json(page: Page) -> None:
    web = page(**SHORT)
    with connect(web, HALF) as raw:
        assert json.loads(answer(raw)[1])["detail"].endswith("send it again")
