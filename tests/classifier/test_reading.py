"""How photos are read for a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_train.classifier.reading import Pace, read
from dist_train.distributed.cpus import usable_cpus


@pytest.mark.parametrize("meanwhile", [True, False])
@pytest.mark.parametrize("count", [0, 1, 6, 7, 20])
def test_items_come_in_order_and_few_wait(count: int, meanwhile: bool) -> None:
    done: list[int] = []

    def work(item: int) -> int:
        done.append(item)
        return -item

    for number, result in enumerate(read(work, range(count), Pace(2, 6, meanwhile))):
        assert result == -number
        if not meanwhile:  # no thread is at work while the caller has an item
            assert sorted(done) == list(range(min(count, 6 * (number // 6 + 1))))
        assert len(done) <= number + 6 + (6 if not meanwhile else 1)
    assert sorted(done) == list(range(count))


def test_a_fault_ends_the_reading() -> None:
    def work(item: int) -> float:
        return 1 / (3 - item)

    results = read(work, range(100), Pace(2, 6, meanwhile=False))
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


_THREADS = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
import torch
from dist_train.classifier.kept import NewPhoto
from dist_train.classifier.photos import Preprocess, load
from dist_train.config.backbone import Preprocessing

preprocess = Preprocess(Preprocessing(resize=256, size=224, interpolation="bicubic"))
def prepared(path):
    pixels = load(path)
    return NewPhoto.of(preprocess.batch([pixels]), pixels, path)
def threads():
    return len(os.listdir("/proc/self/task"))
with ThreadPoolExecutor(2) as pool:
    list(pool.map(time.sleep, [0.2, 0.2]))
    before = threads()
    list(pool.map(prepared, sys.argv[1:]))
    print(threads() - before)
    list(pool.map(lambda path: torch.stack([torch.zeros(3, 224, 224)]), sys.argv[1:]))
    print(threads() - before)
"""


@pytest.mark.skipif(usable_cpus() < 2, reason="a single CPU: torch starts no threads")
def test_reading_starts_no_threads_of_torch(tmp_path: Path) -> None:
    """Threads of torch in each reading thread would be more than the CPUs, and then OpenMP puts those of the network to
    sleep after each layer: classify took 1.2 to 1.4 times as long (docs/results/batch.md)."""
    paths = [tmp_path / f"{n}.png" for n in range(8)]
    for path in paths:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(path)
    run = subprocess.run([sys.executable, "-c", _THREADS, *paths], env={**os.environ, "OMP_NUM_THREADS": "2"},
                         capture_output=True, text=True, check=True)  # fmt: skip
    started, with_torch = map(int, run.stdout.split())
    assert started == 0 and with_torch > 0, run.stdout
