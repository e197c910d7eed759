"""A share of an evaluation's draws, which an element of an array of jobs computes by itself (launch/slurm/chain.py)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dist_train.config import Config
from dist_train.data.splits import load_split
from dist_train.errors import UserError
from dist_train.files import write_text

_COMMAND = "command.txt"


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

    def check(self, config: Config) -> None:
        """Refuse more shares than the rows of a run's table have draws. (A table of oracles alone, which have one draw,
        is refused elsewhere.)

        Raises:
            UserError: there are more.
        """
        split, draws = load_split(config.data.split), config.evaluate.draws
        if self.count > 1 and not split.roles(config.data.holdout)[1]:
            raise UserError(
                f"--share {self}: split {split.name} has no novel classes, so that there are no draws to share; leave "
                "it out"
            )
        if self.count > draws:
            raise UserError(f"--share {self}: there are more shares than evaluate.draws={draws}; choose at most that")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, draws: Sequence[int]) -> Sequence[int]:
        """Return the draws of this share."""
        return draws[self.number :: self.count]

    def folder(self, run: Path) -> Path:
        """Return the folder of the share's lock and signs of life: shares are at work on a run at the same time."""
        return run / "evaluate" / "parts" / f"{self.number}-of-{self.count}"

    @property
    def done(self) -> str:
        """The last sign of life of a share that has found all its draws."""
        return f"evaluate: share {self} is done"

    def note(self, run: Path, command: str) -> None:
        """Note the command that makes the table, of which the share is found with ``--share``."""
        self.folder(run).mkdir(parents=True, exist_ok=True)
        write_text(self.folder(run) / _COMMAND, command + "\n")

    def command(self, run: Path) -> str:
        """Return what ``note`` wrote; empty where the share has not come so far."""
        with suppress(OSError):
            return (self.folder(run) / _COMMAND).read_text().strip()
        return ""

    def discard(self, run: Path) -> None:
        """Remove the share's folder, and the parts' where nothing else is in it."""
        shutil.rmtree(self.folder(run), ignore_errors=True)
        with suppress(OSError):
            self.folder(run).parent.rmdir()
