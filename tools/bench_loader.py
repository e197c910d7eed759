"""Measure the images/s of this loader beside other loaders, in one run, as ratios.

    python tools/bench_loader.py [--images TAR_OR_FOLDER] [--rounds 3] [--threads 2] [--only NAME ...] [--gpu]

All loaders do the same work: read, decode, random resized crop to 224, flip, normalise, in batches of 64,
without a model; dist_train also with its augmentations. ``limit`` decodes whole JPEGs with libjpeg-turbo
and does nothing else. The rounds go through all loaders in turn, forwards and backwards, and
medians are compared, so that a machine that slows down slows all of them. The images are full-size JPEGs
(a tar or a folder), or drawn images where none are given.

With ``--gpu`` the batches are wanted on GPU 0: dist_train and DALI's reader decode there (``mixed``), and the batches
that the other loaders make on the CPU are copied there, by torchvision's DataLoader from pinned memory.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import webdataset as wds
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from torchvision.transforms import v2

from dist_train.config import CacheConfig, DataConfig, DrawConfig, PackConfig
from dist_train.config.backbone import MEAN, STD
from dist_train.data.drawing import draw
from dist_train.data.loading.loader import train_batches
from dist_train.data.loading.order import Order
from dist_train.data.packing.pack import pack
from dist_train.data.shards.index import ShardSet, open_shards
from dist_train.data.splits import make_view
from dist_train.distributed.context import Context

BATCH, SIDE = 64, 224
PIXEL_MEAN, PIXEL_STD = [255 * v for v in MEAN], [255 * v for v in STD]


def images_into(folder: Path, source: Path | None) -> None:
    """Make a folder of one class with all images, for ``pack`` and for torchvision's ImageFolder."""
    if source is None:
        options = DrawConfig(base_classes=10, novel_classes=1, train_per_class=20, val_per_class=1, size=480)
        draw(options, folder / "train", folder / "val", progress=False)
        return
    target = folder / "train" / "all"
    target.mkdir(parents=True)
    if source.is_dir():
        blobs = [(path.name, path.read_bytes()) for path in sorted(source.rglob("*")) if path.is_file()]
    else:
        with tarfile.open(source) as tar:
            blobs = [(Path(m.name).name, tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]
    for name, blob in blobs:
        (target / name).write_bytes(blob)


GPU = torch.device("cuda", 0)


def ours(shards: ShardSet, threads: int, passes: int, context: Context, **options: Any) -> Iterator[int]:
    view = make_view(shards["train"], shards.classes, shards.classes, "bench")
    order = Order(len(view), BATCH, 0)
    data = DataConfig(shards=str(shards.root), threads=threads, **options)
    for batch in train_batches(view, order, data, context, range(0, order.steps(passes))):
        yield len(batch.images)


def finish(encoded: object, device: str = "cpu") -> object:
    """Crop, resize, flip and normalise as DALI's own examples do; ``device`` of the decoder: cpu or mixed."""
    images = fn.decoders.image_random_crop(
        encoded, device=device, random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0]
    )
    images = fn.resize(images, size=(SIDE, SIDE), interp_type=types.INTERP_LINEAR, antialias=True)
    flip = fn.random.coin_flip()
    return fn.crop_mirror_normalize(
        images, mirror=flip, mean=PIXEL_MEAN, std=PIXEL_STD, dtype=types.FLOAT, output_layout="HWC", crop=(SIDE, SIDE)
    )


def run_pipeline(pipeline: object, images: int) -> Iterator[int]:
    for _ in range(images // BATCH):
        (out,) = pipeline.run()  # type: ignore[attr-defined]
        yield len(torch.utils.dlpack.from_dlpack(out.as_tensor()))


def tars(shards: ShardSet) -> list[str]:
    return [str(shards["train"].path(n)) for n in range(len(shards["train"].shards))]


def dali_reader(shards: ShardSet, threads: int, passes: int, gpu: bool) -> Iterator[int]:
    paths = tars(shards)

    @pipeline_def
    def graph() -> object:
        encoded, _ = fn.readers.webdataset(
            paths=paths, index_paths=[p[:-3] + "idx" for p in paths], ext=["jpg", "cls"],
            missing_component_behavior="error", random_shuffle=True, initial_fill=256, name="reader",
        )  # fmt: skip
        return finish(encoded, "mixed" if gpu else "cpu")

    device = 0 if gpu else None
    pipeline = graph(batch_size=BATCH, num_threads=threads, device_id=device, prefetch_queue_depth=2, exec_dynamic=True)
    return run_pipeline(pipeline, len(shards["train"]) * passes)


def dali_over_webdataset(shards: ShardSet, threads: int, passes: int) -> Iterator[int]:
    dataset = wds.WebDataset(tars(shards), shardshuffle=False).shuffle(256).to_tuple("jpg")
    samples = (np.frombuffer(blob, np.uint8) for _ in range(passes + 2) for (blob,) in dataset)

    @pipeline_def
    def graph() -> object:
        return finish(fn.external_source(source=lambda: [next(samples) for _ in range(BATCH)], batch=True))

    pipeline = graph(batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=2, exec_dynamic=True)
    return run_pipeline(pipeline, len(shards["train"]) * passes)


def transform() -> v2.Compose:
    return v2.Compose(
        [v2.PILToTensor(), v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip(),
         v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )  # fmt: skip


def count(batches: Iterable[Any], gpu: bool = False) -> Iterator[int]:
    for images, *_ in batches:
        yield len(images.to(GPU, non_blocking=True) if gpu else images)


def torchvision_loader(folder: Path, threads: int, passes: int, gpu: bool) -> Iterator[int]:
    data = torchvision.datasets.ImageFolder(str(folder / "train"), transform())
    whole = torch.utils.data.ConcatDataset([data] * passes)
    loader = torch.utils.data.DataLoader(
        whole, BATCH, shuffle=True, num_workers=threads, drop_last=True, pin_memory=gpu
    )
    return count(loader, gpu)


def webdataset_pil(shards: ShardSet, threads: int, passes: int) -> Iterator[int]:
    step = transform()
    dataset = wds.WebDataset(tars(shards) * passes, shardshuffle=False).shuffle(256).decode("pilrgb")
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(step, lambda label: label)
    workers = min(threads, len(tars(shards)))
    return count(torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, drop_last=True))


def limit(blobs: list[bytes], threads: int, passes: int) -> Iterator[int]:
    def decode(blob: bytes) -> int:
        Image.open(io.BytesIO(blob)).convert("RGB").load()
        return 1

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(decode, blobs * passes)


def serve(folder: Path) -> str:
    """Serve a folder by HTTP on loopback, as long as this process lives, and return its URL."""
    handler = partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def rate(batches: Iterator[int]) -> float:
    """Return the images/s after the first batch, which includes the start-up."""
    next(batches)
    start = time.perf_counter()
    images = sum(batches)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=4, help="over the images, in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[""], help="loaders whose names hold this text, and dist_train")
    parser.add_argument("--gpu", action="store_true", help="batches are wanted on GPU 0")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(arguments)
    if args.gpu:
        torch.cuda.init()
    context = Context(device=GPU) if args.gpu else Context()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images_into(folder, args.images)
        shards = pack(PackConfig(train=folder / "train", shard_mb=8), folder / "shards", progress=False)
        blobs = [path.read_bytes() for path in sorted((folder / "train").rglob("*.*")) if path.is_file()]
        n, p = args.threads, args.passes
        remote = open_shards(serve(folder / "shards"), CacheConfig(dir=folder / "cache"))
        for number in range(len(remote["train"].shards)):
            remote["train"].fetch(number)
        contestants: dict[str, Callable[[], Iterator[int]]] = {
            "limit: bare libjpeg-turbo decode": lambda: limit(blobs, n, p),
            "dist_train": lambda: ours(shards, n, p, context),
            "dist_train, from a URL, cache warm": lambda: ours(remote, n, p, context),
            "dist_train, RandAugment": lambda: ours(shards, n, p, context, augment="randaugment"),
            "dist_train, TrivialAugment": lambda: ours(shards, n, p, context, augment="trivialaugment"),
            "DALI's own webdataset reader": lambda: dali_reader(shards, n, p, args.gpu),
            "DALI over the webdataset library": lambda: dali_over_webdataset(shards, n, p),
            "torchvision DataLoader": lambda: torchvision_loader(folder, n, p, args.gpu),
            "webdataset + PIL": lambda: webdataset_pil(shards, n, p),
        }
        wanted = ["dist_train", *(name for name in contestants if any(text in name for text in args.only))]
        chosen = {name: make for name, make in contestants.items() if name in wanted}
        rates: dict[str, list[float]] = {name: [] for name in chosen}
        for number in range(args.rounds):
            for name, make in list(chosen.items())[:: -1 if number % 2 else 1]:
                rates[name].append(rate(make()))
                print(f"round {number + 1}: {name}: {rates[name][-1]:.0f} images/s", file=sys.stderr)
    print(f"{platform.processor() or platform.machine()}, {n} threads, {len(blobs)} images x {p}, {args.rounds} rounds")
    print(f"\n| loader | images/s (median) | min to max | dist_train is |\n|{'---|' * 4}")
    mine = statistics.median(rates["dist_train"])
    for name, values in rates.items():
        ratios = statistics.median(a / b for a, b in zip(rates["dist_train"], values, strict=True))
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} to {max(values):.0f} | {ratios:.2f}x |")
    if args.json:
        args.json.write_text(json.dumps({"rates": rates, "dist_train": mine, "threads": n}, indent=1))


if __name__ == "__main__":
    main()
