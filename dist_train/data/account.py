"""An account of files: found = taken + left out (each by its name, and why) + passed over (counted, by reason)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dist_train.names import shown

SHOWN = 20  # of a long list
_EXAMPLES = 3  # of what is passed over, on a line


@dataclass
class Account:
    """What became of the files that were found.

    Attributes:
        taken: number of photos in use.
        left_out: (name, reason) of each photo that is not: its owner would miss it.
        passed_over: reason -> number of files that are no photos of the user's.
        examples: reason -> the first of their names, at most ``SHOWN``.
        notes: what else is to be said of the files, a line each.
    """

    taken: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def found(self) -> int:
        return self.taken + len(self.left_out) + self.passed_over.total()

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """The reasons to pass over with their numbers of files, the largest first."""
        return sorted(self.passed_over.items(), key=lambda pair: (-pair[1], pair[0]))

    def leave_out(self, name: str, reason: str) -> None:
        """Note a photo that cannot be used."""
        self.left_out.append((name, reason))

    def pass_over(self, name: str, reason: str, files: int = 1) -> None:
        """Count files (one, or all those below a folder) that are no photos."""
        if not files:
            return
        self.passed_over[reason] += files
        examples = self.examples.setdefault(reason, [])
        if len(examples) < SHOWN:
            examples.append(name)

    def add(self, other: Account) -> None:
        """Add another account to this."""
        self.taken += other.taken
        self.left_out += other.left_out
        self.passed_over += other.passed_over
        self.notes += other.notes
        for reason, names in other.examples.items():
            examples = self.examples.setdefault(reason, [])
            examples += names[: SHOWN - len(examples)]

    def line(self) -> str:
        """Return the account in a line: "found 9 files: 6 taken, 1 left out, 2 passed over (2 .txt)"."""
        files = "file" if self.found == 1 else "files"
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.reasons)
        return (
            f"found {self.found:,} {files}: {self.taken:,} taken, {len(self.left_out):,} left out, "
            f"{self.passed_over.total():,} passed over" + (f" ({reasons})" if reasons else "")
        )

    def left_out_lines(self) -> list[str]:
        """Return a line for each file left out, the first ``SHOWN`` of them."""
        lines = [f"left out: {shown(name)}: {shown(reason)}" for name, reason in self.left_out[:SHOWN]]
        if len(self.left_out) > SHOWN:
            lines.append(f"left out: {len(self.left_out) - SHOWN:,} more")
        return lines

    def passed_over_lines(self) -> list[str]:
        """Return a line for each reason to pass over, with examples, and the notes."""
        lines = []
        for reason, number in self.reasons:
            names = [shown(name) for name in self.examples[reason][:_EXAMPLES]]
            lines.append(f"passed over: {number:,} {reason}: {', '.join(names)}" + ", ..." * (number > len(names)))
        return lines + [shown(note) for note in self.notes]

    def entry(self) -> dict[str, Any]:
        """Return the account as JSON has it."""
        return {
            "found": self.found,
            "taken": self.taken,
            "left_out": [{"source": name, "reason": reason} for name, reason in self.left_out],
            "passed_over": {
                reason: {"files": number, "first": self.examples[reason]} for reason, number in self.reasons
            },
        }
