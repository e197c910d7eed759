"""Names and groups of classes: from the devkit, by way of the index."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from dist_train.config import PackConfig
from dist_train.data.packing.pack import pack
from dist_train.data.shards.index import open_shards
from dist_train.data.sources.devkit import devkit_synsets
from dist_train.data.sources.synsets import Synsets
from dist_train.errors import UserError

ROWS = [
    (1, "n02119789", "kit fox, Vulpes macrotis", []),
    (2, "n09999999", "crane", []),
    (3, "n01440764", "tench, Tinca tinca", []),
    (4, "n03000134", "crane", []),
    (5, "n00001740", "entity", [6, 2]),
    (6, "n00015388", "animal, beast", [1, 3]),
]


def meta(rows: list[Any]) -> bytes:
    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "children")]
    out = io.BytesIO()
    savemat(out, {"synsets": np.array([(*row[:3], np.array(row[3], np.uint16)) for row in rows], kinds).reshape(-1, 1)})
    return out.getvalue()


def test_devkit_to_index(sources: Any, tmp_path: Path) -> None:
    devkit = sources.devkit(meta=meta(ROWS))
    sources.train_tar(), sources.val_tar()
    shards = pack(sources.options(devkit=devkit), tmp_path / "out", progress=False)
    assert shards.synsets == devkit_synsets(devkit) == open_shards(f"file://{tmp_path}/out").synsets
    assert shards.synsets.children == {"n00001740": ("n00015388", "n09999999"), "n00015388": ("n02119789", "n01440764")}
    names = ["tench", "kit fox", "crane (n03000134)", "crane (n09999999)"]
    assert shards.synsets.names(shards.classes) == names
    # Of the four, one is in no part of the hierarchy, and one is no animal.
    assert shards.synsets.groups(shards.classes) == ["animal", "animal", "other", "other"]


def test_shards_without_a_devkit_get_names_when_packed_again_with_one(sources: Any, tmp_path: Path) -> None:
    train, val = sources.train_folder(), sources.val_folder()
    options = PackConfig(train=train, val=val, shard_mb=0.03)
    before = pack(options, tmp_path / "out", progress=False)
    assert before.synsets == Synsets() and "synsets" not in json.loads((tmp_path / "out" / "index.json").read_text())
    assert before.synsets.names(before.classes) == list(before.classes)
    options = PackConfig(train=train, val=val, shard_mb=0.03, devkit=sources.devkit(meta=meta(ROWS)))
    after = pack(options, tmp_path / "out", progress=False)
    assert after.hash == before.hash and after.synsets.names(["n01440764"]) == ["tench"]


def test_a_devkit_with_wnids_alone(sources: Any) -> None:
    assert devkit_synsets(sources.devkit()) == Synsets()
    with pytest.raises(UserError, match=r"meta.mat cannot be read .*ILSVRC2012_devkit_t12"):
        devkit_synsets(sources.devkit(meta=meta([(*ROWS[4][:3], [7, 8])])))


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"words": {}, "children": []},
        {"words": {"a": 1}, "children": {}},
        {"words": {}, "children": {"a": "bc"}},
        {"words": {}, "children": {"a": [1]}},
    ],
)
def test_an_index_with_anything_else_is_refused(packed: Path, tmp_path: Path, entry: Any) -> None:
    shutil.copytree(packed, tmp_path / "out")
    index = json.loads((packed / "index.json").read_text())
    (tmp_path / "out" / "index.json").write_text(json.dumps({**index, "synsets": entry}))
    with pytest.raises(UserError, match=r"index\.json: not a shard index .*synsets"):
        open_shards(tmp_path / "out")


def tree(sizes: dict[str, int]) -> tuple[Synsets, list[str]]:
    """Make a hierarchy: a path "a/b" -> the number of classes below b, which is below a."""
    children: dict[str, list[str]] = {}
    classes = []
    for path, count in sizes.items():
        nodes = ["root", *path.split("/")]
        for parent, child in itertools.pairwise(nodes):
            children.setdefault(parent, [])
            if child not in children[parent]:
                children[parent].append(child)
        leaves = [f"{path}-{number}" for number in range(count)]
        children.setdefault(nodes[-1], []).extend(leaves)
        classes += leaves
    return Synsets({}, {node: tuple(some) for node, some in children.items()}), classes


def test_groups_divide_the_largest_first() -> None:
    synsets, classes = tree({"animal/dog": 30, "animal/bird": 20, "animal/fish": 1, "thing/tool": 25, "thing/car": 24})
    found = {limit: Counter(synsets.groups(classes, limit)) for limit in (1, 2, 3, 4)}
    assert found[1] == {"root": 100}
    assert found[2] == {"animal": 51, "thing": 49}
    assert found[3] == {"dog": 30, "bird": 20, "thing": 49, "other": 1}
    assert found[4] == {"dog": 30, "bird": 20, "tool": 25, "car": 24, "other": 1}


def test_a_part_that_would_fall_apart_stays_whole() -> None:
    synsets, classes = tree({"animal": 40, "animal/dog": 20, "thing": 40})
    assert Counter(synsets.groups(classes)) == {"animal": 60, "thing": 40}


@given(
    st.dictionaries(st.sampled_from("abcdefg"), st.lists(st.sampled_from("abcdefgvwxyz"), max_size=5)),
    st.integers(1, 5),
)
def test_any_hierarchy_ends_even_with_loops(children: dict[str, list[str]], limit: int) -> None:
    synsets = Synsets({}, {node: tuple(some) for node, some in children.items()})
    found = synsets.groups(list("vwxyz"), limit)
    assert len(found) == 5 and len(set(found) - {"other"}) <= max(limit, len(children))


def test_subjects_of_wnids_where_the_hierarchy_says_little() -> None:
    wnids = ["n01440764", "n02510455", "n02666196", "n04613696", "n06359193", "n07583066", "n09472597", "n10565667",
             "n12267677", "n15075141"]  # fmt: skip
    subjects = ["animal", "animal", "artifact", "artifact", "communication", "food", "natural object", "person",
                "plant", "other"]  # fmt: skip
    assert Synsets().groups(wnids) == subjects
    assert Synsets({}, {"n00000001": tuple(wnids[:4])}).groups(wnids) == subjects
    assert Synsets({}, {"n00000001": tuple(wnids[:5])}).groups(wnids) != subjects
    assert Synsets().groups(["star-stripes-sunset", *wnids]) == [""] * 11
