"""Duplicates: found while images are copied, printed, and kept, dropped or refused as asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from imagenet_like import Sources, make_image

from dist_train.config import PackConfig
from dist_train.data.packing import pack as packing
from dist_train.data.packing import write_shard as writing
from dist_train.data.packing.pack import pack
from dist_train.data.packing.verify import verify
from dist_train.data.shards.index import open_shards, read_index
from dist_train.errors import UserError

FISH, FOX, CHIME = "n01440764", "n02119789", "n03000134"


@pytest.fixture
def twice(sources: Sources) -> Sources:
    """Make sources with an image of the fish in train and in val; an image under fish and fox, three times; an image of
    val's chimes twice; an image that is a fox in train and a chime in val; and an image of train's chimes that is also
    in val, twice in each."""
    fish, fox, chime = (sources.train[wnid] for wnid in (FISH, FOX, CHIME))
    sources.val["ILSVRC2012_val_00000013.JPEG"] = fish["n01440764_0.JPEG"]
    fox["n02119789_900.JPEG"] = fox["n02119789_901.JPEG"] = fish["n01440764_7.JPEG"]
    sources.val["ILSVRC2012_val_00000014.JPEG"] = sources.val["ILSVRC2012_val_00000015.JPEG"] = make_image(77)
    sources.val["ILSVRC2012_val_00000016.JPEG"] = fox["n02119789_14.JPEG"]
    both = chime["n03000134_900.JPEG"] = chime["n03000134_0.JPEG"]
    sources.val["ILSVRC2012_val_00000017.JPEG"] = sources.val["ILSVRC2012_val_00000018.JPEG"] = both
    sources.truth += [FISH, CHIME, CHIME, CHIME, CHIME, CHIME]
    sources.train_tar(), sources.val_tar(), sources.devkit()
    return sources


# What the rule drop leaves out: (subset, key).
DROPPED = {
    ("train", "n01440764_0"),
    *(("train", key) for key in ("n01440764_7", "n02119789_900", "n02119789_901", "n02119789_14")),
    ("val", "ILSVRC2012_val_00000016"),
    *(("train", key) for key in ("n03000134_0", "n03000134_900")),
}


def keys(root: Path) -> set[tuple[str, str]]:
    shards = open_shards(root)
    return {(name, shards[name].key(n)) for name in ("train", "val") for n in range(len(shards[name]))}


def everything(sources: Sources) -> set[tuple[str, str]]:
    return {(subset, key) for subset in ("train", "val") for key in sources.expected(subset)}


def test_duplicates_are_kept_counted_and_listed(twice: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    out = twice.root / "out"
    pack(twice.options(), out, progress=False)
    assert keys(out) == everything(twice)
    entry = read_index(out)["summary"]["duplicates"]
    counts = {key: entry[key] for key in ("rule", "train_and_val", "two_classes", "within_class", "dropped")}
    assert counts == {
        "rule": "keep", "train_and_val": 3, "two_classes": 2, "within_class": 4, "dropped": {"train": 0, "val": 0},
    }  # fmt: skip
    listed = [[(copy["subset"], copy["class"], copy["path"]) for copy in group] for group in entry["groups"]]
    train, val = f"{twice.root}/train.tar", f"{twice.root}/val.tar"
    first = ("train", FISH, f"{train}: {FISH}/n01440764_0.JPEG"), ("val", FISH, f"{val}: ILSVRC2012_val_00000013.JPEG")
    assert [*first] in listed
    other = ("train", FOX, f"{train}: {FOX}/n02119789_14.JPEG"), ("val", CHIME, f"{val}: ILSVRC2012_val_00000016.JPEG")
    assert [*other] in listed
    assert sorted(len(group) for group in entry["groups"]) == [2, 2, 3, 4]
    said = capsys.readouterr().out
    assert (
        "images with the same bytes: 3 in train and in val, 2 under two classes, 4 repeated within a class; kept; "
        in said
    )
    assert (
        f"  train {FISH}: {twice.root}/train.tar: {FISH}/{FISH}_0.JPEG = val {FISH}: {twice.root}/val.tar: ILS" in said
    )


def test_duplicates_are_dropped(twice: Sources, capsys: pytest.CaptureFixture[str], files: Any) -> None:
    out, kept = twice.root / "out", twice.root / "kept"
    options = twice.options(on_duplicates="drop", shorter_side=20)
    pack(options, out, progress=False)
    assert keys(out) == everything(twice) - DROPPED
    summary = read_index(out)["summary"]
    assert summary["duplicates"]["dropped"] == {"train": 7, "val": 1}
    assert "4 repeated within a class; 8 images dropped" in capsys.readouterr().out
    assert verify(out, progress=False) == []
    pack(twice.options(shorter_side=20), kept, progress=False)  # found by the source bytes, re-encoded or not
    table, shards = open_shards(kept)["train"], read_index(kept)["subsets"]["train"]["shards"]
    hit = {int(row["shard"]) for row in table.samples if ("train", row["key"].decode()) in DROPPED}
    before, after = files(kept), files(out)
    differing = {
        n for n, entry in enumerate(shards) if before[f"train/{entry['name']}"] != after[f"train/{entry['name']}"]
    }
    assert differing == hit and len(hit) < len(shards)


def test_the_same_pixels_in_other_bytes_are_no_duplicates(sources: Sources, content: Any) -> None:
    """The bytes of the sources are compared, not the bytes after re-encoding."""
    image = sources.train[FISH]["n01440764_0.JPEG"]
    sources.train[FOX]["n02119789_900.JPEG"] = image[:2] + b"\xff\xe7\x00\x06scan" + image[2:]  # a segment APP7
    options = sources.options(train=sources.train_tar(), val=None, devkit=None, quality=90, on_duplicates="fail")
    out = sources.root / "out"
    pack(options, out, progress=False)
    assert read_index(out)["summary"]["duplicates"]["groups"] == []
    blobs = {key: blob for key, (blob, _) in content(out).items()}
    assert blobs["n02119789_900"] == blobs["n01440764_0"]  # equal once they are re-encoded


def test_the_account_adds_up_when_duplicates_are_dropped(twice: Sources) -> None:
    twice.train[FISH]["n01440764_3.JPEG"] = twice.train[FOX]["n02119789_3.JPEG"] = b"no image"  # the same bytes, too
    twice.train_tar()
    pack(twice.options(on_duplicates="drop"), twice.root / "out", progress=False)
    summary = read_index(twice.root / "out")["summary"]
    taken = sum(subset["images"] for subset in summary["subsets"].values())
    dropped = sum(summary["duplicates"]["dropped"].values())
    assert taken + dropped + len(summary["undecodable"]) == len(everything(twice))
    assert len(summary["undecodable"]) == 2 and dropped == 8


def test_fail_stops_and_another_rule_goes_on(twice: Sources, capsys: pytest.CaptureFixture[str], files: Any) -> None:
    """The error is one line; another rule goes on from there, and ends as if it had been given from the start."""
    for rule in ("keep", "drop"):
        out, straight = twice.root / f"{rule}-out", twice.root / f"{rule}-straight"
        with pytest.raises(UserError) as error:
            pack(twice.options(on_duplicates="fail"), out, progress=False)
        message = str(error.value)
        assert "\n" not in message and "--on-duplicates keep" in message, message
        assert f"{FISH}/{FISH}_0.JPEG = val {FISH}" in message
        assert not (out / "index.json").exists()
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
        capsys.readouterr()
        pack(twice.options(on_duplicates=rule), out, progress=False)
        said = capsys.readouterr().out
        assert f"continues; {len(before)} of {len(before)} shards there" in said
        again = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
        assert bool(again) == (rule == "drop") and again != before.keys()
        pack(twice.options(on_duplicates=rule), straight, progress=False)
        assert files(out) == files(straight)


def test_another_rule_after_the_duplicates_were_dropped(
    twice: Sources, monkeypatch: pytest.MonkeyPatch, files: Any
) -> None:
    """The pack is killed after the duplicates went: with keep they come back; with drop it ends as without the kill."""
    for rule in ("keep", "drop"):
        out = twice.root / rule
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(packing.Packer, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            pack(twice.options(on_duplicates="drop"), out, progress=False)
        pack(twice.options(on_duplicates=rule), out, progress=False)
        pack(twice.options(on_duplicates=rule), twice.root / f"{rule}-straight", progress=False)
        assert files(out) == files(twice.root / f"{rule}-straight")


def test_killed_while_shards_are_written_again(twice: Sources, monkeypatch: pytest.MonkeyPatch, files: Any) -> None:
    """A record describes its shard at every moment, also while the shard is written and its record is not yet."""
    out = twice.root / "out"
    with pytest.raises(UserError, match="in train and in val"):
        pack(twice.options(on_duplicates="fail"), out, progress=False)
    archives = (twice.root / name for name in ("train.tar", "val.tar", "devkit.tar.gz"))
    scanned = packing.scan(*archives, progress=False)
    shard = packing.plan_shards(scanned, twice.options())[0]
    packer = packing.Packer(twice.options(), out, scanned, progress=False)
    (task,) = packer.tasks([shard], {"train": {int(shard.rows[0])}})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "advance", lambda images: None)
        patch.setattr(writing, "dali_index", lambda members: (_ for _ in ()).throw(KeyboardInterrupt))
        writing.write_shard(task, 1)
    pack(twice.options(), out, progress=False)
    pack(twice.options(), twice.root / "straight", progress=False)
    assert files(out) == files(twice.root / "straight")
    assert verify(out, progress=False) == []


def test_the_rule_of_a_finished_pack(twice: Sources) -> None:
    out = twice.root / "out"
    pack(twice.options(), out, progress=False)
    with pytest.raises(UserError, match=r"holds another pack \(on_duplicates keep there, fail now\)"):
        pack(twice.options(on_duplicates="fail"), out, progress=False)


def test_a_pack_without_duplicates(
    sources: Sources, official: Sources, packed: Path, tmp_path: Path, capsys: Any
) -> None:
    hashes = {
        pack(official.options(on_duplicates=rule), tmp_path / rule, progress=False).hash for rule in ("drop", "fail")
    }
    assert hashes == {open_shards(packed).hash}
    assert "the same bytes" not in capsys.readouterr().out


def test_images_held_out_of_a_folder(sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--val_share draws by image: two equal images may go to different sides."""
    folder = sources.train_folder()
    for image in list((folder / FISH).iterdir()):
        shutil.copy(image, image.with_name(f"{image.stem}_copy.JPEG"))
    shards = pack(PackConfig(train=folder, val_share=0.5, on_duplicates="drop"), tmp_path / "out", progress=False)
    entry = read_index(tmp_path / "out")["summary"]["duplicates"]
    assert entry["train_and_val"] == entry["dropped"]["train"] > 0
    sides = [{shards[name].key(n).removesuffix("_copy") for n in range(len(shards[name]))} for name in ("train", "val")]
    assert not sides[0] & sides[1]
    assert f"{entry['train_and_val']} in train and in val" in capsys.readouterr().out


def test_a_pack_whose_images_are_all_duplicates_is_refused(sources: Sources, tmp_path: Path) -> None:
    folder = sources.train_folder()
    with pytest.raises(UserError, match=r"train: no image is left without the duplicates"):
        pack(PackConfig(train=folder, val=folder, on_duplicates="drop"), tmp_path / "out", progress=False)


def test_a_shard_that_is_left_empty_goes_with_its_idx(sources: Sources, tmp_path: Path) -> None:
    folder, out = sources.train_folder(), tmp_path / "out"
    shutil.copytree(folder / FISH, folder / "again")
    pack(PackConfig(train=folder, on_duplicates="drop", shard_mb=0.001), out, progress=False)
    tars, lists = ({path.stem for path in (out / "train").glob(f"*.{end}")} for end in ("tar", "idx"))
    assert tars == lists
