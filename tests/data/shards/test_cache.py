"""Shards of a URL: a real HTTP server that misbehaves, a real S3 server, many readers, small caches."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_train.config import CacheConfig, Config
from dist_train.data.loading.loader import eval_batches, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.prefetch import ShardPrefetcher
from dist_train.data.shards import cache as caching
from dist_train.data.shards.index import ShardSet, open_shards
from dist_train.data.splits import make_view
from dist_train.distributed.context import Context
from dist_train.errors import UserError


class Server:
    """Serve a folder by HTTP. ``faults``: path -> what happens to its first requests."""

    def __init__(self, folder: Path) -> None:
        self.faults: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *given: Any, **options: Any) -> None:
                super().__init__(*given, directory=str(folder), **options)

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.requests[self.path] += 1
                queue = outer.faults.get(self.path, [])
                fault = queue.pop(0) if queue else ""
                content = (
                    bytearray((folder / self.path[1:]).read_bytes()) if (folder / self.path[1:]).is_file() else None
                )
                if fault == "refuse":
                    self.connection.close()
                    return
                if fault.isdigit():
                    self.send_error(int(fault))
                    return
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                half = len(content) // 2
                if fault == "slow":
                    time.sleep(0.8)
                if fault == "corrupt":
                    content[half] ^= 1
                self.wfile.write(content[:half])
                if fault == "truncate":
                    self.close_connection = True
                    return
                if fault == "stall":
                    time.sleep(3)
                    self.close_connection = True
                    return
                self.wfile.write(content[half:])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(shards: ShardSet) -> Iterator[Server]:
    one = Server(shards.root)
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.random, "uniform", lambda low, high: 0.01)


def options(tmp_path: Path, **changes: Any) -> CacheConfig:
    return CacheConfig(**{"dir": tmp_path / "cache", "timeout": 1.0, "retries": 3, **changes})


def files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").iterdir() if path.is_file()]


def pixels(shards: ShardSet, config: Config, block_shards: int = 0) -> list[bytes]:
    view = make_view(shards["train"], shards.classes, shards.classes[:6], "s")
    order = Order(len(view), 24, 0, shards["train"].samples["shard"][view.ids].astype(np.int64), block_shards)
    return [b.images.numpy().tobytes() for b in train_batches(view, order, config.data, Context(), range(0, 12))]


def test_a_url_gives_the_same_pixels_and_fetches_each_shard_once(
    server: Server, shards: ShardSet, config: Config, tmp_path: Path
) -> None:
    remote = open_shards(server.url, options(tmp_path))
    assert remote.hash == shards.hash
    assert pixels(remote, config) == pixels(shards, config)
    assert pixels(open_shards(server.url, options(tmp_path)), config) == pixels(shards, config)
    fetched = {path: n for path, n in server.requests.items() if path != "/index.json"}
    assert set(fetched.values()) == {1} and sum("tar" in path for path in fetched) == len(shards["train"].shards)
    view = make_view(remote["val"], remote.classes, remote.classes, "s")
    assert sum(len(b.ids) for b in eval_batches(view, view.ids, config.data, 16, Context())) == len(view)


@pytest.mark.parametrize("fault", ["refuse", "stall", "truncate", "corrupt", "500", "503"])
def test_a_fault_is_retried_and_counted(server: Server, shards: ShardSet, tmp_path: Path, fault: str) -> None:
    name = shards["train"].shards[0].name
    server.faults[f"/train/{name}"] = [fault, fault]
    remote = open_shards(server.url, options(tmp_path))
    path = remote["train"].fetch(0)
    assert path.read_bytes() == shards["train"].path(0).read_bytes()
    cache = remote["train"].cache
    # aiohttp itself repeats a request once that got no answer at all
    assert cache is not None and cache.retries == (1 if fault == "refuse" else 2)
    assert server.requests[f"/train/{name}"] == 3
    assert not [p for p in files(tmp_path) if p.name.startswith(".")]


@pytest.mark.parametrize("fault", ["refuse", "truncate", "corrupt", "500"])
def test_a_lasting_fault_is_one_line_and_leaves_nothing(
    server: Server, shards: ShardSet, tmp_path: Path, fault: str
) -> None:
    name = shards["train"].shards[0].name
    server.faults[f"/train/{name}"] = [fault] * 100
    remote = open_shards(server.url, options(tmp_path))
    with pytest.raises(UserError, match=rf"{name}: cannot be fetched, 4 attempt.*check the URL") as error:
        remote["train"].fetch(0)
    assert "\n" not in str(error.value)
    assert not [p for p in files(tmp_path) if p.name.startswith(".") or p.name == shards["train"].shards[0].sha256]


@pytest.mark.parametrize("url", ["nowhere", "pipe://rm -rf", "gopher://x/y"])
def test_a_final_error_is_not_retried(server: Server, tmp_path: Path, url: str) -> None:
    url = url if "://" in url else f"{server.url}/{url}"
    with pytest.raises(UserError, match=r"cannot be fetched, 1 attempt"):
        open_shards(url, options(tmp_path))


def test_many_readers_share_one_download(server: Server, shards: ShardSet, tmp_path: Path) -> None:
    """Each reader has a cache of its own, as processes have: the locks are files."""
    name = shards["train"].shards[0].name
    server.faults[f"/train/{name}"] = ["slow"]
    caches = [open_shards(server.url, options(tmp_path))["train"] for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda train: train.fetch(0), caches))
    assert len(set(paths)) == 1 and server.requests[f"/train/{name}"] == 1
    assert sum(train.cache.fetched for train in caches if train.cache) == 1 + 2  # and the two tables


def _read(url: str, config: CacheConfig, number: int) -> int:
    train = open_shards(url, config)["train"]
    for shard in np.random.RandomState(number).permutation(len(train.shards)):
        assert train.fetch(int(shard)).stat().st_size == train.shards[shard].bytes
    assert train.cache is not None
    return train.cache.fetched


def test_processes_share_the_cache(server: Server, shards: ShardSet, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        fetched = pool.starmap(_read, [(server.url, options(tmp_path), n) for n in range(2)])
    assert sum(fetched) == len(shards["train"].shards) + 2
    assert {n for path, n in server.requests.items() if path.endswith(".tar")} == {1}


def test_the_cache_stays_within_its_limit_and_keeps_what_is_in_use(
    server: Server, shards: ShardSet, tmp_path: Path
) -> None:
    train = shards["train"]
    tables = sum((shards.root / f"{name}.samples.npy").stat().st_size for name in ("train", "val"))
    largest = max(shard.bytes for name in ("train", "val") for shard in shards[name].shards)
    limit = tables + 3 * largest + 1000
    remote = open_shards(server.url, options(tmp_path, gb=limit / 1e9), block_shards=1)["train"]
    first = remote.fetch(0)
    with first.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        for number in range(1, len(train.shards)):
            remote.fetch(number)
            assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
            assert first.exists()
    for number in range(len(train.shards) - 3, len(train.shards)):  # the least recently used one went first
        os.utime(remote.fetch(number))
    remote.fetch(1)
    assert not first.exists()


def test_a_small_cache_trains_in_blocks_with_the_same_pixels(
    server: Server, shards: ShardSet, config: Config, tmp_path: Path
) -> None:
    train = shards["train"]
    tables = sum((shards.root / f"{name}.samples.npy").stat().st_size for name in ("train", "val"))
    limit = tables + 4 * max(shard.bytes for name in ("train", "val") for shard in shards[name].shards)
    assert limit < sum(shard.bytes for shard in train.shards)
    with pytest.raises(UserError, match=r"cache.gb=.*needs .*set data.block_shards"):
        open_shards(server.url, options(tmp_path, gb=limit / 1e9))
    remote = open_shards(server.url, options(tmp_path, gb=limit / 1e9), block_shards=1)
    assert pixels(remote, config, 1) == pixels(shards, config, 1)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit


def test_a_cache_full_of_shards_in_use_says_so(server: Server, shards: ShardSet, tmp_path: Path) -> None:
    tables = sum((shards.root / f"{name}.samples.npy").stat().st_size for name in ("train", "val"))
    limit = tables + 3 * max(shard.bytes for name in ("train", "val") for shard in shards[name].shards)
    remote = open_shards(server.url, options(tmp_path, gb=limit / 1e9, timeout=0.5), block_shards=1)["train"]
    held = []
    with pytest.raises(UserError, match="full of shards in use"):
        for number in range(len(remote.shards)):
            held.append(remote.fetch(number).open("rb"))
            fcntl.flock(held[-1], fcntl.LOCK_SH)
    for file in held:
        file.close()


def test_leftovers_of_a_killed_process_are_removed(server: Server, shards: ShardSet, tmp_path: Path) -> None:
    remote = open_shards(server.url, options(tmp_path))["train"]
    sha = remote.shards[0].sha256
    left = tmp_path / "cache" / f".{sha}.{remote.shards[0].bytes}.tmp-999999"
    left.write_bytes(b"half")
    remote.fetch(1)
    assert not left.exists()


def test_a_full_disk_is_one_line(server: Server, small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cache.dir=.*No space left.*make room"):
        remote = open_shards(server.url, options(tmp_path, dir=small_disk("48k")))["train"]
        for number in range(len(remote.shards)):
            remote.fetch(number)


@pytest.fixture
def bucket(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put the shards into an S3 server on loopback."""
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="images")
    for path in shards.root.rglob("*"):
        if path.is_file() and ".pack" not in path.parts:
            client.upload_file(str(path), "images", f"small/{path.relative_to(shards.root)}")
    yield "s3://images/small"
    server.stop()


def test_s3(bucket: str, shards: ShardSet, config: Config, tmp_path: Path) -> None:
    remote = open_shards(bucket, options(tmp_path, timeout=20.0))
    assert remote.hash == shards.hash and pixels(remote, config) == pixels(shards, config)
    with pytest.raises(UserError, match=r"s3://images/nowhere/index.json: cannot be fetched, 1 attempt"):
        open_shards("s3://images/nowhere", options(tmp_path, timeout=20.0))


def test_the_prefetcher_runs_a_block_ahead(server: Server, shards: ShardSet, config: Config, tmp_path: Path) -> None:
    remote = open_shards(server.url, options(tmp_path), block_shards=2)
    view = make_view(remote["train"], remote.classes, remote.classes[:6], "s")
    order = Order(len(view), 24, 0, remote["train"].samples["shard"][view.ids].astype(np.int64), 2)
    shard_of = remote["train"].samples["shard"]
    ahead = ShardPrefetcher(remote["train"], lambda n: view.ids[order.batch(n)[0]], range(0, 5), Context())
    first, second = ({int(s) for s in shard_of[view.ids[order.batch(n)[0]]]} for n in (0, 1))
    end = time.monotonic() + 20
    while time.monotonic() < end and not all(remote["train"].path(s).exists() for s in first | second):
        time.sleep(0.05)
    assert all(remote["train"].path(s).exists() for s in first | second)  # though nobody reads
    time.sleep(0.3)
    seen = [s for s in range(len(remote["train"].shards)) if remote["train"].path(s).exists()]
    assert len(seen) < len(remote["train"].shards)  # but not all at once
    ahead.close()
    batches = train_batches(view, order, config.data, Context(), range(0, 5))
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_a_restarted_url_run_needs_no_server_for_what_it_has(
    server: Server, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = open_shards(server.url, options(tmp_path))["train"]
    remote.fetch(0)
    server.faults[f"/train/{remote.shards[0].name}"] = ["500"] * 100
    assert open_shards(server.url, options(tmp_path))["train"].fetch(0).exists()
