"""The evaluation, the training, the graph of GPUs and a classifier make the same pixels of every kind of file.

The reference is ``data.pixels``; what it resizes is compared with Pillow's own way of turning images upright.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dist_train.classifier import photos
from dist_train.classifier.photos import Preprocess
from dist_train.config import Config, DataConfig, Orientation, PackConfig
from dist_train.config.backbone import STD, Preprocessing
from dist_train.data.images import orientation
from dist_train.data.images.pillow import upright
from dist_train.data.loading import dali, faults
from dist_train.data.loading import preprocessing as pixels
from dist_train.data.loading.loader import eval_batches, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.plan import train_windows
from dist_train.data.packing.pack import pack
from dist_train.data.packing.verify import verify
from dist_train.data.shards.index import ShardSet, open_shards
from dist_train.data.shards.source import ShardSource
from dist_train.data.splits import View, make_view
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.report.examples import thumbnails

RESIZE, SIDE = 40, 32
OURS = Preprocessing(resize=RESIZE, size=SIDE)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a smooth image without any symmetry."""
    noise = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, turned: int = 1, **options: Any) -> bytes:
    if kind == "TIFF":
        options["tiffinfo"] = {orientation.TAG: turned}
    elif turned != 1:
        options["exif"] = Image.Exif()
        options["exif"][orientation.TAG] = turned
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(257 * np.asarray(image.convert("L")).astype(np.uint16))


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


IMAGE = picture(97, 64)
PLAIN = {
    "jpeg 4:4:4": encoded(IMAGE, "JPEG", subsampling=0),
    "jpeg 4:2:0": encoded(IMAGE, "JPEG", subsampling=2),
    "jpeg progressive": encoded(IMAGE, "JPEG", progressive=True),
    "jpeg grey": encoded(IMAGE.convert("L"), "JPEG"),
    "jpeg cmyk": encoded(IMAGE.convert("CMYK"), "JPEG"),
    "mpo": encoded(IMAGE, "MPO"),
    "png": encoded(IMAGE, "PNG"),
    "png palette": encoded(IMAGE.quantize(64), "PNG"),
    "png alpha": encoded(with_alpha(IMAGE), "PNG"),
    "png 16 bits": encoded(deep(IMAGE), "PNG"),
    "png 1 bit": encoded(IMAGE.convert("1"), "PNG"),
    "webp": encoded(IMAGE, "WEBP"),
    "webp lossless": encoded(with_alpha(IMAGE), "WEBP", lossless=True),
    "bmp": encoded(IMAGE, "BMP"),
    "bmp palette": encoded(IMAGE.quantize(64), "BMP"),
    "tiff": encoded(IMAGE, "TIFF"),
    "tiff lzw": encoded(IMAGE, "TIFF", compression="tiff_lzw"),
    "tiff 16 bits": encoded(deep(IMAGE), "TIFF"),
    "jpeg 2000": encoded(IMAGE, "JPEG2000"),
    "ppm": encoded(IMAGE, "PPM"),
    "pgm": encoded(IMAGE.convert("L"), "PPM"),
    "tall": encoded(picture(41, 90), "JPEG"),
}
TURNED = {
    f"{kind} {turned}": encoded(picture(97, 64, turned), kind, turned)
    for kind, turned in product(("JPEG", "MPO", "PNG", "WEBP", "TIFF"), range(1, 9))
}
FILES = PLAIN | TURNED


def packed(root: Path, rule: Orientation, **options: Any) -> ShardSet:
    (root / "train" / "c").mkdir(parents=True)
    for name, blob in FILES.items():
        (root / "train" / "c" / f"{name.replace(' ', '-').replace(':', '')}.jpg").write_bytes(blob)
    shards = pack(PackConfig(train=root / "train", workers=1, orientation=rule, **options), root / "shards", False)
    assert len(shards["train"]) == len(FILES)
    return shards


@pytest.fixture(scope="module", params=["exif", "stored"])
def kinds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return packed(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(params=["pixels", "dali"])
def made_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "dali":  # the graph of GPUs, on the CPU
        monkeypatch.setattr(dali, "_finishes", lambda *_: True)
    return str(request.param)


def whole_view(shards: ShardSet) -> View:
    return make_view(shards["train"], shards.classes, shards.classes, "s")


def blobs_of(view: View, ids: Any) -> list[bytes]:
    source = ShardSource(view.subset)
    try:
        return [blob.tobytes() for blob in source.read(ids)]
    finally:
        source.close()


def turned_by_pillow(blob: bytes, rule: Orientation) -> torch.Tensor:
    """Return an image as Pillow turns it, or its stored pixels by undoing that: uint8 [3, height, width]."""
    image = Image.open(io.BytesIO(blob))
    if rule == "exif":
        image = ImageOps.exif_transpose(image)
    elif image.format == "TIFF":  # Pillow has no way to get these as they are stored
        return torch.from_numpy(np.array(upright(image, "stored"))).permute(2, 0, 1)
    if image.mode.startswith("I"):
        return torch.from_numpy((np.asarray(image).astype(np.int32) // 257).astype(np.uint8))[None].expand(3, -1, -1)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def levels(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of two normalised images [3, side, side], in steps of 255."""
    return float(((one - other).abs() * 255 * torch.tensor(STD)[:, None, None]).max())


def mean_levels(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return their mean difference."""
    return float(((one - other).abs() * 255 * torch.tensor(STD)[:, None, None]).mean())


def test_evaluation_sees_each_file_as_the_rule_says(kinds: ShardSet, config: Config, made_by: str) -> None:
    view = whole_view(kinds)
    data = replace(config.data, eval_resize=RESIZE, eval_size=SIDE)
    images = torch.cat([batch.images for batch in eval_batches(view, view.ids, data, 16, Context())])
    for sample, blob, image in zip(view.ids.tolist(), blobs_of(view, view.ids), images, strict=True):
        wanted = pixels.evaluation([turned_by_pillow(blob, kinds.orientation)], OURS)[0]
        # DALI's kernel for resizing works in floats, torch's in bytes.
        assert levels(image, wanted) <= (2 if made_by == "dali" else 0.001), view.subset.key(sample)
        assert mean_levels(image, wanted) < (0.5 if made_by == "dali" else 0.001), view.subset.key(sample)


def test_training_cuts_its_windows_from_the_upright_image(kinds: ShardSet, config: Config, made_by: str) -> None:
    view = whole_view(kinds)
    data = replace(config.data, train_size=SIDE)
    size = len(view) // 2
    for batch in train_batches(view, Order(len(view), size, 7), data, Context(), range(0, 2)):
        windows = train_windows(view, batch.ids, np.zeros(size, np.int64), data, 7)
        for n, blob in enumerate(blobs_of(view, batch.ids)):
            (top, left), (height, width) = windows.anchor[n].tolist(), windows.shape[n].tolist()
            cut = turned_by_pillow(blob, kinds.orientation)[:, top : top + height, left : left + width]
            resized = pixels.resize(cut.permute(1, 2, 0), 1, [SIDE, SIDE], "bilinear")
            wanted = np.empty((SIDE, SIDE, 3), np.float32)
            pixels.cut(resized, [0, 0], bool(windows.flip[n]), OURS, wanted)
            difference = mean_levels(batch.images[n], torch.from_numpy(wanted).permute(2, 0, 1))
            assert difference < (1 if made_by == "dali" else 0.001), view.subset.key(int(batch.ids[n]))


def test_turned_images_are_the_same_on_any_number_of_ranks(
    kinds: ShardSet, config: Config, made_by: str, global_batches: Callable[..., list[dict[int, bytes]]]
) -> None:
    view = whole_view(kinds)
    order, data = Order(len(view), 24, 0), replace(config.data, train_size=SIDE)
    alone = global_batches(view, order, data, 1, 0, 4)
    assert global_batches(view, order, data, 2, 1, 4) == alone[1:]
    assert global_batches(view, order, data, 4, 3, 4) == alone[3:]


def test_the_index_has_the_size_that_dali_reads_for_every_kind_of_file(kinds: ShardSet) -> None:
    """Otherwise a sound image would be blamed for the failure of a GPU."""
    view = whole_view(kinds)
    assert faults.image_faults(view, view.ids, blobs_of(view, view.ids)) == [None] * len(FILES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_sees_each_file_as_the_rule_says(kinds: ShardSet, config: Config) -> None:
    view, gpu = whole_view(kinds), Context(device=torch.device("cuda", 0))
    data = replace(config.data, eval_resize=RESIZE, eval_size=SIDE, decoder="mixed")
    images = torch.cat([batch.images.cpu() for batch in eval_batches(view, view.ids, data, 16, gpu)])
    for sample, blob, image in zip(view.ids.tolist(), blobs_of(view, view.ids), images, strict=True):
        wanted = pixels.evaluation([turned_by_pillow(blob, kinds.orientation)], OURS)[0]
        # Bytes are rounded twice. Chroma that is upsampled otherwise is 2 levels away at this size (4:2:0), a photo
        # that is turned otherwise tens of levels.
        assert mean_levels(image, wanted) < 1, view.subset.key(sample)


def test_augmented_training_is_turned_too(kinds: ShardSet, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """With operations that change nothing, augmented training is plain training."""
    view = whole_view(kinds)
    data = replace(config.data, train_size=SIDE)
    identity = dali.OPERATIONS.index("identity")

    def only_identity(data: DataConfig, seed: int, epochs: Any, ids: Any) -> Any:
        chosen = np.zeros((len(ids), data.operations, 3), np.int32)
        chosen[..., 0] = identity
        return chosen

    order = Order(len(view), len(view), 7)
    (plain,) = train_batches(view, order, data, Context(), range(0, 1))
    monkeypatch.setattr("dist_train.data.loading.augment.operations", only_identity)
    (augmented,) = train_batches(view, order, replace(data, augment="randaugment"), Context(), range(0, 1))
    assert plain.ids.tolist() == augmented.ids.tolist()
    for sample, one, other in zip(plain.ids.tolist(), plain.images, augmented.images, strict=True):
        assert mean_levels(one, other) < 1, view.subset.key(sample)


def test_a_classifier_sees_what_the_evaluation_sees(kinds: ShardSet, config: Config) -> None:
    view = whole_view(kinds)
    data = replace(config.data, eval_resize=RESIZE, eval_size=SIDE)
    images = torch.cat([batch.images for batch in eval_batches(view, view.ids, data, 16, Context())])
    preprocess = Preprocess(OURS, kinds.orientation)
    for sample, blob, image in zip(view.ids.tolist(), blobs_of(view, view.ids), images, strict=True):
        photo = photos.load(blob, rule=preprocess.orientation)
        assert torch.equal(preprocess.batch([photo])[0], image), view.subset.key(sample)
        # What is exported with a network computes in floats; torch's kernel for bytes has weights of 16 bits.
        assert levels(preprocess(photo[None])[0], image) < 2.01 and mean_levels(preprocess(photo[None])[0], image) < 0.1


def test_the_report_shows_photos_as_the_network_sees_them(kinds: ShardSet) -> None:
    view = whole_view(kinds)
    pictures = zip(view.ids.tolist(), blobs_of(view, view.ids), thumbnails(view.subset, view.ids), strict=True)
    for sample, blob, uri in pictures:
        small = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
        seen = Image.fromarray(turned_by_pillow(blob, kinds.orientation).permute(1, 2, 0).numpy())
        wanted = np.asarray(ImageOps.fit(seen, small.size), float)
        assert np.abs(np.asarray(small, float) - wanted).mean() < 8, view.subset.key(sample)


def test_the_index_has_upright_sizes_and_verify_checks_them(kinds: ShardSet) -> None:
    view = whole_view(kinds)
    for sample, blob in zip(view.ids.tolist(), blobs_of(view, view.ids), strict=True):
        row = view.subset.samples[sample]
        assert [row["height"], row["width"]] == list(turned_by_pillow(blob, kinds.orientation).shape[1:])
    assert {*view.subset.orientations()} == ({*range(1, 9)} if kinds.orientation == "exif" else {1})
    assert verify(kinds.root, progress=False) == []


@pytest.mark.parametrize("rule", ["exif", "stored"])
def test_re_encoding_stores_pixels_as_the_rule_says(rule: Orientation, tmp_path: Path) -> None:
    shards = packed(tmp_path, rule, quality=95)
    view = whole_view(shards)
    assert (view.subset.orientations() == 1).all()
    for sample, blob in zip(view.ids.tolist(), blobs_of(view, view.ids), strict=True):
        before = (tmp_path / "train" / view.subset.path_of(sample)).read_bytes()
        wanted = turned_by_pillow(before, rule)
        stored = turned_by_pillow(blob, rule)
        assert stored.shape == wanted.shape
        assert (stored.int() - wanted.int()).abs().float().mean() < 8, view.subset.path_of(sample)


def odd_files() -> dict[str, bytes]:
    """Return files that DALI decodes to other pixels than Pillow, and files of the same formats with equal pixels."""
    grey = np.asarray(IMAGE.convert("L"))
    header = f"P5 {grey.shape[1]} {grey.shape[0]}"
    floats = Image.fromarray(grey.astype(np.float32))
    return {
        "la.tif": encoded(IMAGE.convert("LA"), "TIFF"),
        "lab.tif": encoded(IMAGE.convert("LAB"), "TIFF"),
        "floats.tif": encoded(floats, "TIFF"),
        "maxval-1023.pgm": f"{header} 1023\n".encode() + (4 * grey.astype(">u2")).tobytes(),
        "maxval-100.pgm": f"{header} 100\n".encode() + (grey // 3).tobytes(),
        "dark-16-bits.pgm": f"{header} 65535\n".encode() + grey.astype(">u2").tobytes(),
        "good.tif": PLAIN["tiff"],
        "good.pgm": PLAIN["pgm"],
    }


def test_files_that_the_two_decoders_see_differently_are_left_out(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are taken get the same pixels from both."""
    (tmp_path / "train" / "c").mkdir(parents=True)
    for name, blob in odd_files().items():
        (tmp_path / "train" / "c" / name).write_bytes(blob)
    shards = pack(PackConfig(train=tmp_path / "train", workers=1), tmp_path / "shards", False)
    view, data = whole_view(shards), replace(config.data, eval_resize=RESIZE, eval_size=SIDE)
    taken = {view.subset.path_of(sample) for sample in view.ids.tolist()}
    assert taken == {"c/good.tif", "c/good.pgm", "c/dark-16-bits.pgm"}
    (batch,) = eval_batches(view, view.ids, data, len(view), Context())
    for blob, image in zip(blobs_of(view, view.ids), batch.images, strict=True):
        assert torch.equal(Preprocess(OURS).batch([photos.load(blob)])[0], image)
    said = capsys.readouterr().err
    for name in ("la.tif", "maxval-1023.pgm", "maxval-100.pgm"):
        assert f"{name}: " in said and "DALI makes other pixels than Pillow; --quality 95 re-encodes" in said
    assert "floats.tif: Unusable: float32 pixels; convert it to 8 bits a channel" in said


def test_every_command_has_the_same_limit_of_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train" / "c").mkdir(parents=True)
    (tmp_path / "train" / "c" / "good.png").write_bytes(PLAIN["png"])
    Image.new("L", (3030, 30)).save(tmp_path / "train" / "c" / "long.png")
    for options in ({}, {"quality": 95}):
        pack(PackConfig(train=tmp_path / "train", workers=1, **options), tmp_path / f"s{len(options)}", False)
        assert "long.png: 3030 x 30 pixels, over 100 times as long as wide; crop it" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"long\.png: 3030 x 30 pixels, over 100 times as long as wide; crop it"):
        photos.load(tmp_path / "train" / "c" / "long.png")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(turned=st.integers(1, 8), data=st.data(), width=st.integers(1, 9), height=st.integers(1, 9))
def test_a_window_is_the_same_before_and_after_turning(turned: int, data: Any, width: int, height: int) -> None:
    """An image is turned and then cut, or cut and then turned."""
    stored = np.arange(width * height * 3).reshape(height, width, 3)
    image = orientation.turn(stored, turned)
    assert image.shape[:2] == orientation.upright_size(width, height, turned)[::-1]
    top, left = data.draw(st.integers(0, image.shape[0] - 1)), data.draw(st.integers(0, image.shape[1] - 1))
    h, w = data.draw(st.integers(1, image.shape[0] - top)), data.draw(st.integers(1, image.shape[1] - left))
    arrays = [np.array([pair], np.int32) for pair in ((top, left), (h, w), image.shape[:2])]
    anchor, shape = orientation.stored_windows(np.array([turned], np.int32), *arrays)
    (y, x), (sh, sw) = anchor[0], shape[0]
    part = orientation.turn(stored[y : y + sh, x : x + sw], turned)
    assert np.array_equal(part, image[top : top + h, left : left + w])
    assert np.array_equal(orientation.turn(image, orientation.inverse(turned)), stored)


@pytest.mark.parametrize(
    "exif",
    [b"", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
     b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"],
)  # fmt: skip
def test_an_invalid_orientation_counts_as_upright(exif: bytes) -> None:
    """Images have no tag, a damaged tag, number 9, and a text."""
    out = io.BytesIO()
    IMAGE.save(out, "JPEG", exif=exif)
    assert orientation.of(Image.open(out), "exif") == 1


def test_shards_of_version_1_open_and_are_read_as_stored(
    tmp_path: Path, config: Config, version_1: Callable[[Path], None]
) -> None:
    shards = packed(tmp_path, "stored")
    view = whole_view(shards)
    data = replace(config.data, eval_resize=RESIZE, eval_size=SIDE)
    (now,) = eval_batches(view, view.ids, data, len(view), Context())
    version_1(shards.root)
    old = open_shards(shards.root)
    assert "orientation" not in old["train"].samples.dtype.names and old.orientation == "stored"
    view = whole_view(old)
    (before,) = eval_batches(view, view.ids, data, len(view), Context())
    assert torch.equal(now.images, before.images)
    assert verify(shards.root, progress=False) == []
