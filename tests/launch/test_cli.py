"""The command line: one clear line and a non-zero exit for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dist_train.data.shards.index import ShardSet
from dist_train.data.splits import load_split
from launch.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr().err.strip()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code, text = run(capsys, *arguments)
    lines = text.splitlines()
    assert code == 1 and lines and lines[-1].startswith("dist-train: error: "), text
    assert "Traceback" not in text
    return lines[-1]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--pretrain.epoks", "3", "unknown key 'pretrain.epoks'; did you mean 'pretrain.epochs'?"),
        ("--pretrain.epoch", "3", "did you mean 'pretrain.epochs'?"),
        ("--pretrain.epochs", "many", "pretrain.epochs"),
        ("--pretrain.epochs", "0", "pretrain.epochs=0: must be > 0"),
        ("--pretrain.precision", "fp8", "pretrain.precision"),
        ("--learn.p-mean", "1.5", "learn.p_mean=1.5: must be in [0, 1]"),
        ("--learn.methods", "[phi3]", "learn.methods: 'phi3' is not known; give some of "),
        ("--data.eval_size", "300", "data.eval_size=300: must be <= data.eval_resize"),
        ("--data.scale", "[0.5, 0.2]", "data.scale"),
        ("--data.split", "nowhere", "no published split (imagenet_900_100"),
        ("--data.shards", "/nowhere", "/nowhere: no index.json"),
        ("--pretrain.lr_scalling", "linear", "did you mean 'pretrain.lr_scaling'?"),
        ("--pretrain.accumulate", "7", "pretrain.global_batch"),
        ("--pretrain.offload", "true", "pretrain.offload=true: must be false unless pretrain.strategy is zero1"),
        ("--pretrain.strategy", "zero4", "pretrain.strategy"),
        ("--pretrain.deepspeed", "{steps_per_print: 1}", "empty unless pretrain.strategy is zero0"),
        ("--pretrain.milestones", "[60, 30]", "pretrain.milestones=[60, 30]: must be epochs in order"),
        ("--name", "a/b", "name=a/b: must be a folder name"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], option: str, value: str, message: str) -> None:
    assert message in refused(capsys, "pretrain", "--config", "tiny_imagenet", option, value)


def test_strategies_refuse_what_they_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    for strategy, option, value, message in (
        ("zero2", "optimizer", "lamb", "pretrain.optimizer=lamb: must be sgd with zero2"),
        ("zero1", "optimizer", "lars", "pretrain.optimizer=lars: must be sgd with zero1"),
        ("zero3", "ema", "0.999", "pretrain.ema=0.999: must be 0 with pretrain.strategy=zero3"),
        ("zero0", "compile", "true", "pretrain.compile=true: must be false unless pretrain.strategy is ddp"),
    ):
        options = ["--pretrain.strategy", strategy, f"--pretrain.{option}", value]
        assert message in refused(capsys, "pretrain", "--config", "tiny_imagenet", *options)


def test_bad_config_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("pretrain:\n  lerning_rate: 1\n")
    assert "unknown key 'pretrain.lerning_rate'" in refused(capsys, "pretrain", "--config", path)
    for text, key in (("data: {split: null}", "data.split"), ("data:", "data"), ("learn: {lr: }", "learn.lr")):
        path.write_text(text)  # the first was found by tests/data/packing/test_fuzz.py
        assert f"{key} has no value; give one, or leave the key out" in refused(capsys, "pretrain", "--config", path)
    for text, line in (
        ("pack: {draw: {base_classes: 0}}", "pack.draw.base_classes=0: must be >= 1"),
        ("pack: {val_share: 3}", "pack.val_share=3: must be > 0 and < 1"),
        ("seed: 1\nseed: 2", "line 2: 'seed' is there twice; keep one of them"),
        ("pretrain: {epochs: [1, 2]}", "pretrain.epochs=[1, 2]: must be a number"),
    ):
        path.write_text(text)
        assert refused(capsys, "pretrain", "--config", path).endswith(line)
    path.write_text("data:\n  shards: [\n")
    refused(capsys, "pretrain", "--config", path)
    assert (
        "(demo, features, imagenet, imagenet_hariharan_girshick, mini_imagenet, photos, recipes/classic_90, "
        in refused(capsys, "pretrain", "--config", "nowhere")
    )


def test_published_configs_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("demo", "imagenet", "photos", "tiny_imagenet"):
        message = refused(
            capsys, "pretrain", "--config", name, "--data.split", "imagenet_900_100", "--data.shards", "/nowhere"
        )
        assert "/nowhere: no index.json" in message


def test_paths_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shards: ShardSet, drawn: Path
) -> None:
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    common = ["--data.shards", shards.root, "--data.split", drawn / "split.json", "--pretrain.global_batch", 24]
    assert "file" in refused(capsys, "pretrain", "--runs", tmp_path / "file", *common)
    assert "not a text file" in refused(
        capsys, "split", "--wnids", tmp_path / "file", "--novel", 1, "--out", tmp_path / "s.json"
    )
    assert "--workers -1" in refused(capsys, "verify", shards.root, "--workers", "-1")


@pytest.mark.parametrize(
    ("text", "reason"), [("pretrain: {epochs: 3\nfoo: [", "line 2"), ("- a", "no keys"), (b"\xff\xfe", "not a text")]
)
def test_a_file_that_is_not_yaml_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | bytes, reason: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused(capsys, "pretrain", "--config", path)
    assert str(path) in message and reason in message


def test_exponents_are_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("learn: {lr: 1e-4}\ndata: {shards: /nowhere}\n")
    assert "/nowhere" in refused(capsys, "learn", "--config", path)


def test_split_from_seed_and_list(capsys: pytest.CaptureFixture[str], tmp_path: Path, shards: ShardSet) -> None:
    out = tmp_path / "s.json"
    assert main(["split", "--shards", str(shards.root), "--novel", "2", "--pseudo-novel", "2", "--out", str(out)]) == 0
    split = load_split(str(out))
    assert (len(split.base), len(split.novel), len(split.pseudo_novel)) == (7, 2, 2)
    wnids, novel = tmp_path / "w.txt", tmp_path / "n.txt"
    wnids.write_text("\n".join(f"n{i} name" for i in range(5)))
    novel.write_text("n3\n")
    assert main(["split", "--wnids", str(wnids), "--novel-list", str(novel), "--out", str(out)]) == 0
    assert load_split(str(out)).novel == ("n3",)
    novel.write_text("n9\n")
    assert "'n9' is not among the 5" in refused(capsys, "split", "--wnids", wnids, "--novel-list", novel, "--out", out)
    assert "one of the four" in refused(capsys, "split", "--novel", 2, "--out", out)
    assert "leave no base class" in refused(capsys, "split", "--wnids", wnids, "--novel", 5, "--out", out)


def test_split_of_features_takes_the_keys_that_say_how_to_read_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, names, out = tmp_path / "a.npz", tmp_path / "names.txt", tmp_path / "split.json"
    np.savez(file, embedding=np.ones((3, 4), np.float32), label=[0, 1, 2])
    names.write_text("okapi\nbarn owl\nrook\n")
    keys = ["--activations", "embedding", "--labels", "label"]
    command = ["split", "--features", file, "--novel", 1, "--out", out]
    assert "(of split: --activations, --labels)" in refused(capsys, *command)
    assert "(of split: --classes)" in refused(capsys, *command, *keys)
    assert main([*map(str, command), *keys, "--classes", str(names)]) == 0
    split = load_split(str(out))
    assert sorted(split.base + split.novel) == ["barn owl", "okapi", "rook"]
    message = refused(capsys, "split", "--wnids", names, "--novel", 1, "--out", out, "--classes", names)
    assert "goes with --features alone" in message


def test_split_of_other_classes_and_large_batches_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shards: ShardSet, drawn: Path
) -> None:
    common = ["pretrain", "--runs", tmp_path, "--data.shards", shards.root]
    assert "is not in" in refused(capsys, *common, "--data.split", "tiny_imagenet_180_20")
    message = refused(capsys, *common, "--data.split", drawn / "split.json", "--pretrain.global_batch", "500")
    assert "the base classes have only 120 training images" in message
    assert not list(tmp_path.rglob("*.pt"))


def test_stages_in_the_wrong_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shards: ShardSet, drawn: Path
) -> None:
    message = refused(
        capsys,
        "learn",
        "--runs",
        tmp_path,
        "--data.shards",
        shards.root,
        "--data.split",
        drawn / "split.json",
        "--pretrain.global_batch",
        24,
    )
    assert "pretrain is not finished; first: dist-train pretrain, with the same options" in message


def test_verify_reports_and_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, shards: ShardSet) -> None:
    import shutil

    assert main(["verify", str(shards.root), "--workers", "1"]) == 0
    root = tmp_path / "copy"
    shutil.copytree(shards.root, root)
    path = root / "train" / "000000.tar"
    content = bytearray(path.read_bytes())
    content[2000] ^= 255
    path.write_bytes(content)
    assert main(["verify", str(root), "--workers", "1"]) == 1
    assert "train/000000.tar" in capsys.readouterr().out
    assert json.loads((root / "index.json").read_text())["version"] == 2


def test_help_has_no_names_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("adapt", "classify", "export", "serve", "verify", "status"):
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0 and "<class" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--public-url", "--public_url"])
def test_the_public_address_is_an_option_of_serve(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([option, "ftp://a"], [f"{option}=ftp://a"]):
        assert main(["serve", "model", *given]) == 1
        assert "error: --public-url ftp://a: give https://HOST" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [b"[]", b"5", b"null", b'"x"', b'{"pretrain": null}', b"\xff\xfe", b"seed: 1\nseed: 2", b"pretrain: {epochs: 3}"],
)
def test_a_damaged_config_of_a_run_is_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    assert main(["adapt", str(tmp_path), "--list"]) == 1
    assert capsys.readouterr().err.startswith(f"dist-train: error: {tmp_path}/config.yaml: ")
