"""The network of a run in another run, with other classes, and in a model of photos alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train import Classifier
from dist_train.config import BackboneConfig, Config, PretrainConfig
from dist_train.data.activations import load
from dist_train.data.splits import Split, save_split
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.models.backbones import check_pretrained, open_pretrained
from dist_train.runs.run import Run, open_run
from dist_train.stages.backbone import load_backbone
from dist_train.stages.extract import extract
from dist_train.stages.pretrain import pretrain
from launch.cli.main import main


def of_run(run: Path, **options: object) -> BackboneConfig:
    return BackboneConfig(source="run", weights=run, **options)  # type: ignore[arg-type]


def taking(config: Config, run: Run, split: Split, path: Path, **changes: object) -> Config:
    """Return a run's configuration with the network of another run, and these classes."""
    save_split(split, path)
    data = replace(config.data, split=str(path), train_size=224, eval_resize=256, eval_size=224)
    return replace(config, data=data, pretrain=PretrainConfig(), backbone=of_run(run.dir), **changes)  # type: ignore[arg-type]


def go(config: Config, *stages: Callable[..., None]) -> Run:
    run = open_run(config)
    for stage in stages:
        stage(run, Context(), StopFlag(Context()))
    return run


def test_other_classes_over_the_same_network(config: Config, whole_run: Run, tmp_path: Path) -> None:
    """Activations and classifier rows are those of the run that trained it, and nothing novel was seen."""
    own = whole_run.split
    split = Split("fewer", own.base[1:], own.novel, (), "test")
    run = go(taking(config, whole_run, split, tmp_path / "fewer.json"), pretrain, extract)
    backbone, before = (load_backbone(r.config, torch.device("cpu")) for r in (run, whole_run))
    assert backbone.classes == own.base[1:] and backbone.preprocessing == before.preprocessing
    torch.testing.assert_close(backbone.network.head.weight, before.network.head.weight[1:])
    for part in ("novel_train", "novel_val"):
        mine, theirs = (load(r.dir / "extract", part) for r in (run, whole_run))
        assert mine.ids.tolist() == theirs.ids.tolist()
        np.testing.assert_array_equal(mine.rows, theirs.rows)
    facts = json.loads((run.dir / "provenance.json").read_text())["backbone"]
    assert facts["novel_seen"] is None  # its classes are no wnids: a name may mean two things
    assert facts["trained_on"] == f"{len(own.base)} classes of the run test"


def test_a_class_of_the_run_is_not_novel(config: Config, whole_run: Run, tmp_path: Path) -> None:
    own = whole_run.split
    split = Split("moved", own.base[1:], (*own.novel, own.base[0]), (), "test")
    run = go(taking(config, whole_run, split, tmp_path / "moved.json"), pretrain, extract)
    assert json.loads((run.dir / "provenance.json").read_text())["backbone"]["novel_seen"] == 1


def test_trained_further(config: Config, whole_run: Run) -> None:
    """What it has seen are the classes of both runs; another size keeps the share of the crop."""
    init = of_run(whole_run.dir, size=48)
    data = replace(config.data, train_size=48, eval_resize=256, eval_size=224)
    run = go(replace(config, data=data, pretrain=replace(config.pretrain, model="resnet50", init=init)), pretrain)
    again = open_pretrained(of_run(run.dir))
    assert again.origin.trained_on.count("classes of the run test") == 2
    assert again.origin.complete and again.origin.seen == tuple(sorted(whole_run.base))
    assert (again.preprocessing.size, again.preprocessing.resize) == (48, 48)


def test_a_run_that_took_in_a_network_passes_its_origin_on(config: Config, whole_run: Run, tmp_path: Path) -> None:
    run = go(taking(config, whole_run, whole_run.split, tmp_path / "same.json"), pretrain)
    first, second = (open_pretrained(of_run(r.dir)).origin for r in (whole_run, run))
    assert replace(second, sha256=first.sha256) == first


def test_where_the_folder_lies_does_not_matter(config: Config, whole_run: Run, tmp_path: Path) -> None:
    """A run goes on after the run that its network is from was moved, and is refused where that network is another."""
    moved = tmp_path / "moved"
    taken = taking(config, whole_run, whole_run.split, tmp_path / "same.json")
    go(taken, pretrain)
    shutil.copytree(whole_run.dir, moved)
    go(replace(taken, backbone=of_run(moved)), extract)
    with pytest.raises(UserError, match="was made from other inputs"):
        go(replace(taken, backbone=of_run(moved, size=40)), extract)


def test_a_member_of_a_sweep_names_the_run_that_trained_its_network(whole_run: Run, tmp_path: Path) -> None:
    """Members share the folder of the run's pretrain through a link."""
    shutil.copytree(whole_run.dir / "pretrain", tmp_path / "s1" / "pretrain")
    member = tmp_path / "s1" / "sweep" / "learn.seed=1"
    member.mkdir(parents=True)
    (member / "pretrain").symlink_to("../../pretrain")
    words = f"{len(whole_run.base)} classes of the run s1"
    assert open_pretrained(of_run(member)).origin.trained_on == words


def _damage(run: Path) -> None:
    path = run / "pretrain" / "final" / "tensors.pt"
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)


def _manifest(text: str) -> Callable[[Path], object]:
    return lambda run: (run / "pretrain" / "final" / "manifest.json").write_text(text)


def _age(run: Path) -> None:
    folder = run / "pretrain" / "final"
    state = json.loads((folder / "state.json").read_text())
    state.pop("architecture")
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "manifest.json").write_text("{}")


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "not there": (shutil.rmtree, "no such folder"),
    "not finished": (lambda run: shutil.rmtree(run / "pretrain" / "final"), "has no finished backbone"),
    "damaged": (_damage, "tensors.pt: damaged"),
    "without its tensors": (lambda run: (run / "pretrain" / "final" / "tensors.pt").unlink(), "cannot be read"),
    "with a manifest that is no table": (_manifest("[]"), "manifest.json: damaged"),
    "with a manifest without hashes": (_manifest('{"state.json": 1}'), "manifest.json: damaged"),
    "of an old version": (_age, "was made before version 0.3"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_other_folders_are_refused_in_a_line(whole_run: Run, tmp_path: Path, case: str) -> None:
    damage, words = DAMAGED[case]
    shutil.copytree(whole_run.dir / "pretrain", tmp_path / "run" / "pretrain")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=words) as error:
        open_pretrained(of_run(tmp_path / "run"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "run"}, "which run is not said"),
        ({"source": "run", "download": True}, "a run is not downloaded"),
        ({"source": "run:test"}, "give timm:NAME, torchvision:NAME, starter or run"),
        ({"source": "run", "weights": Path("nowhere")}, "nowhere: no such folder"),
    ],
)
def test_which_run_is_said(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_pretrained(BackboneConfig(**options))  # type: ignore[arg-type]


def test_a_model_of_photos_on_the_network_of_a_run(
    whole_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    words = ["--backbone", "run", "--weights", str(whole_run.dir)]
    assert main(["create", str(tmp_path / "photos"), "--out", str(tmp_path / "model"), *words]) == 0
    model = Classifier.load(tmp_path / "model", "cpu")
    before = load_backbone(whole_run.config, torch.device("cpu")).network.body
    torch.testing.assert_close(model.network.backbone.body.state_dict(), before.state_dict())
    assert main(["create", str(tmp_path / "photos"), "--out", str(tmp_path / "other"), *words[:-1], "nowhere"]) == 1
    said = capsys.readouterr().err
    assert "nowhere: no such folder; for --backbone run give" in said and not (tmp_path / "other").exists()
