"""The commit of the code that runs."""

from __future__ import annotations

import subprocess
from functools import cache

from dist_train.version import PACKAGE


@cache
def git_commit() -> str:
    """The checkout's commit when this process first asked (it may move under a long run), ``-dirty``
    where files are changed; "not a checkout" in a wheel. A snapshot (launch/slurm/snapshot.py) carries it."""
    here = PACKAGE.parent
    if (here / "COMMIT").is_file():
        return (here / "COMMIT").read_text().strip()
    try:
        # A wheel inside another project's checkout is none of that project's files.
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", "dist_train/__init__.py"]
        subprocess.run(tracked, check=True, capture_output=True)
        commit = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
        # Files that are not in git count too: a method is added as one.
        changes = ["git", "-C", str(here), "status", "--porcelain", "--", "dist_train", "launch"]
        found, changed = (
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            for command in (commit, changes)
        )
        return f"{found}-dirty" if changed else found
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
