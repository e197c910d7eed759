"""Weight imprinting (Qi, Brown & Lowe 2018): cosines to the rows of the backbone's own classifier, to which each novel
class adds the mean of its unit supports.

Their new row is that mean scaled to length 1, and their layer scales the cosines; neither changes a rank. Compared with
the description of their method by Westerhoff et al. (arXiv 2503.14572v3, section 1), not with the paper itself.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F

from dist_train.fewshot.method import COSINE, Base, Method, Scorer, cosine


class Imprinting(Method):
    """Score by imprinted rows. Their backbone is trained with a cosine classifier; ours is trained with a linear one,
    whose rows are used in its place."""

    labels: ClassVar = {"imprint": "Weight imprinting"}
    scale: ClassVar = COSINE

    def __init__(self, name: str, base: Base) -> None:
        self.rows = base.rows

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return cosine(queries, self.rows)

    def take(self, support: torch.Tensor) -> Scorer:
        return partial(cosine, rows=F.normalize(support, dim=2).mean(1))
