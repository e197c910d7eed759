"""Cosine classifier with attention over base rows (Gidaris & Komodakis 2018, sections 3.1 and 3.2).

A novel row is ``phi_avg * mean of the unit supports + phi_att * mean of the supports' attended rows``. A support's
attended row is the average of the base classes' unit rows, weighted by a softmax of the scaled cosines between
``phi_q`` times the support and a key of each base class. Scores are scaled cosines.

It is trained as in their second stage, with base classes in the part of novel ones: the classes that a step represents
by one image get their rows in this way, attending to the other classes. Their backbone is trained with the cosine
classifier; ours is not, so the base rows start from the backbone's rows and are trained too.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config import LearnConfig
from dist_train.fewshot.row_method import RowMethod
from dist_train.models.predictor import RowClassifier


class Attention(RowClassifier):
    """Hold the parameters, with the initial values of their code (``phi_q`` the identity, scales 10, ``phi_avg`` and
    ``phi_att`` 1) and their decaying learning rate."""

    own: ClassVar = {"lr": 0.1, "schedule": "cosine"}

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        dim = rows.shape[1]
        self.rows = nn.Parameter(F.normalize(rows, dim=1))
        self.keys = nn.Parameter(F.normalize(rows, dim=1))
        self.phi_q = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.phi_q.weight)
        self.phi_avg, self.phi_att = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.scale, self.attention_scale = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(10.0))

    @classmethod
    def build(cls, name: str, means: torch.Tensor, rows: torch.Tensor, config: LearnConfig) -> Self:
        return cls(rows)

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        return self.scale * F.normalize(activations, dim=-1)

    def forward(self, statistics: torch.Tensor, single: torch.Tensor) -> torch.Tensor:
        rows = F.normalize(self.rows, dim=1)
        novel = F.normalize(self.novel(statistics, without=single), dim=1)
        return torch.where(single[:, None], novel.to(rows.dtype), rows)

    def novel(self, supports: torch.Tensor, without: torch.Tensor | None = None) -> torch.Tensor:
        """Return the rows [n, dim], not normalised, of supports [n, dim].

        Args:
            without: bool [base classes], true for classes that must not be attended to.
        """
        unit = F.normalize(supports, dim=1)
        logits = self.attention_scale * F.normalize(self.phi_q(unit), dim=1) @ F.normalize(self.keys, dim=1).T
        if without is not None:
            # Not minus infinity: where a step represents every class by one image, all get the same attention.
            logits = logits.masked_fill(without, torch.finfo(logits.dtype).min)
        attended = torch.softmax(logits.float(), dim=1) @ F.normalize(self.rows, dim=1)
        return self.phi_avg * unit + self.phi_att * attended

    def base_rows(self, means: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.rows, dim=1)

    def novel_rows(self, supports: torch.Tensor, rule: str) -> torch.Tensor:
        """Return one row for each class; ``rule`` has no effect."""
        rows = self.novel(supports.flatten(0, -2)).view_as(supports)
        return F.normalize(rows.mean(-2, keepdim=True), dim=-1)


class AttentionOverBase(RowMethod):
    network = Attention
    labels: ClassVar = {"attention": "Attention over base rows"}
    learns: ClassVar = {"attention": Attention}
