"""Generated sources in the forms of ImageNet: the same layouts, with few classes and small images."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from dist_train.config import PackConfig

# In the devkit the ids follow another order than the sorted wnids, as in the official one.
WNIDS = ("n01440764", "n02119789", "n03000134", "n09999999")
IDS = {"n02119789": 1, "n09999999": 2, "n01440764": 3, "n03000134": 4}
WORDS = (
    "tench, Tinca tinca",
    "kit fox",
    "chime, bell",
    "toilet tissue",
)  # words of the same classes, in the same order
TRAIN_PER_CLASS, VAL_PER_CLASS = 12, 3

Files = dict[str, bytes]
Content = dict[str, tuple[bytes, str]]  # key -> image, wnid


def make_image(
    seed: int, size: tuple[int, int] = (40, 32), mode: str = "RGB", kind: str = "JPEG", **save: object
) -> bytes:
    """Return a noisy image, encoded; ``size`` is (width, height)."""
    channels = {"RGB": 3, "CMYK": 4, "L": 1}[mode]
    pixels = np.random.RandomState(seed).bytes(size[0] * size[1] * channels)
    out = io.BytesIO()
    Image.frombytes(mode, size, pixels).save(out, kind, **save)
    return out.getvalue()


def tar_bytes(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@dataclass
class Sources:
    """Write sources below ``root``. ``train``: wnid -> name -> bytes; ``val``: name -> bytes, with
    ``truth``, the wnid of image 1, 2, ..."""

    root: Path
    train: dict[str, Files]
    val: Files
    truth: list[str]

    def train_tar(self) -> Path:
        inner = {f"{wnid}.tar": tar_bytes(files) for wnid, files in self.train.items()}
        return self._write("train.tar", tar_bytes(inner))

    def val_tar(self) -> Path:
        return self._write("val.tar", tar_bytes(self.val))

    def devkit(self, **replace: bytes) -> Path:
        """Write the devkit. ``replace`` has other content for meta or truth; empty content leaves the file out."""
        truth = "".join(f"{IDS[wnid]}\n" for wnid in self.truth).encode()
        files = {
            "meta.mat": replace.get("meta", _meta()),
            "ILSVRC2012_validation_ground_truth.txt": replace.get("truth", truth),
        }
        inner = {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in files.items() if content}
        return self._write("devkit.tar.gz", gzip.compress(tar_bytes(inner)))

    def _write(self, name: str, content: bytes) -> Path:
        (self.root / name).parent.mkdir(exist_ok=True)
        (self.root / name).write_bytes(content)
        return self.root / name

    def train_folder(self) -> Path:
        return self._folder(
            "train", {f"{wnid}/{name}": self.train[wnid][name] for wnid in self.train for name in self.train[wnid]}
        )

    def val_folder(self) -> Path:
        """Write the validation images in a folder per class."""
        pairs = zip(self.truth, self.val.items(), strict=True)
        return self._folder("val", {f"{wnid}/{name}": blob for wnid, (name, blob) in pairs})

    def val_flat(self) -> Path:
        return self._folder("flat", self.val)

    def kaggle(self, **rows: str) -> Path:
        """Write Kaggle's folder: ILSVRC/Data/CLS-LOC/{train,val,test}, LOC_val_solution.csv, LOC_synset_mapping.txt.
        ``rows`` has other predictions by image id; an empty one leaves the row out."""
        images = "kaggle/ILSVRC/Data/CLS-LOC"
        self._folder(
            images, {f"train/{wnid}/{n}": blob for wnid, some in self.train.items() for n, blob in some.items()}
        )
        self._folder(images, {f"val/{name}": blob for name, blob in self.val.items()})
        self._folder(images, {"test/ILSVRC2012_test_00000001.JPEG": make_image(5)})
        ids = [name.removesuffix(".JPEG") for name in self.val]
        truth = {n: f"{wnid} 85 1 499 272 {wnid} 3 4 50 60 " for n, wnid in zip(ids, self.truth, strict=True)} | rows
        # In no order, as Kaggle has it.
        lines = [f"{name},{truth[name]}\n" for name in sorted(truth, key=lambda n: n[::-1]) if truth[name]]
        self._write("kaggle/LOC_val_solution.csv", "".join(["ImageId,PredictionString\n", *lines]).encode())
        words = "".join(f"{wnid} {wnid} in words, and more\n" for wnid in WNIDS)
        return self._write("kaggle/LOC_synset_mapping.txt", words.encode()).parent

    def hugging_face(self) -> tuple[Files, Files]:
        """Return train and val under Hugging Face's names, which end with the wnid."""
        train = {
            f"{name.removesuffix('.JPEG')}_{wnid}.JPEG": blob
            for wnid, files in self.train.items()
            for name, blob in files.items()
        }
        pairs = zip(self.truth, self.val.items(), strict=True)
        return train, {f"{name.removesuffix('.JPEG')}_{wnid}.JPEG": blob for wnid, (name, blob) in pairs}

    def hugging_face_tars(self, folder: str = "tars") -> Path:
        """Write the archives of ``imagenet-1k``, uncompressed (two for the training images); return their folder."""
        train, val = self.hugging_face()
        for part in range(2):
            self._write(f"{folder}/train_images_{part}.tar", tar_bytes(dict([*train.items()][part::2])))
        return self._write(f"{folder}/val_images.tar", tar_bytes(val)).parent

    def hugging_face_folders(self) -> tuple[Path, Path]:
        train, val = self.hugging_face()
        return self._folder("hf-train", train), self._folder("hf-val", val)

    def parquet(self) -> Path:
        """Write parquet files as ``imagenet-1k`` has them, two for each split, and return their folder."""
        train, val = self.hugging_face()
        splits = {"train": train, "validation": val, "test": {"ILSVRC2012_test_00000001.JPEG": make_image(5)}}
        for split, files in splits.items():
            rows = [(name, blob, hf_label(name)) for name, blob in files.items()]
            for part in range(2):
                write_parquet(self.root / "data" / f"{split}-{part:05d}-of-00002.parquet", rows[part::2])
        return self.root / "data"

    def options(self, **options: Any) -> PackConfig:
        """Return the options that pack the archives, with a few images in each shard."""
        archives = {
            "train": self.root / "train.tar",
            "val": self.root / "val.tar",
            "devkit": self.root / "devkit.tar.gz",
        }
        return PackConfig(**{**archives, "shard_mb": 0.03, **options})

    def expected(self, subset: str) -> Content:
        """Return the images that a pack of the archives must hold."""
        if subset == "train":
            pairs = [(name, blob, wnid) for wnid, files in self.train.items() for name, blob in files.items()]
        else:
            pairs = [(*pair, wnid) for pair, wnid in zip(self.val.items(), self.truth, strict=True)]
        return {name.removesuffix(".JPEG"): (blob, wnid) for name, blob, wnid in pairs}

    def _folder(self, folder: str, files: Files) -> Path:
        for name, content in files.items():
            path = self.root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.root / folder


def hf_label(name: str) -> int:
    """Return the number of a class in ``imagenet-1k``: the position of the name's wnid among the sorted wnids."""
    wnid = name.removesuffix(".JPEG").rpartition("_")[2]
    return sorted(WNIDS).index(wnid) if wnid in WNIDS else -1


def write_parquet(
    path: Path, rows: list[tuple[str | None, bytes | None, int]], names: Sequence[str] = WORDS, **columns: Any
) -> Path:
    """Write a file as ``datasets`` does: rows of path, bytes, label; ``names`` are those of the ClassLabel, none for a
    file without features. ``columns`` replaces columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": blob, "path": name} for name, blob, _ in rows], kind)
    arrays = {"image": images, "label": pa.array([label for *_, label in rows], pa.int64()), **columns}
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    path.parent.mkdir(exist_ok=True)
    table = pa.table({name: array for name, array in arrays.items() if array is not None})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=5, write_page_checksum=True)
    return path


def _meta() -> bytes:
    """Return ``meta.mat`` with the four classes and an inner node of the hierarchy."""
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
