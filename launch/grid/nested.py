"""The interval of a mean over nested seeds, and how much each kind of seed contributes to its uncertainty.

I backbones are trained, J predictors on each, and each predictor is evaluated on K draws of supports. The predictors of
one backbone see the same draws; another backbone sees others. A figure of predictor j of backbone i in draw k is then

    y_ijk = m + B_i + P_ij + D_ik + E_ijk

with independent random effects: of the backbone's seed, of the predictor's, of the draw, and what the draw is to this
predictor alone. The I means of the backbones are independent and each has the same variance, so that the interval of m
is the t-interval of these I values, with I - 1 degrees of freedom. It covers all four effects, and is exact where they
are normal, without an estimate of any single variance.

The variances are those of the analysis of variance for balanced data: mean squares equal to their expectations (Searle,
Casella & McCulloch 1992, "Variance Components", chapter 4); negative ones are set to 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from dist_train.fewshot.table_row import half_width


@dataclass(frozen=True)
class NestedMean:
    """Hold a mean over nested seeds, in the unit of the values.

    Attributes:
        mean: over all values.
        half_width: half-width of its 95% interval, over backbones, predictors and draws.
        backbone, predictor, draw: standard deviations of the effects of a backbone's seed, of a predictor's, and of a
            draw (of its two effects together): what a figure of one backbone, one predictor or one draw varies by.
    """

    mean: float
    half_width: float
    backbone: float
    predictor: float
    draw: float

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Self:
        """Estimate from [backbones, predictors of each, draws]: two or more of each.

        Draw k is the same for the predictors of a backbone, and another one for each backbone.
        """
        backbones, predictors, draws = values.shape
        of_backbone = values.mean((1, 2))
        of_predictor, of_draw = values.mean(2) - of_backbone[:, None], values.mean(1) - of_backbone[:, None]
        rest = values - of_backbone[:, None, None] - of_predictor[:, :, None] - of_draw[:, None, :]
        # Mean squares: sums of squares over all values, by their degrees of freedom.
        square_b = predictors * draws * float(of_backbone.var(ddof=1))
        square_p = draws * float((of_predictor**2).sum()) / (backbones * (predictors - 1))
        square_d = predictors * float((of_draw**2).sum()) / (backbones * (draws - 1))
        square_e = float((rest**2).sum()) / (backbones * (predictors - 1) * (draws - 1))
        alone = max(0.0, square_d - square_e) / predictors
        return cls(
            float(of_backbone.mean()),
            float(half_width(of_backbone)),
            math.sqrt(max(0.0, square_b - square_p - square_d + square_e) / (predictors * draws)),
            math.sqrt(max(0.0, square_p - square_e) / draws),
            math.sqrt(alone + square_e),
        )
