"""No client keeps the visitors of the page waiting: real sockets that send half a request, drip, stall, or do not read.
The server waits for a shorter time in these tests."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from clients import answer, connect, free_port, is_open, needs_both_families, plain, target, wait_until_read

from dist_train.classifier.serving.address import listen, page_links
from dist_train.classifier.serving.connections import client_key

Page = Callable[..., httpx.Client]

SHORT = {"header": 1, "body": 1, "rate": 1000, "answer": 1}
HALF = b"GET /api/v1/models/model HTTP/1.1\r\nHost: localhost\r\nX-Long: a"
WHOLE = b"GET /api/v1/models/model HTTP/1.1\r\nHost: localhost\r\n\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
FILE = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
REMOVE = b"POST /api/v1/models/model/remove HTTP/1.1\r\nHost: localhost\r\n"
UPLOAD = b"POST /api/v1/models/model/classify HTTP/1.1\r\nHost: localhost\r\n" + FORM


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_FORM = (FILE + plain(7000) + b"\r\n") * 4 + b"--b--\r\n"
LONG = UPLOAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(_FORM) + _FORM
"""A request that is answered after some seconds: four photos of 49 megapixels."""


def is_served(web: httpx.Client) -> bool:
    """Ask on a connection of its own: one that was kept may be ended by the server just as it is used again."""
    return web.get("/api/v1/models/model", headers={"Connection": "close"}).status_code == 200


def many(limit: int) -> tuple[int, str]:
    """Return the answer to a client that has more connections than the limit of a client."""
    detail = (f"over {limit} connections of this address, the limit of this server; close some, or other windows of "
              f"the page, or try again in a few seconds")  # fmt: skip
    return 503, json.dumps({"detail": detail, "code": "server.connections", "values": {"n": limit}})


FULL = (503, json.dumps({"detail": "too many connections; try again in a few seconds", "code": "server.full",
                         "values": {}}))  # fmt: skip

# Connections.


def test_what_a_connection_writes_is_sent_at_once() -> None:
    """The body of an answer does not wait until the client has confirmed the header, which takes it 40 ms."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.parametrize(
    "host", ["0.0.0.0", *(pytest.param(host, marks=needs_both_families) for host in ("::", "::0"))]
)
def test_all_printed_addresses_answer(host: str) -> None:
    with listen(host, 0) as listening:
        port = listening.getsockname()[1]
        names = [urlsplit(link).hostname for link in page_links(host, port, None, None)]
        for name in (*names, "127.0.0.1", *["::1"] * (host != "0.0.0.0")):
            with socket.create_connection((name, port), timeout=10):
                pass


@pytest.mark.parametrize("clients", [1, 8])
def test_half_sent_headers_keep_nobody_out(page: Page, clients: int) -> None:
    """Open 205 connections of one client, or 240 of eight, which is over the limit of all clients: a visitor still gets
    an answer, and an upload that another client has begun does not give way."""
    web = page(header=600, body=600)
    with ExitStack() as stack:
        data = plain(40)
        form = FILE + data + b"\r\n--b--\r\n"
        head = UPLOAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(form)
        begun = stack.enter_context(connect(web, head, "127.0.0.99"))
        for number in range(240 if clients > 1 else 205):
            stack.enter_context(connect(web, HALF, f"127.0.0.{2 + number % clients}"))
        for _ in range(5):
            assert is_served(web)
        begun.sendall(form)
        code, body = answer(begun)
        assert code == 200 and "predictions" in body


def test_a_client_over_its_limit_loses_its_oldest_idle_connection(page: Page) -> None:
    """The oldest connection that waits for its client gives way, and is told; one that is being answered stays."""
    web = page(client=4, header=60)
    with ExitStack() as stack:
        at_work = stack.enter_context(connect(web, LONG))
        wait_until_read(web, at_work)
        half = [stack.enter_context(connect(web, HALF)) for _ in range(6)]
        assert [answer(raw) for raw in half[:3]] == [many(4)] * 3
        half[-1].sendall(b"\r\nConnection: close\r\n\r\n")
        assert answer(half[-1])[0] == 200
        assert answer(at_work)[0] == 200


def test_an_idle_connection_gives_way_before_an_older_upload(page: Page) -> None:
    web = page(client=2, header=60, body=60)
    form = FILE + plain(4) + b"\r\n--b--\r\n"
    head = UPLOAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(form)
    with ExitStack() as stack:
        begun = stack.enter_context(connect(web, head))
        wait_until_read(web, begun)
        idle = stack.enter_context(connect(web, HALF))
        stack.enter_context(connect(web, HALF))
        assert answer(idle) == many(2)
        begun.sendall(form)
        assert answer(begun)[0] == 200


def test_a_new_connection_is_refused_where_all_are_busy(page: Page) -> None:
    web = page(client=2)
    with ExitStack() as stack:
        at_work = [stack.enter_context(connect(web, LONG)) for _ in range(2)]
        for raw in at_work:
            wait_until_read(web, raw)
        late = stack.enter_context(connect(web, WHOLE))
        assert answer(late) == many(2)
        assert [answer(raw)[0] for raw in at_work] == [200, 200]


def test_the_client_with_the_most_connections_gives_way_where_all_are_too_many(page: Page) -> None:
    web = page(connections=6, client=5, header=60)
    with ExitStack() as stack:
        first, *_ = [stack.enter_context(connect(web, HALF, "127.0.0.2")) for _ in range(4)]
        for number in (3, 4, 5):
            stack.enter_context(connect(web, HALF, f"127.0.0.{number}"))
        assert answer(first) == FULL


def test_every_client_of_a_burst_reads_its_answer(page: Page) -> None:
    """Sixty clients of an address connect, send requests with bodies, some of which come after the refusal, and then
    read: each has an answer, and no connection is reset."""
    web = page(client=4)
    data = plain(400)
    form = FILE + data + bytes(300_000) + b"\r\n--b--\r\n"
    upload = UPLOAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(form)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(web)) for _ in range(60)]
        for raw in clients:
            raw.sendall(upload + form[: len(form) // 2])
        time.sleep(0.5)  # until the server has refused most of them
        for raw in clients:
            raw.sendall(form[len(form) // 2 :])
        answers = [read_whole(raw) for raw in clients]
    codes = [code for code, _ in answers]
    assert set(codes) == {200, 503} and codes.count(200) == 4
    assert {body for code, body in answers if code == 503} == {many(4)[1]}


def test_refused_clients_that_stay_do_not_pile_up(page: Page) -> None:
    """A connection that was refused stays until its client has read; of those that never do, only so many are kept."""
    web = page(connections=20, client=10, body=600)
    with ExitStack() as stack:
        raws = [stack.enter_context(connect(web, HALF)) for _ in range(100)]
        wait_until_read(web, raws[-1])
        descriptors = Path(f"/proc/{web.headers['X-Process']}/fd")
        sockets = [name for path in descriptors.iterdir() if (name := target(path)).startswith("socket:")]
        assert len(sockets) < 50


def read_whole(raw: socket.socket) -> tuple[int, str]:
    """Return code and text of an answer as a client reads it for whom a reset connection is an error."""
    data = b""
    while part := raw.recv(1 << 16):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


LATE = (408, json.dumps({"detail": "the request did not come whole in time; send it again", "code": "request.late",
                         "values": {}}))  # fmt: skip


def drip(raw: socket.socket, data: bytes, every: float = 0.1) -> tuple[int, str]:
    """Send bytes one at a time until there is an answer, and return it."""
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


@pytest.mark.parametrize("sent", [b"zz\r\n", chunk(FILE) + b"zz\r\n", chunk(FILE) + b"3\r\nabcd\r\n"],
                         ids=["the first", "a later", "longer than said"])  # fmt: skip
@pytest.mark.parametrize("waits", [True, False])
def test_a_broken_chunk_is_answered_while_the_application_waits_for_the_body(
    page: Page, sent: bytes, waits: bool
) -> None:
    """The application has the request already, or gets it with the broken chunk; it goes on for others."""
    web = page(client=2)
    with ExitStack() as stack:
        for _ in range(3):  # more than a client may have at a time: none counts any more, though all stay open
            raw = stack.enter_context(connect(web, UPLOAD + CHUNKED + b"\r\n" + (chunk(FILE) if waits else b"")))
            if waits:
                wait_until_read(web, raw)
            raw.sendall(sent)
            code, body = answer(raw)
            # A single answer.
            assert code == 400 and "Invalid HTTP request received." in body and "HTTP/1.1" not in body
        assert is_served(web)


def test_what_is_no_request_is_answered_after_the_request_before_it(page: Page) -> None:
    web = page()
    form = FILE + plain(4) + b"\r\n--b--\r\n"
    with connect(web, UPLOAD + CHUNKED + b"\r\n" + chunk(form) + b"0\r\n\r\n" + b"nonsense\r\n\r\n") as raw:
        data = b""
        while part := raw.recv(1 << 16):
            data += part
    assert re.findall(rb"HTTP/1\.1 (\d+)", data) == [b"200", b"400"], data


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
        (REMOVE + b"Content-Length: 99\r\n\r\n", b" " * 10_000, LATE),
        (WHOLE + HALF, b"", LATE),
    ],
    ids=["nothing", "half a header", "a header that drips", "a method", "no body", "a body that drips",
         "chunks that drip", "JSON that drips", "half a second header"],
)  # fmt: skip
def test_a_late_request_is_ended(page: Page, start: bytes, more: bytes, wanted: tuple[int, str]) -> None:
    web = page(**SHORT)
    with connect(web, start) as raw:
        if start.startswith(WHOLE):  # answered, and then left
            while b"provenance" not in (part := raw.recv(1 << 16)) and b"limits" not in part:
                pass
        assert (drip(raw, more) if more else answer(raw)) == wanted
    assert is_served(web)


def test_a_slow_body_above_the_rate_is_answered(page: Page) -> None:
    """Send for twice as long as a body without bytes may take."""
    web = page(**SHORT)
    form = FILE + plain(40) + bytes(20_000) + b"\r\n--b--\r\n"
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


def test_an_answer_that_is_not_read_is_ended(page: Page) -> None:
    """Read nothing of a download of 20 MB, and nothing of many small answers."""
    web = page(**SHORT)
    for sent in (b"GET /api/v1/models/model/download HTTP/1.1\r\nHost: localhost\r\n\r\n", WHOLE * 20_000):
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
            while is_open(web, raw):
                time.sleep(0.2)
    assert is_served(web)


def test_what_counts_as_the_same_client() -> None:
    assert client_key("10.0.0.1") == "10.0.0.1" != client_key("10.0.0.2")
    assert client_key("2001:db8:1:2::3") == client_key("2001:db8:1:2:ffff::4") != client_key("2001:db8:1:3::3")
    assert client_key("::ffff:10.0.0.1") == "10.0.0.1"  # as a proxy may say it
    assert client_key("fe80::1%eth0") == client_key("fe80::2") and client_key("unix") == "unix"


# The token, and requests of one client.

TOKEN = "a token of more than 16"
AUTHORISED = f"Authorization: Bearer {TOKEN}\r\n".encode()


def test_the_token_is_checked_before_anything_is_counted(page: Page) -> None:
    """Uploads without the token are refused before their body, and do not count as requests of their address."""
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
def test_behind_a_proxy_the_client_is_the_address_it_names(page: Page, believed: bool) -> None:
    """The proxy's connections are not limited, but the requests of each client that it names are; no other address is
    believed."""
    options = {"token": TOKEN, "public": "https://photos.example", "port": free_port()}
    web = page(options if believed else {**options, "proxies": ["192.0.2.0/24"]}, client=2)
    web = httpx.Client(base_url=f"http://127.0.0.1:{options['port']}", headers=dict(web.headers))

    def stalled(source: str) -> socket.socket:
        named = f"X-Forwarded-For: 198.51.100.7, {source}\r\nContent-Length: 99\r\n\r\n".encode()
        return connect(web, UPLOAD + AUTHORISED + named)

    def ask(source: str) -> int:
        with connect(web, b"GET /api/v1/models/model HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + AUTHORISED
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
            assert all(is_open(web, raw) for raw in more)
        else:  # all from one address: its oldest gave way
            assert ask("203.0.113.2") == 200
            assert answer(held[0]) == many(2)


# How much is sent.

TOO_LONG = (
    '{"detail":"the upload is over 1 MB, the limit of this server; send fewer or smaller photos",'
    '"code":"upload.large","values":{"limit":"1"}}'
)


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
@pytest.mark.parametrize("action", ["classify", "classes", "photos", "remove", "evaluate"])
def test_a_body_over_the_limit_is_refused_before_it_is_read(page: Page, action: str, head: bytes, sent: bytes) -> None:
    """None of these bodies ever ends. The connection does, as nothing can be made of the bytes that follow."""
    web = page({}, {"upload": 1_000_000}, **SHORT)
    kind = FORM
    if action in ("remove", "evaluate"):
        kind = b"Content-Type: application/json\r\n"
        sent = sent.replace(chunk(FILE), chunk(b'{"name": "')).replace(FILE, b'{"name": "')
    path = f"/api/v1/models/model/{action}"
    with connect(web, f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + kind + head + b"\r\n" + sent) as raw:
        code, body = answer(raw)
    assert (code, body) in [(413, TOO_LONG), (100, body)] and body.endswith(TOO_LONG)
    assert is_served(web)


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_a_client_over_the_limit_gets_an_answer_and_no_reset(page: Page, close: bytes) -> None:
    """The client reads nothing until it has sent everything, as many clients do."""
    web = page({}, {"upload": 1_000_000})
    with connect(web, UPLOAD + close + b"Content-Length: 60000000\r\n\r\n") as raw:
        for _ in range(60):
            raw.sendall(bytes(1_000_000))
        raw.shutdown(socket.SHUT_WR)
        assert answer(raw) == (413, TOO_LONG)


def test_a_content_length_that_does_not_match_the_body(page: Page) -> None:
    """Too short: the rest looks like half a request, which times out. Too long: the body times out. None: no body."""
    web = page({}, {"upload": 1_000_000}, **SHORT)
    body = b'{"name": "nobody"}'
    head = b"POST /api/v1/models/model/remove HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for length, codes in ((len(body) - 5, [b"422", b"408"]), (len(body) + 5, [b"408"]), (None, [b"422", b"408"])):
        named = b"" if length is None else b"Content-Length: %d\r\n" % length
        with connect(web, head + named + b"\r\n" + body) as raw:
            data = b""
            while part := raw.recv(1 << 16):
                data += part
        assert re.findall(rb"HTTP/1\.1 (\d+)", data) == codes, data


def test_the_body_of_an_error_is_json(page: Page) -> None:
    web = page(**SHORT)
    with connect(web, HALF) as raw:
        assert json.loads(answer(raw)[1])["detail"].endswith("send it again")
