"""The exceptions that users are meant to see, and the exit codes that launchers go by.

0: done. 1: bad input; another start would end the same way. 75: asked to stop, and saved (EX_TEMPFAIL of sysexits.h).
76: another rank died or hung; another start continues, as it does after any other code (a crash, a kill).
"""

from __future__ import annotations

import shlex

FAILED, STOPPED, LOST, CRASHED = 1, 75, 76, 70


class UserError(Exception):
    """Report bad input in one line that names the thing (file, key, value) and the remedy.

    The command line prints it as ``dist-train: error: ...`` and leaves with ``code``. Anything
    else that escapes is a defect of this program and keeps its traceback.
    """

    code = FAILED
    printed = False
    """Whether this rank or another has printed the line already."""

    def __init__(self, text: str = "", kind: str = "", **values: str | int) -> None:
        """Make an error of a line for the user.

        Args:
            text: the line.
            kind: what went wrong, as "class.exists", by which the page has a line in other languages; "" for what the
                page cannot meet.
            values: what that line names.
        """
        super().__init__(text)
        self.kind, self.values = kind, values


class WrongValue(UserError, ValueError):
    """Report an argument that is of a wrong type or out of its range; programs may catch it as a ``ValueError``."""


class LostError(UserError):
    """Report that another rank is gone. Nothing is wrong with the input, and another start continues."""

    code = LOST


class NoShards(UserError):
    """Report a folder without shards: pack has not written there."""


def command(*words: object) -> str:
    """Return a command of dist-train as a shell takes it: words with spaces are quoted."""
    return shlex.join(["dist-train", *map(str, words)])


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, as in "1 photo", "1,234 photos", "2 base classes" and "1.5 epochs"."""
    plural = f"{noun}es" if noun.endswith(("s", "sh", "tch", "x")) else f"{noun}s"
    digits = f"{int(number):,}" if number == int(number) else f"{number:,g}"
    return f"{digits} {noun if number == 1 else plural}"


def verifying(source: object) -> str:
    """Return the words that name the command which lists all damaged images of these shards.

    The command reads a local folder; of a URL, the folder that was uploaded.
    """
    if "://" in str(source):
        return f"{command('verify', 'FOLDER')} names all of them, of the folder that was uploaded to {source}"
    return f"{command('verify', source)} names all of them"
