"""Measure how long a small photo waits for its answer while a server works on large photos, and the server's memory.

    python tools/bench_serve.py MODEL [--large 8] [--megapixels 62]

Serves a copy of MODEL and uploads the large photos (PNG files of a single colour, tens of kilobytes, so that nothing
but the decoding takes time), each in a request of its own and all at once. Then asks about small photos, one after
another, until the large photos are answered.
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
    parser.add_argument("model", type=Path, help="folder made by dist-train adapt")
    parser.add_argument("--large", type=int, default=8, help="large photos at once")
    parser.add_argument("--megapixels", type=float, default=62, help="megapixels of a large photo")
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(args.model, Path(folder) / "model"))
        command = [sys.executable, "-m", "dist_train", "serve", str(copy), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            process.stdout.readline()
            measure(process.stdout.readline().strip(), process.pid, args.large, args.megapixels)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def measure(url: str, pid: int, large: int, megapixels: float) -> None:
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
    print("| small photo alone, s | beside large: median, s | longest, s | large answered after, s "
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
    result = web.post("/api/v1/models/model/classify", files={"images": ("photo", photo)}).json()["results"][0]
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
