import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.data.loading.order import Order, permutation, rank_slice
from dist_train.errors import UserError

samples = st.integers(1, 200)
seeds = st.integers(0, 2**31)


def stream(order: Order, batches: int) -> list[tuple[int, int]]:
    pairs = [order.batch(b) for b in range(batches)]
    return [(int(e), int(p)) for positions, epochs in pairs for p, e in zip(positions, epochs, strict=True)]


@settings(max_examples=60, deadline=None)
@given(samples, st.integers(1, 50), seeds)
def test_every_sample_comes_once_an_epoch(n: int, batch: int, seed: int) -> None:
    batch = min(batch, n)
    seen = stream(Order(n, batch, seed), 3 * n // batch + 1)
    for epoch in range(2):
        assert sorted(p for e, p in seen if e == epoch) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(samples, st.integers(1, 8), st.integers(1, 6), seeds, st.integers(0, 30))
def test_ranks_share_a_batch_without_changing_it(n: int, world: int, per_rank: int, seed: int, number: int) -> None:
    batch = world * per_rank
    if batch > n:
        return
    positions, _ = Order(n, batch, seed).batch(number)
    parts = [rank_slice(positions, r, world) for r in range(world)]
    assert {len(p) for p in parts} == {per_rank}
    assert sorted(np.concatenate(parts)) == sorted(positions)


@settings(max_examples=60, deadline=None)
@given(samples, st.integers(1, 50), seeds, st.integers(0, 40))
def test_any_resume_point_gives_the_same_batch(n: int, batch: int, seed: int, number: int) -> None:
    batch = min(batch, n)
    run_through = [Order(n, batch, seed).batch(b) for b in range(number + 1)][-1]
    resumed = Order(n, batch, seed).batch(number)
    assert all(np.array_equal(a, b) for a, b in zip(run_through, resumed, strict=True))


def test_epochs_and_seeds_differ_and_the_stream_is_frozen() -> None:
    assert not np.array_equal(permutation(50, 0, 0), permutation(50, 0, 1))
    assert not np.array_equal(permutation(50, 0, 0), permutation(50, 1, 0))
    assert permutation(8, 0, 0).tolist() == FROZEN


FROZEN = [3, 7, 4, 0, 2, 6, 5, 1]


def test_epoch_ends_and_steps() -> None:
    order = Order(10, 4, 0)
    assert [b for b in range(10) if order.ends_epoch(b)] == [2, 4, 7, 9]
    assert order.steps(2) == 5


def test_too_few_images_and_uneven_ranks_are_named() -> None:
    with pytest.raises(UserError, match=r"global_batch=64.*only 10 training images"):
        Order(10, 64, 0)
    with pytest.raises(UserError, match="10 images do not divide into 3 ranks"):
        rank_slice(np.arange(10), 0, 3)


def test_a_batch_is_the_next_piece_of_the_permutation() -> None:
    order = Order(10, 4, 7)
    expected = [*permutation(10, 7, 0), *permutation(10, 7, 1)]
    assert [int(p) for b in range(5) for p in order.batch(b)[0]] == expected
