"""Low-shot ImageNet (Hariharan & Girshick 2017) and its later measures (Wang et al. 2018).

"Novel" has two meanings in the papers: novel queries among all classes (Hariharan & Girshick; here ``novel_top1`` and
``novel_top5``), or among novel classes only (Wang et al., Gidaris & Komodakis; ``novel_only_*``). ``all_*`` counts base
and novel queries together, by image.

``all_prior_*`` assumes that 80% of the queries are novel. As in the code of Gidaris & Komodakis (2018), the softmax
over base classes gets the weight 0.2, and that over novel classes 0.8:

    p(y|x) = 0.2 exp(s_y) / sum_base exp(s)  or  0.8 exp(s_y) / sum_novel exp(s)

Base and novel classes are then ranked together; an offset that a method adds to all novel scores cancels. The formula
needs logits, so scores are multiplied by the method's ``scale``. Cosines and the targets of ridge regression have no
natural scale; ours are multiplied by 10 (``COSINE``), and their rows depend on that choice. All other measures depend
on the order of scores only.
"""

from __future__ import annotations

import math

import torch

from dist_train.fewshot.protocols.joint import JointScorer, own_and_ahead

PRIOR = 0.8
"""Prior probability of the novel classes (the default in the evaluation of Gidaris & Komodakis)."""


class LowShotScorer(JointScorer):
    """Score jointly, and add the measures above."""

    def _summarise(self, scores: torch.Tensor) -> None:
        super()._summarise(scores)
        self._base_mass = self._split(self._mass(scores[:, self._kept]))

    def _mass(self, scores: torch.Tensor) -> torch.Tensor:
        """Return log sum exp of the logits [Q, 1], in units of the scores."""
        return (scores * self.method.scale).logsumexp(1, keepdim=True) / self.method.scale

    def more_metrics(self, of_base: torch.Tensor, of_novel: torch.Tensor) -> dict[str, float]:
        """Return top-1 and top-5 of ``novel_only``, ``all`` and ``all_prior``."""
        # Adding the right offset to a query's novel scores turns the two softmaxes into one ranking.
        odds = math.log(PRIOR / (1 - PRIOR)) / self.method.scale
        shifted = [
            novel + (base_mass - self._mass(novel) + odds)
            for novel, base_mass in zip((of_base, of_novel), self._base_mass, strict=True)
        ]
        ranks = {
            "novel_only": own_and_ahead(of_novel, self.novel.labels)[1],
            "all": torch.cat(self.ranks(of_base, of_novel)),
            "all_prior": torch.cat(self.ranks(*shifted)),
        }
        return {
            f"{name}_top{k}": 100 * (rank < k).double().mean().item() for name, rank in ranks.items() for k in (1, 5)
        }
