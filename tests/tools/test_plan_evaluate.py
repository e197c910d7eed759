"""tools/plan_evaluate.py counts what the rows compute, as PyTorch's own counter sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from dist_train.config import EvaluateConfig
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot.methods import FROZEN, METHODS
from dist_train.stages.scoring import JointScoring

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench_evaluate
import plan_evaluate
from plan_evaluate import ROWS, SHARED, Sizes

SIZES = Sizes(base=23, per_class=31, novel=7, novel_per_class=37, val_per_class=5, dim=16, draws=2, shots=(1, 3))


class Silent:
    def update(self, count: int) -> None:
        pass


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> JointScoring:
    steps = {"finetune_steps": 300.0, "linear_oracle_steps": 3000.0, "ranpac_features": 24.0, "ranpac_draws": 10.0}
    options = EvaluateConfig(methods=list(ROWS), shots=list(SIZES.shots), draws=SIZES.draws, options=steps)
    sizes = [SIZES.base, SIZES.per_class, SIZES.novel, SIZES.novel_per_class, SIZES.val_per_class, SIZES.dim]
    return JointScoring(bench_evaluate.make(tmp_path_factory.mktemp("run"), sizes, options), Context())


@pytest.mark.parametrize("name", [name for name in ROWS if name != "linear_oracle"])
def test_operations_are_those_that_pytorch_counts(
    name: str, scoring: JointScoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring.base.prepared.clear()  # each row pays for what it shares with others
    if name == "nn_oracle":
        scoring.score("nn", StopFlag(Context()), Silent())  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter:
        scoring.score(name, StopFlag(Context()), Silent())  # type: ignore[arg-type]
    monkeypatch.setattr(plan_evaluate, "LOOKED_AT_AGAIN", 7)
    monkeypatch.setattr(plan_evaluate, "FEATURES", 24)
    monkeypatch.setattr(plan_evaluate, "FEATURE_DRAWS", 10)
    works = [ROWS[name](SIZES), *(count(SIZES) for count, rows in SHARED.values() if name in rows)]
    counted, seen = sum(sum(work.flops.values()) for work in works), counter.get_total_flops()
    if METHODS[name].cost in METHODS[name].numbers:  # rows that are random get few of the images right
        assert seen <= counted < 2.5 * seen
    else:
        assert counted == pytest.approx(seen, rel=0.2)


def test_every_row_of_frozen_activations_is_counted() -> None:
    assert sorted(ROWS) == sorted(FROZEN)


def test_the_estimate_of_the_papers_size_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    plan_evaluate.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ROWS) + 6 and lines[-1].endswith("minutes (estimate)")
    plan_evaluate.main(["--draws", "40"])
    assert float(capsys.readouterr().out.split()[-3]) > float(lines[-1].split()[-3])
    plan_evaluate.main(["--methods", "mean", "plda"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("`")[1] for line in lines[2:5]] == ["mean", "plda", "plda"] and lines[-1].startswith("2 rows")
