"""Measure a server: its latency and rate for 1, 8 and 64 clients, and how long a small photo waits beside large ones.

    python tools/bench_serve.py MODEL [--clients 1 8 64] [--seconds 10] [--large 8] [--megapixels 62]

Each client sends a JPEG of 500 x 375 pixels, waits for the answer, and sends the next, which the server has not seen.
It has an address and a connection of its own. The same clients then ask a server that computes a photo at a time:
FastAPI, the same model's ``predict`` under a lock, and nothing else. Clients and server share the CPUs of this
machine.

The second table serves a copy of MODEL and uploads large photos (PNG files of a single colour, tens of kilobytes, so
that nothing but the decoding takes time), each in a request of its own and all at once. Then it asks about small
photos, one after another, until the large photos are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from PIL import Image

CLASSIFY = "/api/v1/models/model/classify"

ONE_AT_A_TIME = f"""
import contextlib, sys, threading
import fastapi, uvicorn
from dist_train import Classifier
from dist_train.classifier.serving.address import listen

model, lock, app = Classifier.load(sys.argv[1]), threading.Lock(), fastapi.FastAPI()

@app.post("{CLASSIFY}")
def classify(images: list[fastapi.UploadFile]):
    with lock:
        answers = model.predict([image.file.read() for image in images])
    return {{"results": [{{"predictions": [prediction.name for prediction in answer]}} for answer in answers]}}

listening = listen("127.0.0.1", 0)
print("one at a time", f"http://127.0.0.1:{{listening.getsockname()[1]}}/", sep="\\n", flush=True)
with contextlib.suppress(KeyboardInterrupt):
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder made by dist-train adapt or create")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="numbers of clients")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of each number of clients")
    parser.add_argument("--large", type=int, default=8, help="large photos at once")
    parser.add_argument("--megapixels", type=float, default=62, help="megapixels of a large photo")
    args = parser.parse_args(arguments)
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} before")
    with TemporaryDirectory() as folder:
        copy = str(shutil.copytree(args.model, Path(folder) / "model"))
        batched = [sys.executable, "-m", "dist_train", "serve", copy, "--port", "0"]
        single = [sys.executable, "-c", ONE_AT_A_TIME, copy]
        print("\n| server | clients | photos a second | p50, ms | p99, ms | photos a batch |"
              "\n|---|---:|---:|---:|---:|---:|")  # fmt: skip
        for name, command in (("dist-train serve", batched), ("one at a time", single)):
            with served(command) as (url, _):
                for clients in args.clients:
                    asyncio.run(measure_clients(name, url, clients, args.seconds))
        with served(batched) as (url, pid):
            measure_large(url, pid, args.large, args.megapixels)


@contextmanager
def served(command: list[str]) -> Iterator[tuple[str, int]]:
    """Start a server, which prints a line and then its address; yield the address and the id of its process."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        process.stdout.readline()
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def cpu_name() -> str:
    """Return the name of this machine's CPU."""
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.processor()


# Many clients.


async def measure_clients(name: str, url: str, clients: int, seconds: float) -> None:
    """Print the row of a number of clients. Each has one answer before the clock starts: first batches are slower."""
    photo, waits = encode(smooth_photo(), "JPEG"), list[float]()
    connections = [await connect(url, client) for client in range(clients)]
    await asyncio.gather(*(ask(*streams, photo) for streams in connections))
    before, end = batches(url), time.perf_counter() + seconds

    async def ask_on(*streams: Any) -> None:
        while (begin := time.perf_counter()) < end:
            await ask(*streams, photo)
            waits.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*(ask_on(*streams) for streams in connections))
    rate, after = len(waits) / (time.perf_counter() - begin), batches(url)
    p50, p99 = np.percentile(waits, [50, 99]) * 1000
    mean = (after[0] - before[0]) / (after[1] - before[1]) if after and before else 1
    print(f"| {name} | {clients} | {rate:.1f} | {p50:.0f} | {p99:.0f} | {mean:.1f} |", flush=True)
    for _, writer in connections:
        writer.close()


async def connect(url: str, client: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to a server from an address of the client's own."""
    host = httpx.URL(url)
    return await asyncio.open_connection(host.host, host.port, local_addr=(f"127.0.1.{client + 1}", 0))


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, photo: bytes) -> None:
    """Send a photo that the server has not seen, and wait for the answer."""
    writer.write(upload(photo + os.urandom(16)))  # what follows the end of a JPEG is not decoded
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert length
    body = json.loads(await reader.readexactly(int(length[1])))
    assert body["results"][0]["predictions"], body


def upload(photo: bytes) -> bytes:
    """Return the bytes of a request that asks about a photo."""
    body = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n' + photo + b"\r\n--b--\r\n"
    head = f"POST {CLASSIFY} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def batches(url: str) -> tuple[float, float] | None:
    """Return how many photos and batches the server has computed; None where it does not count them."""
    answer = httpx.get(f"{url}metrics")
    found = dict(re.findall(r"^dist_train_batch_photos_(sum|count)\{.*\} ([\d.]+)$", answer.text, re.MULTILINE))
    if answer.status_code == 404:
        return None
    return float(found.get("sum", 0)), float(found.get("count", 0))


def smooth_photo() -> np.ndarray:
    """Return pixels [375, 500, 3] of about as many bytes as a photo of that size has as a JPEG."""
    random = np.random.RandomState(0)
    large = Image.fromarray(random.randint(0, 256, (24, 32, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(large) + random.normal(0, 8, (375, 500, 3)), 0, 255).astype(np.uint8)


# A small photo beside large ones.


def measure_large(url: str, pid: int, large: int, megapixels: float) -> None:
    """Print a table of waits in seconds and of the server's memory."""
    side = int((megapixels * 1e6) ** 0.5)
    photos = [encode(np.full((side, side, 3), number, np.uint8), "PNG") for number in range(large)]
    with httpx.Client(base_url=url, timeout=600) as web, ThreadPoolExecutor(large) as pool:
        wait_for_answer(web, 0)  # warms up
        alone, before = np.median([wait_for_answer(web, number) for number in range(1, 6)]), peak_memory(pid)
        start = time.perf_counter()
        answers = [pool.submit(classify, web, photo) for photo in photos]
        time.sleep(0.5)
        beside = [wait_for_answer(web, 10)]
        while not all(answer.done() for answer in answers):
            beside.append(wait_for_answer(web, 10 + len(beside)))
        seconds = time.perf_counter() - start
        assert all(answer.result() for answer in answers)
    print("\n| small photo alone, s | beside large: median, s | longest, s | large answered after, s "
          "| memory before, MB | at most, MB |\n|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    print(
        f"| {alone:.2f} | {np.median(beside):.2f} | {max(beside):.2f} | {seconds:.1f} | {before} | {peak_memory(pid)} |"
    )


def wait_for_answer(web: httpx.Client, seed: int) -> float:
    """Return the seconds until a photo that the server has not seen is answered."""
    photo = encode(np.random.RandomState(seed).randint(0, 256, (375, 500, 3), np.uint8), "JPEG")
    start = time.perf_counter()
    assert classify(web, photo)
    return time.perf_counter() - start


def classify(web: httpx.Client, photo: bytes) -> bool:
    """Ask about a photo, and return whether it was answered."""
    result = web.post(CLASSIFY, files={"images": ("photo", photo)}).json()["results"][0]
    return "predictions" in result


def encode(pixels: np.ndarray, kind: str) -> bytes:
    """Encode pixels [height, width, 3] as a PNG or JPEG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def peak_memory(pid: int) -> int:
    """Return the peak resident memory of a process in megabytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) * 1024 // 1_000_000


if __name__ == "__main__":
    main()
