"""The draw of classes and photos of tools/bench_photos.py, and its table."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_photos


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tar of 28 tars, each with 131 files that hold their own names."""
    path = tmp_path_factory.mktemp("archive") / "train.tar"
    with tarfile.open(path, "w") as outer:
        for name in (f"n{number:08}" for number in range(28)):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for photo in range(131):
                    add(inner, f"{name}_{photo}.JPEG", f"{name} {photo}".encode())
            add(outer, f"{name}.tar", buffer.getvalue())
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_no_photo_is_shown_and_held_out(archive: Path, tmp_path: Path) -> None:
    bench_photos.unpack(archive, 0, tmp_path)
    contents = {
        kind: {folder.name: {photo.read_text() for photo in folder.iterdir()} for folder in (tmp_path / kind).iterdir()}
        for kind in ("first", "added", "held_out")
    }
    assert [len(contents[kind]) for kind in contents] == [20, 6, 26]
    assert {len(photos) for photos in contents["first"].values()} == {100}
    assert {len(photos) for photos in contents["added"].values()} == {12}
    assert {len(photos) for photos in contents["held_out"].values()} == {30}
    for name, photos in (contents["first"] | contents["added"]).items():
        assert not photos & contents["held_out"][name]
        assert all(photo.startswith(name) for photo in photos)


def test_draws_have_other_classes(archive: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        bench_photos.unpack(archive, number, tmp_path / str(number))
    first, second = ({folder.name for folder in (tmp_path / number / "added").iterdir()} for number in ("0", "1"))
    assert first != second


def test_the_table_has_the_mean_of_the_draws() -> None:
    rows = [{"dist-train": {"first": value, "added": 50.0}} for value in (80.0, 90.0)]
    text = bench_photos.table(rows, {"equal": {"create": 60.0, "create CPU": 81.04, "adapt": 5.0, "adapt CPU": 6.0}})
    assert "| dist-train | 85.0 ± 63.5 | 50.0 ± 0.0 |" in text
    assert "--prior equal: create 60.0 s (81.0 s of CPU), adapt 5.0 s (6.0 s of CPU)" in text
