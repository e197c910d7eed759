"""The page behind a real nginx, with the lines of docs/serving.md, as a browser asks for it."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from clients import free_port, noise, refusal

from dist_train import UserError
from dist_train.classifier.serving.address import PublicURL, origin, page_links, parse_network
from dist_train.classifier.serving.connections import ConnectionLimits

Page = Callable[..., httpx.Client]

DOCS = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
LINES = re.findall(r"^```nginx\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
AROUND = """daemon off; worker_processes 1; pid nginx.pid; error_log error.log;
events {{ }}
http {{
access_log off; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
{} }}
"""
TOKEN = "a token of more than 16"


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return ``nginx(servers)``, which starts an nginx with these server blocks and returns its certificate."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not program or not shutil.which("openssl"):
        pytest.skip("no nginx or openssl: apt-get install nginx-light openssl")
    names = [str(tmp_path / f"photos.example.{end}") for end in ("key", "pem")]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost", "-keyout", names[0], "-out", names[1]],
                   check=True, capture_output=True)  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []

    def begin(servers: str) -> Path:
        (tmp_path / "nginx.conf").write_text(
            ("user root;\n" if Path("/root").is_dir() else "") + AROUND.format(servers)
        )
        words = [program, "-p", str(tmp_path), "-c", "nginx.conf", "-e", "error.log"]
        started.append(subprocess.Popen(words))
        while not (tmp_path / "nginx.pid").exists():
            assert started[0].poll() is None, (tmp_path / "error.log").read_text()
            time.sleep(0.05)
        return Path(names[1])

    yield begin
    for process in started:
        process.send_signal(signal.SIGQUIT)
        process.wait(60)


HOSTS = {
    "the upstream's": "",
    "passed on": "proxy_set_header Host $host;",
    "passed on with its port": "proxy_set_header Host $http_host;",
    "a name of its own": "proxy_set_header Host page;",
}
PATHS = {"none": ("/", ""), "removed": ("/animals/", "/"), "passed on": ("/animals/", "")}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("host", HOSTS)
def test_a_browser_behind_nginx(host: str, path: str, page: Page, nginx: Callable[[str], Path]) -> None:
    """Open the printed address, classify, add and remove; a page of another site may not."""
    where, passed = PATHS[path]
    options = {"token": TOKEN, "public": f"https://localhost:{PUBLIC[where]}{where}", "port": SERVED[where]}
    page(options)
    [lines] = LINES
    changes = {"listen 443": f"listen {PUBLIC[where]}", "server_name photos.example": "server_name localhost",
               "127.0.0.1:8000;": f"127.0.0.1:{SERVED[where]}{passed};{HOSTS[host]}",
               "location /": f"location {where}"}  # fmt: skip
    for old, new in changes.items():
        assert lines.count(old) == 1
        lines = lines.replace(old, new)
    certificate = nginx(lines)

    public = PublicURL.parse(options["public"])
    [link] = page_links("127.0.0.1", 8000, public, TOKEN)
    assert link == f"https://localhost:{PUBLIC[where]}{where}?token=a%20token%20of%20more%20than%2016"
    trusted = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(base_url=link.partition("?")[0], verify=trusted, timeout=120, follow_redirects=True) as web:
        assert web.get("").status_code == 401 and web.get("api/v1/models/model").status_code == 401
        opened = web.get(link)
        assert opened.status_code == 200 and "page/main.js" in opened.text
        assert TOKEN not in str(opened.url) and opened.url.path == where
        [cookie] = web.cookies.jar
        assert cookie.secure and cookie.path == where and cookie.has_nonstandard_attr("HttpOnly")
        for own in ({"Origin": public.origin}, {}):  # what browsers and what programs send
            asked = web.post("api/v1/models/model/classify", files={"images": ("a.png", noise(1))}, headers=own)
            assert "predictions" in asked.json()["results"][0]
            added = web.post(
                "api/v1/models/model/classes", data={"name": "okapi"}, files={"images": ("a", noise(1))}, headers=own
            )
            assert added.status_code == 200, added.text
            assert web.post("api/v1/models/model/remove", json={"name": "okapi"}, headers=own).status_code == 200
        port = f":{PUBLIC[where]}"
        for other in (
            "https://localhost",
            f"http://localhost{port}",
            f"https://evil.example{port}",
            "null",
            "https://[",
        ):
            refused = web.post("api/v1/models/model/remove", json={"name": "cat"}, headers={"Origin": other})
            assert refused.status_code == 403 and "may not change this model" in refusal(refused)
        much = web.post("api/v1/models/model/classify", files={"images": ("a", bytes(65_000_000))})
        assert much.status_code == 413 and refusal(much).startswith("the upload is over 64 MB")
        assert web.get("api/v1/models/model/download").content[:2] == b"PK"


# One page for each path, for all hosts; the public address is known before it starts.
PUBLIC, SERVED = ({where: free_port() for where, _ in PATHS.values()} for _ in range(2))


def test_the_address_of_a_client_comes_through_nginx(page: Page, nginx: Callable[[str], Path]) -> None:
    """Two addresses have a share each, though every connection comes from nginx; a client's own claim is ignored."""
    public_url = f"https://localhost:{free_port()}"
    options = {"token": TOKEN, "public": public_url, "port": free_port(), "proxies": ["127.0.0.1"]}
    page(options, client=1)
    [lines] = LINES
    public = urlsplit(public_url).port
    for old, new in {"443": str(public), "127.0.0.1:8000;": f"127.0.0.1:{options['port']};proxy_request_buffering off;",
                     "photos.example;": "localhost;"}.items():  # fmt: skip
        lines = lines.replace(old, new)
    trusted = ssl.create_default_context(cafile=str(nginx(lines)))

    def connect(source: str, length: int, claimed: str) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", public or 0), 60, (source, 0))
        stream = trusted.wrap_socket(raw, server_hostname="localhost")
        head = [f"POST /api/v1/models/model/remove HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}",
                f"Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close",
                f"X-Forwarded-For: {claimed}\r\n\r\n"]  # fmt: skip
        stream.sendall("\r\n".join(head).encode() + b'{"name": "x"}')
        return stream

    def code(stream: ssl.SSLSocket) -> int:
        with stream:
            return int(stream.recv(1 << 16).split()[1])

    with connect("127.0.0.2", 20, "10.0.0.1"):  # does not come whole
        while (first := code(connect("127.0.0.2", 13, "10.0.0.2"))) == 422:
            time.sleep(0.1)  # until the other is counted
        assert first == 429
        assert code(connect("127.0.0.3", 13, "127.0.0.2")) == 422
    while code(connect("127.0.0.2", 13, "10.0.0.1")) != 422:
        time.sleep(0.1)


def test_behind_a_proxy_local_users_need_the_token_too(page: Page) -> None:
    """Behind a proxy every request comes from this machine, so an address of this machine proves nothing."""
    options = {"public": f"https://localhost:{free_port()}", "port": free_port()}
    page(options)
    with httpx.Client(base_url=f"http://127.0.0.1:{options['port']}") as web:
        assert web.get("/").status_code == 401 and web.get("/api/v1/models/model").status_code == 401
        assert web.get("/api/v1/models/model", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 401


@pytest.mark.parametrize(
    "url, wanted",
    [
        ("https://photos.example", ("https://photos.example", "/")),
        ("HTTPS://Photos.Example:443/", ("https://photos.example", "/")),
        ("http://photos.example:80", ("http://photos.example", "/")),
        ("https://photos.example:8443", ("https://photos.example:8443", "/")),
        ("https://photos.example/animals", ("https://photos.example", "/animals/")),
        ("https://[2001:db8::1]:8443/a/b/", ("https://[2001:db8::1]:8443", "/a/b/")),
        ("https://photos.example//a////b", ("https://photos.example", "/a/b/")),
    ],
)
def test_public_addresses_are_normalised(url: str, wanted: tuple[str, str]) -> None:
    public = PublicURL.parse(url)
    assert (public.origin, public.path) == wanted and public.secure == public.origin.startswith("https")
    assert origin(public.origin) == public.origin


@pytest.mark.parametrize(
    "url",
    ["photos.example", "ftp://a", "https://", "https://a:b", "https://[", "https://a?b", "https://u:p@a", "https://a#b",
     "https://a b", "https://a\n", "", "https://a:99999", "https://a/x;Domain=evil", 'https://a"b', "https://a/../b", "https://a:0",
     "https://bücher.example", "https://a\\b"],
)  # fmt: skip
def test_wrong_public_addresses_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"^--public-url [^\n]*: give https://HOST"):
        PublicURL.parse(url)


def test_proxies_are_addresses_or_networks() -> None:
    assert str(parse_network("10.0.0.7")) == "10.0.0.7/32" and str(parse_network("2001:db8::/32")) == "2001:db8::/32"
    for text in ("nginx", "10.0.0.7/24", ""):
        with pytest.raises(UserError, match=f"--proxy {text}: .*give its address"):
            parse_network(text)


def test_the_documented_limits_are_those_of_the_code() -> None:
    table = DOCS.partition("## Limits for visitors")[2]
    texts = {"header": "| {:g} s, however", "body": "| {:g} s, and as long", "rate": "as {:.0f} kB come",
             "answer": "| {:g} s, 10 s |", "connections": "of all | {:d} |", "client": "| {:d} |"}  # fmt: skip
    for field, text in texts.items():
        value = getattr(ConnectionLimits(), field) / (1000 if field == "rate" else 1)
        assert text.format(int(value)) in table, field
    assert {field.name for field in fields(ConnectionLimits)} == set(texts)
