"""Photos of any kind become the same pixels, and the input that the evaluation computes; other files are named."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import png_of
from PIL import Image

from dist_train.classifier import photo_files, photos
from dist_train.classifier.photos import Preprocess
from dist_train.config.backbone import Preprocessing
from dist_train.data.account import Account
from dist_train.data.images.photos import open_photo
from dist_train.data.loading.loader import eval_batches
from dist_train.data.shards.source import ShardSource
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.runs.run import Run

PIXELS = np.random.RandomState(0).randint(0, 256, (30, 40, 3), np.uint8)


def encoded(format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, format, **options)
    return out.getvalue()


def test_files_bytes_images_arrays_and_tensors_give_the_same_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    given = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded(), encoded("WEBP", lossless=True), encoded("BMP"),
             Image.fromarray(PIXELS), Image.fromarray(PIXELS).convert("RGBA"), PIXELS, PIXELS / 255, tensor,
             tensor / 255]  # fmt: skip
    for photo in given:
        assert torch.equal(photos.load(photo), tensor)  # type: ignore[arg-type]
    grey = photos.load(PIXELS[..., 0])
    assert grey.shape == (3, 30, 40) and torch.equal(grey[0], tensor[0]) and torch.equal(grey[0], grey[2])
    assert torch.equal(photos.load(tensor[:1]), grey)


def test_a_photo_from_a_phone_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to see it
    turned = photos.load(encoded(exif=exif))
    assert torch.equal(turned, torch.from_numpy(np.rot90(PIXELS, -1).copy()).permute(2, 0, 1))


def test_preprocessing_equals_that_of_the_evaluation(whole_run: Run) -> None:
    """Compare images decoded by DALI from shards with the same images decoded by Pillow."""
    view, data = whole_run.view("val", "base"), whole_run.config.data
    ids = view.ids[:12]
    batch = next(iter(eval_batches(view, ids, data, 12, Context())))
    source = ShardSource(whole_run.shards["val"])
    preprocess = Preprocess(data.preprocessing)
    mine = preprocess.batch(photos.load(bytes(blob)) for blob in source.read(ids))
    source.close()
    assert mine.shape == batch.images.shape
    # DALI's path rounds to bytes after the resize: half a step of 1/255, over the standard deviation.
    assert (mine - batch.images).abs().max() < 0.03 and (mine - batch.images).abs().mean() < 0.006


@pytest.mark.parametrize("size", [(32, 32), (57, 91), (91, 57), (33, 400)])
def test_preprocessing_equals_that_of_torchvision(size: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    image = torch.from_numpy(np.random.RandomState(1).randint(0, 256, (3, *size), np.uint8))
    wanted = v2.Compose([
        v2.Resize(37, antialias=True), v2.CenterCrop(32), v2.ToDtype(torch.float32),
        v2.Normalize([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    ])(image)  # fmt: skip
    preprocess = Preprocess(Preprocessing(resize=37, size=32))
    apart = (preprocess(image[None])[0] - wanted).abs() * preprocess.std
    assert apart.max() < 1.01 and apart.mean() < 0.02


FOREIGN = [
    Preprocessing(resize=35, size=32, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Preprocessing(resize=32, size=32, interpolation="bicubic", squash=True),
    Preprocessing(resize=33, size=32, squash=True, mean=(0, 0, 0), std=(1, 1, 1)),
]


@pytest.mark.parametrize("spec", FOREIGN, ids=str)
@pytest.mark.parametrize("size", [(32, 32), (57, 91), (91, 57), (20, 400)])
def test_exported_preprocessing_is_that_of_the_evaluation(spec: Preprocessing, size: tuple[int, int]) -> None:
    image = torch.from_numpy(np.random.RandomState(1).choice([0, 255], (3, *size)).astype(np.uint8))
    preprocess = Preprocess(spec)
    apart = (preprocess(image[None]) - preprocess.batch([image])).abs() * preprocess.std
    assert apart.shape == (1, 3, 32, 32) and apart.max() < 2.01 and apart.mean() < 0.1


BAD = {
    "empty.jpg": (b"", "empty.jpg: not an image of a known format"),
    "text.jpg": (b"hello, I am text\n" * 9, "text.jpg: not an image of a known format"),
    "cut.jpg": (encoded("JPEG")[:400], "cut.jpg: damaged or cut off"),
    "cut.png": (encoded()[:700], "cut.png: damaged or cut off"),
    "huge.png": (png_of(30_000, 30_000), "huge.png: 900000000 pixels, and 178956970 are the limit"),
    "narrow.png": (png_of(1, 200_000), "narrow.png: 1 x 200000 pixels, over 100 times as long as wide; crop it"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "script.eps: not an image of a known format"),
    "large.png": (png_of(13_377, 13_378), "large.png: 178957506 pixels, and 178956970 are the limit"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_a_photo_is_named(name: str, tmp_path: Path) -> None:
    data, wanted = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        photos.load(tmp_path / name)
    assert f"{tmp_path}/{wanted}" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^upload 7: "):
        photos.load(data, "upload 7")


@pytest.mark.parametrize(
    "photo, wanted",
    [
        ("/no/such.jpg", "/no/such.jpg: No such file"),
        ("/tmp", "/tmp: Is a directory"),
        (np.zeros((4, 5, 6), np.uint8), "shape [4, 5, 6]; give [height, width, 3]"),
        (np.zeros((0, 5, 3), np.uint8), "shape [0, 5, 3]"),
        (torch.zeros(5, 5, 3), "shape [5, 5, 3]; give [3 or 1, height, width]"),
        (np.zeros((4, 5, 3), np.int32), "torch.int32; give uint8"),
        (torch.full((3, 4, 5), 2.0), "floats outside [0, 1]"),
        (torch.full((3, 4, 5), torch.nan), "floats outside [0, 1]"),
        (7, "int is no photo"),
        (np.array(["a", None], object), "an array of object"),
        (np.zeros((1, 500, 3), np.uint8), "500 x 1 pixels, over 100 times as long as wide"),
        (torch.zeros(3, 13_378, 13_377, dtype=torch.uint8), "13377 x 13378 pixels, and 178956970 are the limit"),
    ],
)
def test_an_array_that_is_not_an_image_is_named(photo: Any, wanted: str) -> None:
    with pytest.raises(UserError) as error:
        photos.load(photo)
    assert wanted in str(error.value)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "JPEG2000", "GIF", "MPO"])
def test_formats_of_phones_and_cameras_can_be_read(kind: str) -> None:
    flat = np.full((32, 48, 3), (200, 40, 90), np.uint8)
    out = io.BytesIO()
    open_photo(encoded())  # registers HEIC, to be written too
    Image.fromarray(flat).save(out, kind)
    pixels = photos.load(out.getvalue())
    assert pixels.shape == (3, 32, 48)
    assert (pixels.permute(1, 2, 0).int() - torch.from_numpy(flat).int()).abs().max() < 12


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match=r"pipe.jpg: no regular file; give the path of an image"):
        photos.load(tmp_path / "pipe.jpg")


def test_a_pattern_gives_the_photos_that_match(tmp_path: Path) -> None:
    for name in (".album/a/1.jpg", ".album/a/more/2.jpg", ".album/b.png", ".album/Thumbs.db", ".album/@eaDir/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(9))
    (tmp_path / ".album" / "gone.jpg").symlink_to("nowhere")
    for pattern in ("*", "**", "**/*"):
        account = Account()
        # Each photo once; the hidden folder is searched, as the pattern names it.
        matches = photo_files.matching(f"{tmp_path}/.album/{pattern}", account)
        assert [str(p.relative_to(tmp_path / ".album")) for p in matches] == ["a/1.jpg", "a/more/2.jpg", "b.png"]
        assert account.left_out == [(f"{tmp_path}/.album/gone.jpg", "a broken link; mend or remove it")]
        assert account.passed_over == {"of the system": 1, "in system folders": 1} and account.found == 6
    with pytest.raises(UserError, match=r"/\*.db: holds no photos \(found 1 file: 0 taken, 0 left out, 1 passed over"):
        photo_files.matching(f"{tmp_path}/.album/*.db", Account())
    assert photo_files.matching(f"{tmp_path}/none*", Account()) == []


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_images_are_grey_and_not_white(kind: str, tmp_path: Path) -> None:
    levels = (257 * np.arange(256, dtype=np.uint16)).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep", kind)
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "deeper.tif")
    wanted = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    assert torch.equal(photos.load(tmp_path / "deep"), wanted)
    assert torch.equal(photos.load(tmp_path / "deeper.tif"), wanted)
    Image.fromarray(levels.astype(np.float32)).save(tmp_path / "floats.tif")
    with pytest.raises(UserError, match=r"floats.tif: float32 pixels; convert it to 8 bits a channel"):
        photos.load(tmp_path / "floats.tif")


def test_a_folder_gives_its_photos(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "a.png", "b/notes.txt", "1.webp", "c.HEIC", "._a.png", ".hidden/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    account = Account()
    assert [str(p.relative_to(tmp_path)) for p in photo_files.in_folder(tmp_path, account)] == [
        "1.webp",
        "a.png",
        "b/2.JPG",
        "c.HEIC",
    ]
    assert account.passed_over == {".txt": 1, "of the system": 1, "in system folders": 1}
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: holds no photos"):
        photo_files.in_folder(tmp_path / "none", Account())
