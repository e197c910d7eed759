"""Features from elsewhere: every form of file gives the same rows, and bad files are refused in one line."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_train.config import FeaturesConfig
from dist_train.data.features import arrays
from dist_train.data.features.feature_set import FeatureSet, label_classes, open_features
from dist_train.data.splits import make_groups
from dist_train.errors import UserError

NAMES = ["barn owl", "okapi", "zèbre"]
LABELS = [2, 0, 1, 1, 0, 2, 2]


def rows(seed: int, count: int = 7, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


TRAIN, VAL = rows(0), rows(1)
TEXTS = np.array([NAMES[n] for n in LABELS])


def write_npz(path: Path, activations: Any, labels: Any = TEXTS, **more: Any) -> Path:
    np.savez(path, activations=activations, labels=labels, **more)
    return path


@pytest.fixture
def options(tmp_path: Path) -> FeaturesConfig:
    """Configure a pair of sound files."""
    return FeaturesConfig(train=write_npz(tmp_path / "train.npz", TRAIN), val=write_npz(tmp_path / "val.npz", VAL))


def content(features: FeatureSet, name: str = "train") -> tuple[np.ndarray, list[str]]:
    subset = features[name]
    return np.concatenate(list(subset.rows())), [features.classes[label] for label in subset.labels]


def lists(activations: np.ndarray, fixed: bool) -> pa.Array:
    flat = pa.array(activations.ravel())
    if fixed:
        return pa.FixedSizeListArray.from_arrays(flat, activations.shape[1])
    offsets = np.arange(0, activations.size + 1, activations.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def write(form: str, folder: Path, activations: np.ndarray) -> Path:
    """Write features in a form, and return the file or folder to be named."""
    path = folder / "train"
    match form:
        case "npz":
            return write_npz(path.with_suffix(".npz"), activations)
        case "compressed, numbered":
            np.savez_compressed(path, activations=activations, labels=np.array(LABELS), classes=np.array(NAMES))
            return path.with_suffix(".npz")
        case "bytes, columns first":
            return write_npz(path.with_suffix(".npz"), np.asfortranarray(activations), np.char.encode(TEXTS, "utf-8"))
        case "npy and text":
            np.save(path.with_suffix(".npy"), activations)
            path.with_suffix(".labels.txt").write_text("\n".join(TEXTS) + "\n")
            return path.with_suffix(".npy")
        case "npy and npy":
            np.save(path.with_suffix(".npy"), activations)
            np.save(path.with_suffix(".labels.npy"), TEXTS)
            return path.with_suffix(".npy")
        case "parquet" | "parquet of fixed lists":
            table = pa.table({"activations": lists(activations, "fixed" in form), "labels": TEXTS.tolist()})
            pq.write_table(table, path.with_suffix(".parquet"), row_group_size=3)
            return path.with_suffix(".parquet")
        case "folder of parquet":
            path.mkdir()
            for number, part in enumerate((slice(0, 4), slice(4, 7))):
                table = pa.table({"activations": lists(activations[part], True), "labels": TEXTS[part].tolist()})
                pq.write_table(table, path / f"{number}.parquet")
            return path
    raise AssertionError(form)


FORMS = [
    "npz", "compressed, numbered", "bytes, columns first", "npy and text", "npy and npy", "parquet",
    "parquet of fixed lists", "folder of parquet",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", ">f8", "float16"])
def test_every_form_gives_the_same_rows(
    form: str, dtype: str, options: FeaturesConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "PIECE", 10)  # two rows
    (tmp_path / "form").mkdir()
    given = TRAIN.astype(np.dtype(dtype).newbyteorder("=") if "parquet" in form else dtype)
    path = write(form, tmp_path / "form", given)
    features = open_features(replace(options, train=path))
    read, labels = content(features)
    assert read.dtype == np.float16 and np.array_equal(read, TRAIN.astype(np.float16)) and labels == TEXTS.tolist()
    assert features.classes == tuple(sorted(NAMES)) and features.dim == 5
    assert label_classes(path, options) == sorted(NAMES)
    groups = make_groups(features["train"], features.classes, ("okapi", "barn owl"), "s")
    assert groups.ids.tolist() == [2, 3, 1, 4] and groups.bounds.tolist() == [0, 2, 4]


def test_a_hash_is_of_the_content(options: FeaturesConfig, tmp_path: Path) -> None:
    first = open_features(options)
    (tmp_path / "elsewhere").mkdir()
    moved = options.train.rename(tmp_path / "elsewhere" / "other.npz")
    assert open_features(replace(options, train=moved)).hash == first.hash
    write_npz(moved, TRAIN, TEXTS[::-1])
    assert open_features(replace(options, train=moved)).hash != first.hash
    path = write("npy and text", tmp_path, TRAIN)
    before = open_features(replace(options, train=path)).hash
    path.with_suffix(".labels.txt").write_text("\n".join(TEXTS[::-1]))
    assert open_features(replace(options, train=path)).hash != before


def test_names_by_a_file_and_by_hugging_face(options: FeaturesConfig, tmp_path: Path) -> None:
    write_npz(options.train, TRAIN, np.array(LABELS))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    write_npz(options.val, VAL, np.array(LABELS))
    features = open_features(replace(options, classes=tmp_path / "names.txt"))
    assert content(features)[1] == TEXTS.tolist()
    schema = b'{"info": {"features": {"label": {"names": ["a", "b", "c"]}}}}'
    table = pa.table({"embedding": lists(TRAIN, True), "label": LABELS}).replace_schema_metadata(
        {"huggingface": schema}
    )
    pq.write_table(table, tmp_path / "hf.parquet")
    named = replace(options, activations="embedding", labels="label")
    assert label_classes(tmp_path / "hf.parquet", named) == ["a", "b", "c"]


def test_what_does_not_fit_float16_is_refused_with_a_scale_that_fits(options: FeaturesConfig) -> None:
    for size in (1e6, 1e38, 1e-7, 1e-30):
        write_npz(options.train, TRAIN.astype(np.float64) * size)
        with pytest.raises(
            UserError, match=r"train.npz: row 0, whose largest value is .* give --features.scale "
        ) as said:
            list(open_features(options)["train"].rows())
        scale = float(str(said.value).rpartition(" ")[2])
        read, _ = content(open_features(replace(options, scale=scale)))
        assert np.allclose(read, TRAIN * size * scale, rtol=1e-3)
    write_npz(options.train, np.zeros_like(TRAIN))  # no direction, but a number like any other
    assert not content(open_features(options))[0].any()


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


class Pickled:
    """Fail the test where it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def with_value(row: int, value: float) -> np.ndarray:
    changed = TRAIN.copy()
    changed[row, 2] = value
    return changed


BAD: dict[str, tuple[Any, str]] = {
    "no such file": (lambda f: f / "gone.npz", "no such file; give an .npz, .npy or .parquet"),
    "another ending": (lambda f: (f / "a.csv").write_text("1,2") and f / "a.csv", "not a file of features by its name"),
    "text": (lambda f: (f / "a.npz").write_text("hello") and f / "a.npz", "cannot be read as NumPy's"),
    "empty file": (lambda f: (f / "a.npz").touch() or f / "a.npz", "cannot be read as NumPy's"),
    "npz is npy": (lambda f: np.save(f / "a", TRAIN) or (f / "a.npy").rename(f / "a.npz"), "cannot be read as NumPy's"),
    "pickle": (
        lambda f: (f / "a.npz").write_bytes(pickle.dumps(Pickled())) and f / "a.npz", "pickles are never loaded"
    ),
    "objects": (
        lambda f: write_npz(f / "a.npz", np.array([[Pickled()]] * 7, object)), r"\[7, 1\] object; give at least"
    ),
    "object labels": (lambda f: write_npz(f / "a.npz", TRAIN, np.array(LABELS, object)), "pickles are never loaded"),
    "other names": (
        lambda f: np.savez(f / "a", x=TRAIN, labels=TEXTS) or f / "a.npz", "has no array 'activations' .it has x"
    ),
    "three dimensions": (
        lambda f: write_npz(f / "a.npz", TRAIN[None]), r"activations are \[1, 7, 5\] float32; give at"
    ),
    "one dimension": (lambda f: write_npz(f / "a.npz", TRAIN[:, 0]), r"activations are \[7\] float32; give at least"),
    "whole numbers": (
        lambda f: write_npz(f / "a.npz", TRAIN.astype(int)), r"activations are \[7, 5\] int64; give at least"
    ),
    "complex": (lambda f: write_npz(f / "a.npz", TRAIN.astype(complex)), r"\[7, 5\] complex128; give at least"),
    "no rows": (
        lambda f: write_npz(f / "a.npz", TRAIN[:0], TEXTS[:0]), r"activations are \[0, 5\] float32; give at least"
    ),
    "short labels": (
        lambda f: write_npz(f / "a.npz", TRAIN, TEXTS[:6]), r"has 7 rows of activations, but labels \[6\]"
    ),
    "labels in a row": (
        lambda f: write_npz(f / "a.npz", TRAIN, TEXTS[None]), r"7 rows of activations, but labels \[1, 7\]"
    ),
    "float labels": (
        lambda f: write_npz(f / "a.npz", TRAIN, np.array(LABELS) / 2), "its labels are float64; give names"
    ),
    "numbers": (
        lambda f: write_npz(f / "a.npz", TRAIN, np.array(LABELS)), "labels are numbers; name them by"
    ),
    "too few names": (
        lambda f: write_npz(f / "a.npz", TRAIN, np.array(LABELS), classes=np.array(["a", "b"])), "label 2, but it names"
    ),
    "no class name": (
        lambda f: write_npz(f / "a.npz", TRAIN, np.array(["a/b", *TEXTS[1:]])), "class name 'a/b': it has a"
    ),
    "bytes": (lambda f: write_npz(f / "a.npz", TRAIN, np.array([b"\xff"] * 7)), "labels are not UTF-8"),
    "nan": (lambda f: write_npz(f / "a.npz", with_value(3, np.nan)), "row 3 has a value that is not a finite number"),
    "infinity": (lambda f: write_npz(f / "a.npz", with_value(6, -np.inf)), "row 6 has a value that is not a finite"),
    "other D": (lambda f: write_npz(f / "a.npz", rows(0, dim=4)), "has 5 activations a row, features.train has 4;"),
    "npy alone": (
        lambda f: np.save(f / "a", TRAIN) or f / "a.npy", "in a.labels.npy or a.labels.txt; write one of them"
    ),
    "parquet text": (lambda f: (f / "a.parquet").write_text("hello") and f / "a.parquet", "cannot be read as parquet"),
    "parquet columns": (lambda f: parquet(f / "a.parquet", a=[1]), r"has no column 'activations' .it has a .int64"),
    "parquet of numbers": (
        lambda f: parquet(f / "a.parquet", activations=[1.0], labels=["a"]), "'activations' is double; give lists"
    ),
    "parquet of texts": (
        lambda f: parquet(f / "a.parquet", activations=[["x"]], labels=["a"]), r"\[1, 1\] object; give at least"
    ),
    "uneven lists": (
        lambda f: parquet(f / "a.parquet", activations=[[1.0] * 5, [1.0]], labels=["a", "b"]), "row 1 has 1 activations"
    ),
    "a list missing": (
        lambda f: parquet(f / "a.parquet", activations=[[1.0] * 5, None], labels=["a", "b"]), "row 1 has 0 activations"
    ),
    "a value missing": (
        lambda f: parquet(f / "a.parquet", activations=[[1.0] * 4 + [None]], labels=["a"]), "row 0 has a value that is"
    ),
    "a label missing": (
        lambda f: parquet(f / "a.parquet", activations=[[1.0] * 5] * 2, labels=["a", None]), "row 1 has no label"
    ),
    "empty folder": (lambda f: f, "holds no .parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case: str, options: FeaturesConfig, tmp_path: Path) -> None:
    make, message = BAD[case]
    (tmp_path / "bad").mkdir()
    path = make(tmp_path / "bad")
    with pytest.raises(UserError, match=message) as said:
        list(open_features(replace(options, train=path))["train"].rows())
    assert "\n" not in str(said.value) and (case == "other D" or str(tmp_path) in str(said.value))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("ending", [".npz", ".npy", ".parquet"])
def test_truncated_files(share: float, ending: str, options: FeaturesConfig, tmp_path: Path) -> None:
    form = {".npz": "npz", ".npy": "npy and npy", ".parquet": "parquet"}[ending]
    (tmp_path / "bad").mkdir()
    path = write(form, tmp_path / "bad", TRAIN)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="cannot be read as"):
        list(open_features(replace(options, train=path))["train"].rows())


def test_a_damaged_byte_of_an_npz(options: FeaturesConfig) -> None:
    with zipfile.ZipFile(options.train) as archive:
        place = archive.getinfo("activations.npy").header_offset + 300
    damaged = bytearray(options.train.read_bytes())
    damaged[place] ^= 1
    options.train.write_bytes(damaged)
    with pytest.raises(UserError, match=r"train.npz: cannot be read as NumPy's .Bad CRC"):
        list(open_features(options)["train"].rows())


def test_files_that_do_not_go_together(options: FeaturesConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features.val=.*: has the content of features.train"):
        open_features(replace(options, val=options.train))
    (tmp_path / "names.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"features.classes=.*: labels of .*train.npz are names already; leave it out"):
        open_features(replace(options, classes=tmp_path / "names.txt"))
    path = write("npy and text", tmp_path, TRAIN)
    np.save(path.with_suffix(".labels.npy"), TEXTS)
    with pytest.raises(UserError, match=r"in train.labels.npy or train.labels.txt; remove one of the two"):
        open_features(replace(options, train=path))
    write_npz(options.val, VAL[:3], TEXTS[:3])
    features = open_features(options)
    write_npz(options.val, VAL[:2], TEXTS[:2])
    with pytest.raises(UserError, match=r"val.npz: class 'okapi' has no val image \(1 of 3 classes have none\)"):
        make_groups(open_features(options)["val"], features.classes, features.classes, "s")
    with pytest.raises(UserError, match=r"split s: class 'emu' is not in .*train.npz"):
        make_groups(features["train"], features.classes, ("emu",), "s")
