"""A copy of the code at the time of submission: a job that waits for days runs the copy, not later edits."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from dist_train.config import configs_dir
from dist_train.files import write_text
from dist_train.runs.commit import git_commit
from dist_train.version import PACKAGE


def take_snapshot(folder: Path) -> Path:
    """Copy the packages into a new folder in ``folder``, with the commit and the difference to it, and return the new
    folder, which belongs on PYTHONPATH. It is complete, or not there at all."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name[5:]) for path in folder.glob("code-*") if path.name[5:].isdigit()]
    temporary = folder / f".code-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    source = PACKAGE.parent
    no_bytecode = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in ("dist_train", "launch"):
        shutil.copytree(source / package, temporary / package, ignore=no_bytecode)
    if not (temporary / "dist_train" / "configs").is_dir():
        shutil.copytree(configs_dir(), temporary / "configs", ignore=no_bytecode)
    write_text(temporary / "COMMIT", git_commit() + "\n")
    write_text(temporary / "difference.patch", _difference(source))
    snapshot = folder / f"code-{max(numbers, default=0) + 1}"
    os.rename(temporary, snapshot)
    return snapshot.absolute()


def _difference(source: Path) -> str:
    """Return what the working tree has that its commit has not; empty for an installed wheel."""
    try:
        command = ["git", "-C", str(source), "diff", "HEAD", "--", "dist_train", "launch", "configs", "setup.py"]
        return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
