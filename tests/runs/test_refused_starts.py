"""A first start that is refused leaves nothing: no folder of the run, and none of the runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dist_train.config import BackboneConfig, Config, PackConfig, PretrainConfig, to_yaml
from dist_train.distributed.context import Context
from dist_train.files import outermost_missing
from dist_train.runs.lock import RunLock
from launch.cli.main import main
from launch.slurm.jobs import reserved

NET, VIT = "test_resnet", "vit_tiny_patch16_224"
UNTRAINED = {"train_size": 224, "eval_resize": 256, "eval_size": 224}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a file of random weights of each network, and a file that is cut short."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name in (NET, VIT):
        torch.save(timm.create_model(name).state_dict(), folder / f"{name}.pth")
    (folder / "cut.pth").write_bytes((folder / f"{NET}.pth").read_bytes()[:100_000])
    return folder


def taking(config: Config, name: str, path: Path, **options: Any) -> Config:
    backbone = BackboneConfig(source=f"timm:{name}", weights=path, **{"size": 64, **options})
    return replace(config, data=replace(config.data, **UNTRAINED), pretrain=PretrainConfig(), backbone=backbone)


def tuning(config: Config, name: str, path: Path, **options: Any) -> Config:
    taken = taking(config, name, path)
    data = replace(taken.data, train_size=options.pop("train_size", 64))
    init = replace(taken.backbone, size=options.pop("size", 64))
    pretrain = replace(config.pretrain, model=PretrainConfig().model, init=init, **options)
    return replace(taken, backbone=None, data=data, pretrain=pretrain)


def data(config: Config, **values: Any) -> Config:
    return replace(config, data=replace(config.data, **values))


WAYS: dict[str, tuple[Any, str]] = {
    "no shards": (lambda c, w: data(c, shards=str(w / "nowhere")), "nowhere: no "),
    "no split": (lambda c, w: data(c, split="nowhere.json"), "nowhere.json"),
    "classes of another split": (lambda c, w: data(c, split="tiny_imagenet_180_20"), "is not in"),
    "no archive": (
        lambda c, w: replace(data(c, shards=str(w / "none")), pack=PackConfig(train=w / "nowhere")),
        "nowhere: no such",
    ),
    "too large a batch": (
        lambda c, w: replace(c, pretrain=replace(c.pretrain, global_batch=500)),
        "the base classes have only 120 training images",
    ),
    "more shots than images": (lambda c, w: replace(c, evaluate=replace(c.evaluate, shots=[50])), "evaluate.shots="),
    "no GPU to decode": (lambda c, w: data(c, decoder="mixed"), "data.decoder=mixed: needs a GPU"),
    "no GPU to synchronise": (
        lambda c, w: replace(c, pretrain=replace(c.pretrain, sync_batchnorm=True)),
        "pretrain.sync_batchnorm",
    ),
    "no weights": (lambda c, w: taking(c, NET, w / "none.pth"), "none.pth"),
    "weights that are cut": (lambda c, w: taking(c, NET, w / "cut.pth"), "cut.pth: is cut short"),
    "weights of another network": (lambda c, w: taking(c, NET, w / f"{VIT}.pth"), f"{VIT}.pth: not the weights of"),
    "another size": (lambda c, w: taking(c, VIT, w / f"{VIT}.pth", size=50), "error: backbone.size=50: "),
    "no such network": (lambda c, w: taking(c, "resnet5", w / f"{NET}.pth"), "error: backbone.source=timm:resnet5: "),
    "no weights to tune": (lambda c, w: tuning(c, NET, w / "none.pth"), "none.pth"),
    "another size to tune": (lambda c, w: tuning(c, VIT, w / f"{VIT}.pth", size=50), "error: pretrain.init.size=50: "),
    "no such network to tune": (
        lambda c, w: tuning(c, "resnet5", w / f"{NET}.pth"),
        "error: pretrain.init.source=timm:resnet5: ",
    ),
    "another size in training": (lambda c, w: tuning(c, NET, w / f"{NET}.pth", train_size=48), "data.train_size=48: "),
    "no such layer": (lambda c, w: tuning(c, NET, w / f"{NET}.pth", freeze="x"), "pretrain.freeze=x: "),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_remains(
    way: str, config: Config, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, wanted = WAYS[way]
    (tmp_path / "config.yaml").write_text(to_yaml(change(config, weights)))
    assert main(["run", "--config", str(tmp_path / "config.yaml")]) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("dist-train: error: ")]
    assert len(errors) == 1 and wanted in errors[0], lines
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("stage", ["extract", "networks", "learn", "evaluate"])
def test_a_stage_before_its_turn_leaves_nothing(
    stage: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = replace(config.networks, global_batch=24)
    methods = ["mean", "finetune_network"] if stage == "networks" else ["mean"]
    config = replace(config, networks=networks, evaluate=replace(config.evaluate, methods=methods))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert main([stage, "--config", str(tmp_path / "config.yaml")]) == 1
    assert "is not finished; first: dist-train " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_what_was_there_before_stays(config: Config, weights: Path, tmp_path: Path) -> None:
    """A later start that is refused, another run beside it, and a folder that the user made."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(taking(config, NET, weights / f"{NET}.pth")))
    assert main(["pretrain", "--config", str(path)]) == 0
    before = {file.relative_to(config.run_dir) for file in config.run_dir.rglob("*")}
    path.write_text(to_yaml(taking(config, VIT, weights / f"{VIT}.pth")))
    assert main(["run", "--config", str(path)]) == 1
    assert before <= {file.relative_to(config.run_dir) for file in config.run_dir.rglob("*")}
    assert "made from other inputs" in json.loads((config.run_dir / "error.json").read_text())["message"]
    (config.runs / "mine").mkdir()
    (config.runs / "mine" / "notes.txt").touch()
    path.write_text(to_yaml(taking(config, VIT, weights / f"{VIT}.pth", size=50)))
    for name in ("beside", "mine"):
        assert main(["run", "--config", str(path), "--name", name]) == 1
    assert {folder.name for folder in config.runs.iterdir()} == {config.name, "mine"}
    assert (config.runs / "mine" / "notes.txt").is_file()


class Refused(Exception):
    """What a submission ends with here."""


@pytest.mark.parametrize("path", ["typo/../runs/old", "runs/old", "link/old"])
def test_a_refused_submission_keeps_a_run_by_whatever_path(tmp_path: Path, path: str) -> None:
    weights = tmp_path / "runs" / "old" / "pretrain" / "final.bin"
    weights.parent.mkdir(parents=True)
    weights.write_text("weeks of work")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    with pytest.raises(Refused), reserved(tmp_path / path):
        raise Refused
    assert weights.read_text() == "weeks of work"
    assert not (tmp_path / "runs" / "old" / "launch").exists()


def test_a_refused_submission_of_a_new_run_keeps_what_others_wrote(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    with pytest.raises(Refused), reserved(run):
        raise Refused
    assert not (tmp_path / "runs").exists()
    with pytest.raises(Refused), reserved(run):
        (run / "notes").mkdir()
        (run / "notes" / "mine.txt").write_text("mine")
        raise Refused
    assert (run / "notes" / "mine.txt").read_text() == "mine"


def test_a_run_that_another_start_has_taken_is_not_discarded(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    refused = RunLock(run, Context(), outermost_missing(run))
    with RunLock(run, Context(), None) as other:
        other.acquire()
        refused.discard()
        assert run.is_dir()
    refused.discard()
    assert not (tmp_path / "runs").exists()
    refused.discard()  # nothing is there: it makes nothing
    assert not (tmp_path / "runs").exists()
