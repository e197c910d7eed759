"""How the vectors of the base classes lie: their maps, their channels, and the diagonal of φ1.

The vectors are the mean activations, the rows of the trained classifier, and the rows that predictors make of the
means. Each result is kept as JSON in ``evaluate/figures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_train.report import paper

Array = npt.NDArray[np.floating[Any]]
NEIGHBOURS = 10
"""Neighbours of a class that maps are compared by."""
_FEWEST = 5  # classes that make a map worth looking at


@dataclass(frozen=True)
class MappedClass:
    """A class of the maps; ``group`` is "" where the class belongs to none."""

    wnid: str
    name: str
    group: str


@dataclass(frozen=True)
class ClassMaps:
    """Maps of several kinds of vectors of the same classes (paper, Figure 2).

    Attributes:
        maps: kind of vector -> [classes, 2].
        neighbours: kind of vector -> how many of a class's NEIGHBOURS nearest classes by cosine are also nearest to
            it by the first kind, in percent of NEIGHBOURS (or of all other classes, where these are fewer).
    """

    classes: list[MappedClass]
    maps: dict[str, list[list[float]]]
    neighbours: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the maps as ``figures/maps.json`` has them."""
        return asdict(self)


@dataclass(frozen=True)
class ChannelImpact:
    """Mean |w| of each channel over classes (paper, Figure 5).

    Attributes:
        mean, std: mean and standard deviation over channels.
        scaled: the mean times the square root of the number of channels, on which it then does not depend.
        sorted: the channels' values, largest first; empty where only the summary is known.
    """

    mean: float
    std: float
    scaled: float
    sorted: list[float]

    def to_json(self) -> dict[str, Any]:
        """Return the impact as ``figures/channels.json`` has it: without ``sorted`` where that is empty."""
        return {key: value for key, value in vars(self).items() if value != []}


PAPER_IMPACT = ChannelImpact(
    paper.CHANNEL_MEAN, paper.CHANNEL_STD, round(paper.CHANNEL_MEAN * paper.CHANNELS**0.5, 4), []
)


@dataclass(frozen=True)
class Diagonal:
    """The diagonal of φ1's weight.

    Attributes:
        sorted: its values, largest first.
        inside: percent of the values within the paper's range.
        rest: mean absolute value beside the diagonal.
        paper: the paper's range.
    """

    sorted: list[float]
    inside: float
    rest: float
    paper: tuple[float, float] = paper.DIAGONAL

    def to_json(self) -> dict[str, Any]:
        """Return the diagonal as ``figures/diagonal.json`` has it."""
        return asdict(self)


def map_classes(
    vectors: Mapping[str, Array], wnids: Sequence[str], names: Sequence[str], groups: Sequence[str]
) -> ClassMaps | None:
    """Map the classes by t-SNE, for each kind of vector.

    Args:
        vectors: kind -> [classes, C]; the others are compared with the first.
        wnids, names, groups: wnid, name and group of each class; a group may be "".

    Returns:
        None for fewer than 5 classes.
    """
    if len(wnids) < _FEWEST:
        return None
    nearest = {kind: _nearest(rows) for kind, rows in vectors.items()}
    first = next(iter(nearest.values()))
    return ClassMaps(
        [MappedClass(*entry) for entry in zip(wnids, names, groups, strict=True)],
        {kind: tsne(rows).round(3).tolist() for kind, rows in vectors.items()},
        {kind: _shared_percent(first, rows) for kind, rows in nearest.items()},
    )


def tsne(rows: Array) -> Array:
    """Return places [N, 2] of unit rows [N, C] by t-SNE (van der Maaten & Hinton 2008).

    The library's defaults, but with a fixed seed, and a perplexity that fits few rows. Rows that are all the same have
    the same place: their principal components, where the library starts, are NaN, which ends its process.
    """
    from sklearn.manifold import TSNE

    unit = to_unit(rows)
    if np.ptp(unit, axis=0).max() == 0:
        return np.zeros((len(rows), 2))
    perplexity = min(30.0, (len(rows) - 1) / 3)
    places: Array = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit)
    return places.astype(np.float64)


def channel_impact(rows: Array) -> ChannelImpact:
    """Return the impact of each channel, from vectors [classes, C] scaled to unit length."""
    impact = np.abs(to_unit(rows)).mean(0)
    mean = float(impact.mean())
    return ChannelImpact(
        mean=round(mean, 7),
        std=round(float(impact.std()), 7),
        scaled=round(mean * len(impact) ** 0.5, 4),
        sorted=np.sort(impact)[::-1].round(7).tolist(),
    )


def diagonal(weight: Array) -> Diagonal:
    """Compare the diagonal of φ1's weight [C, C] with the paper's range."""
    values = np.diagonal(weight)
    low, high = paper.DIAGONAL
    count = len(values)
    rest = (np.abs(weight).sum() - np.abs(values).sum()) / max(count * (count - 1), 1)
    return Diagonal(
        sorted=np.sort(values)[::-1].astype(np.float64).round(5).tolist(),
        inside=round(100 * float(((values >= low) & (values <= high)).mean()), 2),
        rest=round(float(rest), 7),
    )


def to_unit(rows: Array) -> Array:
    """Scale rows to unit length; rows of zeros stay."""
    scaled: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def principal_components(rows: Array, count: int) -> Array:
    """Project unit rows [N, C] on their first ``count`` principal components."""
    unit = to_unit(rows)
    left, scale, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    components: Array = (left * scale)[:, :count].round(4)
    return components


def _nearest(rows: Array) -> npt.NDArray[np.int64]:
    """Return the numbers of the nearest other rows by cosine: [N, NEIGHBOURS], or all others."""
    cosines = to_unit(rows) @ to_unit(rows).T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(rows) - 1)]


def _shared_percent(ours: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> float:
    """Return how many of ``ours`` [N, k] are among ``theirs`` [N, k], row by row, in percent."""
    return round(100 * float((ours[:, :, None] == theirs[:, None]).any(2).mean()), 2)
