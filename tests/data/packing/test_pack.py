"""Packing: every reader finds the source images, and the bytes are the same after any interruption."""

import fcntl
import io
import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_train.config import PackConfig
from dist_train.data.packing import pack as packing
from dist_train.data.packing.pack import pack
from dist_train.data.packing.plan import cut_evenly
from dist_train.data.packing.verify import verify
from dist_train.data.shards.index import open_shards, read_index
from dist_train.data.sources.archives import scan
from dist_train.data.sources.keys import natural_key
from dist_train.errors import UserError

REAL = Path(__file__).parents[4] / "shared/data/tiny-imagenet"


# ---- content


def test_shards_have_the_images_of_the_archives(official, packed, content):
    assert content(packed) == official.expected("train")
    assert content(packed, "val") == official.expected("val")
    assert not (packed / ".pack").exists()
    assert verify(packed, progress=False) == []


def test_index_has_stored_sizes(official, packed, content):
    shards = open_shards(packed)
    for n, row in enumerate(shards["train"].samples):
        blob, _ = content(packed)[shards["train"].key(n)]
        assert (row["width"], row["height"]) == Image.open(io.BytesIO(blob)).size


def test_folders_give_the_same_shards(sources, packed, content, capsys):
    out = sources.root / "out"
    options = PackConfig(train=sources.train_folder(), val=sources.val_folder(), shard_mb=0.03)
    shards = pack(options, out, progress=False)
    assert content(out) == content(packed) and content(out, "val") == content(packed, "val")
    assert shards.hash == open_shards(packed).hash
    # And a finished pack knows its images in another form.
    again = pack(sources.options(train=sources.train_tar(), val=sources.val_tar(), devkit=sources.devkit()), out,
                 progress=False)  # fmt: skip
    assert again.hash == shards.hash and "nothing to do" in capsys.readouterr().out


def test_val_share_takes_images_of_each_class(drawn, tmp_path):
    options = PackConfig(train=drawn / "train", val_share=0.12, workers=1)
    shards = pack(options, tmp_path / "shards", progress=False)
    counts = {name: np.bincount(shards[name].samples["label"]).tolist() for name in ("train", "val")}
    assert counts == {"train": [18] * 9, "val": [2] * 9}
    keys = [set(shards[name].samples["key"].tolist()) for name in ("train", "val")]
    every = {natural_key(path.parent.name, path.name).encode() for path in (drawn / "train").glob("*/*.*")}
    assert not keys[0] & keys[1] and keys[0] | keys[1] == every
    again = pack(options, tmp_path / "again", progress=False)
    assert again.hash == shards.hash
    with pytest.raises(UserError, match=r"val images 18 .* there, 9 "):
        pack(PackConfig(train=drawn / "train", val_share=0.05, workers=1), tmp_path / "again", progress=False)
    (tmp_path / "one" / "class").mkdir(parents=True)
    shutil.copy(next(drawn.glob("train/*/*.*")), tmp_path / "one" / "class")
    with pytest.raises(UserError, match="the only image of its class; --val_share needs two at least"):
        pack(PackConfig(train=tmp_path / "one", val_share=0.5), tmp_path / "none", progress=False)
    with pytest.raises(ValueError, match=r"pack.val_share=0.1: must be left out where val is given"):
        PackConfig(train=drawn / "train", val=drawn / "val", val_share=0.1)


def test_flat_val_folder(sources, packed, content):
    out = sources.root / "out"
    options = PackConfig(train=sources.train_folder(), val=sources.val_flat(), devkit=sources.devkit())
    pack(options, out, progress=False)
    assert content(out, "val") == content(packed, "val")


def test_summary(official, packed):
    summary = read_index(packed)["summary"]
    train, val = summary["subsets"]["train"], summary["subsets"]["val"]
    assert (train["images"], val["images"], summary["classes"]) == (48, 12, 4)
    assert train["per_class"] == {"min": 12, "mean": 12, "max": 12}
    assert train["modes"] == {"RGB": 48} and train["formats"] == {"JPEG": 48}
    assert train["shards"] == len(list((packed / "train").glob("*.tar"))) > 1
    assert train["bytes"] == sum(path.stat().st_size for path in (packed / "train").glob("*.tar"))
    assert summary["official"] is False
    assert summary["undecodable"] == summary["misnamed"] == train["empty_classes"] == []


def test_cut():
    sizes = np.random.RandomState(0).randint(1, 1000, 500).astype(float)
    sizes[100] = 50_000  # larger than a shard: by itself, and no empty one beside it
    bounds = cut_evenly(sizes, 5000)
    assert bounds[0][0] == 0 and bounds[-1][1] == 500
    assert all(first < last for first, last in bounds)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    totals = [sizes[first:last].sum() for first, last in bounds]
    assert sorted(totals)[-2] < 7000
    assert cut_evenly(sizes, 1e9) == [(0, 500)]


# ---- other readers


def test_webdataset_reads_the_shards(official, packed):
    import webdataset

    paths = [str(path) for path in sorted((packed / "train").glob("*.tar"))]
    classes = open_shards(packed).classes
    dataset = webdataset.WebDataset(paths, shardshuffle=False)
    found = {sample["__key__"]: (sample["jpg"], classes[int(sample["cls"])]) for sample in dataset}
    assert found == official.expected("train")


def test_dali_reads_the_shards(official, packed):
    from nvidia.dali import fn, pipeline_def

    paths = [str(path) for path in sorted((packed / "train").glob("*.tar"))]

    @pipeline_def(batch_size=48, num_threads=1, device_id=None)
    def graph():
        return tuple(
            fn.readers.webdataset(
                paths=paths,
                index_paths=[path.replace(".tar", ".idx") for path in paths],
                ext=["jpg", "cls"],
                missing_component_behavior="error",
            )
        )

    pipeline = graph()
    pipeline.build()
    images, labels = pipeline.run()
    classes = open_shards(packed).classes
    found = {(bytes(images.at(n)), classes[int(bytes(labels.at(n)))]) for n in range(48)}
    assert found == set(official.expected("train").values())


def test_wds2idx_makes_the_same_index(packed, tmp_path):
    from wds2idx import IndexCreator

    for path in packed.glob("*/*.tar"):
        with IndexCreator(str(path), str(tmp_path / "its.idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "its.idx").read_text() == path.with_suffix(".idx").read_text()


# ---- the same bytes


def test_any_number_of_workers(official, packed, tmp_path, files):
    pack(official.options(workers=1), tmp_path / "one", progress=False)
    assert files(tmp_path / "one") == files(packed)


def test_seed_decides_the_order(official, packed, tmp_path):
    other = pack(official.options(seed=1), tmp_path / "other", progress=False)
    first, second = open_shards(packed)["train"], other["train"]
    assert set(first.samples["key"]) == set(second.samples["key"])
    assert list(first.samples["key"]) != list(second.samples["key"])
    assert len(set(first.samples["label"][:12])) > 2  # not one class after the other


SCRIPT = """
import sys
from pathlib import Path
from dist_train.config import PackConfig
from dist_train.data.packing.pack import pack
root, out = map(Path, sys.argv[1:])
options = PackConfig(
    train=root / "train.tar", val=root / "val.tar", devkit=root / "devkit.tar.gz", shard_mb=0.03, workers=1
)
pack(options, out, progress=False)
"""


def killed_pack(sources, out):
    """Pack in a process of its own and kill it as soon as two shards are finished."""
    command = [sys.executable, "-c", SCRIPT, str(sources.root), str(out)]
    process = subprocess.Popen(command, start_new_session=True)
    while len(list((out / ".pack").glob("train-*.json"))) < 2:
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):  # its workers notice, and leave too
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def stop(*_):
    raise KeyboardInterrupt


def test_killed_and_continued(official, packed, tmp_path, files):
    out = tmp_path / "out"
    killed_pack(official, out)
    assert not (out / "index.json").exists()
    with pytest.raises(UserError, match="unfinished pack"):
        open_shards(out)
    finished = sorted((out / "train").glob("*.tar"))[:2]
    (out / "train" / ".000009.tar.tmp-1").write_bytes(b"left by the killed one")
    os.truncate(finished[1], 100)  # a finished shard was damaged meanwhile
    before = finished[0].stat().st_mtime_ns
    pack(official.options(), out, progress=False)
    assert finished[0].stat().st_mtime_ns == before
    assert files(out) == files(packed)


def test_continuing_with_other_options(official, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing.Packer, "write", stop)
        pack(official.options(), out, progress=False)
    with pytest.raises(UserError, match=r"holds another pack \(seed 0 there, 5 now\); choose another --out"):
        pack(official.options(seed=5), out, progress=False)


def test_a_finished_pack_is_left_alone(official, packed, capsys):
    before = {path: path.stat().st_mtime_ns for path in packed.rglob("*")}
    shards = pack(official.options(), packed, progress=False)
    assert "already packed" in capsys.readouterr().out
    assert shards.hash == open_shards(packed).hash
    assert {path: path.stat().st_mtime_ns for path in packed.rglob("*")} == before


def test_a_finished_pack_with_other_options(official, packed, sources):
    with pytest.raises(UserError, match=r"shard_mb 0\.03 there, 7 now.*--out"):
        pack(official.options(shard_mb=7), packed, progress=False)
    del sources.train["n09999999"]["n09999999_7.JPEG"]
    with pytest.raises(UserError, match=r"train images 48 .* there, 47 .* now"):
        pack(official.options(train=sources.train_tar()), packed, progress=False)


def test_a_damaged_pack_is_refused_with_a_remedy(official, packed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(packed, out)
    (out / "train" / "000000.tar").unlink()
    with pytest.raises(UserError, match=f"delete {out} first"):
        pack(official.options(), out, progress=False)


def test_foreign_folders_are_not_written_into(sources):
    with pytest.raises(UserError, match="not from a pack; choose another --out"):
        pack(PackConfig(train=sources.train_folder()), sources.root, progress=False)
    assert not (sources.root / ".pack").exists()


def test_out_cannot_be_made(official, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        pack(official.options(), tmp_path / "file" / "out", progress=False)


def test_two_packs_into_one_folder(official, tmp_path):
    (tmp_path / ".pack").mkdir()
    with (tmp_path / ".pack" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is packing"):
            pack(official.options(), tmp_path, progress=False)


def test_source_that_changes_between_scan_and_read(sources, monkeypatch):
    folder = sources.train_folder()

    def scan_then_cut(*arguments):
        found = scan(*arguments)
        os.truncate(folder / "n01440764" / "n01440764_7.JPEG", 100)
        return found

    monkeypatch.setattr(packing, "scan", scan_then_cut)
    with pytest.raises(UserError, match=r"n01440764_7\.JPEG: ends early.*start again"):
        pack(PackConfig(train=folder), sources.root / "out", progress=False)
    assert not list((sources.root / "out").rglob("*.tar*"))


# ---- disk


def test_too_little_space_is_seen_before_the_start(official, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"No space left on .*0\.000 GB are free; make room"):
        pack(official.options(), tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").rglob("*.tar*"))


def test_disk_full_while_writing(official, packed, small_disk, monkeypatch, files):
    # The check in advance must not see it: as when something else fills the disk meanwhile.
    monkeypatch.setattr(packing, "_check_space", lambda *_: None)
    disk = small_disk("148k")
    out = disk / "out"
    with pytest.raises(UserError, match=r"^No space left on .* are still needed") as error:
        pack(official.options(workers=1), out, progress=False)
    assert "\n" not in str(error.value)
    assert not list(out.rglob(".*.tmp-*")) and not (out / "index.json").exists()
    assert list(out.rglob("*.tar"))
    subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
    pack(official.options(), out, progress=False)
    assert files(out) == files(packed)


# ---- the real archives


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the sample archives are not at {REAL}")
def test_real_archives(tmp_path):
    import torch
    from torchvision.datasets import imagenet

    archives = [REAL / f"ILSVRC2012_{name}" for name in ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz")]
    found = scan(*archives, progress=False)
    train, val = found.subsets["train"], found.subsets["val"]
    assert (len(found.classes), len(train), len(val)) == (200, 50_000, 10_000)
    assert found.classes == sorted(found.classes)
    assert set(np.bincount(train.label)) == {250} and set(np.bincount(val.label)) == {50}
    for items in (train, val):
        for row in np.random.RandomState(0).choice(len(items), 50):
            item = items[int(row)]
            with open(item.path, "rb") as file:
                file.seek(item.offset)
                blob = file.read(item.size)
            assert blob[:2] == b"\xff\xd8" and blob[-2:] == b"\xff\xd9", item
    row = train.names.index("n01443537/n01443537_0.JPEG")
    assert found.classes[train.label[row]] == "n01443537" and train[row].key == "n01443537_0"

    def no_md5(*_):
        return None

    imagenet._verify_archive, keep = no_md5, imagenet._verify_archive
    try:
        shutil.copy(archives[2], tmp_path)
        imagenet.parse_devkit_archive(tmp_path, archives[2].name)
    finally:
        imagenet._verify_archive = keep
    _, wnids = torch.load(tmp_path / "meta.bin", weights_only=True)
    by_name = dict(zip(val.names, val.label, strict=True))
    ours = [found.classes[by_name[f"ILSVRC2012_val_{n + 1:08d}.JPEG"]] for n in range(10_000)]
    assert ours == wnids
