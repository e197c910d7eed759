"""The git commit of the running code."""

from __future__ import annotations

import subprocess
from functools import cache

from dist_train.version import PACKAGE


@cache
def git_commit() -> str:
    """Return the commit of the checkout, with ``-dirty`` where files are changed; "not a checkout" for a wheel.

    It is read once in a process, because the checkout may move on during a long run. A snapshot
    (launch/slurm/snapshot.py) carries its commit in a file.
    """
    here = PACKAGE.parent
    if (here / "COMMIT").is_file():
        return (here / "COMMIT").read_text().strip()
    try:
        # A wheel may be installed inside the checkout of another project, whose commit is not ours.
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", "dist_train/__init__.py"]
        subprocess.run(tracked, check=True, capture_output=True)
        head = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
        # Untracked files count too: a new method is one.
        status = ["git", "-C", str(here), "status", "--porcelain", "--", "dist_train", "launch"]
        commit, changes = (
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            for command in (head, status)
        )
        return f"{commit}-dirty" if changes else commit
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
