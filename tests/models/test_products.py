"""Products are those of float64, whichever library computes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_train.models import products as module
from dist_train.models.products import products


class Called(TorchDispatchMode):
    """Record the names of what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


random = partial(torch.randn, generator=torch.Generator().manual_seed(0))
ROWS, BIAS = random(301, 200), random(301)
QUERIES = {
    "matrix": random(400, 200),
    "of three axes": random(20, 20, 200),
    "transposed": random(200, 400).T,
    "columns": random(400, 500)[:, 100:300],
    "every second": random(800, 200)[::2],
}


@pytest.mark.parametrize("queries", QUERIES.values(), ids=QUERIES)
@pytest.mark.parametrize("bias", [None, BIAS], ids=["alone", "with a bias"])
@pytest.mark.parametrize("onednn", [False, True])
def test_products_are_those_of_float64(
    queries: torch.Tensor, bias: torch.Tensor | None, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "onednn_is_faster", lambda: onednn and torch.backends.mkldnn.is_available())
    wanted = queries.double() @ ROWS.double().T + (0 if bias is None else bias.double())
    with Called() as called:
        found = products(queries, ROWS, bias)
    assert found.dtype == torch.float32 and torch.allclose(found.double(), wanted, atol=2e-4, rtol=0)
    assert ("mkldnn_linear" in called.names) == (onednn and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize(
    "change", [torch.Tensor.double, lambda rows: rows[:, :7], lambda rows: rows.clone().requires_grad_()],
    ids=["float64", "small", "with a gradient"],
)  # fmt: skip
def test_other_products_are_those_of_pytorch(
    change: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    queries, rows = change(QUERIES["matrix"]), change(ROWS)
    with Called() as called:
        found = products(queries, rows)
    assert torch.equal(found, queries @ rows.T) and "mkldnn_linear" not in called.names
    assert found.requires_grad == rows.requires_grad


@pytest.mark.parametrize("bias", [None, BIAS], ids=["alone", "with a bias"])
@pytest.mark.parametrize("name", QUERIES)
def test_parts_of_the_queries_give_what_all_give_at_once(
    name: str, bias: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "onednn_is_faster", torch.backends.mkldnn.is_available)
    whole = products(QUERIES[name], ROWS, bias)
    for numbers in (1, 7 * 200 + 1, 400 * 200 - 1):  # a query each, and the last part is smaller
        monkeypatch.setattr(module, "_COPIED", numbers)
        parts = products(QUERIES[name], ROWS, bias)
        assert parts.shape == whole.shape and torch.allclose(parts, whole, atol=1e-4, rtol=0)


def test_a_query_has_the_same_products_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks share queries; a table must not depend on how many there are."""
    monkeypatch.setattr(module, "_LEAST", 0)
    queries = QUERIES["matrix"]
    assert torch.equal(products(queries, ROWS)[1::2], products(queries[1::2], ROWS))
