"""phi1, phi2, phi2*: every row of the classifier is predicted from activations (paper, section 3.4).

Base rows are predicted from the class means. The score of a novel class with k supports is the largest of its k
responses, unless ``evaluate.rule`` says otherwise. The backbone's own classifier is not used.
"""

from __future__ import annotations

from typing import ClassVar

from dist_train.fewshot.row_method import RowMethod
from dist_train.models.predictor import Predictor


class Predicted(RowMethod):
    network = Predictor
    labels: ClassVar = {"phi1": "φ1", "phi2": "φ2", "phi2star": "φ2*"}
    learns: ClassVar = dict.fromkeys(labels, Predictor)
