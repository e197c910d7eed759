"""Names that a class may have, and the display of text."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagenet_like import Sources, tar_bytes

from dist_train.data.shards.index import open_shards, write_index
from dist_train.data.sources.archives import scan
from dist_train.data.splits import Split, draw_split, load_split, read_classes, save_split
from dist_train.errors import UserError
from dist_train.names import class_name, is_class_name, shown

GOOD = [
    "n01440764", "golden dog", "café", "\u0e41\u0e21\u0e27", "\u67f4\u72ac", "🐕", "👩\u200d🔬", "❤\ufe0f",
    "1\ufe0f\u20e3", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "a" * 200, "C#", "a:b", "-x", "...",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_names_that_a_class_may_have(name: str) -> None:
    assert class_name(name) == name and is_class_name(name)


def test_two_forms_of_a_name_are_one_name() -> None:
    for name in ("café", "\u30ac\u30e9\u30b9", "\uac15\uc544\uc9c0"):
        apart = unicodedata.normalize("NFD", name)
        assert apart != name and class_name(apart) == name and not is_class_name(apart)


BAD = {
    "": "it is empty",
    "a" * 201: "it has 201 characters",
    "caf\udce9": "it is not UTF-8",
    "\ud83d": "it is not UTF-8",
    "cats/dogs": "it has a slash",
    " cat": "begins or ends with a space",
    "cat\u3000": "begins or ends with a space",
    "cat\n": "begins or ends with a space",
    "c\nat": "character \\n,",
    "c\x1b[2Jat": "character \\x1b,",
    "c\u202etac": "character \\u202e,",
    "c\u2066at": "character \\u2066,",
    "c\u200bat": "character \\u200b,",
    "c\xadat": "character \\xad,",
    "\ufeffcat": "character \\ufeff,",
    "\u3164": "character \\u3164,",
    "cat\x00": "character \\x00,",
    "ca\u200dt": "joins or varies nothing",
    "\u200d": "joins or varies nothing",
    "\ufe0f": "joins or varies nothing",
    "🐕\u200d": "joins or varies nothing",
    "..": "a folder's own name",
}


@pytest.mark.parametrize("name", BAD)
def test_names_that_no_class_may_have(name: str) -> None:
    with pytest.raises(UserError) as error:
        class_name(name)
    assert BAD[name] in str(error.value) and "give 1 to 200 printable characters" in str(error.value)
    assert shown(error.value) == str(error.value)  # it names the name, and shows what cannot be seen
    assert not is_class_name(name)


def test_only_a_text_is_a_name() -> None:
    assert not any(is_class_name(value) for value in (None, 7, b"cat", ["cat"]))


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("IMG_1 (2).jpg", "IMG_1 (2).jpg"),
        ("caf\u00e9 🐕 👩\u200d🔬 \u0645\u06cc\u200c\u062e", "caf\u00e9 🐕 👩\u200d🔬 \u0645\u06cc\u200c\u062e"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b]0;title\x07\x9b", "\\x1b]0;title\\x07\\x9b"),
        ("gpj.\u202ecat", "gpj.\\u202ecat"),
        ("caf\udce9.jpg", "caf\\xe9.jpg"),
        ("\ud83d", "\\ud83d"),
        ("10\u202fAM", "10\\u202fAM"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_characters_that_cannot_be_seen_are_escaped(text: str, wanted: str) -> None:
    assert shown(text) == wanted


@given(st.text(st.characters()))
def test_any_text_can_be_shown_and_any_name_that_passes_stays(text: str) -> None:
    safe = shown(text)
    safe.encode()  # no stray bytes are left
    assert shown(safe) == safe
    assert not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in safe)
    try:
        name = class_name(text)
    except UserError as error:
        assert shown(error) == str(error)
    else:
        assert class_name(name) == name and is_class_name(name) and shown(name) == name


# ---- the doors


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value
    assert shown(error.value) == str(error.value)


STRANGE = [os.fsdecode(b"caf\xe9"), "c\u202etac", "cat\n"]


@pytest.mark.parametrize("name", STRANGE)
def test_no_source_of_a_pack_has_such_a_class(name: str, sources: Sources, image: Callable[..., bytes]) -> None:
    sources.train[name] = {"1.JPEG": image(1)}
    folder = sources.train_folder()
    refused(lambda: scan(folder, None, None, progress=False), str(folder), "class name 'c", "give 1 to 200 printable")
    inner = {f"{wnid}.tar": tar_bytes(files) for wnid, files in sources.train.items()}
    (sources.root / "train.tar").write_bytes(_tar(inner))
    train = sources.root / "train.tar"
    refused(lambda: scan(train, None, None, progress=False), str(train), "class name 'c", "give 1 to 200 printable")
    del sources.train[name]
    val = sources.val_folder()
    (val / "n01440764").rename(val / name)
    tar = sources.train_tar()
    refused(lambda: scan(tar, val, None, progress=False), str(val), "class name 'c", "give 1 to 200 printable")


def _tar(files: dict[str, bytes]) -> bytes:
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:  # whose names are bytes
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def test_train_and_val_may_differ_in_the_form_of_a_name(sources: Sources) -> None:
    train, val = sources.train_folder(), sources.val_folder()
    (train / "n01440764").rename(train / "cafe\u0301")
    (val / "n01440764").rename(val / "caf\u00e9")
    found = scan(train, val, None, progress=False)
    assert found.classes[0] == "caf\u00e9" and found.subsets["val"].label.tolist().count(0) == 3


@pytest.mark.parametrize("name", [*STRANGE, "cafe\u0301", ""])
def test_no_split_and_no_index_has_such_a_class(name: str, packed: Path, tmp_path: Path) -> None:
    split = draw_split("s", ["a", "b", "c"], 1, 0, 0)
    for lists in (((name,), ("b",)), (("a",), (name,)), (("a", name), ("b",), (name,))):
        refused(lambda lists=lists: Split("s", *lists), "split s: class name '", "")
    save_split(split, tmp_path / "s.json")
    entry = json.loads((tmp_path / "s.json").read_text())
    entry["novel"] = [name]
    (tmp_path / "s.json").write_text(json.dumps(entry))
    refused(lambda: load_split(str(tmp_path / "s.json")), "class name '")
    shutil.copytree(packed, tmp_path / "shards")
    shards = open_shards(packed)
    tables = {
        subset: (list(shards[subset].shards), shards[subset].samples, [""] * len(shards[subset]))
        for subset in shards.subsets
    }
    classes = [*shards.classes[:3], name]
    refused(lambda: write_index(tmp_path / "shards", classes, "exif", tables, {}), "index.json: not a shard index")


def test_a_list_of_classes_may_have_spaces_in_their_names(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes("\ufeffgolden dog\r\nn01440764 tench, Tinca tinca\n\ncafe\u0301\n".encode())
    assert read_classes(path, ["golden dog", "n01440764"]) == ["golden dog", "n01440764", "caf\u00e9"]
    assert read_classes(path) == ["golden", "n01440764", "caf\u00e9"]
    path.write_bytes(b"cat\nd\xe2\x80\xaeog\n")
    refused(lambda: read_classes(path), "novel.txt: line 2: class name 'd\\u202eog'")
