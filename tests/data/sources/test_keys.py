"""Keys that pack makes: valid for WebDataset and DALI, all different, and the same for every form of the images."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagenet_like import Sources, make_image

from dist_train.config import PackConfig
from dist_train.data.packing.pack import pack
from dist_train.data.packing.verify import verify
from dist_train.data.shards.index import read_index
from dist_train.data.sources.archives import scan
from dist_train.data.sources.keys import MAX_KEY_BYTES, natural_key, unique_keys

THAI = "\u0e41\u0e21\u0e27"  # letters that ASCII has not
CHINESE = "\u7532\u4e59\u4e19\u4e01" * 8


@pytest.mark.parametrize(
    "group, name, key",
    [
        ("", "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001"),
        ("", "val/ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001"),
        ("n03000134", "n03000134/ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001"),
        ("", "ILSVRC2012_val_00000001_n03000134.JPEG", "ILSVRC2012_val_00000001"),
        ("n01440764", "n01440764/n01440764_10.JPEG", "n01440764_10"),
        ("", "n01440764_10_n01440764.JPEG", "n01440764_10"),
        ("", "n01440764_10_n03000134.JPEG", "n01440764_10_n03000134"),
        ("cat", "cat/1.jpg", "cat_1"),
        ("cat", "cat/cat.jpg", "cat"),
        ("cat", "cat/category.jpg", "cat_category"),
        ("golden dog", "golden dog/images/a.b (2).jpg", "golden_dog_a_b__2_"),
        ("cat", "cat/noextension", "cat_noextension"),
        ("caf\u00e9", "cafe\u0301/u\u0308ber.jpg", "cafe_uber"),
        (THAI, f"{THAI}/1.jpg", "____1"),
        ("cat", "cat/caf\udce9.jpg", "cat_caf_"),
        ("\u0301", "\u0301/\u0301.jpg", "_"),
        ("\u0301", "\u0301/\u0308.jpg", "_"),
        ("", "\u0301\u0308.jpg", "_"),
        ("cat", "cat/\u0301.jpg", "cat_"),
    ],
)
def test_keys_of_typical_names(group: str, name: str, key: str) -> None:
    assert natural_key(group, name) == key


TOGETHER = {
    "class and stem": ["red/apple_img_0.jpg", "red_apple/img_0.jpg"],
    "folders of a class": ["red/trip1/img_0.jpg", "red/trip2/img_0.jpg", "red/img_0.jpg"],
    "other letters": [f"{THAI}/1.jpg", "\u0e2b\u0e21\u0e32/1.jpg"],
    "emoji": ["\U0001f415/1.jpg", "\U0001f408/1.jpg", "\U0001f400/1.jpg"],
    "signs": ["a b/1.jpg", "a_b/1.jpg", "a-b/1.jpg", "a.b/1.jpg"],
    "suffixes": ["a/1.jpg", "a/1.png", "a/1.JPG"],
    "long": [f"a/{'n' * 95}.jpg", f"a/{'n' * 96}.jpg"],
    "long in another script": [f"a/{CHINESE}.jpg", f"a/{CHINESE[::-1]}.jpg"],
    "forms of Unicode": ["a/caf\u00e9.jpg", "a/cafe\u0301.jpg"],
    "bytes": ["a/caf\udce9.jpg", "a/caf\udcea.jpg"],
}


def keys_of(names: list[str]) -> dict[str, str]:
    return dict(zip(names, unique_keys([name.partition("/")[0] for name in names], names), strict=True))


@pytest.mark.parametrize("case", TOGETHER)
def test_all_names_that_share_a_key_get_their_hash(case: str) -> None:
    names = [*TOGETHER[case], "z/plain.jpg"]
    keys = keys_of(names)
    assert len(set(keys.values())) == len(names) and keys == keys_of(names[::-1])
    assert all(re.fullmatch("[A-Za-z0-9_-]+", key) and len(key) <= MAX_KEY_BYTES for key in keys.values())
    assert keys["z/plain.jpg"] == "z_plain"
    for name in names[:-1]:
        alone = keys_of([name])[name]  # the name by itself would do, unless it is too long
        hashed = re.fullmatch("(.+)_[0-9a-f]{16}", keys[name])
        if case != "signs" or name != "a-b/1.jpg":
            assert hashed and alone.startswith(hashed[1])


def test_a_name_made_to_look_like_a_hash_is_no_collision() -> None:
    names = ["red/apple_0.jpg", "red_apple/0.jpg"]
    for _ in range(6):  # each round adds files that are called like the keys of the others
        keys = keys_of(names)
        assert len(set(keys.values())) == len(names)
        names = list(dict.fromkeys([*names, *(f"{key.partition('_')[0]}/{key}.jpg" for key in keys.values())]))
    assert len(names) > 6


letters = st.text(
    st.sampled_from(["a", "b", "_", ".", " ", "-", "\u00e9", "\u0301", "\u732b", "\udce9", "\U0001f415", "7"]),
    min_size=1,
)
names = st.lists(st.builds("{}/{}.jpg".format, letters, letters), unique=True, max_size=12)


@given(names, st.randoms(use_true_random=False))
def test_keys_of_any_names(names: list[str], random: object) -> None:
    keys = keys_of(names)
    assert len(set(keys.values())) == len(names)
    assert all(re.fullmatch("[A-Za-z0-9_-]+", key) and len(key) <= MAX_KEY_BYTES for key in keys.values())
    random.shuffle(names)  # type: ignore[attr-defined]
    assert keys_of(names) == keys


def write(root: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(make_image(number))


def test_odd_names_are_packed_and_other_libraries_read_them(tmp_path: Path) -> None:
    from webdataset import WebDataset

    names = [name for some in TOGETHER.values() for name in some if not re.match(r"[ab]-b|a b|a\.b", name)]
    write(tmp_path / "train", names)
    out = tmp_path / "out"
    shards = pack(PackConfig(train=tmp_path / "train", workers=1), out, progress=False)
    account = read_index(out)["summary"]["account"]
    assert len(shards["train"]) == account["taken"] == account["found"] == len(names)
    assert verify(out, workers=1, progress=False) == []
    keys = {shards["train"].key(n) for n in range(len(names))}
    read = {sample["__key__"] for sample in WebDataset(str(out / "train" / "000000.tar"), shardshuffle=False)}
    assert read == keys and len(keys) == len(names)
    items = scan(tmp_path / "train", None, None, progress=False).subsets["train"]
    assert items.keys == sorted(keys) and sorted(items.names) == sorted(names)
    assert all(items[row].name == items.names[row] and items[row].key == items.keys[row] for row in range(len(items)))


# ---- links in tars


def gnu_tar(folder: Path, path: Path) -> Path:
    subprocess.run(["tar", "-cf", path, "--sort=name", *sorted(os.listdir(folder))], cwd=folder, check=True)
    return path


def test_links_in_tars_are_the_images_that_they_lead_to(
    tmp_path: Path, sources: Sources, content: Callable[..., dict[str, tuple[bytes, str]]]
) -> None:
    """Make a tar as GNU tar does, of a class of 12 files, of which 10 are hard and symbolic links."""
    train = sources.train_folder()
    wnid = train / "n01440764"
    first, second = sorted(wnid.iterdir())[:2]
    expected = {}
    for number, path in enumerate(sorted(wnid.iterdir())[2:]):
        path.unlink()
        target = (first, second)[number % 2]
        (path.hardlink_to if number % 3 else path.symlink_to)(target if number % 3 else target.name)
        expected[path.stem] = target.read_bytes()
    (wnid / "n01440764_chain.JPEG").symlink_to(sorted(wnid.iterdir())[3].name)
    (wnid / "n01440764_gone.JPEG").symlink_to("/somewhere/else.JPEG")
    (wnid / "n01440764_up.JPEG").symlink_to("../n02119789/n02119789_0.JPEG")
    (wnid / "n01440764_loop.JPEG").symlink_to("n01440764_loop.JPEG")
    (wnid / "latest").symlink_to("no such folder")
    os.mkfifo(wnid / "n01440764_pipe.JPEG")
    (tmp_path / "tars").mkdir()
    for folder in sorted(train.iterdir()):
        gnu_tar(folder, tmp_path / "tars" / f"{folder.name}.tar")
    archive = gnu_tar(tmp_path / "tars", tmp_path / "linked.tar")

    found = scan(archive, None, None, progress=False)
    gone = [name.rpartition(" ")[2] for name, reason in found.account.left_out if "no file of this archive" in reason]
    assert sorted(gone) == ["n01440764_gone.JPEG", "n01440764_loop.JPEG", "n01440764_up.JPEG"]
    assert found.account.passed_over == {"broken link": 1, "no regular file": 1}
    assert found.account.found == 48 + 6 and found.account.taken == 49
    shards = pack(PackConfig(train=archive, workers=1), tmp_path / "out", progress=False)
    assert len(shards["train"]) == 49 and np.bincount(shards["train"].samples["label"]).tolist() == [13, 12, 12, 12]
    packed = content(tmp_path / "out")
    assert all(packed[key][0] == blob for key, blob in expected.items())


def test_the_later_of_two_files_with_one_name_in_a_tar_counts(tmp_path: Path, sources: Sources) -> None:
    train = sources.train_folder()
    changed = sorted((train / "n01440764").iterdir())[0]
    (tmp_path / "tars").mkdir()
    for folder in sorted(train.iterdir()):
        gnu_tar(folder, tmp_path / "tars" / f"{folder.name}.tar")
    changed.write_bytes(make_image(77, size=(90, 90)))
    inner = tmp_path / "tars" / "n01440764.tar"
    subprocess.run(["tar", "-rf", inner, changed.name], cwd=changed.parent, check=True)
    found = scan(gnu_tar(tmp_path / "tars", tmp_path / "twice.tar"), None, None, progress=False)
    items = found.subsets["train"]
    assert len(items) == 48 and found.account.passed_over == {"replaced by a later file of the same name": 1}
    assert items.size[items.keys.index(changed.stem)] == changed.stat().st_size
