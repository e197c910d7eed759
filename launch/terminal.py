"""Print errors on a process's terminal or into its log, and choose the exit code that it ends with."""

from __future__ import annotations

import io
import logging
import sys
import warnings

from dist_train.errors import FAILED, UserError
from dist_train.names import shown

INTERRUPTED = 130  # 128 + SIGINT, as shells count it


def set_up() -> None:
    """Let log lines and warnings go to stderr, and let no character stop a line from being printed."""
    warnings.filterwarnings("ignore", message=".*jsonargparse.*")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dist_train").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda text, *_, **__: print(f"warning: {text}", file=sys.stderr)


def report(error: Exception) -> int | None:
    """Print one line for bad input or for a file that cannot be used.

    Returns:
        The exit code; None for any other error, which is a defect and keeps its traceback.
    """
    if isinstance(error, UserError):
        if not error.printed:
            print(f"dist-train: error: {shown(error)}", file=sys.stderr)
        return error.code
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "check the path, its permissions and its disk"
        print(f"dist-train: error: {where}{error.strerror}; {remedy}", file=sys.stderr)
        return FAILED
    return None


def interrupted(nothing_to_save: bool = False) -> int:
    """Print that Ctrl-C ended this process, and return the exit code."""
    outcome = "nothing is changed" if nothing_to_save else "everything that had to be saved is saved"
    print(f"dist-train: interrupted; {outcome}", file=sys.stderr)
    return INTERRUPTED
