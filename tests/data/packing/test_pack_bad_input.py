"""Bad sources: each is refused in one line that names the thing and what to do."""

import gzip

import pytest

from dist_train.config import PackConfig
from dist_train.data.packing.pack import pack
from dist_train.data.sources.archives import scan
from dist_train.errors import UserError

BLOCK = 512


def refused(*words, train, val=None, devkit=None):
    with pytest.raises(UserError) as error:
        scan(train, val, devkit, progress=False)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def test_good_sources_pass(sources):
    scan(sources.train_tar(), sources.val_tar(), sources.devkit(), progress=False)
    scan(sources.train_folder(), sources.val_folder(), None, progress=False)
    scan(sources.train_folder(), sources.val_flat(), sources.devkit(), progress=False)


def test_shards_within_their_source(sources):
    train = sources.train_folder()
    for out in (train / "shards", train):
        with pytest.raises(UserError, match=r"--out .*: lies in --train .*give a folder elsewhere"):
            pack(PackConfig(train=train), out, progress=False)


def test_a_folder_with_only_phones_photos(tmp_path):
    (tmp_path / "train" / "c").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "train" / "c" / f"{number}.HEIC").write_bytes(b"not looked into")
    with pytest.raises(UserError, match=r"all of 3 photos: HEIC, AVIF or GIF by their names, .*; --quality 95 "):
        pack(PackConfig(train=tmp_path / "train"), tmp_path / "out", progress=False)


def test_no_train(tmp_path):
    with pytest.raises(UserError, match="--train"):
        pack(PackConfig(), tmp_path / "out", progress=False)


def test_missing_files(sources):
    nowhere = sources.root / "nowhere.tar"
    refused(nowhere, "no such file", "ILSVRC2012_img_train.tar", train=nowhere)
    refused(nowhere, "no such file", "ILSVRC2012_img_val.tar", train=sources.train_tar(), val=nowhere)
    refused(nowhere, "no such file", "devkit", train=sources.train_tar(), val=sources.val_tar(), devkit=nowhere)


def test_archives_swapped(sources):
    train, val = sources.train_tar(), sources.val_tar()
    refused(val, "looks like the validation archive", "ILSVRC2012_img_train.tar", train=val)
    refused(train, "looks like the training archive", "ILSVRC2012_img_val.tar", train=train, val=train)


def test_train_archive_without_inner_tars(sources, tar):
    path = tar("odd.tar", {"n01440764/a.JPEG": b"x"})
    refused(path, "n01440764/a.JPEG", "not one tar per class", train=path)


def test_no_tar_at_all(sources):
    text = sources.root / "text.tar"
    text.write_text("<html>404</html>" * 100)
    refused(text, "not a complete tar", "fetch", train=text)
    text.write_bytes(b"")
    refused(text, "not a complete tar", train=text)


@pytest.mark.parametrize(
    "magic, name", [(gzip.compress(b"x", mtime=0), "gzip"), (b"BZh91AY", "bzip2"), (b"\xfd7zXZ\0", "xz")]
)
def test_compressed_archives(sources, magic, name):
    path = sources.root / "train.tar.gz"
    path.write_bytes(magic)
    refused(path, name, "uncompress", train=path)
    refused(path, name, "uncompress", train=sources.train_tar(), val=path, devkit=sources.devkit())


def test_empty_class(sources, tar):
    sources.train["n02119789"] = {}
    refused("n02119789.tar", "no image", train=sources.train_tar())
    folder = sources.train_folder()
    (folder / "n02119789").mkdir()
    refused(folder / "n02119789", "no image", train=folder)
    refused("holds no class", train=tar("none.tar", {}))


def test_hidden_files_are_no_images(sources):
    sources.train["n02119789"] = {"._n02119789_1.JPEG": b"x"}
    refused("n02119789.tar", "no image", train=sources.train_tar())


def test_folder_without_classes(sources):
    flat = sources.val_flat()
    refused(flat, "lies in no class folder", train=flat)
    empty = sources.root / "empty"
    empty.mkdir()
    refused(empty, "no class folder", train=empty)
    refused(empty, "no validation image", train=sources.train_tar(), val=empty, devkit=sources.devkit())


def test_broken_link(sources):
    """A broken link with a photo's name is left out by name; the account of a good source has no such line."""
    train, flat = sources.train_folder(), sources.val_flat()
    assert scan(train, flat, sources.devkit(), progress=False).account.left_out == []
    (flat / "link.JPEG").symlink_to("nowhere")
    (train / "n01440764" / "link.JPEG").symlink_to("nowhere")
    found = scan(train, flat, sources.devkit(), progress=False)
    broken = [train / "n01440764" / "link.JPEG", flat / "link.JPEG"]
    assert found.account.left_out == [(str(path), "a broken link; mend or remove it") for path in broken]
    assert {name: len(items) for name, items in found.subsets.items()} == {"train": 48, "val": 12}


def test_val_class_that_train_lacks(sources):
    del sources.train["n09999999"]
    refused("n09999999", "not among the training classes", train=sources.train_folder(), val=sources.val_folder())


def test_flat_val_needs_the_devkit(sources):
    refused("val.tar", "no labels", "--devkit", train=sources.train_tar(), val=sources.val_tar())
    refused("flat", "no labels", "--devkit", train=sources.train_tar(), val=sources.val_flat())


def test_devkit_without_val(sources):
    refused("--devkit", "--val", train=sources.train_tar(), devkit=sources.devkit())


def devkit_refused(sources, devkit, *words):
    refused(*words, train=sources.train_tar(), val=sources.val_tar(), devkit=devkit)


def test_wrong_devkit(sources, tar):
    devkit_refused(sources, sources.devkit(meta=b""), "no data/meta.mat", "ILSVRC2012_devkit_t12.tar.gz")
    devkit_refused(sources, sources.devkit(truth=b""), "no data/ILSVRC2012_validation_ground_truth.txt")
    devkit_refused(sources, sources.val_tar(), "val.tar", "no data/meta.mat")
    devkit_refused(sources, sources.devkit(meta=b"x" * 4000), "cannot be read")
    devkit_refused(sources, sources.devkit(truth=b"one\ntwo\n"), "cannot be read")
    devkit_refused(sources, sources.devkit(truth=b"77\n" * 12), "id 77")
    devkit = sources.devkit()
    devkit.write_bytes(devkit.read_bytes()[:-100])
    devkit_refused(sources, devkit, devkit, "not a complete devkit")


def test_devkit_class_that_train_lacks(sources):
    del sources.train["n09999999"]
    devkit_refused(sources, sources.devkit(), "'n09999999'", "not among the training classes")


def test_val_image_beyond_the_ground_truth(sources, image):
    sources.val["ILSVRC2012_val_00000013.JPEG"] = image(1)
    devkit_refused(sources, sources.devkit(), "'ILSVRC2012_val_00000013.JPEG' has no label", "00000012")


def test_val_image_of_another_name(sources, image):
    sources.val["ILSVRC2012_test_00000001.JPEG"] = image(1)
    devkit_refused(sources, sources.devkit(), "'ILSVRC2012_test_00000001.JPEG' has no label")


def test_too_few_val_images(sources):
    del sources.val["ILSVRC2012_val_00000005.JPEG"]
    devkit_refused(sources, sources.devkit(), "11 validation images", "labels 12")


def test_two_classes_with_one_number(sources, image):
    sources.val["ILSVRC2012_val_00000013.JPEG"] = sources.val.pop("ILSVRC2012_val_00000005.JPEG")
    sources.val["ILSVRC2012_val_00000004.jpg"] = image(1)
    devkit_refused(sources, sources.devkit(), "has no label")
    del sources.val["ILSVRC2012_val_00000013.JPEG"]
    devkit_refused(sources, sources.devkit(), "11 validation images", "labels 12")


def cuts(content):
    """Return lengths that end within data, within a header, on a header's boundary, and before the end mark."""
    end = len(content.rstrip(b"\0"))
    end += -end % BLOCK
    return {"header": 100, "first data": BLOCK + 300, "data": end - 700, "end mark": end}


@pytest.mark.parametrize("where", ["header", "first data", "data", "end mark"])
def test_truncated_outer_tar(sources, where):
    for path, others in (
        (sources.train_tar(), {}),
        (sources.val_tar(), {"train": sources.train_folder(), "devkit": sources.devkit()}),
    ):
        content = path.read_bytes()
        path.write_bytes(content[: cuts(content)[where]])
        roles = {"val": path, **others} if others else {"train": path}
        refused(path, "again", **roles)


def test_outer_tar_cut_between_two_classes(sources):
    content = sources.train_tar().read_bytes()
    cut = content.index(b"n03000134.tar")
    assert cut % BLOCK == 0  # the name is a header's first field
    (sources.root / "cut.tar").write_bytes(content[:cut])
    refused("cut.tar", "truncated", train=sources.root / "cut.tar")


@pytest.mark.parametrize("where", ["header", "first data", "data", "end mark"])
def test_truncated_inner_tar(sources, tar, where):
    inner = {f"{wnid}.tar": tar("one.tar", files).read_bytes() for wnid, files in sources.train.items()}
    whole = inner["n02119789.tar"]
    inner["n02119789.tar"] = whole[: cuts(whole)[where]]
    refused("n02119789.tar", "again", train=tar("inner.tar", inner))
