"""Packing images of every kind: as they are, left out, or re-encoded."""

import io

import numpy as np
import pytest
from imagenet_like import make_image
from PIL import Image

from dist_train.config import PackConfig
from dist_train.data.images.photos import open_photo
from dist_train.data.packing.pack import pack
from dist_train.data.packing.stored_images import Header, read_header
from dist_train.data.packing.verify import verify
from dist_train.data.shards.index import open_shards, read_index
from dist_train.errors import UserError

# ---- odd images


def test_odd_images(sources, image, capsys, content):
    odd = sources.train["n02119789"]
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees to view
    odd["n02119789_png.JPEG"] = image(1, kind="PNG")
    odd["n02119789_gray.JPEG"] = image(2, mode="L")
    odd["n02119789_cmyk.JPEG"] = image(3, mode="CMYK")
    odd["n02119789_turned.JPEG"] = image(4, size=(50, 20), exif=exif)
    odd["n02119789_cut.JPEG"] = image(5, size=(200, 200))[:-4000]
    odd["n02119789_empty.JPEG"] = b""
    odd["n02119789_text.JPEG"] = b"no image"
    out = sources.root / "out"
    shards = pack(PackConfig(train=sources.train_tar()), out, progress=False)["train"]
    found = content(out)
    bad = {"n02119789_cut", "n02119789_empty", "n02119789_text"}
    assert set(found) == set(sources.expected("train")) - bad
    assert all(found[key] == value for key, value in sources.expected("train").items() if key not in bad)
    turned = shards.samples[shards.samples["key"] == b"n02119789_turned"][0]
    assert (turned["width"], turned["height"], turned["orientation"]) == (20, 50, 6)

    summary = read_index(out)["summary"]
    assert {entry["key"] for entry in summary["undecodable"]} == bad
    assert all(entry["source"].endswith(entry["key"] + ".JPEG") and entry["reason"] for entry in summary["undecodable"])
    assert [(entry["key"], entry["format"]) for entry in summary["misnamed"]] == [("n02119789_png", "PNG")]
    assert summary["subsets"]["train"]["modes"] == {"RGB": 50, "L": 1, "CMYK": 1}
    assert summary["subsets"]["train"]["formats"] == {"JPEG": 51, "PNG": 1}
    warning = capsys.readouterr().err
    assert "WARNING: LEFT OUT 3 images that cannot be decoded" in warning and "n02119789_cut.JPEG" in warning
    assert verify(out, progress=False) == []


def test_image_over_pillows_limit(sources, monkeypatch, image):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_header(image(1), "exif") == Header(40, 32, 1, "RGB", "JPEG")
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_class_that_loses_all_images(sources, capsys):
    sources.train["n02119789"] = {"n02119789_1.JPEG": b"no image"}
    pack(PackConfig(train=sources.train_tar(), shard_mb=0.002), sources.root / "out", progress=False)
    # A shard an image: one of them had none left.
    shards = open_shards(sources.root / "out")["train"]
    assert len(shards.shards) == len(shards) == 36
    assert len(list((sources.root / "out" / "train").glob("*.tar"))) == 36
    assert "WARNING: 1 class without a train image, the first: n02119789" in capsys.readouterr().err
    assert verify(sources.root / "out", progress=False) == []


def test_nothing_decodes(sources):
    sources.train = {"n02119789": {"n02119789_1.JPEG": b"no image"}}
    with pytest.raises(UserError, match=r"train\.tar: no image can be decoded"):
        pack(PackConfig(train=sources.train_tar()), sources.root / "out", progress=False)


# ---- what Pillow decodes and DALI does not


def phone(seed: int, kind: str, **save: object) -> bytes:
    open_photo(make_image(seed))  # registers HEIC, to be written too
    out = io.BytesIO()
    Image.open(io.BytesIO(make_image(seed, size=(64, 48)))).save(out, kind, **save)
    return out.getvalue()


def test_an_image_that_re_encoding_would_take_is_left_out_with_that_remedy(sources, capsys, content):
    """Such are HEIC, AVIF and GIF by any name, but no image that Pillow cannot decode either."""
    odd = {"phone.HEIC": phone(1, "HEIF"), "web.avif": phone(2, "AVIF"), "moving.gif": phone(3, "GIF"),
           "called.jpg": phone(4, "HEIF"), "cut.heic": phone(5, "HEIF")[:900], "cut.gif": phone(6, "GIF")[:900],
           "cut.jpg": phone(7, "JPEG")[:900], "text.jpg": b"I am text"}  # fmt: skip
    sources.train["n02119789"] |= odd | {
        "notes.txt": b"I am text",
        "Thumbs.db": b"system",
        "good.jfif": phone(8, "JPEG"),
    }
    train = sources.train_folder()
    pack(PackConfig(train=train, workers=1), sources.root / "out", progress=False)
    said = capsys.readouterr()
    taken = "; --quality 95 re-encodes it to JPEG and takes it"
    for name, cause in {"phone.HEIC": "HEIF", "web.avif": "AVIF", "moving.gif": "GIF", "called.jpg": "HEIF"}.items():
        assert f"{name}: {cause} that Pillow decodes and DALI does not{taken}" in said.err
    assert said.err.count(taken) == 4 and "cut.jpg: damaged or truncated image data" in said.err
    assert "found 59 files: 49 taken, 8 left out, 2 passed over (1 .txt, 1 of the system)" in said.out
    account = read_index(sources.root / "out")["summary"]["account"]
    assert account["found"] == 59 and account["taken"] == 49 and len(account["left_out"]) == 8

    pack(PackConfig(train=train, workers=1, quality=95), sources.root / "anew", progress=False)
    found = content(sources.root / "anew")
    assert "found 59 files: 53 taken, 4 left out, 2 passed over" in capsys.readouterr().out
    for key in ("n02119789_phone", "n02119789_web", "n02119789_moving", "n02119789_called"):
        image = Image.open(io.BytesIO(found[key][0]))
        assert (image.format, image.size) == ("JPEG", (64, 48))
    assert verify(sources.root / "anew", workers=1, progress=False) == []


# ---- re-encoding


def test_shorter_side(sources, content):
    options = PackConfig(train=sources.train_tar(), shorter_side=32)
    pack(options, sources.root / "out", progress=False)
    for key, (blob, _) in content(sources.root / "out").items():
        before, _ = sources.expected("train")[key]
        width, height = Image.open(io.BytesIO(before)).size
        image = Image.open(io.BytesIO(blob))
        if min(width, height) <= 32:
            assert blob == before  # never grown, and not encoded once more for nothing
        else:
            assert min(image.size) == 32 and image.format == "JPEG"
            assert abs(image.width / image.height - width / height) < 0.05
    assert verify(sources.root / "out", progress=False) == []


def test_quality(sources, image, content, files):
    sources.train["n02119789"] |= {
        "n02119789_cmyk.JPEG": image(1, mode="CMYK"),
        "n02119789_png.JPEG": image(1, kind="PNG"),
        "n02119789_cut.JPEG": image(5, size=(200, 200))[:-4000],
    }
    options = PackConfig(train=sources.train_tar(), quality=30, shard_mb=0.03)
    pack(options, sources.root / "a", progress=False)
    pack(options, sources.root / "b", progress=False)
    assert files(sources.root / "a") == files(sources.root / "b")
    found = content(sources.root / "a")
    assert set(found) == set(sources.expected("train")) - {"n02119789_cut"}
    for key, (blob, _) in found.items():
        before = Image.open(io.BytesIO(sources.expected("train")[key][0]))
        image = Image.open(io.BytesIO(blob))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", before.size)


def test_images_never_grow(sources, content):
    pack(PackConfig(train=sources.train_tar(), shorter_side=500, quality=50), sources.root / "out", progress=False)
    for key, (blob, _) in content(sources.root / "out").items():
        before, _ = sources.expected("train")[key]
        assert Image.open(io.BytesIO(blob)).size == Image.open(io.BytesIO(before)).size


def test_shards_are_cut_by_the_bytes_after_re_encoding(sources, image):
    sources.train = {"n02119789": {f"{n}.JPEG": image(n, size=(150, 150)) for n in range(30)}}
    pack(PackConfig(train=sources.train_tar(), shorter_side=50, shard_mb=0.03), sources.root / "out", progress=False)
    sizes = [path.stat().st_size for path in (sources.root / "out" / "train").glob("*.tar")]
    assert len(sizes) > 2 and 0.02e6 < np.mean(sizes) < 0.045e6
