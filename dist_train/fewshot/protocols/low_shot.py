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

import torch

from dist_train.fewshot.protocols.joint import JointScorer, own_and_ahead

PRIOR = 0.8
"""Probability of a novel class (the default of Gidaris & Komodakis' evaluation)."""


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
