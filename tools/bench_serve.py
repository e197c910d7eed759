"""What a small photo waits for on the page of a model while large photos are being worked on, and the memory of it.

    python tools/bench_serve.py MODEL [--large 8] [--megapixels 62]

Starts the page of a copy of MODEL, uploads the large photos (PNG files of one colour each, tens of kilobytes, so that
nothing but the decoding takes time), each in a request of its own and all at once, and asks about one small photo
after the other until the large ones are answered.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
from PIL import Image


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder made by dist-train adapt")
    parser.add_argument("--large", type=int, default=8, help="large photos at once")
    parser.add_argument("--megapixels", type=float, default=62, help="of a large photo")
    given = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(given.model, Path(folder) / "model"))
        command = [sys.executable, "-m", "dist_train", "serve", str(copy), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            process.stdout.readline()
            measure(process.stdout.readline().strip(), process.pid, given.large, given.megapixels)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def measure(url: str, pid: int, large: int, megapixels: float) -> None:
    side = int((megapixels * 1e6) ** 0.5)
    photos = [encoded(np.full((side, side, 3), number, np.uint8), "PNG") for number in range(large)]
    with httpx.Client(base_url=url, timeout=600) as web, ThreadPoolExecutor(large) as pool:
        waits(web, 0)  # what is made once
        alone, before = np.median([waits(web, number) for number in range(1, 6)]), memory(pid)
        start = time.perf_counter()
        answers = [pool.submit(classify, web, photo) for photo in photos]
        time.sleep(0.5)
        beside = [waits(web, 10)]
        while not all(answer.done() for answer in answers):
            beside.append(waits(web, 10 + len(beside)))
        seconds = time.perf_counter() - start
        assert all(answer.result() for answer in answers)
    print("| small photo alone, s | beside large: median, s | longest, s | large answered after, s "
          "| memory before, MB | at most, MB |\n|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    print(f"| {alone:.2f} | {np.median(beside):.2f} | {max(beside):.2f} | {seconds:.1f} | {before} | {memory(pid)} |")


def waits(web: httpx.Client, seed: int) -> float:
    """Seconds until a photo that the server has not seen is answered."""
    photo = encoded(np.random.RandomState(seed).randint(0, 256, (375, 500, 3), np.uint8), "JPEG")
    start = time.perf_counter()
    assert classify(web, photo)
    return time.perf_counter() - start


def classify(web: httpx.Client, photo: bytes) -> bool:
    result = web.post("/api/classify", files={"images": ("photo", photo)}).json()["results"][0]
    return "predictions" in result


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def memory(pid: int) -> int:
    """The most that a process has held, in megabytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024 // 1_000_000


if __name__ == "__main__":
    main()
