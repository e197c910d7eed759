"""phi2 with calibrated novel scores (fewshot/calibration.py)."""

from __future__ import annotations

from typing import ClassVar

from dist_train.fewshot import calibration
from dist_train.fewshot.method import Base, Scorer, Support
from dist_train.fewshot.methods.predicted import Predicted


class Calibrated(Predicted):
    labels: ClassVar = {"phi2cal": "φ2, calibrated"}
    learns: ClassVar = {}
    uses: ClassVar = {"phi2cal": "phi2"}
    defaults = calibration.DEFAULTS

    def __init__(self, name: str, base: Base) -> None:
        super().__init__("phi2", base)
        self.calibrate = calibration.Calibration(base, self.base_scores)

    def take(self, support: Support) -> Scorer:
        return self.calibrate(super().take(support))
