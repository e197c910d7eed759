"""Weight imprinting (Qi, Brown & Lowe 2018): the backbone's own classifier, by cosine, and for a novel class
the mean of its unit supports as one more row."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F

from dist_train.fewshot.method import COSINE, Base, Method, Scorer, cosine


class Imprinting(Method):
    """Their backbone is trained with a cosine classifier; ours is not, its rows are only read as one."""

    labels: ClassVar = {"imprint": "Weight imprinting"}
    scale: ClassVar = COSINE

    def __init__(self, name: str, base: Base) -> None:
        self.rows = base.rows

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return cosine(queries, self.rows)

    def take(self, support: torch.Tensor) -> Scorer:
        return partial(cosine, rows=F.normalize(support, dim=2).mean(1))
