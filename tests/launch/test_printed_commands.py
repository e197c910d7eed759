"""Commands in messages work in a shell as they are printed, where names have spaces and quotes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.processes import WarmPython

from dist_train.config import Config, PackConfig, to_yaml
from dist_train.data.packing.pack import pack
from dist_train.data.shards.index import ShardSet, open_shards
from dist_train.data.splits import Split, load_split, save_split
from dist_train.distributed.context import Context
from dist_train.errors import UserError, command, verifying
from dist_train.runs.provenance import provenance
from dist_train.runs.run import open_run
from launch.cli.main import main
from launch.slurm import jobs
from launch.slurm.logs import print_log

Shell = Callable[[str, Path], subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(warm_python: WarmPython) -> Shell:
    """``shell(line, folder)``: run it as typed in a shell in this folder."""

    def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", line], cwd=folder, env=warm_python.environment(), capture_output=True,
                              text=True, timeout=300)  # fmt: skip

    return run


def printed(text: str, before: str = "") -> str:
    """Return the first command in a message, up to the text that ends it there."""
    found = re.search(rf"{before}(dist-train .*?)(;| and then | names | shows | says |, with|\)?$)", text)
    assert found, text
    return found[1]


@pytest.fixture
def spaced(config: Config, tmp_path: Path) -> Config:
    """Make a run with names that a shell takes apart."""
    return replace(config, name="it's 1 run", runs=tmp_path / "my runs & more")


def test_a_run_that_is_not_finished(
    spaced: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shell: Shell,
    with_backbone: Callable[[Config], Config],
) -> None:
    path = tmp_path / "a config.yaml"
    path.write_text(to_yaml(with_backbone(spaced)))
    assert main(["adapt", str(spaced.run_dir), "--out", str(tmp_path / "model")]) == 1
    done = shell(printed(capsys.readouterr().err, "first: "), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (spaced.run_dir / "evaluate" / "table.md").is_file() and not (tmp_path / "runs").exists()
    # What it was made by is in its table, as it was typed.
    assert shlex.quote(str(spaced.run_dir / "config.yaml")) in (spaced.run_dir / "evaluate" / "table.md").read_text()
    logged = re.search(r"tensorboard: (tensorboard --logdir .*)", done.stderr)
    assert logged and shlex.split(logged[1])[2:] == [str(spaced.run_dir)]
    # A model folder that is there already.
    model = tmp_path / "a model"
    assert main(["adapt", str(spaced.run_dir), "--out", str(model)]) == 0
    assert main(["adapt", str(spaced.run_dir), "--out", str(model)]) == 1
    line = printed(capsys.readouterr().err.splitlines()[-1], "change it: ")
    photo = next(p for p in (Path(spaced.data.split).parent / "train").rglob("*.JPEG"))
    done = shell(line.replace("NAME=PHOTOS", f"new={shlex.quote(str(photo))}"), tmp_path)
    assert done.returncode == 0 and "new: added from 1 photo" in done.stdout, done.stderr


def test_the_command_in_the_record(spaced: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "run",
        "--name",
        "it's 1 run",
        "--evaluate.options",
        "{ridge_weight: 10}",
        "--runs",
        "a  b",
        "--data.split",
        "",
    ]
    monkeypatch.setattr(sys, "argv", ["dist-train", *words])
    assert shlex.split(provenance(open_run(spaced), Context())["command"]) == ["dist-train", *words]


def test_damaged_shards(shards: ShardSet, tmp_path: Path, shell: Shell) -> None:
    copy = tmp_path / "my shards"
    shutil.copytree(shards.root, copy)
    path = copy / "train" / "000000.tar"
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(UserError) as refused:
        open_shards(copy)
    line = printed(str(refused.value)).removesuffix(" checks all of them")
    done = shell(line, tmp_path)
    assert done.returncode == 1 and f"{path}: has " in done.stdout and " problem" in done.stdout
    # A folder is what verify reads, so of a URL that folder is named.
    assert verifying("s3://b/my shards").startswith("dist-train verify FOLDER names all of them, of the folder that")
    with pytest.raises(UserError, match=r"dist-train pack --out '.*no shards' --train"):
        open_shards(tmp_path / "no shards")


def test_a_class_without_validation_images(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shell: Shell
) -> None:
    """The command leaves it out of the split, with the others that have none, and the run then opens."""
    folder, strange = tmp_path / "my images", 'it\'s a "class"'
    shutil.copytree(drawn / "train", folder / "train")
    shutil.copytree(drawn / "val", folder / "val")
    base, *_, last = load_split(str(drawn / "split.json")).base
    (folder / "train" / base).rename(folder / "train" / strange)
    for wnid in (base, last):
        shutil.rmtree(folder / "val" / wnid)
    pack(PackConfig(train=folder / "train", val=folder / "val", workers=1), folder / "shards", progress=False)
    old = load_split(str(drawn / "split.json"))
    names = tuple(sorted({*old.base} - {base} | {strange}))
    save_split(Split("mine", names, old.novel), folder / "a split.json")
    options = ["--data.shards", str(folder / "shards"), "--pretrain.global_batch", "24",
               "--runs", str(tmp_path / "runs")]  # fmt: skip
    assert main(["learn", *options, "--data.split", str(folder / "a split.json")]) == 1
    error = capsys.readouterr().err.strip()
    assert "has no val image (2 of 6 classes have none); add some of it, or leave it out: " in error, error
    done = shell(printed(error), tmp_path)
    assert done.returncode == 0 and "4 base (0 pseudo-novel), 3 novel" in done.stdout, done.stderr
    more = shlex.split(error.split(" and then ")[1])
    assert more == ["--data.split", "a split_without.json"]
    split = load_split(str(tmp_path / more[1]))
    assert not {strange, last} & {*split.base, *split.novel} and split.novel == old.novel
    again = shell(command("learn", *options, *more), tmp_path)  # a stage further: pretrain is to be made first
    assert "pretrain is not finished; first: dist-train pretrain --data.shards " in again.stderr, again.stderr


def test_split_leaves_classes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    source, out = ["split", "--wnids", str(tmp_path / "classes.txt")], tmp_path / "s.json"
    assert main([*source, "--novel", "1", "--without", "b", "--without=c", "--out", str(out)]) == 0
    split = load_split(str(out))
    assert sorted((*split.base, *split.novel)) == ["a", "d"]
    for options, message in (
        ([*source, "--novel", "1", "--without", "e"], "--without: class 'e' is not among the 4 classes"),
        (["split", "--split", str(out), "--without", "b"], "split s: names no class 'b'; mend --without"),
        (["split", "--split", str(out), "--novel", "1"], "--split: names its novel classes; leave --novel"),
        (["split", "--split", str(out), "--without", split.base[0]], "no base class; name at least one"),
        ([*source, "--split", str(out)], "one of the four"),
    ):
        assert main([*options, "--out", str(tmp_path / "t.json")]) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "t.json").exists()


def test_a_job_without_a_log(spaced: Config, tmp_path: Path, shell: Shell) -> None:
    jobs.record(spaced.run_dir, jobs.Job("learn", "7"))
    (spaced.run_dir / "config.yaml").write_text(to_yaml(spaced))
    with pytest.raises(UserError) as refused:
        print_log(spaced.run_dir, None, 0, False)
    done = shell(printed(str(refused.value)), tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(str(spaced.run_dir)), done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--redo", "evaluate"], "; the stage evaluate alone: dist-train evaluate, and made again: dist-train"),
        (["run", "--redo=learn"], "--redo: takes no value; leave 'learn' out; the stage learn alone: dist-train learn"),
        (["evaluate", "--redo", "true"], "'true': no option takes it (--redo: without a value)"),
        (["run", "--dry-run", "yes"], "'yes': no option takes it (--redo, --dry_run: without a value)"),
        (["run", "--dry-run=yes"], "--dry_run: takes no value; leave 'yes' out"),
        (["launch", "local", "--redo"], "--redo: is taken by dist-train run and by each stage"),
        (["run", "--share", "0/3"], "--share: is an option of dist-train evaluate; leave it out here"),
        (["learn", "--share=0/3"], "--share: is an option of dist-train evaluate; leave it out here"),
        (["launch", "slurm", "--share", "0/3"], "--share: is an option of dist-train evaluate; leave it out here"),
        (["learn", "--batches", "3"], "--batches: is an option of dist-train verify-resume; leave it out here"),
        (["learn", "--dry-run"], "--dry_run: is an option of dist-train run, dist-train launch slurm; leave it out"),
        (["learn", "--lr", "3"], "unknown key 'lr'; did you mean 'pretrain.lr'?"),
        (["status", "x", "--shares", "3"], "unknown key 'shares'"),
        (["run", "epochs=3"], "'epochs=3': options begin with two dashes: --pretrain.epochs=3"),
        (["split", "--novel", "3", "4", "--out", "x"], "'4': no option takes it"),
        (["logs", "runs/x", "-f", "yes"], "'yes': no option takes it (--follow: without a value)"),
        (["run", "--evaluate", "3"], None),
        (["run", "--pretrain.epochss", "3"], "did you mean 'pretrain.epochs'?"),
    ],
)  # fmt: skip
def test_values_of_flags_and_suggestions(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str | None
) -> None:
    """And what is suggested is never what was given."""
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message is None or message in line, line
    suggested = re.search(r"'(.*?)'; did you mean '(.*?)'", line)
    assert not suggested or suggested[1] != suggested[2]
