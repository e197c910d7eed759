"""Shared by all tests: a small packed data set of drawn images, and the real images where they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from browsers import CHROMIUM, SLOW

from dist_train.config import (
    Config,
    DataConfig,
    DrawConfig,
    EvaluateConfig,
    ExtractConfig,
    LearnConfig,
    PackConfig,
    PretrainConfig,
)
from dist_train.data.drawing import draw, split_of
from dist_train.data.loading.loader import train_batches
from dist_train.data.loading.order import Order
from dist_train.data.packing.pack import pack
from dist_train.data.shards.index import ShardSet
from dist_train.data.splits import View, save_split
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.runs.run import Run, open_run
from dist_train.stages.evaluate import evaluate
from dist_train.stages.extract import extract
from dist_train.stages.learn import learn
from dist_train.stages.pretrain import pretrain

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Fail a test after which this process answers signals, or starts Python, otherwise than before it."""
    python = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    left = {number.name for number, handler in before.items() if signal.getsignal(number) != handler}
    for number, handler in before.items():
        signal.signal(number, handler)
    now = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    assert now == python, "variables for Python were left behind"
    assert not left, f"handlers of {', '.join(sorted(left))} were left behind"


# Ranks of tests/distributed, and pack's workers, fork from a process that has loaded everything.
forkserver.set_forkserver_preload(["launch.cli.main", "dist_train.stages.evaluate", "dist_train.stages.extract",
                                   "dist_train.stages.learn", "dist_train.data.packing.verify",
                                   "nvidia.dali.fn"])  # fmt: skip
forkserver.ensure_running()
DRAWN = DrawConfig(base_classes=6, novel_classes=3, train_per_class=20, val_per_class=6, size=40)
REAL = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that wait the longest first, so that those that compute run beside them (pytest --numprocesses)."""
    first = ("slurm", "launch", "distributed")
    items.sort(key=lambda item: next((n for n, name in enumerate(first) if name == item.path.parent.name), len(first)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The command line, called in this process, takes all CPUs for torch; other sums, other last bits."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Folder with imagenet-sample/ and tiny-imagenet/, beside the checkout."""
    if not REAL.is_dir():
        pytest.skip(f"no real ImageNet images at {REAL}; drawn ones are tested elsewhere")
    return REAL


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folder: train/, val/, split.json; 6 base and 3 novel classes."""
    root = tmp_path_factory.mktemp("drawn")
    draw(DRAWN, root / "train", root / "val", progress=False)
    save_split(split_of(DRAWN), root / "split.json")
    return root


@pytest.fixture(scope="session")
def shards(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The drawn images, packed into several small shards."""
    options = PackConfig(train=drawn / "train", val=drawn / "val", shard_mb=0.05, workers=1)
    return pack(options, tmp_path_factory.mktemp("packed") / "shards", progress=False)


@pytest.fixture
def config(small_run: Config, tmp_path: Path) -> Config:
    """A run that takes seconds."""
    return replace(small_run, runs=tmp_path / "runs")


@pytest.fixture(scope="session")
def small_run(drawn: Path, shards: ShardSet) -> Config:
    """The same, without a folder of its own."""
    return Config(
        name="test",
        data=DataConfig(
            shards=str(shards.root), split=str(drawn / "split.json"), train_size=32, eval_resize=32, eval_size=32,
            threads=1,
        ),
        pretrain=PretrainConfig(
            model="resnet10", epochs=2, global_batch=24, lr=0.05, warmup_epochs=0.5, precision="fp32", log_every=2,
            checkpoint_every=4,
        ),
        extract=ExtractConfig(batch=16, block=16, precision="fp32"),
        learn=LearnConfig(steps=40, precision="fp32", log_every=10, checkpoint_every=20),
        evaluate=EvaluateConfig(draws=4),
    )  # fmt: skip


@pytest.fixture(scope="session")
def whole_run(small_run: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One that went through all stages, with more methods; not to be changed."""
    methods = ["nn", "nn1", "mean", "imprint", "ridge", "phi1", "phi2", "phi2star", "phi2cal", "nn_oracle"]
    options = replace(small_run.evaluate, methods=methods)
    learned = replace(small_run.learn, methods=[*small_run.learn.methods, "phi_plus"])
    run = open_run(replace(small_run, runs=tmp_path_factory.mktemp("whole"), learn=learned, evaluate=options))
    for stage in (pretrain, extract, learn, evaluate):
        stage(run, Context(), StopFlag(Context()))
    return run


@pytest.fixture(scope="session")
def models(whole_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of models of ``whole_run`` with its base classes, by method: phi1, phi2, phi2cal, phi_plus. Not to be
    changed."""
    from dist_train.classifier.from_run import from_run  # not above: it needs pydantic, and a GPU machine may lack it

    root = tmp_path_factory.mktemp("models")
    for method in ("phi1", "phi2", "phi2cal", "phi_plus"):
        from_run(whole_run.config, method).save(root / method)
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window; its camera is drawn."""
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install chromium")
    # Root, as in a container, has no sandbox; the pages are ours.
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options, timeout=SLOW)
        yield started
        started.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``small_disk("148k")``: a real file system of that size."""
    folder = tmp_path / "disk"

    def mount(size: str) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting a small tmpfs needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # lazy: a test may still have files open


GlobalBatches = Callable[..., list[dict[int, bytes]]]


@pytest.fixture
def global_batches() -> GlobalBatches:
    """``global_batches(view, order, data, world, start, stop)``: sample id -> pixels of each global batch,
    put together from the ranks' loaders; labels are checked against the view."""

    def make(
        view: View, order: Order, data: DataConfig, world: int, start: int, stop: int, accumulate: int = 1
    ) -> list[dict[int, bytes]]:
        found: list[dict[int, bytes]] = [{} for _ in range(start, stop)]
        for rank in range(world):
            context = Context(rank, world, rank, world)
            batches = train_batches(view, order, data, 0, context, range(start, stop), accumulate)
            for number, batch in enumerate(batches):
                assert batch.labels.tolist() == view.labels_of(batch.ids).tolist()
                pixels = [image.numpy().tobytes() for image in batch.images]
                found[number // accumulate].update(zip(batch.ids.tolist(), pixels, strict=True))
        return found

    return make


@pytest.fixture
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``torchrun(world, "script or -m module", args...)``: real processes over gloo."""

    def start(world: int, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, env=env, timeout=300)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return start
