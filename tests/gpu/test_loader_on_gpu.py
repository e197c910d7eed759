"""Batches that are decoded on a GPU (``mixed``), or copied to it, hold the same pixels as on a CPU."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.config import Config, PackConfig
from dist_train.config.backbone import STD, Preprocessing
from dist_train.data.loading.loader import eval_batches, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.preprocessing import Buffers
from dist_train.data.packing.pack import pack
from dist_train.data.shards.index import ShardSet
from dist_train.data.splits import View, make_view
from dist_train.distributed.context import Context

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def gpu() -> Context:
    torch.cuda.set_device(0)
    return Context(device=torch.device("cuda", 0))


@pytest.fixture
def view(shards: ShardSet) -> View:
    """Return 120 drawn images of 6 classes."""
    return make_view(shards["train"], shards.classes, shards.classes[:6], "s")


@pytest.fixture
def photos(tmp_path: Path) -> View:
    """Return twelve smooth photos of 200 to 500 pixels: with chroma at full and at half resolution, and grey."""
    folder = tmp_path / "train" / "c"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(12):
        size = (200 + 25 * number, 480 - 20 * number)
        image = Image.fromarray(rng.integers(0, 255, (9, 13, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        out = io.BytesIO()
        kind = number % 4
        image = image.convert("L") if kind == 3 else image
        image.save(out, "JPEG", quality=92, **({} if kind == 3 else {"subsampling": kind}))  # 4:4:4, 4:2:2, 4:2:0
        (folder / f"{number:02}.JPEG").write_bytes(out.getvalue())
    shards = pack(PackConfig(train=tmp_path / "train", workers=1), tmp_path / "shards", progress=False)
    return make_view(shards["train"], shards.classes, shards.classes, "s")


def levels(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of each image, on the scale of 0 to 255."""
    scale = 255 * torch.tensor(STD).view(3, 1, 1)
    return ((one.cpu() - other.cpu()).abs() * scale).mean((1, 2, 3))


def trained(view: View, config: Config, context: Context, batches: int = 5, **options: Any) -> list[Any]:
    """Return batches of 24, or of all images."""
    data = replace(config.data, **options)
    size = min(24, len(view))
    return list(train_batches(view, Order(len(view), size, 0), data, context, range(0, batches)))


def test_a_held_batch_does_not_change(view: View, config: Config, gpu: Context) -> None:
    data, held = replace(config.data, decoder="mixed"), deque[Any](maxlen=5)
    for batch in train_batches(view, Order(len(view), 24, 0), data, gpu, range(0, 200)):
        assert batch.images.is_cuda and batch.images.is_contiguous(memory_format=torch.channels_last)
        held.append((batch.images, batch.images.clone(), batch.labels, batch.labels.clone()))
        for images, copy, labels, same in held:
            assert torch.equal(images, copy) and torch.equal(labels, same)


@pytest.mark.parametrize("decoder", ["mixed", "cpu"])
def test_a_released_batch_stays_until_the_gpu_has_read_it(
    view: View, config: Config, gpu: Context, decoder: Any
) -> None:
    """The GPU is kept busy, so that it is still adding up batches when Python has long released them."""
    data, order = replace(config.data, decoder=decoder), Order(len(view), 24, 0)
    wanted = [batch.images.double().sum().item() for batch in train_batches(view, order, data, gpu, range(0, 40))]
    late = torch.zeros(40, dtype=torch.float64, device=gpu.device)
    for number, batch in enumerate(train_batches(view, order, data, gpu, range(0, 40))):
        torch.cuda._sleep(50_000_000)  # cycles: some 30 ms
        late[number] = batch.images.double().sum()
    assert late.tolist() == pytest.approx(wanted, rel=1e-5)


def test_batches_to_be_copied_lie_in_page_locked_memory(gpu: Context) -> None:
    lent = Buffers(locked=True).lend(4, (2, 3))
    assert torch.from_numpy(lent).permute(0, 2, 1).is_pinned()


@pytest.mark.parametrize("augment", ["none", "randaugment"])
def test_copied_batches_equal_those_of_a_cpu_bit_for_bit(
    view: View, config: Config, gpu: Context, augment: Any
) -> None:
    there = trained(view, config, gpu, decoder="cpu", augment=augment)
    here = trained(view, config, Context(), augment=augment)
    for one, other in zip(there, here, strict=True):
        assert one.images.is_cuda and one.images.stride() == other.images.stride()
        assert torch.equal(one.images.cpu(), other.images) and torch.equal(one.labels.cpu(), other.labels)


@pytest.mark.parametrize("augment", ["none", "randaugment", "trivialaugment"])
def test_decoded_windows_equal_those_of_a_cpu(photos: View, config: Config, gpu: Context, augment: Any) -> None:
    options = {"train_size": 96, "augment": augment}
    there = trained(photos, config, gpu, decoder="mixed", **options)
    here = trained(photos, config, Context(), **options)
    for one, other in zip(there, here, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        apart = levels(one.images, other.images)
        # An operation such as posterize or equalize enlarges the difference of a level that is rounded otherwise.
        assert apart.max() < (1 if augment == "none" else 12) and apart.median() < (1 if augment == "none" else 3), (
            apart
        )


@pytest.mark.parametrize("views", ["centre", "ten"])
def test_evaluation_batches_on_a_gpu_equal_those_of_a_cpu(
    photos: View, config: Config, gpu: Context, views: Any
) -> None:
    data = replace(config.data, eval_resize=128, eval_size=112)
    there, here = (
        torch.cat([b.images for b in eval_batches(photos, photos.ids, replace(data, decoder=d), 50, where, views)])
        for d, where in (("mixed", gpu), ("cpu", Context()))
    )
    assert len(there) == len(photos) * (10 if views == "ten" else 1)
    apart = levels(there, here)
    assert apart.max() < 1, apart
    # Images whose chroma has half the resolution are among them: another upsampling would change these.
    assert apart.view(len(photos), -1).mean(1).max() < 0.6, apart


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("squash", [False, True], ids=["crop", "squash"])
def test_a_gpu_resizes_as_pillow_does(
    photos: View, config: Config, gpu: Context, interpolation: Any, squash: bool
) -> None:
    """With a crop up to the edge, where DALI's own resize is another."""
    preprocessing = Preprocessing(
        resize=112, size=112, interpolation=interpolation, mean=(0.5, 0.5, 0.5), std=STD, squash=squash
    )
    there, here = (
        torch.cat([b.images for b in eval_batches(photos, photos.ids, replace(config.data, decoder=d), 50, where,
                                                  preprocessing=preprocessing)])
        for d, where in (("mixed", gpu), ("cpu", Context()))
    )  # fmt: skip
    apart = levels(there, here)
    assert apart.max() < 1, apart
    frame = torch.ones(112, 112, dtype=torch.bool)
    frame[2:-2, 2:-2] = False
    assert levels(there[..., frame][..., None], here[..., frame][..., None]).max() < 1, "the edges"


def test_pixels_do_not_depend_on_the_place_in_a_batch(photos: View, config: Config, gpu: Context) -> None:
    """Ranks, and a resume, put an image at other places of a batch: it must get the same decoder everywhere."""
    data, order = replace(config.data, decoder="mixed", train_size=96), Order(len(photos), 12, 0)

    def made(world: int) -> dict[tuple[int, int], torch.Tensor]:
        found = {}
        for rank in range(world):
            context = replace(gpu, rank=rank, world=world, local_rank=rank, local_world=world)
            for number, batch in enumerate(train_batches(photos, order, data, context, range(0, 4))):
                found |= {(number, int(i)): image.cpu() for i, image in zip(batch.ids, batch.images, strict=True)}
        return found

    alone, parted = made(1), made(4)
    assert alone.keys() == parted.keys() and len(alone) == 48
    differ = [key for key, image in alone.items() if not torch.equal(image, parted[key])]
    assert not differ, f"{len(differ)} of {len(alone)} images"


def cut_off(photo: bytes) -> bytes:
    return photo[: len(photo) * 2 // 3]


def without_codes(photo: bytes) -> bytes:
    """Damage a photo: its first table of Huffman codes holds more codes than is possible."""
    table = photo.index(b"\xff\xc4") + 5
    return photo[:table] + b"\xff" * 16 + photo[table + 16 :]


@pytest.mark.parametrize("damage", [cut_off, without_codes])
def test_a_gpu_replaces_the_same_photo_as_a_cpu(
    photos: View, config: Config, gpu: Context, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    """nvJPEG may decode a photo that libjpeg-turbo refuses."""
    bad = int(photos.ids[5])
    row, path = photos.subset.samples[bad], photos.subset.path(int(photos.subset.samples[bad]["shard"]))
    with path.open("r+b") as file:
        file.seek(int(row["offset"]))
        photo = file.read(int(row["size"]))
        file.seek(int(row["offset"]))
        file.write(damage(photo).ljust(len(photo), b"\0"))
    there, here = (
        [batch.ids.tolist() for batch in trained(photos, config, where, decoder=d, scale=(0.1, 0.1))]
        for d, where in (("mixed", gpu), ("cpu", Context()))
    )
    assert there == here and not any(bad in ids for ids in there)
    assert caplog.text.count("cannot be decoded") == 2
