"""A trained network in a run: taken in, its rows taken or made, its activations, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from dist_train.classifier.from_run import from_run
from dist_train.config import BackboneConfig, Config, PretrainConfig, to_yaml
from dist_train.config.io import with_options
from dist_train.data.activations import load
from dist_train.data.loading.loader import eval_batches
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.fewshot.base_head import load_head
from dist_train.fewshot.methods import FROZEN, LEARNED
from dist_train.models.backbones import Origin, Pretrained, open_pretrained
from dist_train.runs.provenance import provenance
from dist_train.runs.run import Run, open_run
from dist_train.stages import pretrain as pretraining
from dist_train.stages.backbone import load_backbone
from dist_train.stages.evaluate import evaluate
from dist_train.stages.extract import extract
from dist_train.stages.learn import learn
from dist_train.stages.pretrain import pretrain
from launch.cli.main import main

SIDES = {"resnet10t": 64, "vit_tiny_patch16_224": 48, "convnext_atto": 64, "mobilenetv2_035": 64}
ALONE = Context()

Weights = Callable[[str], Path]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """``weights(name)``: file of a network of timm with random weights; each is made once."""
    folder = tmp_path_factory.mktemp("weights")

    def make(name: str) -> Path:
        path = folder / f"{name}.pth"
        if not path.exists():
            torch.manual_seed(0)
            torch.save(timm.create_model(name).state_dict(), path)
        return path

    return make


def taking(config: Config, name: str, path: Path, **changes: Any) -> Config:
    """Return a run's configuration with a trained network in place of the training."""
    data = replace(config.data, train_size=224, eval_resize=256, eval_size=224)
    backbone = BackboneConfig(source=f"timm:{name}", weights=path, size=SIDES[name])
    return replace(config, data=data, pretrain=PretrainConfig(), backbone=backbone, **changes)


def go(config: Config, *stages: Callable[..., None]) -> Run:
    run = open_run(config)
    for stage in stages:
        stage(run, ALONE, StopFlag(ALONE))
    return run


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_activations_are_the_networks_own(config: Config, weights: Weights, name: str) -> None:
    run = go(taking(config, name, weights(name)), pretrain, extract)
    backbone = load_backbone(run.config, torch.device("cpu"))
    assert backbone.origin and backbone.origin.source.startswith(f"timm:{name}")
    table = load(run.dir / "extract", "novel_val")
    batches = eval_batches(
        run.view("val", "novel"), table.ids, run.config.data, 64, ALONE, preprocessing=backbone.preprocessing
    )
    original = timm.create_model(name, num_classes=0, checkpoint_path=None).eval()
    original.load_state_dict(torch.load(weights(name)), strict=False)
    with torch.inference_mode():
        wanted = torch.cat([original(batch.images) for batch in batches]).numpy()
    assert backbone.preprocessing.size == 64
    np.testing.assert_allclose(table.rows.astype(np.float32), wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv2_035"])
def test_all_methods_at_other_lengths_of_activations(
    config: Config, weights: Weights, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """192 and 1280 numbers, with rows in closed form, up to a model of the run."""
    config = taking(
        config, name, weights(name),
        learn=replace(config.learn, methods=list(LEARNED), steps=8),
        evaluate=replace(config.evaluate, methods=FROZEN, options={"ranpac_features": 64}, draws=2, shots=[1, 2]),
    )  # fmt: skip
    run = go(config, pretrain, extract, learn, evaluate)
    rows, bias = load_head(run.dir, torch.device("cpu"))
    assert rows.shape == (6, 192 if "vit" in name else 1280) and bias.shape == (6,)
    done = json.loads((run.dir / "extract" / "done.json").read_text())["head"]
    assert done["rows"].startswith("in closed form") and done["strength"] > 0
    provenance = json.loads((run.dir / "provenance.json").read_text())["backbone"]
    assert provenance["head_strength"] == done["strength"] and provenance["file"] == f"{name}.pth"
    assert provenance["novel_seen"] is None and len(provenance["sha256"]) == 64
    results = json.loads((run.dir / "evaluate" / "results.json").read_text())
    assert len(results["methods"]) + len(results["oracles"]) == len(FROZEN)
    model = from_run(run.config, "phi1")
    torch.testing.assert_close(model.network.backbone.head.weight, rows)
    assert main(["status", str(run.dir)]) == 0
    assert "pretrain  done" in capsys.readouterr().out.replace("pretrain   done", "pretrain  done")


def knowing(monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...], seen: tuple[str, ...] | None) -> None:
    """Let a network's first rows be of these classes, as ImageNet's are of networks that were trained on it."""

    def opened(options: BackboneConfig, section: str) -> Pretrained:
        real = open_pretrained(options, section)
        assert real.classes
        names = (*classes, *real.classes[len(classes) :])
        return replace(real, classes=names, origin=replace(real.origin, seen=seen, trained_on="Drawn-9"))

    monkeypatch.setattr(pretraining, "open_pretrained", opened)


def test_rows_of_known_classes_are_taken_and_novel_is_called_seen(
    config: Config, weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = taking(config, "resnet10t", weights("resnet10t"))
    config = replace(config, learn=replace(config.learn, methods=["phi1"], steps=4))
    config = replace(config, evaluate=replace(config.evaluate, methods=["mean", "phi1"], draws=2))
    run = open_run(config)
    seen = (*run.novel[:2], *reversed(run.base))
    knowing(monkeypatch, seen, seen)
    go(config, pretrain, extract, learn, evaluate)
    rows, bias = load_head(run.dir, torch.device("cpu"))
    own = torch.load(weights("resnet10t"))
    assert torch.equal(rows, own["fc.weight"][2 : 2 + len(run.base)].flip(0))
    assert torch.equal(bias, own["fc.bias"][2 : 2 + len(run.base)].flip(0))
    assert not (run.dir / "extract" / "head.npz").exists()
    line = "Novel is not novel to the backbone: 2 of its 3 novel classes were in the training of timm:resnet10t"
    assert (run.dir / "evaluate" / "table.md").read_text().startswith(line)
    assert line in capsys.readouterr().out
    html = (run.dir / "evaluate" / "report.html").read_text()
    assert html.index(line) < html.index("<h1>")
    results = json.loads((run.dir / "evaluate" / "results.json").read_text())
    assert results["backbone"]["novel_seen"] == 2
    assert from_run(run.config).network.backbone.head.weight.shape == (6, 512)


def test_a_network_of_unknown_training_is_called_so(
    config: Config, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = taking(config, "resnet10t", weights("resnet10t"))
    config = replace(config, learn=replace(config.learn, methods=["phi1"], steps=4))
    config = replace(
        config, evaluate=replace(config.evaluate, methods=["mean"], protocol="episodes", ways=2, queries=3)
    )
    knowing(monkeypatch, (), None)
    run = go(config, pretrain, extract, learn, evaluate)
    table = (run.dir / "evaluate" / "table.md").read_text()
    assert "it is not known whether novel classes were in that training" in table.splitlines()[0]


def test_other_weights_are_refused_and_a_moved_or_lost_file_is_not(
    config: Config, weights: Weights, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.pth"
    moved.write_bytes(weights("resnet10t").read_bytes())
    config = taking(config, "resnet10t", weights("resnet10t"))
    go(config, pretrain)
    assert config.backbone
    elsewhere = replace(config, backbone=replace(config.backbone, weights=moved))
    go(elsewhere, pretrain)
    assert main(["verify-resume", str(config.run_dir)]) == 1
    other = timm.create_model("resnet10t")
    torch.save(other.state_dict(), moved)
    with pytest.raises(UserError, match=r"made from other inputs \(backbone\.sha256: \S+ -> \S+\).*--redo"):
        go(elsewhere, pretrain)
    moved.unlink()
    go(elsewhere, pretrain, extract)
    with pytest.raises(UserError, match=r"backbone\.size: 64 -> 96"):
        go(replace(config, backbone=replace(config.backbone, size=96)), extract)
    with pytest.raises(UserError, match=r"backbone\.source"):
        go(replace(config, backbone=None, pretrain=replace(config.pretrain, global_batch=24)), extract)
    with pytest.raises(UserError, match=r"moved\.pth"):
        go(replace(elsewhere, name="new"), pretrain)
    assert not (config.runs / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backbone.source", "timm:resnet10t", "--pretrain.lr", "3"), "pretrain.lr=3: must be left out"),
        (("--backbone.source", "timm:resnet10t", "--data.eval_size", "64"), "data.eval_size=64: must be left out"),
        (("--backbone.weights", "x.pth"), "backbone.source='': must be timm:NAME"),
        (("--pretrain.freeze", "layer1"), "pretrain.freeze=layer1: must be left out without pretrain.init"),
        (
            ("--pretrain.init.source", "timm:a", "--pretrain.model", "resnet18"),
            "pretrain.model=resnet18: must be left",
        ),
        (("--pretrain.init.source", "timm:a", "--pretrain.layer_decay", "0"), "pretrain.layer_decay=0: must be in"),
        (
            ("--pretrain.init.source", "timm:a", "--pretrain.init.size", "8"),
            "pretrain.init.size=8: must be from 32 to 1024",
        ),
        (("--pretrain.init.source", "timm:a", "--pretrain.init.size", "x"), "pretrain.init.size=x: must be a whole"),
        (("--backbone.source", "starter", "--backbone.size", "x"), "backbone.size=x: must be a whole number"),
        (("--pretrain.init.size", "64"), "pretrain.init.source='': must be timm:NAME"),
    ],
)
def test_keys_without_a_meaning_are_refused_by_name(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        with_options(Config(), options)
    assert str(caught.value).startswith(message)


def test_a_fault_of_a_network_to_start_from_names_its_section(config: Config, weights: Weights) -> None:
    path = weights("vit_tiny_patch16_224")
    init = BackboneConfig(source="timm:vit_tiny_patch16_224", weights=path, size=50)
    data = replace(config.data, eval_resize=256, eval_size=224)
    with pytest.raises(UserError, match=r"^pretrain\.init\.size=50: .* give a multiple, such as 48 or 64"):
        go(replace(config, data=data, pretrain=PretrainConfig(init=init, global_batch=8)), pretrain)


def test_dry_run_says_what_is_taken_in(
    config: Config, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = taking(config, "resnet10t", weights("resnet10t"))
    words = ["--backbone.source", "timm:resnet10t", "--backbone.weights", str(weights("resnet10t"))]
    words += ["--backbone.size", "64", "--data.shards", config.data.shards, "--data.split", config.data.split]
    assert main(["run", *words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "nothing is trained" in out and "activations of 512 numbers" in out and "then        extract 120" in out


def test_two_ranks_extract_what_a_rank_extracts(
    config: Config, weights: Weights, tmp_path: Path, torchrun: Callable[..., Any]
) -> None:
    config = replace(taking(config, "vit_tiny_patch16_224", weights("vit_tiny_patch16_224")), name="two")
    config = replace(config, learn=replace(config.learn, methods=["phi1"], steps=4))
    config = replace(config, evaluate=replace(config.evaluate, methods=["mean", "phi1"], draws=2))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    done = torchrun(2, "-m", "dist_train", "run", "--config", str(path))
    assert "made in closed form: " in done.stderr
    lone = go(replace(config, name="one"), pretrain, extract)
    for name in ("base_train", "base_val", "novel_train", "novel_val"):
        one, two = (load(config.runs / run / "extract", name).rows for run in ("one", "two"))
        np.testing.assert_allclose(one.astype(np.float32), two.astype(np.float32), rtol=2e-3, atol=2e-3)
    rows = [load_head(run, torch.device("cpu"))[0] for run in (lone.dir, config.run_dir)]
    torch.testing.assert_close(*rows, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("novel", "complete", "seen"),
    [
        (("n00000001", "n00000002"), True, 1),
        (("n00000002", "n00000003"), True, 0),
        (("n00000002", "n00000003"), False, None),  # photos from the web may show any class
        (("n00000002", "goldfish"), True, None),  # whether a name is one of ImageNet's classes is not known
        (("n00000001", "goldfish"), False, 1),
    ],
)
def test_a_class_counts_as_unseen_only_where_that_is_certain(
    config: Config, novel: tuple[str, ...], complete: bool, seen: int | None
) -> None:
    run = replace(open_run(config), novel=novel)
    state = run.dir / "pretrain" / "final" / "state.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    origin = Origin("timm:resnet10t.c3_in1k", "a.pth", "0" * 64, seen=("n00000001",), complete=complete)
    state.write_text(json.dumps({"origin": asdict(origin)}))
    assert provenance(run, ALONE)["backbone"]["novel_seen"] == seen


def test_a_file_with_another_classifier_has_seen_more_than_its_name_says(tmp_path: Path) -> None:
    for rows in (1000, 7):
        path = tmp_path / f"{rows}.pth"
        torch.save(timm.create_model("resnet10t", num_classes=rows).state_dict(), path)
        origin = open_pretrained(BackboneConfig(source="timm:resnet10t", weights=path, size=64)).origin
        assert origin.complete == (rows == 1000)
