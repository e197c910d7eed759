"""A line that ``dist-train doctor`` prints."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]


class Line(NamedTuple):
    """Hold the result of a check.

    Attributes:
        level: an error makes ``doctor`` end with exit code 1.
        subject: what was checked.
        text: what the check found, and the remedy where it found a problem.
    """

    level: Level
    subject: str
    text: str
