"""The numbers behind the report's pictures, against slow and obvious ways to the same."""

from __future__ import annotations

import csv
import io
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dist_train.data.shards.index import ShardSet
from dist_train.fewshot.method import Method, Scorer
from dist_train.report import class_vectors, examples, per_class
from dist_train.report.per_class import ClassList

LISTED = ClassList(("n0", "n1", "n2", "n3"), ("cat", "crane, bird", 'the "dog"', "emu"), base=2)
COUNTS = np.array([[6, 1, 3, 0], [0, 10, 0, 0], [5, 2, 2, 1], [0, 4, 4, 2]], np.int32)


def rows(classes: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(classes, channels).astype(np.float32)


def test_channel_impact() -> None:
    made = rows(5, 8)
    found = class_vectors.channel_impact({"trained": made})
    impact = [sum(abs(row[c]) / np.sqrt(sum(row**2)) for row in made) / 5 for c in range(8)]
    assert found["trained"]["sorted"] == pytest.approx(sorted(impact, reverse=True), abs=1e-6)
    assert found["trained"]["mean"] == pytest.approx(np.mean(impact), abs=1e-6)
    assert found["trained"]["std"] == pytest.approx(np.std(impact), abs=1e-6)
    assert found["paper"] == {"mean": 0.0213, "std": 0.00583, "scaled": 0.9639}
    # One channel each: the mean is 1/C, whatever the length of a row.
    assert class_vectors.channel_impact({"": 7 * np.eye(4)})[""]["scaled"] == pytest.approx(0.25 * 2)


def test_diagonal_against_the_papers_range() -> None:
    weight = np.array([[0.9, 0.2, -0.1], [0.0, 0.744, 0.3], [0.0, 0.0, 1.1]])
    found = class_vectors.diagonal(weight)
    assert found["sorted"] == [1.1, 0.9, 0.744] and found["inside"] == pytest.approx(66.67)
    assert found["rest"] == pytest.approx(0.6 / 6)


def test_maps_show_the_neighbourhoods_that_there_are() -> None:
    """Three tight groups of four classes: a class's nearest in the map are those of its group."""
    centres = np.eye(3, 16).repeat(4, axis=0) * 10
    vectors = {"means": centres + 0.1 * rows(12, 16), "rows": 3 * centres + 0.1 * rows(12, 16, 1)}
    wnids = [f"n{n}" for n in range(12)]
    found = class_vectors.class_maps(vectors, wnids, wnids, ["a"] * 12)
    assert found == class_vectors.class_maps(vectors, wnids, wnids, ["a"] * 12)  # a fixed seed
    assert found["classes"][3] == {"wnid": "n3", "name": "n3", "group": "a"}
    for places in map(np.array, found["maps"].values()):
        distances = np.linalg.norm(places[:, None] - places[None], axis=2)
        for n in range(12):
            assert {m // 4 for m in np.argsort(distances[n])[:4]} == {n // 4}


def test_shares_of_common_neighbours() -> None:
    made = rows(14, 6)
    other = made[:, ::-1] + 0.5 * rows(14, 6, 1)
    found = class_vectors.class_maps({"a": made, "b": made * 3, "c": other}, *3 * [[str(n) for n in range(14)]])

    def nearest(some: np.ndarray, n: int) -> set[int]:
        cosines = {
            m: some[n] @ some[m] / np.linalg.norm(some[n]) / np.linalg.norm(some[m]) for m in range(14) if m != n
        }
        return set(sorted(cosines, key=lambda m: -cosines[m])[:10])

    share = np.mean([len(nearest(made, n) & nearest(other, n)) / 10 for n in range(14)])
    assert found["neighbours"] == {"a": 100.0, "b": 100.0, "c": pytest.approx(100 * share, abs=0.01)}


@pytest.mark.parametrize("count", [1, 4, 5, 6])
def test_few_classes_have_a_map_or_none(count: int) -> None:
    names = [str(n) for n in range(count)]
    assert bool(class_vectors.class_maps({"a": rows(count, 3)}, names, names, names)) == (count >= 5)


def test_per_class() -> None:
    found = per_class.per_class(COUNTS, LISTED)
    assert [row["top1"] for row in found] == [60.0, 100.0, 20.0, 20.0]
    assert [row["other_role"] for row in found] == [30.0, 0.0, 70.0, 40.0]
    assert [row["taken_for"] for row in found] == ['the "dog"', "", "cat", "crane, bird"]
    assert [row["taken_for_share"] for row in found] == [30.0, 0.0, 50.0, 40.0]
    assert [row["role"] for row in found] == ["base", "base", "novel", "novel"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=16, max_size=16))
def test_confusions_are_the_largest_off_the_diagonal(values: list[int]) -> None:
    counts = np.array(values, np.int32).reshape(4, 4)
    found = per_class.confusions(counts, LISTED, most=3)
    for role, part in (("base", (0, 1)), ("novel", (2, 3))):
        pairs = [
            (100 * counts[t, a] / counts[t].sum(), t, a) for t, a in product(part, range(4)) if t != a and counts[t, a]
        ]
        pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
        expected = [(LISTED.names[t], LISTED.names[a], LISTED.role(a), round(s, 2)) for s, t, a in pairs[:3]]
        assert [(c["truth"], c["answer"], c["answer_role"], c["share"]) for c in found[role]] == expected


def test_csv_reads_back() -> None:
    text = per_class.csv_text([("phi2", "1", per_class.per_class(COUNTS, LISTED))])
    found = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in found] == list(LISTED.names) and {row["method"] for row in found} == {"phi2"}
    assert found[2]["taken_for_share"] == "50.0" and found[3]["taken_for"] == "crane, bird"


def test_examples_go_from_the_best_to_the_worst() -> None:
    top1 = [5.0, 90.0, 40.0, 40.0, 0.0, 70.0]
    assert examples.choose(top1, 3) == [1, 2, 4]
    assert examples.choose(top1) == [1, 5, 2, 3, 0, 4] and examples.choose([1.0]) == [0]


class Fixed(Method):
    """Scores that are the query's own numbers; of novel classes the support's first number more."""

    labels = {"fixed": "Fixed"}  # noqa: RUF012

    def __init__(self, moves: bool) -> None:
        self.moves_base = moves  # type: ignore[misc]

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return queries[:, :2]

    def take(self, support: torch.Tensor) -> Scorer:
        novel = support[:, 0, 0]
        if self.moves_base:
            return lambda queries: torch.cat([queries[:, :2], queries[:, 2:] + novel], dim=1)
        return lambda queries: queries[:, 2:] + novel


@pytest.mark.parametrize("moves", [False, True])
def test_answers_rank_all_classes_together(moves: bool) -> None:
    queries = torch.tensor([[[4.0, 1, 0, 3], [0, 0, 2, 2]]])
    order = examples.answers(Fixed(moves), torch.tensor([[[0.5]], [[2.0]]]), queries, [0, 1])
    assert order.tolist() == [[[3, 0, 1, 2], [3, 2, 0, 1]]]
    without = examples.answers(Fixed(moves), torch.tensor([[[0.5]], [[2.0]]]), queries, [1])
    assert without.tolist() == [[[2, 0, 1], [2, 1, 0]]]  # where the first base class is not scored
    found = examples.example(LISTED, 2, 20.0, ["a"], ["b", "c"], order[0])
    assert found["name"] == 'the "dog"' and found["supports"] == ["a"]
    assert found["queries"] == [{"image": "b", "answer": "emu", "rank": 4}, {"image": "c", "answer": "emu", "rank": 2}]


def test_thumbnails_are_the_images_of_the_ids_and_small(shards: ShardSet) -> None:
    subset = shards["train"]
    found = examples.thumbnails(subset, np.array([7, 3]))
    for sample, uri in zip((7, 3), found, strict=True):
        with Image.open(io.BytesIO(_decoded(uri))) as small:
            assert small.size == (88, 88) and small.format == "JPEG" and len(uri) < 12_000
            row = subset.samples[sample]
            with subset.path(int(row["shard"])).open("rb") as file:
                file.seek(int(row["offset"]))
                full = Image.open(io.BytesIO(file.read(int(row["size"])))).convert("RGB").resize((88, 88))
            assert np.abs(np.asarray(small, float) - np.asarray(full, float)).mean() < 12


def test_what_is_no_image_leaves_a_gap() -> None:
    assert examples.thumbnail(b"\xff\xd8 not an image", 1) == "" and examples.thumbnail(b"", 1) == ""


def _decoded(uri: str) -> bytes:
    import base64

    return base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
