"""phi2 with calibrated novel scores (fewshot/calibration.py)."""

from __future__ import annotations

from typing import ClassVar

from dist_train.fewshot import calibration
from dist_train.fewshot.methods.predicted import Predicted


class Calibrated(Predicted):
    labels: ClassVar = {"phi2cal": "φ2, calibrated"}
    learns: ClassVar = {}
    uses: ClassVar = {"phi2cal": "phi2"}
    numbers = calibration.NUMBERS
    calibrated = True
