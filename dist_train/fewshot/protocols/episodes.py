"""Episodes: a few novel classes alone, as on MiniImageNet (Vinyals et al. 2016; Ravi & Larochelle 2017).

An episode draws ``ways`` novel classes, and a random order of each class's training images. The first k images are
the supports; queries are other images of the same classes; only these classes compete.

``evaluate.protocol`` offers two ways to score an episode:

- ``episodes``: the queries are the ``queries`` images that follow the largest number of shots, the same for every k, so
  that no image is both support and query. The result is the mean over episodes with its 95% interval.
- ``released``: as in the authors' MiniImageNet code (few_shot/miniImageNetEval.lua). For 1 shot, all images after the
  support are queries; for more, all images from the last of the k supports on, so that one support of each class is a
  query too. phi takes the mean of the supports (``evaluate.rule=mean``). The code prints the standard deviation over
  episodes beside the mean. Its shuffle swaps the first five images with random images of the class; ours draws a
  complete order, which differs by a bias of the order of 1/600.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from dist_train.fewshot.method import Method
from dist_train.fewshot.protocols.joint import finite, own_and_ahead

Rows = npt.NDArray[np.int64]


def draw_episode(offsets: Rows, ways: int, seed: int, number: int) -> list[Rows]:
    """Draw the classes of an episode and the order of their images: a list of int64 [images of the class], table rows.

    Args:
        offsets: int64 [novel classes + 1], as in ``Activations``.
    """
    drawn = np.random.RandomState([seed, number]).permutation(len(offsets) - 1)[:ways]
    counts = np.diff(offsets)
    return [offsets[c] + np.random.RandomState([seed, number, c]).permutation(counts[c]) for c in drawn.tolist()]


def supports_and_queries(
    images: Sequence[Rows], shots: int, most: int, queries: int, released: bool
) -> tuple[Rows, list[Rows]]:
    """Return the supports [ways, shots] and the queries of each class.

    Args:
        images: what ``draw_episode`` returned.
        most: the largest of ``evaluate.shots``.
        queries: number of queries for each class; ``released`` ignores it and takes all.
    """
    query_slice = slice(most, most + queries)
    if released:
        query_slice = slice(1 if shots == 1 else shots - 1, None)
    return np.stack([rows[:shots] for rows in images]), [rows[query_slice] for rows in images]


def accuracy(method: Method, support: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the percentage of queries whose class has the highest score in the episode; a tie goes to the class drawn
    first.

    Args:
        support: float32 [ways, k, C].
        queries: float32 [Q, C].
        labels: int64 [Q], positions of the queries' classes in the episode.

    Raises:
        UserError: scores are not finite.
    """
    mixed = torch.from_numpy(np.random.RandomState(0).permutation(len(labels))).to(queries.device)  # not by class
    queries, labels = queries[mixed], labels[mixed]
    scores = method.take(support)(queries)[:, -len(support) :]  # scores of base classes are left out
    return 100 * (own_and_ahead(finite(scores), labels)[1] == 0).double().mean().item()
