"""The paper's numbers, to stand beside ours.

Source: Qiao, Liu, Shen, Yuille, *Few-Shot Image Recognition by Predicting Parameters from Activations*,
CVPR 2018 (arXiv 1706.03466v3), Table 1: ImageNet, 900 base and 100 novel classes (not published which),
ResNet-50, 1000-way on the validation images. Every novel figure is a multiple of 1/5000, so each is one
support draw; the paper gives no interval.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Qiao et al., CVPR 2018 (arXiv 1706.03466v3), Table 1"


@dataclass(frozen=True)
class PaperRow:
    """One line of Table 1.

    Attributes:
        method: as the paper names it.
        base_data: share of the base images (or of their activations) that the method stores.
        shots: shots -> base top-1, base top-5, novel top-1, novel top-5, in percent.
    """

    method: str
    base_data: str
    shots: dict[int, tuple[float, float, float, float]]


_TABLE = """
NN + cosine           | 100% | 71.54 91.20  1.72  5.86 | 71.54 91.20  3.34  9.88 | 71.54 91.20  4.58 12.72
NN + cosine           |  10% | 67.68 88.90  4.42 13.36 | 67.66 88.89  7.60 19.94 | 67.65 88.88  9.86 24.96
NN + cosine           |   1% | 61.11 85.11 10.42 25.88 | 61.04 85.04 15.14 35.70 | 60.97 84.95 18.68 42.16
Triplet network       | 100% | 70.47 90.61  1.26  4.94 | 70.47 90.61  2.34  8.30 | 70.47 90.61  3.22 11.48
Triplet network       |  10% | 66.64 88.42  3.48 11.40 | 66.63 88.41  6.10 17.46 | 66.62 88.40  8.52 22.52
Triplet network       |   1% | 60.09 84.83  8.84 22.24 | 60.02 84.74 13.42 32.38 | 59.97 84.66 17.08 38.06
Fine-tuned ResNet     | 100% | 76.28 93.17  2.82 13.30 | 76.27 93.13 10.32 30.34 | 76.25 93.07 16.76 39.92
Learning like a Child | 100% | 76.71 93.24  2.90 17.14 | 76.68 93.17 11.54 37.68 | 76.55 93.00 18.56 50.70
φ1                    | 100% | 72.56 91.12 19.88 43.20 | 71.94 90.62 25.54 52.98 | 71.56 90.21 28.72 58.50
φ2                    | 100% | 74.17 91.79 21.58 45.82 | 73.43 91.13 27.44 55.86 | 72.98 90.59 31.20 61.44
φ2*                   | 100% | 75.63 92.92 14.32 33.84 | 75.44 92.74 18.70 43.92 | 75.34 92.60 22.32 49.76
"""


def _row(line: str) -> PaperRow:
    method, base_data, *groups = (part.strip() for part in line.split("|"))
    shots: dict[int, tuple[float, float, float, float]] = {}
    for k, group in enumerate(groups, 1):
        base1, base5, novel1, novel5 = map(float, group.split())
        shots[k] = base1, base5, novel1, novel5
    return PaperRow(method, base_data, shots)


TABLE_1 = tuple(_row(line) for line in _TABLE.strip().splitlines())
COMPARED = tuple(row for row in TABLE_1 if row.base_data == "100%" and row.method in ("NN + cosine", "φ1", "φ2", "φ2*"))
"""The methods that this program has too."""
