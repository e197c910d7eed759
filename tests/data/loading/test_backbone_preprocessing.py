"""What timm and torchvision do to a photo for their networks, the loader and a classifier do too, within 2 of 255.

The references are their own transforms, by Pillow. The loader makes the pixels by torch's kernel, or by DALI's graph.
"""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from fixtures.images import REAL
from PIL import Image, ImageDraw

from dist_train.config import DataConfig, PackConfig
from dist_train.config.backbone import Interpolation, Preprocessing
from dist_train.data.images import orientation
from dist_train.data.loading import dali, dali_resize
from dist_train.data.loading import preprocessing as pixels
from dist_train.data.loading.loader import eval_batches, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.plan import train_windows
from dist_train.data.packing.pack import pack
from dist_train.data.splits import View, make_view
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.models.backbones.timm_source import preprocessing_of

CLIP_MEAN, CLIP_STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
KERNELS: tuple[Interpolation, ...] = ("bilinear", "bicubic")


def text(width: int, height: int) -> Image.Image:
    """Return black letters on white, beside which a bicubic kernel overshoots and is clipped."""
    image = Image.new("RGB", (width, height), "white")
    drawing = ImageDraw.Draw(image)
    for row in range(0, height, 12):
        drawing.text((0, row), "the quick brown fox jumps over " * 9, fill="black")
    return image


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(width).randint(0, 256, (height, width, 3), np.uint8))


def real_photos(count: int) -> list[Image.Image]:
    """Return photos of ImageNet, where they are."""
    archive = REAL / "imagenet-sample" / "imagenet-sample.tar"
    if not archive.is_file():
        return []
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isreg()][:count]
        blobs = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    return [Image.open(io.BytesIO(blob)).convert("RGB") for blob in blobs]


@cache
def photos() -> list[Image.Image]:
    return [text(400, 300), noise(260, 250), noise(90, 64), text(301, 500), *real_photos(3)]


def of_timm(preprocessing: Preprocessing) -> Any:
    """Return timm's transform for evaluation; its crop share is chosen so that it resizes to the same size."""
    import timm.data  # takes seconds

    share = preprocessing.size / preprocessing.resize
    assert math.floor(preprocessing.size / share) == preprocessing.resize
    return timm.data.create_transform(
        input_size=preprocessing.size,
        is_training=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=share,
        crop_mode="squash" if preprocessing.squash else "center",
    )


def squashed_by_pillow(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return a squashed image, by Pillow's two passes: across and down. Pillow 13 squashes tall images by the other way
    round, which is up to 10 levels apart."""
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[preprocessing.interpolation]
    across = image.resize((preprocessing.resize, image.height), method)
    return across.resize((preprocessing.resize, preprocessing.resize), method)


def wanted_of(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    if preprocessing.squash:
        image = squashed_by_pillow(image, preprocessing)
    return of_timm(preprocessing)(image)  # type: ignore[no-any-return]


def levels(one: torch.Tensor, other: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return the differences of two normalised images [3, side, side], in steps of 255."""
    assert one.shape == other.shape
    return (one - other).abs() * 255 * torch.tensor(preprocessing.std)[:, None, None]


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def cases(sizes: tuple[int, ...]) -> Iterator[Preprocessing]:
    for kernel in KERNELS:
        for size in sizes:
            for share, squash in ((0.875, False), (0.95, False), (1.0, False), (0.9, True), (1.0, True)):
                resize = math.floor(size / share)
                mean, std = (CLIP_MEAN, CLIP_STD) if squash else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
                yield Preprocessing(resize=resize, size=size, interpolation=kernel, mean=mean, std=std, squash=squash)


@pytest.mark.parametrize("preprocessing", [*cases((192, 224, 336, 518))], ids=str)
def test_the_evaluation_is_timms(preprocessing: Preprocessing) -> None:
    for image in photos():
        apart = levels(
            pixels.evaluation([tensor(image)], preprocessing)[0], wanted_of(image, preprocessing), preprocessing
        )
        assert apart.max() < 2.01 and apart.mean() < 0.3, image.size


@pytest.mark.parametrize(
    ("facts", "named"),
    [({"crop_pct": 1.15}, "crop share 1.15"), ({"crop_mode": "border"}, "crop mode 'border'"),
     ({"interpolation": "lanczos"}, "interpolation 'lanczos'"), ({"input_size": (3, 224, 192)}, "only square")],
)  # fmt: skip
def test_a_way_of_timms_that_is_not_offered_is_refused(facts: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        preprocessing_of({"input_size": (3, 224, 224), **facts}, "timm:some", None)


def presets() -> dict[str, Any]:
    """Return the transforms of all weights of torchvision's classification networks, each kind once, by name."""
    kinds = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        for weights in torchvision.models.get_model_weights(name):
            preset = weights.transforms()
            kinds.setdefault(str(preset), (str(weights), preset))
    return dict(kinds.values())


def test_the_evaluation_is_torchvisions() -> None:
    assert len(presets()) > 20
    for weights, preset in presets().items():
        preprocessing = Preprocessing(
            resize=preset.resize_size[0], size=preset.crop_size[0], interpolation=preset.interpolation.value,
            mean=tuple(preset.mean), std=tuple(preset.std),
        )  # fmt: skip
        for image in photos()[:2]:
            apart = levels(pixels.evaluation([tensor(image)], preprocessing)[0], preset(image), preprocessing)
            assert apart.max() < 2.01 and apart.mean() < 0.3, (weights, image.size)


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    """Pack the photos, without loss, and a photo that lies on its side."""
    root = tmp_path_factory.mktemp("photos")
    (root / "train" / "c").mkdir(parents=True)
    for number, image in enumerate(photos()):
        image.save(root / "train" / "c" / f"{number}.png")
    exif = Image.Exif()
    exif[orientation.TAG] = 6
    photos()[0].transpose(Image.Transpose.ROTATE_90).save(root / "train" / "c" / "turned.png", exif=exif)
    shards = pack(PackConfig(train=root / "train", workers=1), root / "shards", progress=False)
    return make_view(shards["train"], shards.classes, shards.classes, "s")


def image_of(view: View, sample: int) -> Image.Image:
    name = Path(view.subset.path_of(sample)).stem
    return photos()[0 if name == "turned" else int(name)]


@pytest.fixture(params=["pixels", "dali"])
def made_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "dali":  # the graph of GPUs, on the CPU
        monkeypatch.setattr(dali, "_finishes", lambda *_: True)
    return str(request.param)


@pytest.mark.parametrize("preprocessing", [*cases((192, 336))], ids=str)
def test_the_loader_makes_timms_pixels(view: View, made_by: str, preprocessing: Preprocessing) -> None:
    data = DataConfig(threads=1)
    batches = eval_batches(view, view.ids, data, 32, Context(), preprocessing=preprocessing)
    images = torch.cat([batch.images for batch in batches])
    for sample, made in zip(view.ids.tolist(), images, strict=True):
        image = image_of(view, sample)
        apart = levels(made, wanted_of(image, preprocessing), preprocessing)
        assert apart.max() < 2.01 and apart.mean() < 0.3, (image.size, view.subset.path_of(sample))


@pytest.mark.parametrize("kernel", KERNELS)
def test_training_obeys_kernel_and_statistics(view: View, made_by: str, kernel: Interpolation) -> None:
    preprocessing = Preprocessing(resize=99, size=96, interpolation=kernel, mean=CLIP_MEAN, std=CLIP_STD)
    data = DataConfig(train_size=64, threads=1)
    order = Order(len(view), len(view), 5)
    (batch,) = train_batches(view, order, data, Context(), range(0, 1), preprocessing=preprocessing)
    windows = train_windows(view, batch.ids, np.zeros(len(view), np.int64), data, 5)
    for n, sample in enumerate(batch.ids.tolist()):
        (top, left), (height, width) = windows.anchor[n].tolist(), windows.shape[n].tolist()
        window = np.asarray(image_of(view, sample))[top : top + height, left : left + width]
        resized = pixels.resize(torch.from_numpy(window.copy()), 1, [64, 64], kernel)
        wanted = np.empty((64, 64, 3), np.float32)
        pixels.cut(resized, [0, 0], bool(windows.flip[n]), preprocessing, wanted)
        apart = levels(batch.images[n], torch.from_numpy(wanted).permute(2, 0, 1), preprocessing)
        # DALI's own resize, which is used where an evaluation cuts off the edges, is another at the edge.
        assert apart.mean() < 1 and (kernel == "bilinear" or apart.max() < 2.01), view.subset.path_of(sample)


def test_our_own_networks_get_dalis_own_resize() -> None:
    """It is faster, and where the edges are cut off the same but for rounding."""
    assert not dali_resize.as_pillow(DataConfig().preprocessing)
    assert not dali_resize.as_pillow(Preprocessing(resize=226, size=224))
    assert dali_resize.as_pillow(Preprocessing(resize=225, size=224))
    assert dali_resize.as_pillow(Preprocessing(resize=256, size=224, interpolation="bicubic"))
