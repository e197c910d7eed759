"""The exceptions that users are meant to see, and the exit codes that launchers go by.

0 done; 1 bad input: starting again changes nothing; 75 told to stop and saved (EX_TEMPFAIL of sysexits.h);
76 another rank died or hung: starting again continues; anything else (a crash, a kill) too.
"""

from __future__ import annotations

import shlex

FAILED, STOPPED, LOST, CRASHED = 1, 75, 76, 70


class UserError(Exception):
    """Bad input: one line that names the thing (file, key, value) and the remedy.

    The command line prints it as ``dist-train: error: ...`` and leaves with ``code``. Anything
    else that escapes is a defect of this program and keeps its traceback.
    """

    code = FAILED
    printed = False
    """Whether this rank or another has printed the line already."""


class LostError(UserError):
    """Another rank is gone. Nothing is wrong with the input: starting again continues."""

    code = LOST


class NoShards(UserError):
    """There are no shards where they are to be; pack has not been there."""


def command(*words: object) -> str:
    """Write a command of dist-train so that a shell takes it as it stands: words with spaces are quoted."""
    return shlex.join(["dist-train", *map(str, words)])


def verifying(source: object) -> str:
    """Say how all damaged images of these shards are named: by a command, which reads a local folder."""
    if "://" in str(source):
        return f"{command('verify', 'FOLDER')} names all of them, of the folder that was uploaded to {source}"
    return f"{command('verify', source)} names all of them"
