"""All commands take the same photos: found = taken + left out (by name) + passed over (counted)."""

from __future__ import annotations

import io
import os
import shlex
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dist_train.data.account import Account
from dist_train.data.images.photos import FORMATS, SUFFIXES, File, is_photo_head, open_photo, photos_among
from dist_train.data.sources.archives import scan
from dist_train.data.sources.folders import class_folders, folder_photos
from dist_train.errors import UserError

SMALL, LARGE = b"\xff\xd8\xff" + bytes(50), b"\xff\xd8\xff" + bytes(500)


def write(root: Path, *names: str, data: bytes = SMALL) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def found(root: Path) -> tuple[list[str], Account]:
    account = Account()
    names = [file.name for file in folder_photos(root, account)]
    assert account.taken == len(names) and account.found == len(names) + len(account.left_out) + sum(
        account.passed_over.values()
    )
    return names, account


def test_every_suffix_in_any_case_is_a_photo(tmp_path: Path) -> None:
    names = sorted(f"{n}{suffix.upper() if n % 2 else suffix}" for n, suffix in enumerate(sorted(SUFFIXES)))
    write(tmp_path, *names)
    assert found(tmp_path) == (names, Account(taken=len(SUFFIXES)))


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_a_photo_without_a_suffix_is_known_by_its_first_bytes(kind: str, image: Callable[..., bytes]) -> None:
    open_photo(image(1))  # HEIC is registered with the first photo
    out = io.BytesIO()
    Image.open(io.BytesIO(image(1))).save(out, kind)
    if kind != "DIB":  # a BMP without the file's header: nothing tells it
        assert is_photo_head(out.getvalue()[:32])
    with open_photo(out.getvalue()) as photo:
        assert photo.size == (40, 32) and photo.convert("RGB").size == (40, 32)


@pytest.mark.parametrize("head", [b"", b"BM is a text", b"P5 of the report", b"II", b"%!PS", b"....ftypqt  ", b"RIFF"])
def test_other_first_bytes_are_no_photo(head: bytes) -> None:
    assert not is_photo_head(head)


def test_other_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "photo", "photo.jpg_large", "photo.bak", "b/1.jfif", "b/2.mpo", "b/3.jp2")
    write(tmp_path, "notes.txt", "more.TXT", "README", "strange.a b", data=b"hello")
    write(tmp_path, "Thumbs.db", "b/desktop.ini", ".DS_Store", "._1.jpg", "Icon\r")
    write(tmp_path, "@eaDir/1.jpg/SYNO.jpg", "__MACOSX/b/._1.jpg", "$RECYCLE.BIN/1.jpg", "lost+found/1.jpg")
    write(tmp_path, ".thumbnails/1.jpg", ".git/objects/a", "System Volume Information/1.jpg")
    names, account = found(tmp_path)
    assert names == ["b/1.jfif", "b/2.mpo", "b/3.jp2", "photo", "photo.bak", "photo.jpg_large"]
    assert account.left_out == []
    assert account.passed_over == {".txt": 2, "without a known suffix": 2, "of the system": 5, "in system folders": 7}
    assert account.line() == (
        "found 22 files: 6 taken, 0 left out, 16 passed over "
        "(7 in system folders, 5 of the system, 2 .txt, 2 without a known suffix)"
    )


THUMBNAILS = {
    "IMG_1_thumb.jpg": "IMG_1.jpg",
    "thumb_IMG_1.png": "IMG_1.jpg",
    "IMG_1-150x150.jpg": "IMG_1.jpg",
    "a/tn_IMG_1.jpg": "a/IMG_1.heic",
    "IMG.1.thumbnail.jpg": "IMG.1.jpg",
    "thumbs/IMG_1.jpg": "IMG_1.jpg",
    "a/Thumbnails/IMG_1.webp": "a/IMG_1.png",
    "thumbs/IMG_1_thumb.jpg": "IMG_1.jpg",
}


@pytest.mark.parametrize("name", THUMBNAILS)
def test_a_thumbnail_of_a_photo_is_no_second_photo(name: str, tmp_path: Path) -> None:
    write(tmp_path, THUMBNAILS[name], data=LARGE)
    write(tmp_path, name)
    names, account = found(tmp_path)
    assert names == [THUMBNAILS[name]] and account.passed_over == {"thumbnail of a photo that is there": 1}
    assert f"{tmp_path}/{name}" in account.passed_over_lines()[0]  # it is named too
    (tmp_path / THUMBNAILS[name]).unlink()  # without its photo it is all there is
    assert found(tmp_path) == ([name], Account(taken=1))
    write(tmp_path, THUMBNAILS[name])  # and of one that is no larger it is no thumbnail
    assert sorted(found(tmp_path)[0]) == sorted([name, THUMBNAILS[name]])


def test_names_that_only_look_like_thumbnails_are_photos(tmp_path: Path) -> None:
    names = ["1920x1080.jpg", "a/IMG_2.jpg", "b/IMG_1.jpg", "thumb.jpg", "thumb/1.jpg", "thumbs_up.jpg", "tn.jpg"]
    write(tmp_path, *names)
    write(tmp_path, "IMG_1.jpg", data=LARGE)
    assert found(tmp_path)[0] == sorted([*names, "IMG_1.jpg"])


def test_a_raw_file_beside_its_photo_is_passed_over_and_alone_it_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "1.CR2", "2.nef", data=b"II*\0" + bytes(500))
    write(tmp_path, "1.jpg")
    names, account = found(tmp_path)
    assert names == ["1.jpg"] and account.passed_over == {"camera's raw beside its photo": 1}
    assert account.left_out == [(f"{tmp_path}/2.nef", "a camera's raw format; export it as JPEG")]


def test_links_are_followed_without_circles(tmp_path: Path) -> None:
    root = tmp_path / "album"
    write(root, "a/1.jpg", "a/deep/2.jpg")
    write(tmp_path / "elsewhere", "3.jpg", "more/4.jpg")
    (root / "0").symlink_to(tmp_path / "elsewhere")  # sorts before what it would be walked under
    (root / "again").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "5.jpg").symlink_to(tmp_path / "elsewhere" / "3.jpg")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "deep" / "out").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "back").symlink_to(root / "a")
    names, account = found(root)
    assert names == ["0/3.jpg", "0/more/4.jpg", "5.jpg", "a/1.jpg", "a/deep/2.jpg"]
    assert account.passed_over == {"link to a folder that is walked already": 4}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s.jpg"))
        (tmp_path / "gone.jpg").symlink_to("nowhere")
        (tmp_path / "self.png").symlink_to("self.png")
        (tmp_path / "gone").symlink_to("nowhere")
        names, account = found(tmp_path)
    assert names == ["1.jpg"] and account.passed_over == {"no regular file": 4, "broken link": 1}
    assert account.left_out == [
        (f"{tmp_path}/{n}", "a broken link; mend or remove it") for n in ("gone.jpg", "self.png")
    ]


def test_an_account_escapes_unseen_characters_and_keeps_to_a_few_lines(tmp_path: Path) -> None:
    write(tmp_path, *(f"{n}.txt" for n in range(50)), os.fsdecode(b"caf\xe9.xml"), "a\nb\x1b[2J.json", data=b"text")
    for n in range(30):
        (tmp_path / f"{n:02d}.jpg").symlink_to("nowhere")
    names, account = found(tmp_path)
    lines = [*account.left_out_lines(), *account.passed_over_lines()]
    assert names == [] and len(lines) == 21 + 3 and lines[20] == "left out: 10 more"
    assert lines[21].startswith("passed over: 50 .txt: ") and lines[21].endswith(", ...")
    assert any("caf\\xe9.xml" in line for line in lines) and any("a\\nb\\x1b[2J.json" in line for line in lines)
    assert all(line.isprintable() for line in [*lines, account.line()])


# ---- a folder with one folder per class


def classes(root: Path, option: str = "--train") -> tuple[dict[str, list[str]], Account]:
    account = Account()
    return {name: [file.name for file in files] for name, files in class_folders(root, option, account)}, account


def refused(root: Path, *words: str, option: str = "--train") -> None:
    with pytest.raises(UserError) as error:
        classes(root, option)
    assert all(word in str(error.value) for word in words), error.value
    assert str(error.value).isprintable()


def test_class_folders_and_files_beside_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        "cat/1.jpg",
        "dog/images/1.jpg",
        "dog/images/more/2.jpg",
        "train/1.jpg",
        "bird/a/1.jpg",
        "bird/b/1.jpg",
    )
    write(tmp_path, "labels.csv", "Thumbs.db", "@eaDir/1.jpg", ".cache/cat/1.jpg", "cat/cat.txt", data=b"text")
    (tmp_path / "all").symlink_to(".")
    found, account = classes(tmp_path)
    assert found == {
        "bird": ["bird/a/1.jpg", "bird/b/1.jpg"],
        "cat": ["cat/1.jpg"],
        "dog": ["dog/images/1.jpg", "dog/images/more/2.jpg"],
        "train": ["train/1.jpg"],
    }
    assert account.taken == 6 and account.passed_over == {
        ".csv": 1, ".txt": 1, "of the system": 1, "in system folders": 2, "link to a folder that is walked already": 1,
    }  # fmt: skip


def test_two_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, "caf\u00e9/1.jpg", "cafe\u0301/2.jpg", "bar/3.jpg")
    found, account = classes(tmp_path)
    assert found == {"bar": ["bar/3.jpg"], "caf\u00e9": ["cafe\u0301/2.jpg", "caf\u00e9/1.jpg"]}
    assert len(account.notes) == 1 and "they are one class" in account.passed_over_lines()[-1]


@pytest.mark.parametrize("name", [b"caf\xe9", b"c\xe2\x80\xaeat", b"c\nat", b"\xe3\x85\xa4", b" cat"])
def test_a_folder_that_cannot_be_a_class_is_named(name: bytes, tmp_path: Path) -> None:
    write(tmp_path, "dog/1.jpg", os.fsdecode(name + b"/1.jpg"))
    refused(tmp_path, str(tmp_path), "a class folder cannot be called so", "class name '")


def test_a_class_whose_files_are_all_passed_over_is_named(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/Thumbs.db", "dog/@eaDir/1.jpg")
    refused(
        tmp_path, f"{tmp_path}/dog: the class has no image", "2 passed over (1 ", "in system folders", "of the system"
    )


def test_a_photo_beside_the_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "unsorted")
    refused(tmp_path, "image 'unsorted' lies in no class folder")
    (tmp_path / "unsorted").rename(tmp_path / "unsorted.heic")
    refused(tmp_path, "image 'unsorted.heic' lies in no class folder", "--val", option="--val")


LEVELS = {
    "parts": (["train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpg"], "train", "val"),
    "parts with a class each": (["Training/cat/1.jpg", "Test/cat/2.jpg"], "Training", "Test"),
    "parts beside a folder of photos": (["train/cat/1.jpg", "samples/1.jpg", "val/cat/1.jpg"], "train", "val"),
    "one folder": (["my data/cat/1.jpg", "my data/dog/1.jpg"], "my data", "my data"),
    "one folder after the other": (["a/b/c/cat/1.jpg", "a/b/c/dog/1.jpg"], "a/b/c", "a/b/c"),
    "tiny": (["train/cat/images/1.jpg", "train/dog/images/1.jpg", "val/images/1.jpg"], "train", "val"),
    "groups": (["animals/cat/1.jpg", "animals/dog/1.jpg", "cars/van/1.jpg", "cars/bus/1.jpg"], "animals", "animals"),
    "flat val": (["train/cat/1.jpg", "val/1.jpg"], "train", "val"),
}


@pytest.mark.parametrize("form", LEVELS)
def test_a_level_too_high_is_refused_with_the_right_path(form: str, tmp_path: Path) -> None:
    names, train, val = LEVELS[form]
    root = tmp_path / "data set"
    write(root, *names)
    write(root, "README.txt", "@eaDir/1.jpg", f"{train}/.DS_Store", data=b"text")
    refused(root, "a level too high", f"give --train {shlex.quote(f'{root}/{train}')}")
    refused(root, "a level too high", f"give --val {shlex.quote(f'{root}/{val}')}", option="--val")
    refused(root, "a level too high", f"give --classes {shlex.quote(f'{root}/{train}')}", option="--classes")
    assert "cat" in classes(root / train)[0]  # what the line says works


def test_a_folder_that_two_links_reach_is_taken_once(tmp_path: Path) -> None:
    write(tmp_path / "else", "1.jpg", "deep/2.jpg")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a").symlink_to(tmp_path / "else" / "deep")
    (tmp_path / "c" / "b").symlink_to(tmp_path / "else")
    names, account = found(tmp_path / "c")
    assert names == ["a/2.jpg", "b/1.jpg"]
    assert account.passed_over == {"link to a folder that is walked already": 1}


def test_a_raw_file_in_a_system_folder_belongs_to_the_system() -> None:
    account = Account()
    assert photos_among([File("__MACOSX/x.cr2", 0, 9)], lambda _: b"", str, account) == []
    assert account.passed_over == {"in system folders": 1} and not account.left_out


def test_two_inner_tars_of_one_class(tmp_path: Path, image: Callable[..., bytes]) -> None:
    write(tmp_path, "1.jpg", data=image(1))
    with tarfile.open(tmp_path / "train.tar", "w") as outer:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            with tarfile.open(tmp_path / folder / "dog.tar", "w") as inner:
                inner.add(tmp_path / "1.jpg", "1.jpg")
            outer.add(tmp_path / folder / "dog.tar", f"{folder}/dog.tar")
    items = scan(tmp_path / "train.tar", None, None, progress=False).subsets["train"]
    assert items.names == ["dog/a/dog.tar/1.jpg", "dog/b/dog.tar/1.jpg"] and len(set(items.keys)) == 2
