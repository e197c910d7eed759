"""Class mean + cosine of centred activations (``Centring``, which names the sources).

As ``ncm_cosine`` of ``few_shot_eval.py`` of ybendou/easy (Bendou et al. 2022). ``eval_few_shot`` there takes ``ncm``,
the Euclidean distance to a mean at its own length.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from dist_train.fewshot.calibration import NUMBERS
from dist_train.fewshot.head import POWER, Head, centred_moments
from dist_train.fewshot.method import COSINE, Base, Scorer, Support, cosine, once


class CentredMean(Head):
    labels: ClassVar = {"centred": "Class mean + cosine, centred"}
    scale: ClassVar = COSINE
    numbers: ClassVar = {**NUMBERS, **POWER}

    def __init__(self, name: str, base: Base) -> None:
        super().__init__(name, base)
        self.centring, moments = centred_moments(base, base.numbers["head_power"])
        self.means = moments.means.float()
        self.of_queries = once(self.centring)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return cosine(self.of_queries(queries), self.means)

    def novel_scores(self, support: Support) -> Scorer:
        means = self.centring(support).mean(1)
        return lambda queries: cosine(self.of_queries(queries), means)
