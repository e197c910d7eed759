"""Sources as ImageNet comes, generated: small images, few classes, the same layout."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

# In the devkit the ids follow another order than the sorted wnids, as in the official one.
WNIDS = ("n01440764", "n02119789", "n03000134", "n09999999")
IDS = {"n02119789": 1, "n09999999": 2, "n01440764": 3, "n03000134": 4}
TRAIN_PER_CLASS, VAL_PER_CLASS = 12, 3

Files = dict[str, bytes]


def make_image(seed: int, size: tuple[int, int] = (40, 32), mode: str = "RGB", kind: str = "JPEG", **save: object) -> bytes:
    """A noisy image, encoded; ``size`` is (width, height)."""
    channels = {"RGB": 3, "CMYK": 4, "L": 1}[mode]
    pixels = np.random.RandomState(seed).randint(0, 255, (size[1], size[0], channels), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(out, kind, **save)
    return out.getvalue()


def make_tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def tar_bytes(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@dataclass
class Sources:
    """Writes sources below ``root``. ``train``: wnid -> name -> bytes; ``val``: name -> bytes, with
    ``truth``, the wnid of image 1, 2, ..."""

    root: Path
    train: dict[str, Files]
    val: Files
    truth: list[str]

    def train_tar(self) -> Path:
        return make_tar(self.root / "train.tar", {f"{wnid}.tar": tar_bytes(files) for wnid, files in self.train.items()})

    def val_tar(self) -> Path:
        return make_tar(self.root / "val.tar", self.val)

    def devkit(self, **replace: bytes | None) -> Path:
        """``replace``: other content for meta or truth; None leaves the file out."""
        files = {"meta": ("meta.mat", _meta()), "truth": ("ILSVRC2012_validation_ground_truth.txt", self._truth())}
        path = self.root / "devkit.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for key, (name, usual) in files.items():
                content = replace.get(key, usual)
                if content is not None:
                    member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return path

    def _truth(self) -> bytes:
        return "".join(f"{IDS[wnid]}\n" for wnid in self.truth).encode()

    def train_folder(self) -> Path:
        return self._folder("train", {f"{wnid}/{name}": blob for wnid, files in self.train.items() for name, blob in files.items()})

    def val_folder(self) -> Path:
        """With one folder per class."""
        pairs = zip(self.truth, self.val.items(), strict=True)
        return self._folder("val", {f"{wnid}/{name}": blob for wnid, (name, blob) in pairs})

    def val_flat(self) -> Path:
        return self._folder("flat", self.val)

    def _folder(self, folder: str, files: Files) -> Path:
        for name, content in files.items():
            path = self.root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.root / folder


def _meta() -> bytes:
    """``meta.mat`` with the four classes and an inner node of the hierarchy."""
    rows = [*((number, wnid, 0) for wnid, number in IDS.items()), (5, "n00001740", 4)]
    synsets = np.array(rows, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    out = io.BytesIO()
    savemat(out, {"synsets": synsets.reshape(-1, 1)})
    return out.getvalue()


def make_sources(root: Path) -> Sources:
    sizes = [(40, 32), (30, 50), (64, 64), (33, 47)]
    train = {
        wnid: {f"{wnid}_{n * 7}.JPEG": make_image(1000 * c + n, sizes[n % 4]) for n in range(TRAIN_PER_CLASS)}
        for c, wnid in enumerate(WNIDS)
    }
    # Labels in no particular order, as in the official list.
    truth = [str(wnid) for wnid in np.random.RandomState(0).permutation(np.repeat(WNIDS, VAL_PER_CLASS))]
    val = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": make_image(9000 + n) for n in range(len(truth))}
    return Sources(root, train, val, truth)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return make_sources(tmp_path)


@pytest.fixture
def image() -> Callable[..., bytes]:
    return make_image
