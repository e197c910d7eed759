"""An account of files: found = taken + left out (each with its name and reason) + passed over (counted by reason)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dist_train.errors import counted
from dist_train.names import shown, spelt

SHOWN = 20  # of a long list
_EXAMPLES = 3  # files named on a line of those passed over


@dataclass
class Account:
    """Record what became of the files that were found.

    Attributes:
        taken: number of photos in use.
        left_out: (name, reason) of each photo that is not in use, and that its owner would miss.
        passed_over: reason -> number of files that are not the user's photos.
        examples: reason -> the first of their names, at most ``SHOWN``.
        notes: further lines to print about the files.
    """

    taken: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def found(self) -> int:
        """Number of all files."""
        return self.taken + len(self.left_out) + self.passed_over.total()

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """The reasons to pass over, with their numbers of files, the largest number first."""
        return sorted(self.passed_over.items(), key=lambda pair: (-pair[1], pair[0]))

    def leave_out(self, name: str, reason: str) -> None:
        """Note a photo that cannot be used."""
        self.left_out.append((name, reason))

    def pass_over(self, name: str, reason: str, files: int = 1) -> None:
        """Count files that are no photos: a file, or all files below a folder."""
        if not files:
            return
        self.passed_over[reason] += files
        examples = self.examples.setdefault(reason, [])
        if len(examples) < SHOWN:
            examples.append(name)

    def add(self, other: Account) -> None:
        """Add another account to this account."""
        self.taken += other.taken
        self.left_out += other.left_out
        self.passed_over += other.passed_over
        self.notes += other.notes
        for reason, names in other.examples.items():
            examples = self.examples.setdefault(reason, [])
            examples += names[: SHOWN - len(examples)]

    def line(self) -> str:
        """Return the account as a line: "found 9 files: 6 taken, 1 left out, 2 passed over (2 .txt)"."""
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.reasons)
        return (
            f"found {counted(self.found, 'file')}: {self.taken:,} taken, {len(self.left_out):,} left out, "
            f"{self.passed_over.total():,} passed over" + (f" ({reasons})" if reasons else "")
        )

    def left_out_lines(self) -> list[str]:
        """Return a line for each file that was left out, for the first ``SHOWN``."""
        lines = [f"left out: {shown(spelt(name))}: {shown(reason)}" for name, reason in self.left_out[:SHOWN]]
        if len(self.left_out) > SHOWN:
            lines.append(f"left out: {len(self.left_out) - SHOWN:,} more")
        return lines

    def passed_over_lines(self) -> list[str]:
        """Return a line for each reason to pass over, with examples, and the notes."""
        lines = []
        for reason, number in self.reasons:
            names = [shown(spelt(name)) for name in self.examples[reason][:_EXAMPLES]]
            lines.append(f"passed over: {number:,} {reason}: {', '.join(names)}" + ", ..." * (number > len(names)))
        return lines + [shown(note) for note in self.notes]

    def entry(self) -> dict[str, Any]:
        """Return the account for JSON."""
        return {
            "found": self.found,
            "taken": self.taken,
            "left_out": [{"source": name, "reason": reason} for name, reason in self.left_out],
            "passed_over": {
                reason: {"files": number, "first": self.examples[reason]} for reason, number in self.reasons
            },
        }
