"""Maps of classes, channel impact and the diagonal of φ1, against slow and obvious ways to the same."""

from __future__ import annotations

import numpy as np
import pytest

from dist_train.report.class_vectors import PAPER_IMPACT, channel_impact, diagonal, map_classes


def random_rows(classes: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(classes, channels).astype(np.float32)


def test_channel_impact() -> None:
    rows = random_rows(5, 8)
    result = channel_impact(rows)
    impact = [sum(abs(row[c]) / np.sqrt(sum(row**2)) for row in rows) / 5 for c in range(8)]
    assert result.sorted == pytest.approx(sorted(impact, reverse=True), abs=1e-6)
    assert result.mean == pytest.approx(np.mean(impact), abs=1e-6)
    assert result.std == pytest.approx(np.std(impact), abs=1e-6)
    # The unit vectors: the mean is 1/C, whatever their length was.
    assert channel_impact(7 * np.eye(4)).scaled == pytest.approx(0.25 * 2)
    assert PAPER_IMPACT.to_json() == {"mean": 0.0213, "std": 0.00583, "scaled": 0.9639}


def test_diagonal_against_the_papers_range() -> None:
    result = diagonal(np.array([[0.9, 0.2, -0.1], [0.0, 0.744, 0.3], [0.0, 0.0, 1.1]]))
    assert result.sorted == [1.1, 0.9, 0.744] and result.inside == pytest.approx(66.67)
    assert result.rest == pytest.approx(0.6 / 6)


def test_maps_keep_neighbourhoods() -> None:
    """Three tight groups of four classes: a class's nearest in the map are those of its group."""
    centres = np.eye(3, 16).repeat(4, axis=0) * 10
    vectors = {"means": centres + 0.1 * random_rows(12, 16), "rows": 3 * centres + 0.1 * random_rows(12, 16, 1)}
    wnids = [f"n{n}" for n in range(12)]
    maps = map_classes(vectors, wnids, wnids, ["a"] * 12)
    assert maps is not None and maps == map_classes(vectors, wnids, wnids, ["a"] * 12)  # a fixed seed
    assert maps.to_json()["classes"][3] == {"wnid": "n3", "name": "n3", "group": "a"}
    for places in map(np.array, maps.maps.values()):
        distances = np.linalg.norm(places[:, None] - places[None], axis=2)
        for n in range(12):
            assert {m // 4 for m in np.argsort(distances[n])[:4]} == {n // 4}


def test_shares_of_common_neighbours() -> None:
    first = random_rows(14, 6)
    other = first[:, ::-1] + 0.5 * random_rows(14, 6, 1)
    names = [str(n) for n in range(14)]
    maps = map_classes({"a": first, "b": first * 3, "c": other}, names, names, names)

    def nearest(rows: np.ndarray, n: int) -> set[int]:
        cosines = {
            m: rows[n] @ rows[m] / np.linalg.norm(rows[n]) / np.linalg.norm(rows[m]) for m in range(14) if m != n
        }
        return set(sorted(cosines, key=lambda m: -cosines[m])[:10])

    share = np.mean([len(nearest(first, n) & nearest(other, n)) / 10 for n in range(14)])
    assert maps is not None
    assert maps.neighbours == {"a": 100.0, "b": 100.0, "c": pytest.approx(100 * share, abs=0.01)}


@pytest.mark.parametrize("count", [1, 4, 5, 6])
def test_fewer_than_five_classes_have_no_map(count: int) -> None:
    names = [str(n) for n in range(count)]
    assert (map_classes({"a": random_rows(count, 3)}, names, names, names) is not None) == (count >= 5)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_rows_that_are_all_the_same_have_the_same_place(value: float) -> None:
    names = [str(n) for n in range(6)]
    maps = map_classes({"a": np.full((6, 3), value, np.float32)}, names, names, names)
    assert maps is not None and maps.maps == {"a": [[0.0, 0.0]] * 6}
