"""Episodes: a few novel classes alone, as on MiniImageNet (Vinyals et al. 2016; Ravi & Larochelle 2017).

An episode draws ``ways`` novel classes and puts the training images of each in a drawn order. The first k are the
supports; queries are other images of the same classes; only these classes compete.

Two ways to score one (``evaluate.protocol``):

- ``episodes``: the next ``queries`` images after the largest number of shots, the same for every k; no image is
  both. Reported with a 95% interval of the mean over episodes.
- ``released``: as the authors' MiniImageNet code does it (few_shot/miniImageNetEval.lua). All other images are
  queries: after the support for 1 shot, but from the last of the k supports on for more, so that one support a
  class is a query too. phi takes the mean of the supports (``evaluate.rule=mean``). What the code prints beside the
  mean is the standard deviation over episodes. Its shuffle exchanges the first five images with any of the class;
  ours draws a whole new order, which comes to the same but for a bias of the order of 1/600.
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
    """Classes of an episode and their images in order: a list of int64 [images of the class], rows of the table.

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
        images: from ``draw_episode``.
        most: the largest of ``evaluate.shots``.
        queries: of one class; ``released`` takes all.
    """
    first, last = most, most + queries
    if released:
        first, last = (1 if shots == 1 else shots - 1), None
    return np.stack([rows[:shots] for rows in images]), [rows[first:last] for rows in images]


def accuracy(method: Method, support: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent of queries whose class scores highest of those in the episode; a tie goes to the class drawn first.
    Raises UserError where scores are not finite.

    Args:
        support: float32 [ways, k, C].
        queries, labels: float32 [Q, C] and int64 [Q], position of the class in the episode.
    """
    mixed = torch.from_numpy(np.random.RandomState(0).permutation(len(labels))).to(queries.device)  # not by class
    queries, labels = queries[mixed], labels[mixed]
    scores = method.take(support)(queries)[:, -len(support) :]  # base classes, where they come along, do not compete
    return 100 * (own_and_ahead(finite(scores), labels)[1] == 0).double().mean().item()
