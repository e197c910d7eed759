"""The window between two log lines: its sums across a checkpoint, and the watch for losses that are not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dist_train.distributed.context import Context
from dist_train.training.window import NonFinite, Window, check_weights

CPU = torch.device("cpu")


def test_a_window_continues_where_a_checkpoint_left_it() -> None:
    window = Window(2, CPU)
    assert window.state(Context()) is None  # right after a log line
    for step, loss in enumerate((1.0, 2.5), 1):
        window.add(step, torch.tensor(loss), torch.tensor([loss, 10 * loss]))
        window.end_step(0.5)
    resumed = Window(2, CPU)
    resumed.load_state(window.state(Context()), 2, Context())
    resumed.add(3, torch.tensor(0.5), torch.tensor([0.5, 5.0]))
    resumed.end_step(0.25)
    assert resumed.total(Context()) == [4.0, 40.0] and resumed.steps == 3
    assert resumed.steps_per_second == 4  # of the step that this process has made


@pytest.mark.parametrize("saved", [{"steps": 3, "sums": [[1.0], [2.0]]}, [7, [1.0, 2.0]]], ids=["now", "before 0.2"])
@pytest.mark.parametrize(("rank", "world", "own"), [(0, 2, 1.0), (1, 2, 2.0), (0, 1, 3.0), (0, 3, 3.0), (2, 3, 0.0)])
def test_sums_of_other_ranks_are_rank_0s(saved: Any, rank: int, world: int, own: float) -> None:
    window = Window(1, CPU)
    window.load_state(saved, 10, Context(rank, world))
    assert window.steps == 3 and window.sums.tolist() == [own]


def test_the_first_step_whose_loss_is_not_finite_is_named() -> None:
    window = Window(1, CPU)
    for step, loss in enumerate((1.0, float("inf"), 2.0, float("nan")), 5):
        window.add(step, torch.tensor(loss), torch.tensor(loss))
        window.end_step(1.0)
    with pytest.raises(NonFinite) as raised:
        window.state(Context())
    assert raised.value.step == 6


def test_weights_that_are_not_finite_are_refused() -> None:
    check_weights({"w": torch.ones(2), "count": torch.tensor(3)}, 4)
    with pytest.raises(NonFinite):
        check_weights({"w": torch.tensor([1.0, float("nan")]), "count": torch.tensor(3)}, 4)
