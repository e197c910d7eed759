"""The predictor's training on real activations files, alone and on ranks."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dist_train.config import LearnConfig, Precision
from dist_train.data.activations import Activations
from dist_train.distributed import context as contexts
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import UserError
from dist_train.fewshot.methods import LEARNED
from dist_train.fewshot.methods.attention import Attention
from dist_train.fewshot.methods.phi_plus import PhiPlus
from dist_train.fewshot.methods.to_mean import ToMean
from dist_train.models.predictor import Predictor, RowPredictor
from dist_train.runs.run import Run
from dist_train.stages.learn import PredictorTraining, train
from dist_train.stages.learn import learn as learn_stage
from dist_train.training import checkpoint
from dist_train.training import precision as precisions
from dist_train.training.bank import Bank, StepReader
from dist_train.training.metrics import read_metrics, reproducible

CONFIG = LearnConfig(steps=30, lr=0.05, log_every=10, checkpoint_every=10, precision="fp32")


def bank(context: Context) -> Bank:
    rng = np.random.default_rng(0)
    centres = rng.random((7, 12)) * 3
    rows = (np.repeat(centres, 20, 0) + 0.3 * rng.random((140, 12))).astype(np.float16)
    table = Activations(rows, np.arange(140), np.arange(0, 141, 20))
    val = Activations(rows[::4], np.arange(35), np.arange(0, 36, 5))
    return Bank(table, val, table.means(), torch.zeros(7, 12), context)


def learn(
    method: str,
    config: LearnConfig,
    folder: Path,
    data: Bank | None = None,
    seed: int = 0,
    context: Context = Context(),  # noqa: B008  (it is frozen)
) -> None:
    """Train a predictor in ``folder``."""
    reader = StepReader(data or bank(context), seed)
    train({folder: PredictorTraining(method, reader, config, context)}, {}, StopFlag(context))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(folder / "final").tensors["model"]
    return found


def test_a_step_follows_the_papers_formula(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=1, momentum=0.0, weight_decay=0.0, p_mean=0.5)
    data = bank(Context())
    learn("phi2", config, tmp_path, data=data, seed=3)
    chance, support, query = (d[0] for d in data.draw(3, 0))
    single = chance >= 0.5
    assert 0 < single.sum() < 7
    phi = Predictor("phi2", 12, config)
    statistics = torch.stack([data.train[support[y]].float() if single[y] else data.means[y] for y in range(7)])
    loss = F.cross_entropy(data.train[query].float() @ phi(statistics).T, torch.arange(7))
    loss.backward()
    after = weights(tmp_path)
    for name, parameter in phi.named_parameters():
        assert torch.allclose(after[name], parameter - 0.05 * parameter.grad, atol=1e-6), name
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_draws_stay_within_their_class_and_follow_p_mean() -> None:
    data = bank(Context())
    chance, support, query = data.draw(0, 64)
    labels = torch.arange(7).expand(64, 7)
    for rows in (support, query):
        assert torch.equal(rows // 20, labels)
    assert chance.shape == (64, 7) and 0.03 < (chance >= 0.9).double().mean() < 0.2 and (support != query).any()
    assert (chance >= 0.0).all() and not (chance >= 1.0).any()  # the triplet network, phi2*


def test_a_row_that_no_predictor_is_shown_is_not_read() -> None:
    data = bank(Context())
    chance, support, query = (d[5] for d in data.draw(0, 64))
    for p_mean in (1.0, 0.5, 0.0):
        reader = StepReader(data, 0)
        reader.p_mean = p_mean
        rows = reader.read(69)
        assert reader.read(69) is rows and torch.equal(rows.chance, chance)
        wanted = torch.where(chance >= p_mean, support, query)
        assert torch.equal(rows.supports, data.train[wanted].float())
        assert torch.equal(rows.queries, data.train[query].float())


def test_loss_falls_and_a_resume_is_bit_equal(tmp_path: Path) -> None:
    learn("phi2", CONFIG, tmp_path / "whole")
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [r["step"] for r in rows] == [10, 20, 30] and rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert {"eval/base_top1(%)", "time/throughput(it/s)", "optim/lr"} <= set(rows[0])

    part = tmp_path / "part"
    learn("phi2", replace(CONFIG, steps=21), part)
    (part / "final" / "manifest.json").unlink()  # as if it was killed after the checkpoint of step 20
    learn("phi2", CONFIG, part)
    assert [r["step"] for r in read_metrics(part / "metrics.jsonl")] == [10, 20, 30]
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(part)[name]), name


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path: Path) -> None:
    data = bank(Context())
    data.train[data.draw(0, 0)[2][12, 3]] = float("nan")  # the query of class 3 in step 13
    config = replace(CONFIG, p_mean=0.0, checkpoint_every=5)
    with pytest.raises(UserError, match=r"phi2: loss or weights are not finite at step (\d+); .*step-0000\d+") as error:
        learn("phi2", config, tmp_path, data=data)
    step = int(str(error.value).split("at step ")[1].split(";")[0])
    rows = data.draw(0, 0)[1:]
    bad = [n for n in range(30) if any(data.train[r[n]].isnan().any() for r in rows)]
    assert (
        step == bad[0] + 1
        and checkpoint.step_checkpoints(tmp_path / "checkpoints")[-1].name == f"step-{bad[0] // 5 * 5:08d}"
    )


MIXED = ["triplet", "phi2star", "phi2", "phi_plus"]  # never a mean, always the mean, both


def beside(methods: list[str], config: LearnConfig, folder: Path, data: Bank | None = None) -> dict[str, float]:
    """Train predictors side by side, each in a folder of its name."""
    reader, context = StepReader(data or bank(Context()), 0), Context()
    tasks = {folder / name: PredictorTraining(name, reader, config, context) for name in methods}
    return train(tasks, {}, StopFlag(context))


def same(one: Path, other: Path) -> None:
    """Check that two trainings have the same bits and the same metrics."""
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), (one, name)
    rows = [reproducible(read_metrics(folder / "metrics.jsonl")) for folder in (one, other)]
    for row in (*rows[0], *rows[1]):
        row.pop("progress/steps")  # of a start that was cut short
    assert rows[0] == rows[1] and len(rows[0]) > 2


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of predictors that were trained one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    for name in MIXED:
        learn(name, CONFIG, folder / name)
    return folder


def test_predictors_side_by_side_learn_what_each_learns_alone(alone: Path, tmp_path: Path) -> None:
    assert list(beside(MIXED, CONFIG, tmp_path)) == MIXED
    for name in MIXED:
        same(alone / name, tmp_path / name)


@pytest.mark.parametrize(("kind", "wanted"), [(torch.bfloat16, "bf16"), (torch.float32, "fp32")], ids=str)
def test_auto_is_settled_by_the_device_and_kept(
    kind: torch.dtype, wanted: str, whole_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(precision: Precision | Literal["auto"], redo: bool = False) -> None:
        options = replace(whole_run.config.learn, steps=2, methods=["phi1"], precision=precision)
        config = replace(whole_run.config, name="copy", runs=tmp_path, learn=options)
        learn_stage(replace(whole_run, config=config), Context(), StopFlag(Context()), redo)

    def recorded() -> str:
        return str(json.loads((tmp_path / "copy" / "learn" / "inputs.json").read_text())["learn.precision"])

    shutil.copytree(whole_run.dir, tmp_path / "copy", ignore=shutil.ignore_patterns("learn", "evaluate"))
    monkeypatch.setattr(precisions, "fastest_type", lambda device: kind)
    monkeypatch.setattr(precisions, "cpu_has", lambda _: True)
    start("auto")
    assert recorded() == wanted
    assert json.loads((tmp_path / "copy" / "learn" / "done.json").read_text())["precision"] == wanted
    monkeypatch.setattr(precisions, "fastest_type", lambda device: {"bf16": torch.float32}.get(wanted, torch.bfloat16))
    start("auto")  # on another machine
    assert recorded() == wanted
    start("auto", redo=True)
    assert recorded() != wanted


def test_rows_are_read_once_for_all_predictors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []
    gather = StepReader._gather
    monkeypatch.setattr(StepReader, "_gather", lambda self, *drawn: (gathered.append(1), gather(self, *drawn))[1])
    beside(MIXED, CONFIG, tmp_path)
    assert len(gathered) == CONFIG.steps


def test_trainings_that_are_apart_meet_again(alone: Path, tmp_path: Path) -> None:
    """As after a kill between two checkpoints, and with a method that is new."""
    for name, steps in (("triplet", 21), ("phi2", 11)):
        learn(name, replace(CONFIG, steps=steps), tmp_path / name)
        shutil.rmtree(tmp_path / name / "final")  # the newest checkpoint is that of step 20, of step 10
    beside(MIXED, CONFIG, tmp_path)
    for name in MIXED:
        same(alone / name, tmp_path / name)


def test_a_predictor_that_diverges_leaves_the_others_saved(alone: Path, tmp_path: Path) -> None:
    data = bank(Context())
    chance, support, query = (d[:20] for d in data.draw(0, 0))
    shown_to_phi2 = torch.cat([query.flatten(), support[chance >= CONFIG.p_mean]])
    data.train[next(row for row in support.flatten() if row not in shown_to_phi2)] = float("nan")
    with pytest.raises(UserError, match="learn triplet: loss or weights are not finite at step"):
        beside(["phi2", "triplet"], replace(CONFIG, checkpoint_every=100), tmp_path, data)
    (saved,) = checkpoint.step_checkpoints(tmp_path / "phi2" / "checkpoints")
    assert saved.name in ("step-00000010", "step-00000020") and not (tmp_path / "triplet" / "final").exists()
    beside(["phi2"], CONFIG, tmp_path)
    for name, value in weights(alone / "phi2").items():
        assert torch.equal(value, weights(tmp_path / "phi2")[name]), name


def test_a_stop_saves_all_predictors_at_the_same_step(alone: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=100)
    reader, context = StepReader(bank(Context()), 0), Context()
    tasks = {tmp_path / name: PredictorTraining(name, reader, config, context) for name in MIXED}
    stop = StopFlag(context)
    stop.reason = "a test"
    with pytest.raises(Stopped, match="saved at step 64 of 100"):
        train(tasks, {}, stop)
    for name in MIXED:
        assert checkpoint.step_checkpoints(tmp_path / name / "checkpoints")[-1].name == "step-00000064"


def test_the_first_numbers_come_early(tmp_path: Path) -> None:
    learn("phi1", replace(CONFIG, steps=120, log_every=60, checkpoint_every=60), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10, 60, 100, 120]


def by_list(model: RowPredictor, statistics: torch.Tensor, single: torch.Tensor) -> torch.Tensor:
    """Return rows where ``single`` is a list of classes, and nothing is computed for the other classes."""
    if isinstance(model, Attention) and len(single):
        rows = F.normalize(model.rows, dim=1)
        made = torch.stack([F.normalize(others(model, statistics[y], single), dim=0) for y in single.tolist()])
        return rows.index_copy(0, single, made)
    if isinstance(model, PhiPlus):
        return F.normalize(model.rows, dim=1).index_copy(0, single, model.novel(statistics[single]))
    if isinstance(model, ToMean):
        length = statistics[single].norm(dim=1, keepdim=True)
        statistics = statistics.index_copy(0, single, model.to_mean(statistics[single]).detach() * length)
    return model(statistics, torch.zeros(len(statistics), dtype=torch.bool))


def others(model: Attention, support: torch.Tensor, single: torch.Tensor) -> torch.Tensor:
    """Return the row of a class by attention to the classes that are not ``single``."""
    kept = [y for y in range(len(model.rows)) if y not in single.tolist()]
    unit = F.normalize(support, dim=0)
    heights = model.attention_scale * F.normalize(model.keys[kept], dim=1) @ F.normalize(model.phi_q(unit), dim=0)
    return model.phi_avg * unit + model.phi_att * (heights.softmax(0) @ F.normalize(model.rows[kept], dim=1))


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("single", [[], [4], [0, 2, 3, 6]], ids=str)
def test_a_mask_of_single_images_equals_a_list_of_them(method: str, single: list[int]) -> None:
    """Compare loss and gradients with those of computing each class on its own."""
    torch.manual_seed(0)
    data = bank(Context())
    head, options = torch.randn(7, 12), replace(CONFIG, identity_init=False)
    statistics, queries, labels = torch.rand(7, 12), torch.rand(7, 12), torch.arange(7)
    found = []
    for listed in (False, True):
        torch.manual_seed(1)
        model = LEARNED[method].build(method, data.means, head, options)
        if listed and method != "triplet":
            loss = F.cross_entropy(
                model.query(queries) @ by_list(model, statistics, torch.tensor(single, dtype=torch.int64)).T,
                labels,
                reduction="sum",
            )
            if isinstance(model, ToMean):
                loss = loss + (model.to_mean(queries) - F.normalize(data.means, dim=1)).square().sum()
        else:
            loss = model.loss(queries, labels, statistics, torch.isin(labels, torch.tensor(single)))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", LEARNED)
def test_a_cuda_graph_learns_the_same_as_single_launches(method: str, precision: Precision, tmp_path: Path) -> None:
    context = Context(device=torch.device("cuda", 0))
    data = bank(context)
    config = replace(CONFIG, precision=precision, schedule="release", p_mean=0.5)
    for graph in (False, True):
        options = replace(config, cuda_graph=graph)
        learn(method, options, tmp_path / f"{graph}", data=data, context=context)
    part = tmp_path / "part"  # resumed with a new recording, also over a checkpoint made without a graph
    for graph, steps in ((True, 11), (False, 21), (True, 30)):
        options = replace(config, cuda_graph=graph, steps=30 if steps == 30 else steps, schedule="constant")
        learn(method, options, part, data=data, context=context)
    constant = replace(config, schedule="constant")
    learn(method, constant, tmp_path / "constant", data=data, context=context)
    for one, other in (("False", "True"), ("constant", "part")):
        for name, value in weights(tmp_path / one).items():
            assert torch.allclose(value, weights(tmp_path / other)[name], rtol=1e-4, atol=1e-6), (one, name)
        losses = [[r["train/loss"] for r in read_metrics(tmp_path / n / "metrics.jsonl")] for n in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_any_number_of_ranks_learns_the_same(tmp_path: Path, torchrun) -> None:  # type: ignore[no-untyped-def]
    learn("phi2", CONFIG, tmp_path / "one")
    torchrun(3, __file__, str(tmp_path / "three"))
    for name, value in weights(tmp_path / "one").items():
        assert torch.allclose(value, weights(tmp_path / "three")[name], atol=1e-5), name
    losses = [[r["train/loss"] for r in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("one", "three")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert json.loads((tmp_path / "three" / "final" / "state.json").read_text())["method"] == "phi2"


if __name__ == "__main__":  # a rank of the test above
    with contexts.start() as me:
        learn("phi2", CONFIG, Path(sys.argv[1]), context=me)
