"""Clients of a page in a test: photos to send, raw connections, and the page as the command line starts it."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from random import SystemRandom

import httpx
import numpy as np
import pytest
from fixtures.processes import WarmPython
from PIL import Image

from dist_train import Classifier
from dist_train.classifier.serving.app import PAGE

needs_both_families = pytest.mark.skipif(
    not socket.has_dualstack_ipv6(), reason="the system cannot listen on IPv6 and IPv4 at once"
)

# Photos.


def photo(seed: int, side: int = 60, tint: tuple[int, int, int] = (255, 255, 255)) -> bytes:
    """Return a JPEG of noise in a tint."""
    out = io.BytesIO()
    noise = np.random.RandomState(seed).randint(0, 256, (side, side, 3), np.uint8)
    Image.fromarray((noise * (np.array(tint) / 255)).astype(np.uint8)).save(out, "JPEG")
    return out.getvalue()


def noise(seed: int) -> bytes:
    """Return a PNG of noise, 60 x 50 pixels."""
    out = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (50, 60, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def plain(side: int, grey: int = 0) -> bytes:
    """Return a PNG of a single grey: few bytes, whatever its size."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (grey, grey, grey)).save(out, "PNG")
    return out.getvalue()


def files(*photos: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Return the fields of a form that uploads photos."""
    return [("images", (f"photo {number}.jpg", data)) for number, data in enumerate(photos)]


# The page of a trained model with six classes.


def start(python: WarmPython, model: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Start ``dist-train serve`` on a free port; return the process and the address that it prints."""
    words = ("serve", str(model), "--port", "0", *options)
    process = python.start(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert lines[1].startswith("http://"), lines + process.stdout.readlines()
    return process, lines[1].strip()


def refusal(answer: httpx.Response) -> str:
    """Return the line of an answer that refuses; check that the page has it in every language, with its values."""
    fault = answer.json()
    for table in json.loads((PAGE / "texts.json").read_text()).values():
        texts = [
            table[key] for key in (f"error.{fault['code']}{end}" for end in ("", ".one", ".other")) if key in table
        ]
        assert texts, fault
        assert all(set(re.findall(r"{(\w+)}", text)) <= set(fault["values"]) for text in texts), fault
    return str(fault["detail"])


def added_names(model: Path) -> list[str]:
    """Return the names of the classes that were added to a model on disk."""
    return [entry.name for entry in Classifier.load(model, "cpu").classes if entry.added]


# Raw connections.


def free_port() -> int:
    """Return a port that nobody listens on, below those that Linux gives to whoever asks for any (32768 on): it may
    be minutes until it is listened on."""
    while True:
        port = SystemRandom().randrange(10000, 32768)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def connect(web: httpx.Client, data: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    """Return a connection to the server of ``web`` from the address ``source``, on which ``data`` has been sent."""
    raw = socket.create_connection(("127.0.0.1", web.base_url.port or 80), 60, (source, 0))
    raw.sendall(data)
    return raw


def wait_until_read(web: httpx.Client, raw: socket.socket) -> None:
    """Wait until the server has read everything that was sent, by the kernel's table of both ends of a connection."""
    own, other = f"{raw.getsockname()[1]:04X}", f"{web.base_url.port:04X}"
    while True:
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        queues = {line[1][-4:]: line[4].split(":") for line in lines if {line[1][-4:], line[2][-4:]} == {own, other}}
        assert own in queues, "the server has closed it"
        if len(queues) == 2 and int(queues[own][0], 16) == int(queues[other][1], 16) == 0:  # sent, received
            return
        time.sleep(0.05)


def answer(raw: socket.socket) -> tuple[int, str]:
    """Return code and text of an answer, read to the end of the connection; 0 where there is no answer."""
    data = b""
    try:
        while part := raw.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body.decode()) if head else (0, "")


def is_open(web: httpx.Client, raw: socket.socket) -> bool:
    """Return whether the server still holds a connection, by the kernel's table and the server's open files."""
    port = f":{raw.getsockname()[1]:04X}"
    descriptors = Path(f"/proc/{web.headers['X-Process']}/fd")
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    nodes = {line[9] for line in lines if line[2].endswith(port)}
    return any(f"socket:[{node}]" in {target(path) for path in descriptors.iterdir()} for node in nodes)


def target(descriptor: Path) -> str:
    """Return what an open file of a process is; "" where it was closed meanwhile."""
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""
