"""Fixtures of data: sources in ImageNet's layout, and packs of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imagenet_like import Content, Files, Sources, make_image, make_sources, tar_bytes

from dist_train.data.packing.pack import pack
from dist_train.data.shards.index import open_shards, sample_dtype
from dist_train.files import file_sha256


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return make_sources(tmp_path)


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Make sources and their archives train.tar, val.tar, devkit.tar.gz, for tests that change nothing."""
    sources = make_sources(tmp_path_factory.mktemp("official"))
    sources.train_tar(), sources.val_tar(), sources.devkit()
    return sources


@pytest.fixture(scope="session")
def packed(official: Sources) -> Path:
    """Pack the official layout into several shards, which must not be changed."""
    out = official.root / "shards"
    pack(official.options(), out, progress=False)
    return out


@pytest.fixture(scope="session")
def image() -> Callable[..., bytes]:
    return make_image


@pytest.fixture
def tar(tmp_path: Path) -> Callable[[str, Files], Path]:
    """Write a tar by name and content."""

    def write(name: str, files: Files) -> Path:
        (tmp_path / name).write_bytes(tar_bytes(files))
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def version_1() -> Callable[[Path], None]:
    """Rewrite an index as version 1: without orientations and the list of paths."""

    def rewrite(root: Path) -> None:
        index = json.loads((root / "index.json").read_text())
        for name, entry in index["subsets"].items():
            table = np.load(root / f"{name}.samples.npy")
            columns = [column for column in table.dtype.names if column != "orientation"]
            old = np.array(table[columns].tolist(), sample_dtype(table.dtype["key"].itemsize, version=1))
            np.save(root / f"{name}.samples.npy", old)
            (root / f"{name}.sources.txt").unlink()
            entry["samples_sha256"] = file_sha256(root / f"{name}.samples.npy")
        del index["orientation"]
        content = json.dumps([index["classes"], index["subsets"]], sort_keys=True).encode()
        (root / "index.json").write_text(
            json.dumps({**index, "version": 1, "hash": hashlib.sha256(content).hexdigest()})
        )

    return rewrite


@pytest.fixture(scope="session")
def content() -> Callable[..., Content]:
    """Read a subset of shards by the index alone."""

    def read(root: Path, subset: str = "train") -> Content:
        shards = open_shards(root)
        samples, found = shards[subset].samples, {}
        for n, row in enumerate(samples):
            with shards[subset].path(int(row["shard"])).open("rb") as file:
                file.seek(row["offset"])
                found[shards[subset].key(n)] = (file.read(row["size"]), shards.classes[row["label"]])
        assert len(found) == len(samples)
        return found

    return read


@pytest.fixture(scope="session")
def files() -> Callable[[Path], Files]:
    """Return every file of a folder: relative path -> bytes."""

    def read(root: Path) -> Files:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    return read
