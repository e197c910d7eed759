"""What became of each class: from how often classes were taken for which (``evaluate/rows/METHOD.npz``)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int32]
"""int32 [classes, classes], truth and prediction, base classes first: summed over draws."""
COLUMNS = ("method", "shots", "wnid", "name", "role", "answers", "top1", "other_role", "taken_for", "taken_for_share")
"""Of ``per_class.csv``; shares in percent."""


@dataclass(frozen=True)
class ClassList:
    """All classes that are scored together, base before novel: wnids and names; ``base`` counts the base classes."""

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    base: int

    def role(self, number: int) -> str:
        return "base" if number < self.base else "novel"


def per_class(counts: Counts, classes: ClassList) -> list[dict[str, Any]]:
    """For each class its share of right answers, in percent of ``answers`` (images times draws), the share taken for
    classes of the other role, and the wrong class that is answered most often ("" for none) with its share."""
    rows = []
    for number, row in enumerate(counts.astype(np.int64)):
        answers, wrong = max(int(row.sum()), 1), row.copy()
        wrong[number] = 0
        other = row[classes.base :] if number < classes.base else row[: classes.base]
        most = int(wrong.argmax())
        rows.append({
            "wnid": classes.wnids[number], "name": classes.names[number], "role": classes.role(number),
            "answers": int(row.sum()), "top1": _percent(row[number], answers),
            "other_role": _percent(other.sum(), answers), "taken_for": classes.names[most] if wrong[most] else "",
            "taken_for_share": _percent(wrong[most], answers),
        })  # fmt: skip
    return rows


def confusions(counts: Counts, classes: ClassList, most: int = 12) -> dict[str, list[dict[str, Any]]]:
    """The pairs of classes that are confused most often, for images of base and of novel classes: truth, answer
    and share of the truth's answers in percent."""
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    found: dict[str, list[dict[str, Any]]] = {}
    for role, part in (("base", slice(0, classes.base)), ("novel", slice(classes.base, None))):
        flat = share[part].ravel()
        order = np.argsort(-flat, kind="stable")[:most]
        found[role] = [
            {"truth": classes.names[part.start + n // len(counts)], "answer": classes.names[n % len(counts)],
             "answer_role": classes.role(n % len(counts)), "share": round(float(flat[n]), 2)}
            for n in order.tolist() if flat[n] > 0
        ]  # fmt: skip
    return found


def csv_text(parts: Iterable[tuple[str, str, Sequence[Mapping[str, Any]]]]) -> str:
    """``per_class.csv``: of methods and numbers of shots ("all" for oracles), the ``rows`` of ``per_class``."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for method, shots, rows in parts:
        writer.writerows({"method": method, "shots": shots, **row} for row in rows)
    return out.getvalue()


def _percent(part: Any, whole: int) -> float:
    return round(100 * int(part) / whole, 2)
