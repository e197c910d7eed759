"""Published figures, to stand beside ours: the paper's own, and those of two other protocols.

The paper is Qiao, Liu, Shen, Yuille, *Few-Shot Image Recognition by Predicting Parameters from Activations*,
CVPR 2018 (arXiv 1706.03466v3): ImageNet, 900 base and 100 novel classes (which ones is not published),
ResNet-50, 1000-way on the validation images. Every novel figure of Table 1 is a multiple of 1/5000, so each comes
from one support draw; the paper gives no interval.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

SOURCE = "Qiao et al., CVPR 2018 (arXiv 1706.03466v3)"
SETTING = "ImageNet 900/100, one draw"
DIAGONAL = 0.744, 0.976
"""Range of the diagonal of a trained phi1."""
CHANNEL_MEAN, CHANNEL_STD, CHANNELS = 2.13e-2, 5.83e-3, 2048
"""Mean and standard deviation of |w| over the channels of the base classes' unit rows, and their number (Figure 5)."""

Figures = tuple[float, float, float, float]
"""Base top-1, base top-5, novel top-1, novel top-5, in percent."""


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 1.

    Attributes:
        ours: the same method of this program, as in ``evaluate.methods``.
        method: the paper's name of the method.
        base_data: share of the base images (or of their activations) that the method stores.
        shots: number of shots -> figures.
    """

    ours: str
    method: str
    base_data: str
    shots: dict[int, Figures]


_TABLE = """
nn               |NN + cosine          |100%|71.54 91.20  1.72  5.86|71.54 91.20  3.34  9.88|71.54 91.20  4.58 12.72
nn10             |NN + cosine          | 10%|67.68 88.90  4.42 13.36|67.66 88.89  7.60 19.94|67.65 88.88  9.86 24.96
nn1              |NN + cosine          |  1%|61.11 85.11 10.42 25.88|61.04 85.04 15.14 35.70|60.97 84.95 18.68 42.16
triplet_network  |Triplet network      |100%|70.47 90.61  1.26  4.94|70.47 90.61  2.34  8.30|70.47 90.61  3.22 11.48
triplet_network10|Triplet network      | 10%|66.64 88.42  3.48 11.40|66.63 88.41  6.10 17.46|66.62 88.40  8.52 22.52
triplet_network1 |Triplet network      |  1%|60.09 84.83  8.84 22.24|60.02 84.74 13.42 32.38|59.97 84.66 17.08 38.06
finetune_network |Fine-tuned ResNet    |100%|76.28 93.17  2.82 13.30|76.27 93.13 10.32 30.34|76.25 93.07 16.76 39.92
child            |Learning like a Child|100%|76.71 93.24  2.90 17.14|76.68 93.17 11.54 37.68|76.55 93.00 18.56 50.70
phi1             |φ1                   |100%|72.56 91.12 19.88 43.20|71.94 90.62 25.54 52.98|71.56 90.21 28.72 58.50
phi2             |φ2                   |100%|74.17 91.79 21.58 45.82|73.43 91.13 27.44 55.86|72.98 90.59 31.20 61.44
phi2star         |φ2*                  |100%|75.63 92.92 14.32 33.84|75.44 92.74 18.70 43.92|75.34 92.60 22.32 49.76
"""


def _parse_row(line: str) -> PaperRow:
    ours, method, base_data, *groups = (part.strip() for part in line.split("|"))
    shots: dict[int, Figures] = {}
    for k, group in enumerate(groups, 1):
        base1, base5, novel1, novel5 = map(float, group.split())
        shots[k] = base1, base5, novel1, novel5
    return PaperRow(ours, method, base_data, shots)


TABLE_1 = {row.ours: row for row in map(_parse_row, _TABLE.strip().splitlines())}
TABLE_2: dict[str, Figures] = {
    "nn_oracle": (70.25, 89.98, 52.46, 80.94),
    "linear_oracle": (75.20, 92.38, 60.50, 87.58),
}
"""The oracles, by our names. They are shown all training images of the novel classes."""
LAST_LAYER = {
    "triplet": "triplet_network",
    "triplet10": "triplet_network10",
    "triplet1": "triplet_network1",
    "finetune": "finetune_network",
}
"""The methods that train a layer on frozen activations -> those that train the whole network, as the paper does (its
section 4.1)."""


def row_beside(method: str, methods: Collection[str]) -> PaperRow | None:
    """Return the paper's row that a method is shown beside; None where it has none.

    Args:
        method: the method, by our name. A method of ``LAST_LAYER`` has the paper's row where the table lacks the one
            that trains the whole network.
        methods: all methods of the table.
    """
    whole = LAST_LAYER.get(method, method)
    return None if whole != method and whole in methods else TABLE_1.get(whole)


LOW_SHOT_SPLIT = "ae592dd1a2bb1fa6"
"""Hash of configs/splits/imagenet_hariharan_girshick.json, whose test half LOW_SHOT was measured on."""


@dataclass(frozen=True)
class LowShotRow:
    """Published figures on low-shot ImageNet, 507-way test half.

    Attributes:
        method, backbone: the published names.
        top5: measure -> number of shots -> percent. The measures are the titles of LOW_SHOT_MEASURES
            (report/comparison.py), or "novel" where the source does not say which novel measure it means.
    """

    method: str
    backbone: str
    top5: dict[str, dict[int, float]]


# Sources. H&G: the README of facebookresearch/low-shot-shrink-hallucinate. Prototypical networks (run by Wang et al.
# 2018) and Gidaris & Komodakis 2018: the README of gidariss/FewShotWithoutForgetting. wDAE-GNN: Gidaris & Komodakis
# 2019. KGTN: Chen et al. 2020. The columns are 1, 2, 5, 10 and 20 shots.
_LOW_SHOT = """
Prototypical networks | ResNet-10 | novel-only     | 39.30 54.40 66.30 71.20 73.90
Prototypical networks | ResNet-10 | all            | 49.50 61.00 69.70 72.90 74.60
Prototypical networks | ResNet-10 | all with prior | 53.60 61.40 68.80 72.00 73.80
Gidaris & Komodakis   | ResNet-10 | novel-only     | 46.26 57.46 69.27 74.84 78.11
Gidaris & Komodakis   | ResNet-10 | all            | 58.29 65.11 72.70 76.51 78.74
Gidaris & Komodakis   | ResNet-10 | all with prior | 56.88 63.67 71.24 75.00 77.28
wDAE-GNN              | ResNet-10 | novel-only     | 47.99 59.54 70.23 74.95 77.77
wDAE-GNN              | ResNet-10 | all            | 59.02 66.22 73.20 76.09 77.54
H&G, SGM + generation | ResNet-50 | novel, joint   | 45.11 58.83 72.76 79.09 82.61
H&G, SGM + generation | ResNet-50 | all            | 63.60 71.53 79.95 83.27 85.16
KGTN                  | ResNet-50 | novel          | 62.10 71.00 78.50 82.40
KGTN                  | ResNet-50 | all            | 68.40 75.20 80.90 83.40
"""


def _parse_low_shot() -> tuple[LowShotRow, ...]:
    rows: dict[tuple[str, str], LowShotRow] = {}
    for line in _LOW_SHOT.strip().splitlines():
        method, backbone, measure, values = (part.strip() for part in line.split("|"))
        row = rows.setdefault((method, backbone), LowShotRow(method, backbone, {}))
        row.top5[measure] = dict(zip((1, 2, 5, 10, 20), map(float, values.split()), strict=False))
    return tuple(rows.values())


LOW_SHOT = _parse_low_shot()

MINI_SPLIT = "7bb60d088e75cfdd"
"""Hash of configs/splits/mini_imagenet_80_20.json."""
MINI = {
    "φ2, simple network": {1: 54.53, 5: 67.87},
    "φ2, WRN": {1: 59.60, 5: 73.74},
    "φ2, simple network, ten crops": {1: 56.01, 5: 70.70},
    "φ2, WRN, ten crops": {1: 63.62, 5: 78.83},
}
"""Qiao et al. 2018 on MiniImageNet, 5-way: method -> number of shots -> percent. Those of ten crops are from their
release, whose code prints standard deviations over episodes beside them."""
