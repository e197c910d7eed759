"""The rows that train the whole network: their trainings, what is kept of them, and their place in the table."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dist_train.config import Config, NetworksConfig
from dist_train.config.io import load_config
from dist_train.data.activations import load
from dist_train.data.loading.grouped_order import GroupedOrder
from dist_train.data.loading.loader import eval_batches
from dist_train.data.loading.order import rank_slice
from dist_train.data.splits import Split, load_split, save_split
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import UserError
from dist_train.fewshot.base_head import read_head
from dist_train.models.backbones import build
from dist_train.runs.run import Run, open_run
from dist_train.stages.backbone import load_backbone
from dist_train.stages.evaluate import evaluate
from dist_train.stages.learn import learn
from dist_train.stages.network_training import FinetuneTraining, TripletTraining
from dist_train.stages.networks import networks
from dist_train.training import checkpoint
from dist_train.training.triplet import batch_hard
from launch.cli.main import main

ALONE = Context()
ROWS = ["nn", "mean", "finetune", "phi2", "triplet_network", "triplet_network1", "finetune_network"]


def wanting(config: Config, rows: list[str] = ROWS, **options: Any) -> Config:
    """Return the configuration of a run with these rows, whose trainings take a moment."""
    small = {"finetune_epochs": 1, "triplet_epochs": 1, "global_batch": 24, "precision": "fp32", "log_every": 1,
             "checkpoint_every": 2}  # fmt: skip
    evaluated = replace(config.evaluate, methods=rows, draws=3, shots=[1, 2], options={"finetune_steps": 3.0})
    learned = replace(config.learn, methods=["phi2"], steps=4)
    return replace(config, networks=NetworksConfig(**{**small, **options}), evaluate=evaluated, learn=learned)


def go(config: Config, *stages: Callable[..., None]) -> Run:
    run = open_run(config)
    for stage in stages:
        stage(run, ALONE, StopFlag(ALONE))
    return run


def results(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.dir / "evaluate" / "results.json").read_text())
    return found


def made(run: Run) -> dict[str, bytes]:
    """Return everything that the networks of a run left for their rows."""
    folder = run.dir / "networks"
    files = [*folder.rglob("*.npy"), *folder.rglob("*.npz"), *folder.rglob("*.safetensors")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if "best" not in file.parts}


@pytest.fixture(scope="module")
def finished(small_run: Config, whole_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Make a run with networks of two draws, up to its table. Tests must not change it."""
    config = wanting(replace(small_run, runs=tmp_path_factory.mktemp("networks")), draws=2)
    for stage in ("pretrain", "extract"):
        shutil.copytree(whole_run.dir / stage, config.run_dir / stage)
    return go(config, networks, learn, evaluate)


def test_batch_hard_is_the_triplet_loss_of_the_hardest_triplets() -> None:
    torch.manual_seed(0)
    embeddings, labels = F.normalize(torch.randn(9, 4), dim=1), torch.tensor([0, 1, 2] * 3)
    losses, right = [], 0
    for a in range(9):
        distances = {b: 1 - float(embeddings[a] @ embeddings[b]) for b in range(9) if b != a}
        farthest = max(d for b, d in distances.items() if labels[b] == labels[a])
        nearest = min(d for b, d in distances.items() if labels[b] != labels[a])
        losses.append(max(0.0, 0.3 + farthest - nearest))
        right += int(labels[min(distances, key=lambda b: distances[b])] == labels[a])
    loss, correct = batch_hard(embeddings, labels, 0.3)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5) and min(losses) > 0 and correct == right


def test_a_batch_holds_whole_classes_on_every_rank() -> None:
    bounds = np.array([0, 5, 8, 20, 22, 30, 37], np.int64)  # of a class with 2 images, some come twice
    batches = {}
    for parts in (1, 2, 3):
        order = GroupedOrder(37, 24, 7, bounds=bounds, images=4, parts=parts)
        for number in range(4):
            positions, epochs = order.batch(number)
            assert set(epochs) == {number}
            labels = np.searchsorted(bounds, positions, side="right") - 1
            for part in range(parts):
                share = rank_slice(labels, part, parts)
                assert set(np.bincount(share)) <= {0, 4}
            assert all(len(set(positions[labels == c])) == min(4, size) for c, size in enumerate(np.diff(bounds)))
            batches[parts, number] = sorted(positions)
    assert all(batches[1, n] == batches[2, n] == batches[3, n] for n in range(4))
    assert batches[1, 0] != batches[1, 1]


def test_before_its_first_step_the_network_is_the_backbone_with_rows_of_zeros(finished: Run) -> None:
    novel = load(finished.dir / "extract", "novel_train")
    task = FinetuneTraining(finished, ALONE, novel, draw=1, shots=2)
    view = task.images.view
    assert view.classes == (*finished.base, *finished.novel) and len(view) == 120 + 3 * 2
    rows = np.concatenate([np.flatnonzero(np.isin(novel.ids, ids)) for ids in task.supports]).reshape(3, 2)
    assert (novel.labels[rows] == [[0], [1], [2]]).all() and set(task.supports.ravel()) <= set(view.ids)
    assert (view.labels == view.labels_of(view.ids)).all()
    # In an epoch, each image comes once.
    positions = np.concatenate([task.images.order.batch(n)[0] for n in range(5)] + [task.images.order.batch(5)[0][:6]])
    assert sorted(positions) == list(range(126))
    before = load_backbone(finished.config, ALONE.device).network
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        logits, known = task.backbone.network.eval()(images), before(images)
    torch.testing.assert_close(logits[:, :6], known)
    assert not logits[:, 6:].any()


def test_finetuning_is_sgd_on_base_images_and_supports(finished: Run) -> None:
    """Train as a reader of the paper would, and compare activations, scores and the row of the table."""
    config = finished.config
    task = FinetuneTraining(finished, ALONE, load(finished.dir / "extract", "novel_train"), draw=0, shots=1)
    network = load_backbone(config, ALONE.device).network
    rows, bias = network.head.weight.detach().clone(), network.head.bias.detach().clone()
    network.set_head(9)
    with torch.no_grad():
        network.head.weight.copy_(torch.cat([rows, torch.zeros(3, 64)]))
        network.head.bias.copy_(torch.cat([bias, torch.zeros(3)]))
    network.requires_grad_(True).train()
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 1e-4},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    steps = range(5)  # 123 images in batches of 24
    for step, batch in zip(steps, task.images.batches(ALONE, steps, 1), strict=True):
        for group in sgd.param_groups:
            group["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 5))
        sgd.zero_grad()
        F.cross_entropy(network(batch.images), batch.labels).backward()
        sgd.step()
    network.eval()
    right = {}
    for role, first in (("base", 0), ("novel", 6)):
        view = finished.view("val", role)
        batches = list(eval_batches(view, view.ids, config.data, 64, ALONE))
        with torch.inference_mode():
            activations = torch.cat([network.features(batch.images) for batch in batches])
        answers = network.head(activations.half().float()).argmax(1).numpy()
        right[role] = 100 * float((answers == first + view.labels).mean())
        kept = load(finished.dir / "networks" / "finetune_network" / "seed0-draw0-shots1", f"{role}_val")
        np.testing.assert_allclose(kept.rows.astype(np.float32), activations.numpy(), rtol=2e-3, atol=2e-3)
    head = read_head(finished.dir / "networks" / "finetune_network" / "seed0-draw0-shots1" / "head.npz", ALONE.device)
    torch.testing.assert_close(head[0], network.head.weight.detach(), rtol=1e-4, atol=1e-5)
    row = results(finished)["methods"]["finetune_network"]["1"]
    assert row["base_top1"]["draws"][0] == pytest.approx(right["base"])
    assert row["novel_top1"]["draws"][0] == pytest.approx(right["novel"])


def test_the_triplet_network_is_kept_and_its_activations_are_searched(finished: Run) -> None:
    folder = finished.dir / "networks" / "triplet_network"
    saved = checkpoint.load(folder / "final")
    network = build(saved.state["architecture"]).eval()
    network.load_state_dict(saved.tensors["model"])
    before = load_backbone(finished.config, ALONE.device).network
    moved = {name for name, weight in before.body.named_parameters()
             if not torch.equal(weight, network.body.get_parameter(name))}  # fmt: skip
    assert len(moved) == len(list(before.body.parameters()))
    tables = {name: load(folder, name) for name in ("base_train", "base_val", "novel_train", "novel_val")}
    view = finished.view("val", "novel")
    batch = next(eval_batches(view, view.ids[:8], finished.config.data, 8, ALONE))
    with torch.inference_mode():
        wanted = network.features(batch.images).numpy()
    np.testing.assert_allclose(tables["novel_val"].rows[:8].astype(np.float32), wanted, rtol=2e-3, atol=2e-3)
    # The row: the nearest stored image by cosine, of the supports that all methods see.
    unit = {name: F.normalize(torch.from_numpy(table.rows.astype(np.float32)), dim=1) for name, table in tables.items()}
    supports = [first + np.random.RandomState([0, 1, number]).permutation(20)[:2]
                for number, first in enumerate(tables["novel_train"].offsets[:-1])]  # fmt: skip
    stored = torch.cat([unit["base_train"], *(unit["novel_train"][rows] for rows in supports)])
    classes = np.concatenate([tables["base_train"].labels, np.repeat([6, 7, 8], 2)])
    answers = classes[(unit["novel_val"] @ stored.T).argmax(1).numpy()]
    row = results(finished)["methods"]["triplet_network"]["2"]
    assert row["novel_top1"]["draws"][1] == pytest.approx(100 * (answers == 6 + tables["novel_val"].labels).mean())


def test_the_table_says_how_many_draws_a_row_has(finished: Run) -> None:
    methods = results(finished)["methods"]
    assert list(methods) == ROWS
    assert {name: len(rows["2"]["novel_top1"]["draws"]) for name, rows in methods.items()} == {
        **dict.fromkeys(ROWS, 3), "finetune_network": 2,
    }  # fmt: skip
    text = (finished.dir / "evaluate" / "table.md").read_text()
    assert "Fine-tuned network is of the first 2 draws, as are its differences." in text
    assert "| Fine-tuned (last layer) ¹ |" in text and "| Triplet network |" in text
    for name in ("Fine-tuned ResNet", "Triplet network", "Triplet network, 1% of base"):
        assert text.count(f"| {name} (paper, ") == 1
    assert "Fine-tuned network" in (finished.dir / "evaluate" / "report.html").read_text()
    kept = {path.name for path in (finished.dir / "networks" / "finetune_network" / "seed0-draw1-shots2").iterdir()}
    assert {"head.npz", "base_val.f16.npy", "novel_val.f16.npy", "metrics.jsonl", "done.json"} <= kept
    assert not kept & {"checkpoints", "final", "best"}
    assert not list((finished.dir / "networks" / "triplet_network").glob("checkpoints"))


def test_one_draw_has_no_interval_and_a_further_draw_is_trained_alone(
    finished: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dist_train")
    shutil.copytree(finished.dir, tmp_path / "runs" / finished.config.name)
    config = replace(finished.config, runs=tmp_path / "runs")
    before = made(finished)
    run = go(replace(config, networks=replace(config.networks, draws=1)), networks, evaluate)
    assert "networks: done already" in caplog.text and made(run) == before
    lines = (run.dir / "evaluate" / "table.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| Fine-tuned network |")]
    assert len(rows) == 2 and not any("±" in row for row in rows), "the table, and the differences"
    assert any("Fine-tuned network is of the first draw, without interval" in line for line in lines)
    times = {path.name: path.stat().st_mtime_ns for path in (run.dir / "evaluate" / "rows").glob("*.json")}
    with pytest.raises(UserError, match=r"not all networks of evaluate\.methods are trained; first: .*networks"):
        go(replace(config, networks=replace(config.networks, draws=3)), evaluate)
    run = go(replace(config, networks=replace(config.networks, draws=3)), networks, evaluate)
    after = made(run)
    assert {name: after[name] for name in before} == before and len(after) > len(before)
    changed = {path.name for path in (run.dir / "evaluate" / "rows").glob("*.json")
               if path.stat().st_mtime_ns != times[path.name]}  # fmt: skip
    assert changed == {"finetune_network.json"}
    assert len(results(run)["methods"]["finetune_network"]["1"]["ausuc"]["draws"]) == 3


class StopAtTurn(StopFlag):
    """Request a stop when asked for the ``turn``-th time."""

    def __init__(self, turn: int) -> None:
        super().__init__(ALONE)
        self.turns = turn

    def requested(self) -> bool:
        self.turns -= 1
        return self.turns <= 0


def test_a_stopped_stage_continues_to_the_same_networks(
    finished: Run, config: Config, with_backbone: Callable[..., Config]
) -> None:
    """It is stopped in the trainings, and between them and their activations."""
    config = wanting(config, ["mean", "triplet_network1", "finetune_network"])
    config = with_backbone(replace(config, evaluate=replace(config.evaluate, shots=[2])), extracted=True)
    run, starts = open_run(config), 0
    while True:
        starts += 1
        try:
            networks(run, ALONE, StopAtTurn(3 + starts % 4))  # never the same boundary again and again
            break
        except Stopped:
            assert not (run.dir / "networks" / "done.json").exists() and starts < 40
    assert starts > 5
    again, whole = made(run), made(finished)
    pieces = ("triplet_network/", "finetune_network/seed0-draw0-shots2/")
    assert again.keys() == {name for name in whole if name.startswith(pieces)}
    assert all(again[name] == whole[name] for name in again if name.endswith(".npy"))


def test_only_runs_whose_rows_need_networks_have_the_stage(
    config: Config, with_backbone: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = with_backbone(wanting(config, ["nn", "mean"]), extracted=True)
    path = plain.run_dir / "config.yaml"
    assert main(["run", "--config", str(path)]) == 0
    assert not (plain.run_dir / "networks").exists()
    capsys.readouterr()
    assert main(["status", str(plain.run_dir)]) == 0 and "networks" not in capsys.readouterr().out
    assert main(["networks", "--config", str(path)]) == 1
    assert "names no row for which a network is trained; add some of triplet_network" in capsys.readouterr().err
    assert main(["run", "--config", str(path), "--evaluate.methods", "[nn, triplet_network10]"]) == 0
    assert load_config(plain.run_dir).evaluate.methods == ["nn", "triplet_network10"]
    assert main(["status", str(plain.run_dir)]) == 0
    assert "networks  done" in capsys.readouterr().out
    assert [path.name for path in (plain.run_dir / "networks").iterdir() if path.is_dir()] == ["triplet_network"]


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"draws": 4}, ROWS, r"networks\.draws=4: must be <= evaluate\.draws=3"),
        ({"global_batch": 22}, ROWS, r"networks\.global_batch=22: 22 images .* not 2 or more classes of"),
        ({"global_batch": 4}, ROWS, r"networks\.global_batch=4: 4 images .* choose a multiple of 4, at least 8"),
        ({"global_batch": 25, "accumulate": 2}, ROWS, r"does not divide into 1 rank x 2 passes"),
        (
            {"global_batch": 240},
            ["nn", "finetune_network"],
            r"global_batch=240: the base classes have only 120 training images",
        ),
        ({"global_batch": 40}, ROWS, r"holds 10 classes of networks\.triplet_images=4, and the split has 6 base"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(
    config: Config, options: dict[str, Any], rows: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_run(wanting(config, rows, **options))


def test_rows_that_need_images_or_novel_classes_are_refused_by_name(config: Config, tmp_path: Path) -> None:
    split = load_split(config.data.split)
    save_split(Split("all", (*split.base, *split.novel), ()), tmp_path / "all.json")
    with pytest.raises(UserError, match="finetune_network trains on novel images too, and split all has no novel"):
        open_run(wanting(replace(config, data=replace(config.data, split=str(tmp_path / "all.json")))))
    episodes = wanting(config, ["nn", "triplet_network"])
    episodes = replace(episodes, evaluate=replace(episodes.evaluate, protocol="episodes"))
    with pytest.raises(UserError, match=r"evaluate\.methods: triplet_network needs evaluate\.protocol=joint"):
        open_run(episodes)


def test_without_novel_classes_the_triplet_network_has_base_accuracy(config: Config, tmp_path: Path) -> None:
    from dist_train.stages.extract import extract
    from dist_train.stages.pretrain import pretrain

    split = load_split(config.data.split)
    save_split(Split("all", (*split.base, *split.novel), ()), tmp_path / "all.json")
    config = wanting(replace(config, data=replace(config.data, split=str(tmp_path / "all.json"))),
                     ["nn", "triplet_network"], triplet_images=3)  # fmt: skip
    run = go(replace(config, pretrain=replace(config.pretrain, epochs=1)), pretrain, extract, networks, learn, evaluate)
    row = results(run)["methods"]["triplet_network"]["0"]
    assert 0 <= row["base_top1"]["mean"] <= row["base_top5"]["mean"] <= 100


def test_the_triplet_loss_falls(finished: Run) -> None:
    from dist_train.training.metrics import read_metrics

    task = TripletTraining(finished, ALONE)
    assert "triplet_network on 120 images of 6 classes, 5 steps of 24 images" in str(task)
    rows = read_metrics(finished.dir / "networks" / "triplet_network" / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5]
    assert all(0 <= row["train/top1(%)"] <= 100 for row in rows if "train/loss" in row)
