"""verify finds each kind of damage, names shard and key, and goes on to the next problem."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest

from dist_train.data.packing.verify import verify
from dist_train.data.shards.index import Shard, open_shards, write_index
from dist_train.data.shards.members import dali_index, tar_members
from dist_train.errors import UserError
from dist_train.files import file_sha256


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "shards")


@pytest.fixture
def shard(copy):
    return copy / "train" / "000001.tar"


def problems(root):
    found = verify(root, progress=False)
    assert all("\n" not in line for line in found)
    return found


def one_of(found, *words):
    assert any(all(str(word) in line for word in words) for line in found), found


def first_key(copy, shard=1):
    train = open_shards(copy, sizes=False)["train"]
    return train.key(int(np.flatnonzero(train.samples["shard"] == shard)[0]))


def rewrite(path, change, copy):
    """Change the members [(name, bytes)] of a shard, and write an index that describes it except
    for the table: a defect that neither size nor hash can show."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path.with_suffix(".idx").write_text(dali_index(tar_members(path)))
    reindex(copy, lambda table: None)


def reindex(copy, change):
    """Write the index again, with the shards as they are now, and with train's table after ``change``."""
    old = open_shards(copy, sizes=False)
    tables = {}
    for name, subset in old.subsets.items():
        table = np.array(subset.samples)
        if name == "train":
            change(table)
        shards = []
        for number, shard in enumerate(subset.shards):
            path = subset.path(number)
            shards.append(Shard(shard.name, shard.samples, path.stat().st_size, file_sha256(path)))
        tables[name] = shards, table, [subset.path_of(sample) for sample in range(len(subset))]
    write_index(copy, list(old.classes), old.orientation, tables, {})


def test_an_intact_pack_has_no_problems(copy):
    assert problems(copy) == []


def test_all_missing_shards_are_named(copy, shard):
    shard.unlink()
    (copy / "val" / "000000.tar").unlink()
    found = problems(copy)
    assert len(found) == 2
    one_of(found, shard, "missing")
    one_of(found, copy / "val" / "000000.tar", "missing")


def test_flipped_byte(copy, shard):
    _, _, offset, size = next(m for m in tar_members(shard) if m[1] == "jpg")
    content = bytearray(shard.read_bytes())
    content[offset + size // 2] ^= 0x10
    shard.write_bytes(content)
    found = problems(copy)
    one_of(found, shard, "sha256")


def test_destroyed_image_is_named_by_key(copy, shard):
    key, _, offset, size = next(m for m in tar_members(shard) if m[1] == "jpg")
    content = bytearray(shard.read_bytes())
    content[offset : offset + size] = bytes(size)
    shard.write_bytes(content)
    found = problems(copy)
    assert len(found) == 2
    one_of(found, shard, key, "cannot be decoded")


def test_cut_between_two_members(copy, shard):
    offset = tar_members(shard)[2][2] - 512
    os.truncate(shard, offset)
    found = problems(copy)
    one_of(found, shard, f"has {offset} bytes")
    one_of(found, shard, "truncated")


def test_dali_index_differs(copy, shard):
    index = shard.with_suffix(".idx")
    index.write_text(index.read_text().replace("jpg", "JPG"))
    (problem,) = problems(copy)
    assert str(index) in problem and "does not match" in problem
    index.unlink()
    one_of(problems(copy), index, "missing")


def test_label_differs(copy, shard):
    rewrite(shard, lambda members: [(name, b"3" if name.endswith("cls") else b) for name, b in members], copy)
    found = problems(copy)
    assert found and all("index class" in line and "tar 3" in line and str(shard) in line for line in found)


def test_sample_gone_from_the_tar(copy, shard):
    key = first_key(copy)
    rewrite(shard, lambda members: members[2:], copy)
    one_of(problems(copy), shard, key, "tar none")


def test_sample_added_to_the_tar(copy, shard, image):
    rewrite(shard, lambda members: [*members, ("new.cls", b"0"), ("new.jpg", image(1))], copy)
    found = problems(copy)
    one_of(found, shard, "new.jpg", "not in the index")
    assert len(found) == 2


def test_sample_twice_in_the_tar(copy, shard):
    rewrite(shard, lambda members: [*members, *members[:2]], copy)
    one_of(problems(copy), shard, "comes 2 times")


def test_table_and_shards_disagree(copy, shard):
    def change(table):
        table["label"][0] = 99
        table["key"][1] = table["key"][2]
        table["width"][3] += 1
        table["offset"][4] += 512

    keys = [open_shards(copy)["train"].key(n) for n in range(5)]
    reindex(copy, change)
    found = problems(copy)
    one_of(found, keys[0], "label 99 is not in 0..3")
    one_of(found, keys[0], "index class 99")
    one_of(found, keys[2], "comes 2 times")
    one_of(found, keys[3], "index (width, height, orientation)")
    one_of(found, keys[4], "index (offset, size)")


def test_sample_count_differs(copy, shard):
    def move(table):
        table["shard"][np.flatnonzero(table["shard"] == 1)[0]] = 0

    reindex(copy, move)
    one_of(problems(copy), shard, "samples in the table, the index says")


def test_a_changed_index_is_refused(copy):
    index = copy / "index.json"
    index.write_text(index.read_text().replace("n01440764", "n01440765"))
    with pytest.raises(UserError, match=r"index\.json: was changed"):
        verify(copy, progress=False)
    index.write_text("{")
    with pytest.raises(UserError, match="not a shard index"):
        open_shards(copy)


def test_a_changed_table_is_refused(copy):
    with (copy / "train.samples.npy").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"x")
    with pytest.raises(UserError, match=r"train\.samples\.npy: missing or not the one"):
        verify(copy, progress=False)


def test_opening_checks_the_sizes(copy, shard):
    os.truncate(shard, 1000)
    with pytest.raises(UserError, match=r"000001\.tar: has 1000 bytes"):
        open_shards(copy)
    assert open_shards(copy, sizes=False)
