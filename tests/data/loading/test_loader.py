import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dist_train.config import Config, PackConfig, Views
from dist_train.config.backbone import MEAN, STD
from dist_train.data.loading import dali
from dist_train.data.loading import preprocessing as pixels
from dist_train.data.loading.loader import eval_batches, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.plan import Step
from dist_train.data.loading.reader import Reader, Reading
from dist_train.data.packing.pack import pack
from dist_train.data.shards.index import ShardSet, open_shards
from dist_train.data.splits import View, make_view
from dist_train.distributed.context import Context
from dist_train.errors import UserError


@pytest.fixture
def view(shards: ShardSet) -> View:
    return make_view(shards["train"], shards.classes, shards.classes[:6], "s")


def test_same_pixels_on_any_number_of_ranks_and_after_a_resume(
    view: View, config: Config, global_batches: Callable[..., list[dict[int, bytes]]]
) -> None:
    order, data = Order(len(view), 24, 0), config.data
    alone = global_batches(view, order, data, 1, 0, 7)
    assert all(len(batch) == 24 or b == 4 for b, batch in enumerate(alone))  # batch 4 joins two epochs
    assert global_batches(view, order, data, 2, 0, 7) == alone
    assert global_batches(view, order, data, 4, 3, 7, accumulate=2) == alone[3:]


def test_batches_are_labelled_from_the_shards_and_hold_no_novel_class(
    view: View, config: Config, shards: ShardSet
) -> None:
    for batch in train_batches(view, Order(len(view), 24, 0), config.data, Context(), range(0, 5)):
        assert batch.images.shape == (24, 3, 32, 32) and batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for sample, label in zip(batch.ids, batch.labels.tolist(), strict=True):
            row = shards["train"].samples[sample]
            with tarfile.open(shards["train"].path(int(row["shard"]))) as tar:
                stored = int(tar.extractfile(f"{row['key'].decode()}.cls").read())  # type: ignore[union-attr]
            assert view.classes[label] == shards.classes[stored] and label < 6


def test_a_batch_that_is_held_stays_as_it_is(view: View, config: Config) -> None:
    """The loader writes batches only into the memory of batches that are gone."""
    order = Order(len(view), 24, 0)
    fresh = [batch.images.clone() for batch in train_batches(view, order, config.data, Context(), range(0, 12))]
    held = []
    for number, batch in enumerate(train_batches(view, order, config.data, Context(), range(0, 12))):
        if number % 3 == 0:
            held.append(batch.images[1:])  # a view holds its batch too
    assert all(torch.equal(images, fresh[3 * number][1:]) for number, images in enumerate(held))

    buffers = pixels.Buffers()
    first, second = buffers.lend(4, (2, 3)), buffers.lend(4, (2, 3))
    assert not np.shares_memory(first, second)
    whole = first.base
    del first
    assert buffers.lend(3, (2, 3)).base is whole


def test_the_loader_works_a_few_batches_ahead(view: View, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """``prefetch`` batches are being read, as many are with DALI, and the CPU finishes the batch after the current."""
    started: list[Step] = []
    start = Reader.start

    def counted(reader: Reader, step: Step) -> Reading:
        started.append(step)
        return start(reader, step)

    monkeypatch.setattr(Reader, "start", counted)
    for prefetch in (1, 2, 3):
        started.clear()
        data = replace(config.data, prefetch=prefetch)
        batches = train_batches(view, Order(len(view), 24, 0), data, Context(), range(0, 20))
        assert not started
        for number in range(3):
            batch = next(batches)
            assert len(started) == 2 * prefetch + 1 + number
            assert np.array_equal(batch.ids, started[number].ids)
        batches.close()


@pytest.mark.parametrize(("world", "views", "batch"), [(1, "centre", 4), (2, "ten", 49), (4, "ten", 4)])
def test_evaluation_sees_each_image_once(view: View, config: Config, world: int, views: Views, batch: int) -> None:
    seen: list[int] = []
    crops, images = (10, max(1, batch // 10)) if views == "ten" else (1, batch)
    for rank in range(world):
        ids = view.ids[:21][rank::world]
        context = Context(rank, world, rank, world)
        for number, part in enumerate(eval_batches(view, ids, config.data, batch, context, views)):
            assert part.ids.tolist() == ids[number * images : (number + 1) * images].tolist()
            assert len(part.labels) == len(part.ids) and len(part.images) == crops * len(part.ids)
            seen += part.ids.tolist()
    assert sorted(seen) == sorted(view.ids[:21].tolist())
    assert list(eval_batches(view, view.ids[:0], config.data, 4, Context())) == []


def torchvision_pixels(blob: bytes, resize: int, crop: int, views: Views) -> list[torch.Tensor]:
    image = transforms.Resize(resize)(Image.open(io.BytesIO(blob)).convert("RGB"))
    crops = transforms.TenCrop(crop)(image) if views == "ten" else [transforms.CenterCrop(crop)(image)]
    return [transforms.PILToTensor()(one).float() for one in crops]


def difference(
    images: torch.Tensor, blobs: list[bytes], resize: int, crop: int, views: Views = "centre"
) -> torch.Tensor:
    """Return the mean absolute difference to torchvision, per crop, in steps of 255."""
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    reference = torch.stack([one for blob in blobs for one in torchvision_pixels(blob, resize, crop, views)])
    return (images * std + mean - reference).abs().mean((1, 2, 3))


def packed(blobs: dict[str, bytes], root: Path) -> ShardSet:
    for name, blob in blobs.items():
        (root / "train" / "c").mkdir(parents=True, exist_ok=True)
        (root / "train" / "c" / name).write_bytes(blob)
    return pack(PackConfig(train=root / "train", workers=1, orientation="stored"), root / "shards", progress=False)


def evaluated(
    shards: ShardSet, config: Config, resize: int, crop: int, views: Views = "centre"
) -> tuple[torch.Tensor, list[bytes]]:
    view = make_view(shards["train"], shards.classes, shards.classes, "s")
    data = replace(config.data, eval_resize=resize, eval_size=crop)
    images = torch.cat([b.images for b in eval_batches(view, view.ids, data, 50, Context(), views)])
    rows = shards["train"].samples[view.ids]
    files = {n: shards["train"].path(n).read_bytes() for n in set(rows["shard"].tolist())}
    return images, [files[int(r["shard"])][int(r["offset"]) : int(r["offset"]) + int(r["size"])] for r in rows]


@pytest.mark.parametrize("made_by", ["pixels", "dali"])
@pytest.mark.parametrize("views", ["centre", "ten"])
def test_evaluation_pixels_are_torchvisions(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: Views, made_by: str
) -> None:
    if made_by == "dali":  # the graph of GPUs, on the CPU
        monkeypatch.setattr(dali, "_finishes", lambda *_: True)
    rng = np.random.default_rng(0)
    blobs = {}
    for number, (w, h) in enumerate([(300, 280), (281, 640), (500, 333), (64, 90)]):
        smooth = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize(
            (w, h), Image.Resampling.BICUBIC
        )
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1  # rotated on display; torchvision reads it as stored
        out = io.BytesIO()
        smooth.save(out, "JPEG", quality=92, exif=exif)
        blobs[f"c_{number}.JPEG"] = out.getvalue()
    images, stored = evaluated(packed(blobs, tmp_path), config, 256, 224, views)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert difference(images, stored, 256, 224, views).max() < 2


def test_evaluation_pixels_are_torchvisions_on_imagenet(real_images: Path, config: Config, tmp_path: Path) -> None:
    with tarfile.open(real_images / "imagenet-sample" / "imagenet-sample.tar") as tar:
        blobs = {m.name.split("/")[-1]: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
    images, stored = evaluated(packed(blobs, tmp_path), config, 256, 224)
    apart = difference(images, stored, 256, 224)
    assert len(apart) == 250 and apart.mean() < 0.02 and apart.max() < 0.2  # 2 is what was asked for


def test_a_cut_or_missing_shard_is_named(shards: ShardSet, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(shards.root, root)
    path = open_shards(root)["train"].path(1)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(UserError, match=f"{path.name}: has .* bytes, the index says"):
        open_shards(root)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        open_shards(root)


def test_mixed_decoding_without_a_gpu_is_refused(view: View, config: Config) -> None:
    data = replace(config.data, decoder="mixed")
    with pytest.raises(UserError, match="needs a GPU"):
        list(eval_batches(view, view.ids, data, 4, Context()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mixed_decoding_equals_cpu_decoding(view: View, config: Config) -> None:
    gpu = Context(device=torch.device("cuda", 0))
    on = {d: torch.cat([b.images.cpu() for b in eval_batches(view, view.ids, replace(config.data, decoder=d), 16, gpu)])
          for d in ("cpu", "mixed")}  # fmt: skip
    assert (on["cpu"] - on["mixed"]).abs().mean() < 0.03
