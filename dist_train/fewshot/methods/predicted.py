"""phi1, phi2, phi2*: every row predicted from activations (paper, section 3.4).

Base rows come from the class means; a novel class with k supports scores as the maximum of the k
responses, or by another ``evaluate.rule``. The trained classifier of the backbone is not used.
"""

from __future__ import annotations

from typing import ClassVar

from dist_train.fewshot.row_method import RowMethod
from dist_train.models.predictor import Predictor


class Predicted(RowMethod):
    network = Predictor
    labels: ClassVar = {"phi1": "φ1", "phi2": "φ2", "phi2star": "φ2*"}
    learns: ClassVar = dict.fromkeys(labels, Predictor)
