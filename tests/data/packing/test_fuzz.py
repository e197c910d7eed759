"""Any bytes give a UserError of one line, or a result: no other exception, and no path outside."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_train.config import Config, to_dict
from dist_train.data.shards import index as sharding
from dist_train.data.shards.index import ShardSet, open_shards
from dist_train.data.shards.members import tar_members
from dist_train.errors import UserError
from dist_train.files import file_sha256
from launch.cli.main import main

quiet = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "/etc/passwd"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all nodes of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, item in inner for p in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


@pytest.fixture
def folder(shards: ShardSet, tmp_path: Path) -> Path:
    """Make links to the shards, with an index of their own."""
    root = tmp_path / "fuzzed"
    root.mkdir()
    for path in shards.root.iterdir():
        if path.name != "index.json" and not path.name.startswith("."):
            (root / path.name).symlink_to(path)
    return root


@quiet
@given(data=st.data())
def test_index_with_a_changed_node(folder: Path, shards: ShardSet, data: st.DataObject) -> None:
    index = json.loads((shards.root / "index.json").read_text())
    where = data.draw(st.sampled_from(places(index)))
    new = data.draw(values)
    wrong = changed(index, where, new)
    if isinstance(wrong, dict) and where[:1] != ("hash",):
        with contextlib.suppress(Exception):  # as its maker would: the hash fits the content
            wrong["hash"] = sharding._content_hash(wrong)
    (folder / "index.json").write_text(json.dumps(wrong))
    try:
        opened = open_shards(folder)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(opened[n].path(0).resolve().is_relative_to(shards.root) for n in opened.subsets if opened[n].shards)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../../../etc/passwd.tar"),
        ("name", "/etc/passwd.tar"),
        ("name", ".hidden.tar"),
        ("sha256", "../../x"),
        ("bytes", -1),
        ("samples", "5"),
    ],
)
def test_an_index_cannot_name_files_outside_its_folder(folder: Path, shards: ShardSet, key: str, value: object) -> None:
    index = json.loads((shards.root / "index.json").read_text())
    index["subsets"]["train"]["shards"][0][key] = value
    index["hash"] = sharding._content_hash(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not a shard index"):
        open_shards(folder)


@quiet
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255), cut=st.floats(0, 1))
def test_a_table_of_other_bytes(folder: Path, shards: ShardSet, place: float, byte: int, cut: float) -> None:
    content = bytearray((shards.root / "train.samples.npy").read_bytes())
    content[int(place * len(content))] = byte
    if cut < 0.5:
        del content[int(2 * cut * len(content)) :]
    table = folder / "train.samples.npy"
    table.unlink()
    table.write_bytes(content)
    index = json.loads((shards.root / "index.json").read_text())
    index["subsets"]["train"]["samples_sha256"] = file_sha256(table)
    index["hash"] = sharding._content_hash(index)
    (folder / "index.json").write_text(json.dumps(index))
    with contextlib.suppress(UserError):
        open_shards(folder)


def test_a_table_of_pickled_objects_is_not_loaded(folder: Path, shards: ShardSet) -> None:
    import numpy as np

    table = folder / "train.samples.npy"
    table.unlink()
    np.save(table, np.array([{"a": 1}], object), allow_pickle=True)
    index = json.loads((shards.root / "index.json").read_text())
    index["subsets"]["train"]["samples_sha256"] = file_sha256(table)
    index["hash"] = sharding._content_hash(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not a table of samples"):
        open_shards(folder)


@quiet
@given(place=st.floats(0, 0.999), junk=st.binary(min_size=1, max_size=40), cut=st.floats(0, 1))
def test_a_tar_of_other_bytes(shards: ShardSet, tmp_path: Path, place: float, junk: bytes, cut: float) -> None:
    content = bytearray(shards["train"].path(0).read_bytes())
    start = int(place * len(content))
    content[start : start + len(junk)] = junk
    if cut < 0.5:
        del content[int(2 * cut * len(content)) :]
    (tmp_path / "x.tar").write_bytes(content)
    try:
        tar_members(tmp_path / "x.tar")
    except UserError as error:
        assert "\n" not in str(error)


@settings(quiet, max_examples=60)
@given(data=st.data())
def test_a_configuration_with_a_changed_node(config: Config, tmp_path: Path, data: st.DataObject) -> None:
    plain = to_dict(config)
    where = data.draw(st.sampled_from(places(plain)[1:]))
    new = data.draw(values)
    plain = changed(plain, where, new)
    plain["data"] = plain["data"] if where[0] == "data" else {**plain["data"], "shards": "/nowhere"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(plain))
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(["evaluate", "--config", str(path), "--runs", str(tmp_path / "runs")])
    assert code == 1
    assert error.getvalue().count("dist-train: error: ") == 1 and "Traceback" not in error.getvalue()


@pytest.mark.parametrize("key", ["pretrain", "data", "extract", "name", "runs", "data.split", "pretrain.model"])
def test_a_zero_byte_in_a_configuration(config: Config, tmp_path: Path, key: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(changed(to_dict(config), tuple(key.split(".")), "\0")))
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(["evaluate", "--config", str(path), "--data.shards", "/nowhere"])
    assert code == 1 and error.getvalue().count("dist-train: error: ") == 1 and "\0" not in error.getvalue()


@settings(quiet, max_examples=60)
@given(content=st.binary(max_size=60))
def test_a_configuration_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(["evaluate", "--config", str(path), "--data.shards", "/nowhere"])
    assert code == 1 and error.getvalue().startswith("dist-train: error: ")
    assert error.getvalue().count("\n") == 1
