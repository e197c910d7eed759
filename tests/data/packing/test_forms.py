"""The forms in which people have ImageNet: each is taken with its own labels, and gives the same shards."""

from __future__ import annotations

import gzip
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagenet_like import WNIDS, Sources, hf_label, make_image, tar_bytes, write_parquet

from dist_train.config import PackConfig
from dist_train.data.packing import pack as packing
from dist_train.data.packing.pack import pack
from dist_train.data.shards.index import open_shards, read_index
from dist_train.data.sources.archives import scan
from dist_train.errors import UserError


def sorted_by_script(sources: Sources) -> dict[str, Path]:
    return {"train": sources.train_folder(), "val": sources.val_folder()}


def kaggle(sources: Sources) -> dict[str, Path]:
    images = sources.kaggle() / "ILSVRC" / "Data" / "CLS-LOC"
    return {"train": images / "train", "val": images / "val"}


def kaggle_given(sources: Sources) -> dict[str, Path]:
    """Put the CSV somewhere else, and pack Kaggle's images into a tar."""
    given = sources.root / "somewhere.csv"
    shutil.copy(sources.kaggle() / "LOC_val_solution.csv", given)
    return {"train": sources.train_tar(), "val": sources.val_tar(), "devkit": given}


def hugging_face_folders(sources: Sources) -> dict[str, Path]:
    return dict(zip(("train", "val"), sources.hugging_face_folders(), strict=True))


def hugging_face_tars(sources: Sources) -> dict[str, Path]:
    """Make a folder with the files of both subsets."""
    return {"train": sources.hugging_face_tars(), "val": sources.hugging_face_tars()}


def hugging_face_tars_by_name(sources: Sources) -> dict[str, Path]:
    tars = sources.hugging_face_tars()
    return {"train": tars / "train_images_*.tar", "val": tars / "val_images.tar"}


def a_tar_per_class(sources: Sources) -> dict[str, Path]:
    """Make a folder of the official training archive, unpacked once."""
    for wnid, files in sources.train.items():
        sources._write(f"classes/{wnid}.tar", tar_bytes(files))
    return {"train": sources.root / "classes", "val": sources.val_tar(), "devkit": sources.devkit()}


def parquet_folder(sources: Sources) -> dict[str, Path]:
    return {"train": sources.parquet(), "val": sources.parquet()}


def parquet_patterns(sources: Sources) -> dict[str, Path]:
    data = sources.parquet()
    return {"train": data / "train-*.parquet", "val": data / "validation-*.parquet"}


def mixed(sources: Sources) -> dict[str, Path]:
    return {"train": sources.parquet(), "val": sources.val_flat(), "devkit": sources.devkit()}


FORMS = [sorted_by_script, kaggle, kaggle_given, hugging_face_folders, hugging_face_tars,
         hugging_face_tars_by_name, a_tar_per_class, parquet_folder, parquet_patterns, mixed]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_shards(packed: Path, sources: Sources, form: Any) -> None:
    shards = pack(PackConfig(**form(sources), shard_mb=0.03, workers=2), sources.root / "out", progress=False)
    assert shards.hash == open_shards(packed).hash
    assert not (sources.root / "out" / ".pack").exists()


# ---- where labels come from


def refused(*words: object, **roles: Path) -> None:
    with pytest.raises(UserError) as error:
        scan(roles["train"], roles.get("val"), roles.get("devkit"), progress=False)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def test_pack_prints_where_the_labels_came_from(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    pack(PackConfig(**kaggle(sources)), sources.root / "out", progress=False)
    solution = sources.root / "kaggle" / "LOC_val_solution.csv"
    assert f"val: labels 12 by {solution}" in capsys.readouterr().out
    names = open_shards(sources.root / "out").synsets.words
    assert names["n02119789"] == "n02119789 in words, and more"
    found = scan(**hugging_face_folders(sources), devkit=None, progress=False)
    assert found.notes == ("val: labels 12 by its name",)


def test_kaggle_files_are_found_from_wherever_it_is_called(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    images = kaggle(sources)["train"].parent
    for folder in (images, images / "val", sources.root):
        monkeypatch.chdir(folder)
        roles = {name: Path(sys.modules["os"].path.relpath(images / name, folder)) for name in ("train", "val")}
        assert "LOC_val_solution.csv" in scan(**roles, devkit=None, progress=False).notes[0]


def test_sources_of_labels_that_disagree(sources: Sources) -> None:
    """Yield each pair of sources of a label, in the order in which they are asked."""
    first, wnid = "ILSVRC2012_val_00000001", sources.truth[0]
    wrong = next(other for other in WNIDS if other != wnid)
    train = sources.train_folder()
    by_csv = sources.kaggle(**{first: f"{wrong} 1 2 3 4"}) / "LOC_val_solution.csv"
    says = (f"{first}", repr(wnid), repr(wrong), "correct the wrong label")
    refused(*says, "its folder", by_csv, train=train, val=sources.val_folder(), devkit=by_csv)
    _, flat = sources.hugging_face_folders()
    refused(*says, "its name", by_csv, train=train, val=flat, devkit=by_csv)
    beside = sources.root / "beside"
    shutil.copytree(flat, beside / "val")
    shutil.copy(by_csv, beside)
    refused(*says, "its name", beside / by_csv.name, train=train, val=beside / "val")
    folders = sources.root / "folders"
    for image in flat.iterdir():
        folder = folders / (wrong if first in image.name else image.stem[-9:])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)
    refused(*says, "its folder", "its name", train=train, val=folders)
    image = next((train / "n01440764").iterdir())
    image.rename(image.with_name(f"{image.stem}_n02119789.JPEG"))
    refused("n01440764", "n02119789", "its folder", "its name", train=train)


def test_a_training_name_with_two_classes(sources: Sources) -> None:
    train, _ = sources.hugging_face_folders()
    image = next(train.iterdir())
    image.rename(train / "n01440764_5_n02119789.JPEG")
    refused("n01440764_5_n02119789.JPEG", "begins with the class n01440764", "ends with n02119789", train=train)


def test_folders_with_names_of_their_own_are_not_contradicted(sources: Sources) -> None:
    """The classes are called by words, with the devkit given and wnids in the images' names."""
    for folder in (sources.train_folder(), sources.val_folder()):
        for wnid in WNIDS:
            (folder / wnid).rename(folder / f"class of {wnid}")
    found = scan(sources.root / "train", sources.root / "val", sources.devkit(), progress=False)
    assert found.classes == [f"class of {wnid}" for wnid in WNIDS]


def test_flat_names_without_a_wnid(sources: Sources) -> None:
    train, val = sources.hugging_face_folders()
    shutil.copy(next(val.iterdir()), val / "ILSVRC2012_val_00000013.JPEG")
    refused("carry no labels", "ILSVRC2012_val_00000013.JPEG", "LOC_val_solution.csv", "devkit", train=train, val=val)
    shutil.copy(next(train.iterdir()), train / "holiday.jpg")
    refused("holiday.jpg", "lies in no class folder", "no wnid", train=train)


# ---- Kaggle


@pytest.mark.parametrize("above", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggle_one_level_too_high(sources: Sources, above: str) -> None:
    images = kaggle(sources)["train"].parent
    root = (sources.root / "kaggle").rename(sources.root / "my kaggle")
    images = root / images.relative_to(sources.root / "kaggle")
    given = root / above if above else root
    refused(f"--train '{images}/train' --val '{images}/val'", train=given)
    refused(f"--train '{images}/train' --val '{images}/val'", train=images / "train", val=given)


def test_the_archive_of_kaggle_is_to_be_unpacked(sources: Sources) -> None:
    root = sources.kaggle()
    with zipfile.ZipFile(sources.root / "imagenet challenge.zip", "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    images = sources.root / "ILSVRC/Data/CLS-LOC"
    says = ("Kaggle's archive", f"--train {images}/train --val {images}/val")
    path = sources.root / "imagenet challenge.zip"
    refused(f"unzip -q '{path}' -d {sources.root}", *says, train=path)
    refused(f"unzip -q '{path}' -d {sources.root}", *says, train=sources.train_folder(), val=path)
    files = {"ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10.JPEG": make_image(1)}
    for name, content in {"k.tar": tar_bytes(files), "k.tar.gz": gzip.compress(tar_bytes(files))}.items():
        (sources.root / name).write_bytes(content)
        refused(f"tar -xf {sources.root / name} -C {sources.root}", *says, train=sources.root / name)
    with zipfile.ZipFile(sources.root / "other.zip", "w") as archive:
        archive.writestr("cats/1.jpg", make_image(1))
    refused("other.zip", "zip-compressed", "unpack it and give the folder", train=sources.root / "other.zip")


def test_bad_solutions(sources: Sources) -> None:
    first = "ILSVRC2012_val_00000001"
    roles = {"train": sources.train_folder(), "val": sources.val_flat()}
    csv = sources.kaggle(**{first: ""}) / "LOC_val_solution.csv"
    refused(f"'{first}.JPEG' has no label", csv, "LOC_val_solution.csv", **roles, devkit=csv)
    csv = sources.kaggle(**{f"ILSVRC2012_val_{n:08d}": "n01440764 1 2 3 4" for n in (13, 14)}) / csv.name
    refused("12 validation images", "labels 14", **roles, devkit=csv)
    csv = sources.kaggle(**{first: "n55555555 1 2 3 4"}) / csv.name
    refused("'n55555555'", "not among the training classes", **roles, devkit=csv)
    csv = sources.kaggle(**{first: "n01440764 1 2 3 4 n02119789 1 2 3 4"}) / csv.name
    refused(csv, "line", "not one image and one class", **roles, devkit=csv)
    whole = sources.kaggle() / csv.name
    other = next(wnid for wnid in WNIDS if wnid != sources.truth[0])
    for content, words in {
        f"{whole.read_text()}{first},{other} 1 2 3 4\n": ("line 14", "not one image and one class"),
        "ImageId,PredictionString\n": ("labels no image",),
        "id,label\n1,n01440764\n": ("'id,label'", "'ImageId,PredictionString'"),
        "": ("its columns are ''",),
    }.items():
        csv.write_text(content)
        refused(csv, *words, "give LOC_val_solution.csv of Kaggle", **roles, devkit=csv)
    csv.write_bytes(b"ImageId,PredictionString\n\xff\xfe,n01440764\n")
    refused(csv, "not a CSV file", **roles, devkit=csv)
    # The file of the training boxes: its ids are those of training images.
    csv.write_text("ImageId,PredictionString\nn01440764_0,n01440764 1 2 3 4\n")
    refused("has no label", "n01440764_0", **roles, devkit=csv)
    refused("nowhere.csv", "No such file", **roles, devkit=sources.root / "nowhere.csv")
    words = sources.kaggle() / "LOC_synset_mapping.txt"
    refused(words, "LOC_val_solution.csv", **roles, devkit=words)
    words.write_text("n01440764\n")
    refused(words, "line 1", "or remove it", **roles, devkit=words.with_name("LOC_val_solution.csv"))


def test_compressed_archives_in_a_folder(sources: Sources) -> None:
    """Files are as Hugging Face has them."""
    tars = sources.hugging_face_tars()
    for path in tars.iterdir():
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    refused("train_images_0.tar.gz: is gzip-compressed", "uncompress it to a .tar", train=tars)
    refused("val_images.tar.gz: is gzip-compressed", train=sources.train_folder(), val=tars)


# ---- parquet


def test_a_folder_of_all_splits(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    data = sources.parquet()
    pack(PackConfig(train=data, val=data), sources.root / "out", progress=False)
    out = capsys.readouterr().out
    assert f"train: {data} has files of other splits, passed over: 2 of test, 2 of validation" in out
    assert f"val: {data} has files of other splits, passed over: 2 of test, 2 of train" in out
    assert f"are copied into {sources.root / 'out' / '.pack'} first, and deleted at the end" in out
    refused(f"lie in {data}; give that", train=sources.root)
    for file in data.glob("train-*"):
        file.unlink()
    refused(data, "those of test, validation", "none is named train...", train=data)


def test_images_without_names(sources: Sources, content: Any) -> None:
    """In other sets the schema's names are the classes, and a path may be missing, or be the same for all images."""
    blobs = [make_image(n) for n in range(6)]
    paths = [None, "image.jpg", "image.jpg", "a/1.jpg", "b/1.jpg", "2.jpg"]
    rows = [(path, blob, n % 2) for n, (path, blob) in enumerate(zip(paths, blobs, strict=True))]
    file = write_parquet(sources.root / "set" / "some.parquet", rows, ("cat", "dog"))
    pack(PackConfig(train=file.parent), sources.root / "out", progress=False)
    assert sorted(content(sources.root / "out").values()) == sorted(zip(blobs, ["cat", "dog"] * 3, strict=True))


def test_labels_that_disagree_with_the_path(sources: Sources) -> None:
    data = sources.parquet()
    train, val = sources.hugging_face()
    rows = [(name, blob, hf_label(name)) for name, blob in train.items()]
    wrong = [*rows[:-1], (*rows[-1][:2], 0)]
    write_parquet(data / "train-00001-of-00002.parquet", wrong)
    refused("train-00001-of-00002.parquet: row 47", rows[-1][0], "'n09999999'", "'n01440764'", "label 0", train=data)
    data = sources.parquet()
    shifted = [(name, blob, (hf_label(name) + 1) % 4) for name, blob in val.items()]
    for part in range(2):
        write_parquet(data / f"validation-0000{part}-of-00002.parquet", shifted[part::2])
    refused("validation-00000-of-00002.parquet: row 0", "by its name", "by its label", train=data, val=data)
    one_more = [*rows, ("n01440764_900_n01440764.JPEG", make_image(3), 7)]
    write_parquet(data / "train-00000-of-00002.parquet", one_more, ())
    write_parquet(data / "train-00001-of-00002.parquet", rows[:1], ())
    refused("'n01440764' has the label 7 here and 0 elsewhere", train=data)
    names = ("n02119789", "n01440764")  # a schema of wnids, in another order
    file = write_parquet(sources.root / "one.parquet", rows[:1], names)
    refused("one.parquet: row 0", "'n01440764' by its name", "'n02119789' by its label 0", train=file)


def test_bad_parquet(sources: Sources) -> None:
    root, blob = sources.root, make_image(1)
    good = [("1.jpg", blob, 0), ("2.jpg", blob, 1)]
    import pyarrow as pa

    file = root / "bad.parquet"
    write_parquet(file, good, ())
    refused(file, "row 0 (1.jpg)", "the schema names no classes", train=file)
    write_parquet(file, [*good, ("3.jpg", blob, -1)], ("cat", "dog"))
    refused(file, "row 2 (3.jpg) has the label -1", "known are 0 to 1", train=file)
    write_parquet(file, good, ("cat", "cat"))
    refused(file, "two labels are called 'cat'", train=file)
    write_parquet(file, good, ("cat", "cat/dog"))
    refused("'cat/dog'", "it has a slash", train=file)
    write_parquet(file, good, ("cat", "dog"), label=pa.array(["cat", "dog"]))
    refused(file, "has the columns image", "label (string)", "give files with the columns", train=file)
    write_parquet(file, good, ("cat", "dog"), label=None)
    refused(file, "give files with the columns", train=file)
    write_parquet(file, good, ("cat", "dog"), label=pa.array([1, None]))
    refused(file, "row 1 (2.jpg) has no label", train=file)
    write_parquet(file, [], ("cat", "dog"))
    refused(file, "holds no image", train=file)
    content = write_parquet(file, good, ("cat", "dog")).read_bytes()
    for damaged in (b"", content[:-100], b"<html>404</html>", content[:-9] + b"\xff" + content[-8:]):
        file.write_bytes(damaged)
        refused(file, "cannot be read as parquet", "again", train=file)
    refused("nothing-*.parquet: no such file", train=root / "nothing-*.parquet")
    refused("nothing.parquet: no such file", train=root / "nothing.parquet")
    write_parquet(file, good, ("cat", "dog"))
    (root / "bad.tar").write_bytes(b"")
    refused("bad.*: matches files of several kinds, bad.parquet and bad.tar", train=root / "bad.*")
    write_parquet(root / "two.parquet", good, ("dog", "cat"))
    refused("two.parquet", "names other classes than", train=root / "*.parquet")


def test_parquet_whose_images_are_damaged(sources: Sources) -> None:
    """The scan, which reads footers and labels alone, cannot see it."""
    data = sources.parquet()
    file = data / "train-00001-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[2000:2010] = b"\0" * 10
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00001-of-00002.parquet: cannot be read as parquet .*download it again"):
        pack(PackConfig(train=data, val=data, workers=1), sources.root / "out", progress=False)
    assert not list((sources.root / "out" / ".pack").rglob("*.tmp-*"))
    file = write_parquet(sources.root / "paths.parquet", [("1.jpg", make_image(1), 0), ("2.jpg", None, 0)], ("cat",))
    with pytest.raises(UserError, match=r"paths.parquet: row 1 has no bytes, only the path"):
        pack(PackConfig(train=file, workers=1), sources.root / "paths", progress=False)


def test_copies_are_kept_until_the_end(packed: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack is stopped after some copies, and again after all copies: whole copies are not made again."""
    data, out = sources.parquet(), sources.root / "out"
    options = PackConfig(train=data, val=data, shard_mb=0.03, workers=1)
    hidden = (data / "validation-00001-of-00002.parquet").read_bytes()
    (data / "validation-00001-of-00002.parquet").write_bytes(hidden[:500] + b"\0" * 20 + hidden[520:])
    with pytest.raises(UserError, match="cannot be read"):
        pack(options, out, progress=False)
    copies = sorted((out / ".pack" / "spool").glob("*.images"))
    assert [copy.name for copy in copies] == ["00000.images", "00001.images", "00002.images"]
    before = [copy.stat().st_mtime_ns for copy in copies]
    (data / "validation-00001-of-00002.parquet").write_bytes(hidden)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing.Packer, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pack(options, out, progress=False)
    assert [copy.stat().st_mtime_ns for copy in copies] == before
    copies[0].write_bytes(b"cut")
    assert pack(options, out, progress=False).hash == open_shards(packed).hash
    assert not (out / ".pack").exists()


def test_room_for_the_copies(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sources.parquet()
    size = sum(file.stat().st_size for file in data.glob("train-*"))
    free = shutil._ntuple_diskusage(10**9, 10**9, int(1.5 * size))  # for the copies or for the shards
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match="No space left on"):
        pack(PackConfig(train=data), sources.root / "out", progress=False)
    assert not (sources.root / "out" / ".pack" / "spool").exists()


def test_a_finished_pack_of_parquet_is_left_alone(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = sources.parquet(), sources.root / "out"
    options = PackConfig(train=data, val=data)
    first = pack(options, out, progress=False)
    assert pack(options, out, progress=False).hash == first.hash
    assert "already packed" in capsys.readouterr().out
    assert not (out / ".pack").exists()
    rows = [(name, make_image(n), hf_label(name)) for n, name in enumerate(sources.hugging_face()[0])]
    write_parquet(data / "train-00001-of-00002.parquet", rows[1::2])  # the same names, other images
    with pytest.raises(UserError, match=r"holds another pack \(train images"):
        pack(options, out, progress=False)


def test_val_share_of_parquet_images(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sources.parquet()
    options = PackConfig(train=data, val_share=0.25)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing.Packer, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pack(options, sources.root / "out", progress=False)
    assert len(list((sources.root / "out/.pack/spool").glob("*.images"))) == 2  # train and val share them
    shards = pack(options, sources.root / "out", progress=False)
    assert np.bincount(shards["val"].samples["label"]).tolist() == [3] * 4
    assert read_index(sources.root / "out")["summary"]["undecodable"] == []


def test_without_pyarrow(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sources.parquet()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused("needs pyarrow", "pip install 'dist-train[parquet]'", train=data)
