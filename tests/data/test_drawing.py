import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_train.config import DrawConfig
from dist_train.data import drawing
from dist_train.data.drawing import draw, picture, split_of
from dist_train.errors import UserError

SMALL = DrawConfig(base_classes=4, novel_classes=2, train_per_class=3, val_per_class=2, size=32)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawing")
    draw(SMALL, root / "train", root / "val", progress=False, workers=2)
    return root


@pytest.mark.parametrize("base, novel", [(2, 1), (6, 3), (90, 10), (180, 20), (400, 50)])
def test_novel_classes_are_new_combinations_of_known_values(base: int, novel: int) -> None:
    split = split_of(DrawConfig(base_classes=base, novel_classes=novel))
    assert (len(split.base), len(split.novel)) == (base, novel)
    assert not set(split.base) & set(split.novel)
    known = {value for name in split.base for value in name.split("-")}
    assert all(set(name.split("-")) <= known for name in split.novel)
    counts = [[name.split("-")[axis] for name in split.base] for axis in range(3)]
    for values in counts:
        found = [values.count(value) for value in set(values)]
        assert max(found) - min(found) <= max(2, base // 50)


def test_pseudo_novel_classes_are_base_classes_with_known_values() -> None:
    split = split_of(DrawConfig())
    base, pseudo = split.roles("pseudo-novel")
    known = {value for name in base for value in name.split("-")}
    assert len(pseudo) == 10 and all(set(name.split("-")) <= known for name in pseudo)
    assert split_of(DrawConfig(base_classes=3, novel_classes=2)).pseudo_novel == ()


def test_the_seed_decides_the_classes() -> None:
    assert split_of(DrawConfig()).hash == split_of(DrawConfig(train_per_class=7, size=32)).hash
    assert split_of(DrawConfig()).hash != split_of(DrawConfig(seed=1)).hash


@pytest.mark.parametrize(
    "base, novel, words", [(1, 1, "draw.novel_classes=1"), (2, 7, "leave only 6 new combinations"), (800, 1, "801")]
)
def test_impossible_numbers_of_classes(base: int, novel: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        split_of(DrawConfig(base_classes=base, novel_classes=novel))


def test_files_that_are_drawn(drawn: Path) -> None:
    split = split_of(SMALL)
    for subset, count in (("train", 3), ("val", 2)):
        folders = {path.name: path for path in (drawn / subset).iterdir() if path.is_dir()}
        assert sorted(folders) == sorted(split.base + split.novel)
        for name, folder in folders.items():
            files = sorted(folder.iterdir())
            assert len(files) == count and all(f.name.startswith(f"{name}_") and f.suffix == ".JPEG" for f in files)
            for file in files:
                with Image.open(file) as image:
                    assert image.mode == "RGB" and image.format == "JPEG"
    names = [path.name for path in drawn.rglob("*.JPEG")]
    assert len(names) == len(set(names)) == 6 * 5  # file names become keys: none may occur twice


def test_any_number_of_workers_draws_the_same_pictures(
    drawn: Path, tmp_path: Path, files: Callable[[Path], dict[str, bytes]]
) -> None:
    draw(SMALL, tmp_path / "train", tmp_path / "val", progress=False, workers=1)
    assert files(tmp_path) == files(drawn)


def test_a_picture_does_not_depend_on_what_else_is_drawn() -> None:
    name = split_of(SMALL).base[0]
    one, _ = picture(SMALL, "train", name, 1)
    again, _ = picture(DrawConfig(size=32), "train", name, 1)
    assert np.array_equal(np.asarray(one), np.asarray(again))
    for other in (picture(SMALL, "train", name, 2), picture(SMALL, "val", name, 1)):
        assert other[0].tobytes() != one.tobytes()


def test_every_value_can_be_drawn_in_varied_sizes() -> None:
    shapes, textures, palettes = (list(axis) for axis in (drawing.SHAPES, drawing.TEXTURES, drawing.PALETTES))
    sizes = set()
    for n in range(40):
        name = f"{shapes[n % 10]}-{textures[n % 8]}-{palettes[n // 4]}"
        image, _ = picture(DrawConfig(size=40), "train", name, n)
        sizes.add(image.size)
        assert 32 <= max(image.size) <= 56 and max(image.size) <= 1.6 * min(image.size)
        assert np.asarray(image).std() > 5
    assert len(sizes) > 30 and {w > h for w, h in sizes} == {True, False}


def test_pictures_that_are_there_are_not_drawn_again(drawn: Path, files: Callable[[Path], dict[str, bytes]]) -> None:
    times = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    draw(SMALL, drawn / "train", drawn / "val", progress=False)
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == times


def test_an_interrupted_folder_is_drawn_again(tmp_path: Path) -> None:
    leftover = tmp_path / "train.partial" / "old-class"
    leftover.mkdir(parents=True)
    (tmp_path / "val").mkdir()  # an empty folder is no obstacle
    options = DrawConfig(base_classes=2, novel_classes=1, train_per_class=1, val_per_class=1, size=16)
    draw(options, tmp_path / "train", tmp_path / "val", progress=False, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "val"]
    assert not (tmp_path / "train" / "old-class").exists()
    assert json.loads((tmp_path / "val" / "drawn.json").read_text())["options"]["size"] == 16


def test_other_options_are_refused(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train: drawn with other options.*remove the folder") as refused:
        draw(DrawConfig(base_classes=4, novel_classes=2, size=32, seed=1), drawn / "train", tmp_path / "val")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "me.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"me")
    with pytest.raises(UserError, match=r"photos: was not drawn by this program; name another folder"):
        draw(SMALL, tmp_path / "photos", tmp_path / "val", progress=False)
    assert photo.read_bytes() == b"me" and not (tmp_path / "val").exists()
