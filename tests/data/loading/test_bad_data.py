"""Images that cannot be used: left out by pack, found by verify, replaced in training."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.config import Config, PackConfig, Views
from dist_train.data.images.headers import parses
from dist_train.data.loading import dali
from dist_train.data.loading.dali import decode_errors, decode_whole, stored_sizes
from dist_train.data.loading.dali_errors import DecodeError, PipelineError, meaning
from dist_train.data.loading.loader import eval_batches, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.packing.pack import pack
from dist_train.data.packing.stored_images import Header, read_header
from dist_train.data.packing.verify import verify
from dist_train.data.shards.index import ShardSet, Subset, open_shards, read_index
from dist_train.data.splits import make_view
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.runs.run import open_run
from dist_train.stages import extract
from dist_train.stages.pretrain import pretrain
from dist_train.training.metrics import read_metrics


@pytest.fixture
def copy(shards: ShardSet, tmp_path: Path) -> ShardSet:
    """Copy the shards, to be damaged."""
    shutil.copytree(shards.root, tmp_path / "copy")
    return open_shards(tmp_path / "copy")


def jpeg(size: tuple[int, int] = (40, 40), mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, options.pop("format", "JPEG"), **options)
    return out.getvalue()


def photo(**options: Any) -> bytes:
    """Return a smooth photo, of which the few zeros that ``damage`` fills in replace far less than what is missing."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((90, 120)).save(out, "JPEG", **options)
    return out.getvalue()


def ycck() -> bytes:
    """Return a CMYK JPEG whose Adobe marker says YCCK (transform 2)."""
    blob = bytearray(jpeg(mode="CMYK"))
    marker = blob.index(b"Adobe")
    blob[marker + 11] = 2
    return bytes(blob)


def bomb() -> bytes:
    """Return a small JPEG whose header claims 65,000 x 65,000 pixels."""
    blob = bytearray(jpeg())
    frame = blob.index(b"\xff\xc0")
    blob[frame + 5 : frame + 9] = (65_000).to_bytes(2, "big") * 2
    return bytes(blob)


def gif() -> bytes:
    return jpeg(mode="P", format="GIF")


def webp() -> bytes:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()


def png16() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(out, "PNG")
    return out.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg((60, 30), exif=exif)


USABLE: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: jpeg(mode="CMYK"),
    "ycck": ycck,
    "gray": lambda: jpeg(mode="L"),
    "png16": png16,
    "palette": lambda: jpeg(mode="P", format="PNG"),
    "turned": turned,
}
UNUSABLE: dict[str, Callable[[], bytes]] = {
    "truncated": lambda: jpeg((200, 200))[:-9000],
    "empty": lambda: b"",
    "garbage": lambda: b"no image" * 40,
    "bomb": bomb,
    "gif": gif,
}


def test_images_that_decode_are_trained_on_and_pack_leaves_out_the_others(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "train" / "c"
    folder.mkdir(parents=True)
    for name, make in {**USABLE, **UNUSABLE, "webp": webp}.items():
        (folder / f"{name}.JPEG").write_bytes(make())
    shards = pack(PackConfig(train=tmp_path / "train", workers=1), tmp_path / "shards", progress=False)
    left_out = {entry["key"].removeprefix("c_") for entry in read_index(tmp_path / "shards")["summary"]["undecodable"]}
    assert set(UNUSABLE) <= left_out and not left_out & set(USABLE)
    # An animated WebP is as the decoder takes it: its first frame, or left out; never a surprise later.
    assert verify(tmp_path / "shards", progress=False) == []
    view = make_view(shards["train"], shards.classes, shards.classes, "s")
    order = Order(len(view), len(view), 0)
    (batch,) = train_batches(view, order, config.data, Context(), range(0, 1))
    assert batch.replaced == 0 and bool(batch.images.isfinite().all())
    assert sorted(batch.ids) == sorted(view.ids)


def test_a_decompression_bomb_is_known_by_its_header() -> None:
    assert "decompression bomb" in str(read_header(bomb(), "exif"))
    assert isinstance(read_header(jpeg(), "exif"), Header)


def damage(subset: Subset, sample: int, content: bytes) -> None:
    """Overwrite an image in its shard; the rest of it becomes zeros."""
    row = subset.samples[sample]
    size = int(row["size"])
    with subset.path(int(row["shard"])).open("r+b") as file:
        file.seek(int(row["offset"]))
        file.write(content[:size].ljust(size, b"\0"))


@pytest.mark.parametrize("suite", ["none", "randaugment"])
def test_bad_images_are_replaced_the_same_on_any_rank_and_after_a_resume(
    copy: ShardSet,
    config: Config,
    suite: Any,
    caplog: pytest.LogCaptureFixture,
    global_batches: Callable[..., list[dict[int, bytes]]],
) -> None:
    view = make_view(copy["train"], copy.classes, copy.classes[:6], "s")
    neighbours = view.ids[3:5].tolist()  # two of one class, one after the other
    bad = [*neighbours, int(view.ids[50]), int(view.ids[90])]
    for sample, content in zip(bad, [b"", b"RIFF", b"GIF89a", b"\xff\xd8\xff"], strict=True):
        damage(copy["train"], sample, content)
    order, data = Order(len(view), 24, 0), replace(config.data, augment=suite)
    whole = global_batches(view, order, data, 1, 0, 7)
    seen = {sample for batch in whole for sample in batch}
    assert not seen & set(bad) and len(seen) == len(view) - len(bad)
    text = caplog.text
    assert all(text.count(f"{copy['train'].where(s)}: ") == 1 for s in bad)
    # The first of the two neighbours is replaced by the one after both.
    assert f"replaced by sample {copy['train'].key(int(view.ids[5]))}" in text
    assert global_batches(view, order, data, 2, 0, 7) == whole
    assert global_batches(view, order, data, 4, 3, 7) == whole[3:]


def test_a_bad_header_in_a_large_batch_is_no_crash(copy: ShardSet, config: Config) -> None:
    """DALI alone would die of a segmentation fault here (see ``headers``)."""
    good = jpeg()
    for bad in (
        b"",
        b"garbage!" * 20,
        good[:2] + bytes(900),
        good[: good.index(b"\xff\xda")],
        gif(),
        b"BM" + bytes(99),
    ):
        blobs = [good] * 60 + [bad] + [good] * 40
        reasons = decode_errors(blobs, 2)
        assert [n for n, reason in enumerate(reasons) if reason] == [60]
    view = make_view(copy["train"], copy.classes, copy.classes[:6], "s")
    for sample in view.ids[[7, 70]].tolist():
        damage(copy["train"], sample, b"garbage!" * 20)
    (batch,) = train_batches(view, Order(len(view), 120, 0), config.data, Context(), range(0, 1))
    assert batch.replaced == 2


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.97, 1.0], ids=["a-third", "most", "all-but-the-end", "no-end-marker"])
def test_a_photo_that_was_cut_off_is_bad_whatever_its_window(
    config: Config, tmp_path: Path, kept: float, global_batches: Callable[..., list[dict[int, bytes]]]
) -> None:
    """DALI decodes a window, and refuses a cut photo only where the window reaches the missing part: an epoch
    would train on it, another epoch would not, and a GPU's decoder may never notice."""
    folder = tmp_path / "train" / "c"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.JPEG").write_bytes(photo(quality=90 + number))
    shards = pack(PackConfig(train=tmp_path / "train", workers=1), tmp_path / "shards", progress=False)
    view = make_view(shards["train"], shards.classes, shards.classes, "s")
    bad = int(view.ids[1])
    size = int(shards["train"].samples["size"][bad])
    content = shards["train"].path(0).read_bytes()[int(shards["train"].samples["offset"][bad]) :][:size]
    damage(shards["train"], bad, content[: min(int(kept * size), size - 2)])
    # Windows of a tenth of the photo: most do not reach its end.
    data, order = replace(config.data, scale=(0.1, 0.1)), Order(4, 4, 0)
    alone = global_batches(view, order, data, 1, 0, 6)
    assert all(set(batch) == set(view.ids.tolist()) - {bad} for batch in alone)
    assert global_batches(view, order, data, 2, 3, 6) == alone[3:]


def test_the_end_of_a_photo_must_come_after_its_scan_began() -> None:
    thumbnail = Image.Exif()
    thumbnail[0x010E] = jpeg((20, 20)).decode("latin-1")  # ends as a photo does, before this one begins
    for whole in (photo(), photo(progressive=True), photo(exif=thumbnail)):
        assert parses(whole) and parses(whole + bytes(99)), "what some cameras append is no damage"
        for cut in (2, 3, len(whole) // 3):
            assert not parses(whole[:-cut]) and not parses(whole[:-cut] + bytes(cut))
            assert decode_errors([whole[:-cut]], 1) == ["damaged or truncated image data"]


def test_an_image_of_another_size_than_in_the_index_is_replaced_and_logged(
    copy: ShardSet, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    view = make_view(copy["train"], copy.classes, copy.classes[:6], "s")
    bad = int(view.ids[3])
    small = jpeg((9, 7), quality=5)
    damage(copy["train"], bad, small)
    batches = list(train_batches(view, Order(len(view), 24, 0), config.data, Context(), range(0, 5)))
    assert sum(batch.replaced for batch in batches) == 1 and not any(bad in batch.ids for batch in batches)
    assert f"{copy['train'].where(bad)}: is 9 x 7 pixels, not those of the index" in caplog.text


def test_sizes_are_those_of_stored_images() -> None:
    blobs = [turned(), jpeg((33, 21)), png16(), jpeg((50, 20), mode="L"), jpeg((5, 7), format="PNG")]
    assert stored_sizes(blobs).tolist() == [[30, 60], [21, 33], [40, 40], [20, 50], [7, 5]]
    assert stored_sizes([]).shape == (0, 2)


ECC = "CUDA runtime API error cudaErrorECCUncorrectable (214):\nuncorrectable ECC error encountered"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (ECC, PipelineError),
        ("CUDA driver API error CUDA_ERROR_ILLEGAL_ADDRESS (700):\nan illegal memory access", PipelineError),
        ("nvImageCodec failure: '#21'", PipelineError),
        ("CUDA allocation failed", torch.OutOfMemoryError),
        ("Can't allocate 12345 bytes on device 3.", torch.OutOfMemoryError),
        ("nvImageCodec failure: '#15'", torch.OutOfMemoryError),
        ("Can't allocate 12345 bytes on host.", MemoryError),
        ("std::bad_alloc", MemoryError),
        ("Failed to decode sample #3 : ", DecodeError),
        ("nvImageCodec failure: '#4'", DecodeError),
        ("nvImageCodec failure: '#2'", DecodeError),
        ("nvJPEG failed: NVJPEG_STATUS_BAD_JPEG", DecodeError),
    ],
)
def test_meanings_of_dalis_errors(said: str, kind: type[Exception]) -> None:
    frame = (
        "Error in MIXED operator `cuda`,\n  File: CUDA allocation failed\n\nencountered:\n\n{}\nCurrent pipeline object"
    )
    made = meaning(RuntimeError(frame.format(said)))
    assert type(made) is kind and "\n" not in str(made)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_reason_of_an_image_that_was_cut_off(kind: str, share: float) -> None:
    whole = jpeg((60, 50), format=kind)
    (reason,) = decode_errors([whole[: int(len(whole) * share)]], 1)
    assert (reason or "").startswith("damaged or truncated")


def test_errors_that_dali_raises_on_bad_images_are_decode_errors() -> None:
    for make in UNUSABLE.values():
        if make is not bomb:  # known by its header alone
            with pytest.raises(RuntimeError) as caught:
                decode_whole(make())
            assert type(meaning(caught.value)) is DecodeError


def test_a_pipeline_that_fails_without_a_bad_image_is_a_crash_and_nothing_is_replaced(
    copy: ShardSet, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build = dali.build_pipeline

    def broken(*arguments: Any) -> Any:
        pipeline = build(*arguments)
        monkeypatch.setattr(pipeline, "outputs", fail)
        return pipeline

    def fail() -> Any:
        raise RuntimeError(f"encountered:\n\n{said}")

    monkeypatch.setattr(dali, "build_pipeline", broken)
    view = make_view(copy["train"], copy.classes, copy.classes[:6], "s")
    said = ""
    for text in ("Failed to decode sample #3 : ", "an error of a kind that is not known", ECC):
        said = text
        with pytest.raises(PipelineError) as caught:
            next(train_batches(view, Order(len(view), 24, 0), config.data, Context(), range(0, 5)))
        assert not isinstance(caught.value, UserError | DecodeError)
    assert "replaced by" not in caplog.text


def test_dalis_parser_takes_every_header_that_the_check_lets_through() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 50
    good = jpeg(exif=exif)
    rng, end = np.random.default_rng(1), good.index(b"\xff\xda") + 14
    refused = 0
    for _ in range(400):
        blob = bytearray(good)
        for place in rng.integers(2, end, rng.integers(1, 4)):
            blob[place] = rng.choice([0, 255, rng.integers(256)])
        (reason,) = decode_errors([bytes(blob)], 1)
        refused += not parses(bytes(blob))
        assert not parses(bytes(blob)) or "nvImageCodec" not in (reason or "")
    assert parses(good) and 10 < refused < 100
    assert all(parses(make()) for make in USABLE.values())


def test_a_bad_validation_image_stops_with_its_name(copy: ShardSet, config: Config) -> None:
    damage(copy["val"], 5, b"no image")
    view = make_view(copy["val"], copy.classes, copy.classes, "s")
    with pytest.raises(UserError, match=rf"sample {copy['val'].key(5)} \(.*\) in .*cannot be decoded.*verify"):
        list(eval_batches(view, view.ids, config.data, 16, Context()))


def test_a_replaced_shard_is_noticed_although_its_images_decode(
    copy: ShardSet, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    train = copy["train"]
    one, two = train.path(0), train.path(1)
    size = one.stat().st_size
    one.write_bytes(two.read_bytes()[:size].ljust(size, b"\0"))  # the size that the index names
    view = make_view(train, copy.classes, copy.classes[:6], "s")
    seen = {
        int(i) for b in train_batches(view, Order(len(view), 24, 0), config.data, Context(), range(0, 5)) for i in b.ids
    }
    assert not {i for i in seen if train.samples["shard"][i] == 0}
    assert "replaced under the index" in caplog.text
    assert any("sha256" in line for line in verify(copy.root, progress=False))


def test_a_shard_that_vanishes_in_training_is_fatal_past_the_fraction(
    copy: ShardSet, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(replace(config, data=replace(config.data, shards=str(copy.root))))
    copy["train"].path(0).unlink()
    with pytest.raises(UserError, match=r"max_bad_fraction=0.001.*replaced .* images?, .*verify"):
        pretrain(run, Context(), StopFlag(Context()))


@pytest.mark.parametrize("views", ["centre", "ten"])
def test_replaced_images_are_counted_and_extract_goes_on(copy: ShardSet, config: Config, views: Views) -> None:
    view = make_view(copy["train"], copy.classes, copy.classes[:6], "s")
    damage(copy["train"], int(view.ids[7]), b"no image")
    data = replace(config.data, shards=str(copy.root), max_bad_fraction=0.05)
    run = open_run(replace(config, data=data, extract=replace(config.extract, views=views)))
    pretrain(run, Context(), StopFlag(Context()))
    rows = [row for row in read_metrics(run.dir / "pretrain" / "metrics.jsonl") if "data/replaced_samples" in row]
    assert rows[-1]["data/replaced_samples"] == 2  # one image, two epochs
    extract.extract(run, Context(), StopFlag(Context()))
    table = extract.load(run.dir / "extract", "base_train")
    assert (table.rows[7] == table.rows[8]).all()


def test_a_class_without_a_usable_image_is_named(copy: ShardSet, config: Config) -> None:
    view = make_view(copy["train"], copy.classes, copy.classes[:6], "s")
    for sample in view.ids[view.labels == 2]:
        damage(copy["train"], int(sample), b"no image")
    with pytest.raises(UserError, match=f"no image of class {view.classes[2]} in train can be used"):
        list(train_batches(view, Order(len(view), 24, 0), config.data, Context(), range(0, 5)))
