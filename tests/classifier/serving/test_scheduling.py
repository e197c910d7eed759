"""Photos of many clients share the decoding threads and the network, whatever the others send."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from clients import noise, plain
from starlette.requests import ClientDisconnect

from dist_train.classifier.network import Network
from dist_train.classifier.serving.api import unless_disconnected
from dist_train.classifier.serving.scheduling import SMALL, BatchedNetwork, DecodingPools, FairPool
from dist_train.classifier.serving.served_model import EmbeddedPhoto, Limits, ServedModel

Page = Callable[..., httpx.Client]


def test_a_small_photo_does_not_wait_for_large_ones(page: Page) -> None:
    """Send eight photos of 25 megapixels, each in a request of its own: requests of small photos are answered while
    most of them wait. They are decoded one at a time, so the memory is that of a single photo."""
    web = page()
    assert classify(web, plain(39)).status_code == 200
    before = memory(web)
    with ThreadPoolExecutor(8) as pool:
        photos = [plain(5000, grey) for grey in range(8)]
        large = [pool.submit(classify, web, photo) for photo in photos]
        results = classify(web, *(plain(40, grey) for grey in range(6))).json()["results"]
        assert sum(request.done() for request in large) <= 4
        assert len(results) == 6 and all("predictions" in result for result in results)
        assert all("predictions" in request.result().json()["results"][0] for request in large)
    assert memory(web) - before < 900


def classify(web: httpx.Client, *photos: bytes) -> httpx.Response:
    return web.post(
        "/api/v1/models/model/classify", files=[("images", (f"{n}.png", photo)) for n, photo in enumerate(photos)]
    )


def memory(web: httpx.Client) -> int:
    """Return the largest memory that the server has held, in megabytes."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{web.headers['X-Process']}/status").read_text())
    assert peak
    return int(peak[1]) // 1000


def test_photos_of_a_request_are_answered_like_single_photos(page: Page) -> None:
    """The answers keep the order of the photos, whatever their sizes and number, with damaged photos among them."""
    web = page({}, {"pixels": 20_000_000})
    photos = [noise(seed) for seed in range(40)]
    photos[3:3] = [plain(4100), b"text", plain(4500), plain(100)[:60]]
    together = classify(web, *photos).json()["results"]
    assert [result["name"] for result in together] == [f"{n}.png" for n in range(len(photos))]
    errors = [result.get("error", "")[:30] for result in together[3:7]]
    assert errors[0] == "" and "known format" in together[4]["error"] and "20000000" in together[5]["error"]
    assert "damaged" in together[6]["error"]
    for photo, result in zip(photos, together, strict=True):
        alone = classify(web, photo).json()["results"][0]
        assert alone.get("id") == result.get("id")
        if "id" in alone:
            assert [a["name"] for a in alone["predictions"]] == [b["name"] for b in result["predictions"]]
            shares = [
                [prediction["probability"] for prediction in answers["predictions"]] for answers in (alone, result)
            ]
            assert np.allclose(*shares, atol=1e-5)


def test_a_pool_works_side_by_side_and_shares() -> None:
    """Two pieces of work run at a time; a client with a single piece waits for two of another's fifty at most."""
    both, done = threading.Barrier(2, timeout=60), list[str]()

    def work(name: str, meet: bool) -> str:
        if meet:
            both.wait()
        time.sleep(0.005)
        done.append(name)
        return name

    async def run_all() -> list[str]:
        pool = FairPool(2)
        await asyncio.gather(pool.run("a", work, "a", True), pool.run("b", work, "b", True))
        done.clear()
        many = [asyncio.create_task(pool.run("many", work, "many", False)) for _ in range(50)]
        await asyncio.sleep(0)
        single = asyncio.create_task(pool.run("one", work, "one", False))
        return await asyncio.gather(*many, single)

    assert asyncio.run(run_all()) == ["many"] * 50 + ["one"]
    assert done.index("one") <= 4
    pools = DecodingPools()
    assert pools.for_size(SMALL) is pools.small is pools.for_size(0) and pools.for_size(SMALL + 1) is not pools.small


def test_a_batch_takes_the_images_that_wait() -> None:
    sizes = list[int]()

    def embed(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        time.sleep(0.01)
        if bool((images == 77).any()):
            raise ValueError("77")
        return images.flatten(1) * 2

    async def ask(numbers: Iterator[int]) -> list[Any]:
        batches = BatchedNetwork(embed, 32)
        images = [torch.full((1, 1, 1, 1), float(number)) for number in numbers]
        tasks = [asyncio.create_task(batches.activation(image)) for image in images]
        await asyncio.sleep(0)
        tasks[0].cancel()  # its client has left
        return await asyncio.gather(*tasks, return_exceptions=True)

    rows = asyncio.run(ask(iter(range(70))))
    assert isinstance(rows[0], asyncio.CancelledError)
    assert [float(row) for row in rows[1:]] == [2 * number for number in range(1, 70)]
    assert sizes == [32, 32, 6]
    rows = asyncio.run(ask(iter(range(60, 130))))
    assert [isinstance(row, ValueError) for row in rows[1:]] == [True] * 31 + [False] * 38


def test_a_client_with_many_photos_has_a_single_batch_in_progress(untrained_model: Path) -> None:
    """Another client's photo waits for two batches at most; how many wait does not grow with the request."""
    served, embedded = ServedModel(untrained_model, Limits()), list[int]()
    embed, share = served._batches._embed, served.model.network.batch

    def slow(images: torch.Tensor) -> torch.Tensor:
        embedded.append(len(images))
        time.sleep(0.05)
        return embed(images)

    served._batches._embed = slow

    async def both() -> tuple[int, int]:
        many = asyncio.create_task(served.embed([(f"{n}.png", io.BytesIO(noise(n))) for n in range(6 * share)], "many"))
        while not embedded:
            await asyncio.sleep(0.01)
        before, waiting = sum(embedded), len(served._batches._waiting)
        assert isinstance((await served.embed([("one.png", io.BytesIO(noise(9999)))], "one"))[0], EmbeddedPhoto)
        after = sum(embedded)
        assert all(isinstance(photo, EmbeddedPhoto) for photo in await many)
        return after - before, waiting

    between, waiting = asyncio.run(both())
    assert between <= 2 * share + 1 and waiting <= share
    assert sum(embedded) == 6 * share + 1


def test_a_client_s_small_photo_does_not_wait_for_its_large_ones(
    untrained_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the batches of the network are, which a client's photos in progress are limited to."""
    monkeypatch.setattr(Network, "batch", 1)
    served = ServedModel(untrained_model, Limits())

    async def both() -> int:
        photos = [
            asyncio.create_task(served.embed([("large.png", io.BytesIO(plain(4500, n)))], "one")) for n in range(6)
        ]
        await asyncio.sleep(0.3)
        assert isinstance((await served.embed([("small.png", io.BytesIO(noise(1)))], "one"))[0], EmbeddedPhoto)
        before = sum(photo.done() for photo in photos)
        assert all(isinstance(found, EmbeddedPhoto) for (found,) in await asyncio.gather(*photos))
        return before

    assert asyncio.run(both()) <= 3


def test_the_work_for_a_disconnected_client_ends() -> None:
    class Left:
        looks = 0

        async def is_disconnected(self) -> bool:
            self.looks += 1
            return self.looks > 1

    ended = list[str]()

    async def work() -> str:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("work")
        return "done"

    async def quick() -> str:
        return "done"

    with pytest.raises(ClientDisconnect):
        asyncio.run(unless_disconnected(Left(), work()))  # type: ignore[arg-type]
    assert ended == ["work"]
    assert asyncio.run(unless_disconnected(Left(), quick())) == "done"  # type: ignore[arg-type]
