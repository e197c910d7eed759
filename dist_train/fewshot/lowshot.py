"""Low-shot ImageNet (Hariharan & Girshick 2017) and its later measures (Wang et al. 2018).

"Novel" has two meanings in the papers: novel queries among all classes (Hariharan & Girshick; ``novel_top1``,
``novel_top5`` here) or among novel classes only (Wang et al., Gidaris & Komodakis; ``novel_only_*``). ``all_*``
counts base and novel queries together, by image.

``all_prior_*`` knows that 80% of the queries are novel. As in the code of Gidaris & Komodakis (2018), the softmax
over base classes is given the weight 0.2, that over novel classes 0.8:

    p(y|x) = 0.2 exp(s_y) / sum_base exp(s)  or  0.8 exp(s_y) / sum_novel exp(s)

Base and novel classes are then ranked together; a number that a method adds to all novel scores cancels. It takes
logits: a method's scores are multiplied by its ``scale``. Cosines, and the targets of ridge regression, have none of
their own; ours are multiplied by 10 (``COSINE``), and with another number their row would differ. All other measures
depend on the order of scores only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from dist_train.fewshot import paper
from dist_train.fewshot.protocol import JointScorer, own_and_ahead
from dist_train.fewshot.table import head, line, mean, name_of

PRIOR = 0.8
"""Probability of a novel class (the default of Gidaris & Komodakis' evaluation)."""
MEASURES = {
    "novel": "novel, joint",
    "novel_only": "novel-only",
    "base": "base, joint",
    "all": "all",
    "all_prior": "all with prior",
}


class LowShotScorer(JointScorer):
    """Joint scoring, and the measures above."""

    def _use(self, base: torch.Tensor, novel: torch.Tensor) -> None:
        super()._use(base, novel)
        self._base_mass = [self._mass(scores) for scores in (base, novel)]

    def _mass(self, scores: torch.Tensor) -> torch.Tensor:
        """log sum exp of the logits [Q, 1], in the unit of the scores."""
        return (scores * self.method.scale).logsumexp(1, keepdim=True) / self.method.scale

    def more(self, novel: torch.Tensor, scores: torch.Tensor) -> dict[str, float]:
        # The two softmaxes compete as one where a number is added to a query's novel scores.
        odds = math.log(PRIOR / (1 - PRIOR)) / self.method.scale
        shifted = [
            part + (mass - self._mass(part) + odds) for part, mass in zip((novel, scores), self._base_mass, strict=True)
        ]
        ranks = {
            "novel_only": own_and_ahead(scores, self.novel.labels)[1],
            "all": torch.cat(self.ranks(novel, scores)),
            "all_prior": torch.cat(self.ranks(*shifted)),
        }
        return {
            f"{name}_top{k}": 100 * (rank < k).double().mean().item() for name, rank in ranks.items() for k in (1, 5)
        }


def published(results: Mapping[str, Any]) -> tuple[paper.LowShotRow, ...]:
    """The rows that results can be compared with: none where the split, or its half, is another."""
    split = results["split"]
    theirs = (split["hash"], split.get("holdout")) == (paper.LOW_SHOT_SPLIT, "novel")
    return tuple(paper.LOW_SHOT) if theirs else ()


def markdown(results: Mapping[str, Any]) -> str:
    """A section for table.md: the measures by method, beside the published ones where the split is theirs."""
    shots: list[int] = results["shots"]
    lines = [
        "Low-shot ImageNet's measures, top-1 / top-5 (novel, joint: among all classes; novel-only: among novel "
        f"classes; prior: P(novel) = {PRIOR}):",
        "",
        *head([f"n = {k}" for k in shots], ("method", "measure")),
    ]
    for method, by_shots in results["methods"].items():
        for key, title in MEASURES.items():
            values = [[by_shots[str(k)][f"{key}_top{top}"] for top in (1, 5)] for k in shots]
            cells = [" / ".join(mean(v) for v in pair) for pair in values]
            lines.append(line([name_of(method), title, *cells]))
    for row in published(results):
        for title, values in row.top5.items():
            cells = [f"– / {values[k]:.2f}" if k in values else "–" for k in shots]
            lines.append(line([f"{row.method} (published, {row.backbone})", title, *cells]))
    return "\n".join([*lines, ""])
