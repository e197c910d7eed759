"""Sources as ImageNet comes, and packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from imagenet_like import Content, Files, Sources, make_image, make_sources, tar_bytes

from dist_train.data.pack import pack
from dist_train.data.shards import open_shards


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return make_sources(tmp_path)


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """For tests that change nothing: also the archives are there, as train.tar, val.tar, devkit.tar.gz."""
    sources = make_sources(tmp_path_factory.mktemp("official"))
    sources.train_tar(), sources.val_tar(), sources.devkit()
    return sources


@pytest.fixture(scope="session")
def packed(official: Sources) -> Path:
    """The official layout packed into several shards; not to be changed."""
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
    """Every file of a folder: relative path -> bytes."""

    def read(root: Path) -> Files:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    return read
