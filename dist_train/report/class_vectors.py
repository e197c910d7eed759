"""The numbers behind the report's pictures; each is plain JSON and kept in ``evaluate/figures``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dist_train.report import paper

Array = npt.NDArray[np.floating[Any]]
NEIGHBOURS = 10
_FEWEST = 5  # classes for a map worth looking at


def class_maps(vectors: Mapping[str, Array], wnids: list[str], names: list[str], groups: list[str]) -> dict[str, Any]:
    """t-SNE of several vectors of the same classes (paper, Figure 2).

    Args:
        vectors: what they are -> [classes, C]; the first are those that others are compared with.
        wnids, names, groups: of each class; a group may be "".

    Returns:
        {"classes": [{"wnid", "name", "group"}], "maps": {what: [[x, y]]}, "neighbours": {what: share}}, where
        share is how many of a class's 10 nearest classes by cosine are those of the first, in percent of 10 (or
        of all others, where these are fewer). Empty for less than 5 classes.
    """
    if len(wnids) < _FEWEST:
        return {}
    classes = [
        {"wnid": wnid, "name": name, "group": group} for wnid, name, group in zip(wnids, names, groups, strict=True)
    ]
    near = {what: _nearest(rows) for what, rows in vectors.items()}
    first = next(iter(near.values()))
    shares = {
        what: round(100 * float((first[:, :, None] == some[:, None]).any(2).mean()), 2) for what, some in near.items()
    }
    return {
        "classes": classes,
        "maps": {what: tsne(rows).round(3).tolist() for what, rows in vectors.items()},
        "neighbours": shares,
    }


def tsne(rows: Array) -> Array:
    """Places [N, 2] of unit rows [N, C] (van der Maaten & Hinton 2008); by the library's defaults, with a fixed
    seed, and a perplexity that fits few rows."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    places: Array = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit(rows))
    return places.astype(np.float64)


def channel_impact(rows: Mapping[str, Array]) -> dict[str, Any]:
    """Mean |w| of each channel over classes, of unit rows [classes, C], largest first (paper, Figure 5).

    Returns:
        {what: {"mean", "std" (over channels), "scaled" (the mean times the root of C, which does not depend on
        C), "sorted": [C]}}, and the paper's.
    """
    found: dict[str, Any] = {}
    for what, some in rows.items():
        impact = np.abs(unit(some)).mean(0)
        mean, count = float(impact.mean()), len(impact)
        found[what] = {
            "mean": round(mean, 7),
            "std": round(float(impact.std()), 7),
            "scaled": round(mean * count**0.5, 4),
            "sorted": np.sort(impact)[::-1].round(7).tolist(),
        }
    mean, std, count = paper.CHANNEL_IMPACT
    found["paper"] = {"mean": mean, "std": std, "scaled": round(mean * count**0.5, 4)}
    return found


def diagonal(weight: Array) -> dict[str, Any]:
    """Of phi1's weight [C, C]: its diagonal, largest first, and how much of it, in percent, lies in the paper's range.
    ``rest`` is the mean absolute value beside the diagonal."""
    values = np.diagonal(weight)
    low, high = paper.DIAGONAL
    count = len(values)
    beside = (np.abs(weight).sum() - np.abs(values).sum()) / max(count * (count - 1), 1)
    return {
        "sorted": np.sort(values)[::-1].astype(np.float64).round(5).tolist(),
        "inside": round(100 * float(((values >= low) & (values <= high)).mean()), 2),
        "rest": round(float(beside), 7),
        "paper": [low, high],
    }


def unit(rows: Array) -> Array:
    """Rows of unit length; zeros stay."""
    made: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return made


def _nearest(rows: Array) -> npt.NDArray[np.int64]:
    """The nearest other rows by cosine: [N, 10], or all others."""
    cosines = unit(rows) @ unit(rows).T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(rows) - 1)]
