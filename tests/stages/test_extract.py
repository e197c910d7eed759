"""Activations of ten crops: as PIL and torchvision make them, interrupted and continued."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models.resnet import ResNet

from dist_train.config import Config, PackConfig
from dist_train.config.backbone import MEAN, STD
from dist_train.data.activations import Activations, load
from dist_train.data.packing.pack import pack
from dist_train.data.shards.source import ShardSource
from dist_train.data.splits import Split, save_split
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.runs.run import Run, open_run
from dist_train.stages import extract, pretrain
from dist_train.stages.backbone import load_backbone

CLASSES, TRAIN, VAL = ("n01440764", "n02119789", "n03000134", "n09999999"), 5, 2
TABLES = ("base_train", "base_val", "novel_train", "novel_val")
Features = npt.NDArray[np.float32]


def generated(count: int) -> list[bytes]:
    """Return JPEGs, wide, high and square, with an odd and with an even border."""
    rng = np.random.default_rng(0)
    blobs = []
    for n in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        size = ((90, 80), (81, 140), (120, 77), (80, 80))[n % 4]
        out = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
        blobs.append(out.getvalue())
    return blobs


@pytest.fixture
def ten(request: pytest.FixtureRequest, config: Config, tmp_path: Path) -> Config:
    """Configure a run with ten crops of images that are not square: full-size ImageNet images where asked for."""
    count = len(CLASSES) * (TRAIN + VAL)
    if getattr(request, "param", "generated") == "imagenet":
        real: Path = request.getfixturevalue("real_images")
        with tarfile.open(real / "imagenet-sample" / "imagenet-sample.tar") as tar:
            files = [m for m in tar if m.isreg()][:count]
            blobs = [tar.extractfile(m).read() for m in files]  # type: ignore[union-attr]
    else:
        blobs = generated(count)
    for n, blob in enumerate(blobs):
        subset = "train" if n // len(CLASSES) < TRAIN else "val"
        path = tmp_path / subset / CLASSES[n % len(CLASSES)] / f"{subset}_{n}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
    save_split(Split("s", CLASSES[:3], CLASSES[3:]), tmp_path / "split.json")
    options = PackConfig(train=tmp_path / "train", val=tmp_path / "val", workers=1)
    shards = pack(options, tmp_path / "shards", progress=False)
    data = replace(
        config.data, shards=str(shards.root), split=str(tmp_path / "split.json"), eval_resize=72, eval_size=64
    )
    return replace(
        config,
        data=data,
        pretrain=replace(config.pretrain, epochs=1, global_batch=5),
        extract=replace(config.extract, views="ten", batch=40, block=4),
    )


def backbone(config: Config) -> Run:
    run = open_run(config)
    pretrain.pretrain(run, Context(), StopFlag(Context()))
    return run


def tables(run: Run) -> dict[str, Activations]:
    return {name: load(run.dir / "extract", name) for name in TABLES}


def by_torchvision(run: Run, name: str, table: Activations) -> Features:
    """Return what the table should hold, by Pillow's decoding and torchvision's crops, an image at a time."""
    model: ResNet = load_backbone(run.config, torch.device("cpu")).network.body
    data, (_, subset) = run.config.data, name.split("_")
    crops = transforms.Compose([transforms.Resize(data.eval_resize), transforms.TenCrop(data.eval_size)])
    tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    rows = []
    for blob in ShardSource(run.shards[subset]).read(table.ids):
        image = Image.open(io.BytesIO(blob.tobytes())).convert("RGB")
        rows.append(model(torch.stack([tensor(crop) for crop in crops(image)])).mean(0))
    return torch.stack(rows).numpy()


def apart(rows: npt.NDArray[np.float16], reference: Features) -> float:
    """Return the largest distance of an activation from its reference, as a share of the reference's length."""
    distance = np.linalg.norm(rows.astype(np.float32) - reference, axis=1)
    return float((distance / np.linalg.norm(reference, axis=1)).max())


@pytest.mark.parametrize("ten", ["generated", "imagenet"], indirect=True)
def test_ten_crops_are_torchvisions(ten: Config) -> None:
    run = backbone(ten)
    extract.extract(run, Context(), StopFlag(Context()))
    for name, table in tables(run).items():
        reference = by_torchvision(run, name, table)
        assert apart(table.rows, reference) < 1e-3, name  # float16 is 3e-4, one crop one pixel beside 5e-3
    means = np.load(run.dir / "extract" / "means.f32.npy")
    assert np.array_equal(means, load(run.dir / "extract", "base_train").means())


def test_ten_crops_continue_to_the_same_bytes(ten: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run = backbone(ten)
    extract.extract(run, Context(), StopFlag(Context()))
    whole = {path.name: path.read_bytes() for path in (run.dir / "extract").glob("*.np*")}
    true, written = extract.Store.write, []

    def fails(self: extract.Store, block: int, rows: npt.NDArray[np.float16]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(block)
        true(self, block, rows)

    monkeypatch.setattr(extract.Store, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        extract.extract(run, Context(), StopFlag(Context()), redo=True)
    monkeypatch.setattr(extract.Store, "write", true)
    extract.extract(run, Context(), StopFlag(Context()))
    assert whole == {path.name: path.read_bytes() for path in (run.dir / "extract").glob("*.np*")}


def test_other_views_are_other_inputs(config: Config, with_backbone: Callable[[Config], Config]) -> None:
    run = open_run(with_backbone(config))
    extract.extract(run, Context(), StopFlag(Context()))
    other = open_run(replace(config, extract=replace(config.extract, views="ten")))
    with pytest.raises(UserError, match=r"extract: was made from other inputs \(extract.views: centre -> ten\)"):
        extract.extract(other, Context(), StopFlag(Context()))
