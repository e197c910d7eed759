"""Examples of novel classes: which, with which pictures, and with which answers."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from dist_train.data.shards.index import ShardSet
from dist_train.fewshot.method import Method, Scorer
from dist_train.report.examples import Query, example, rank_classes, spread_choice, thumbnail, thumbnails
from dist_train.report.per_class import ClassList

CLASSES = ClassList(("n0", "n1", "n2", "n3"), ("cat", "crane", "dog", "emu"), base=2)


def test_classes_are_chosen_from_the_best_to_the_worst() -> None:
    top1 = [5.0, 90.0, 40.0, 40.0, 0.0, 70.0]
    assert spread_choice(top1, 3) == [1, 2, 4]
    assert spread_choice(top1) == [1, 5, 2, 3, 0, 4] and spread_choice([1.0]) == [0]


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
def test_all_classes_are_ranked_together(moves: bool) -> None:
    queries = torch.tensor([[[4.0, 1, 0, 3], [0, 0, 2, 2]]])
    support = torch.tensor([[[0.5]], [[2.0]]])
    orders = rank_classes(Fixed(moves), support, queries, [0, 1])
    assert orders.tolist() == [[[3, 0, 1, 2], [3, 2, 0, 1]]]
    without_first = rank_classes(Fixed(moves), support, queries, [1])
    assert without_first.tolist() == [[[2, 0, 1], [2, 1, 0]]]
    dog = example(CLASSES, 2, 20.0, ["a"], ["b", "c"], orders[0])
    assert dog.name == "dog" and dog.supports == ["a"]
    assert dog.queries == [Query("b", "emu", 4), Query("c", "emu", 2)]


def test_thumbnails_are_the_images_of_the_ids_and_small(shards: ShardSet) -> None:
    subset = shards["train"]
    for sample, uri in zip((7, 3), thumbnails(subset, np.array([7, 3])), strict=True):
        encoded = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(encoded)) as small:
            assert small.size == (88, 88) and small.format == "JPEG" and len(uri) < 12_000
            row = subset.samples[sample]
            with subset.path(int(row["shard"])).open("rb") as file:
                file.seek(int(row["offset"]))
                full = Image.open(io.BytesIO(file.read(int(row["size"])))).convert("RGB").resize((88, 88))
            assert np.abs(np.asarray(small, float) - np.asarray(full, float)).mean() < 12


def test_an_image_that_cannot_be_decoded_leaves_a_gap() -> None:
    assert thumbnail(b"\xff\xd8 not an image", 1) == "" and thumbnail(b"", 1) == ""
