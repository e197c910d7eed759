"""A share of an evaluation's draws, which an element of an array of jobs computes by itself (launch/slurm/chain.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dist_train.errors import UserError


@dataclass(frozen=True)
class Share:
    """Take every ``count``-th draw, from ``number`` on.

    Attributes:
        number: from 0, as the members of an array are numbered.
        count: how many shares there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` writes: "1/3", the second of three shares.

        Raises:
            UserError: it is no share.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise UserError(f"--share {text}: must be NUMBER/COUNT, the number from 0: 0/3, 1/3 or 2/3")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, draws: Sequence[int]) -> Sequence[int]:
        """Return the draws of this share."""
        return draws[self.number :: self.count]

    def folder(self, run: Path) -> Path:
        """Return the folder of the share's lock and signs of life: shares are at work on a run at the same time."""
        return run / "evaluate" / "parts" / f"{self.number}-of-{self.count}"
