"""NN + cosine over every stored activation (paper, section 4.1): a class scores as its nearest image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from dist_train.fewshot.methods import Prepared

_QUERIES = 8192  # at a time, so that memory stays bounded at 50,000 queries


class NearestNeighbour:
    def __init__(self, prepared: Prepared) -> None:
        self.train = prepared.train

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(queries, dim=1)
        scores = queries.new_empty(len(queries), len(self.train.offsets) - 1)
        for label, (first, last) in enumerate(zip(self.train.offsets[:-1], self.train.offsets[1:], strict=True)):
            rows = torch.from_numpy(self.train.rows[first:last]).to(queries.device).float()
            rows = F.normalize(rows, dim=1)
            for start in range(0, len(unit), _QUERIES):
                part = slice(start, start + _QUERIES)
                scores[part, label] = (unit[part] @ rows.T).amax(1)
        return scores

    def novel_scores(self, queries: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(support, dim=2).flatten(0, 1)
        return (F.normalize(queries, dim=1) @ unit.T).unflatten(1, support.shape[:2]).amax(2)
