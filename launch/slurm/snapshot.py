"""The code as it is when a job is submitted: jobs that wait for days run that, not what it became since."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from dist_train.config import configs_dir
from dist_train.files import write_text
from dist_train.runs.commit import git_commit
from dist_train.version import PACKAGE


def take(folder: Path) -> Path:
    """Copy the packages into a new folder of ``folder``, with the commit and the difference to it; returns
    the folder to put on PYTHONPATH. Complete, or not there at all."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name[5:]) for p in folder.glob("code-*") if p.name[5:].isdigit()), default=0)
    temporary = folder / f".code-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    here = PACKAGE.parent
    only_text = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in ("dist_train", "launch"):
        shutil.copytree(here / package, temporary / package, ignore=only_text)
    if not (temporary / "dist_train" / "configs").is_dir():
        shutil.copytree(configs_dir(), temporary / "configs", ignore=only_text)
    write_text(temporary / "COMMIT", git_commit() + "\n")
    write_text(temporary / "difference.patch", _difference(here))
    made = folder / f"code-{number}"
    os.rename(temporary, made)
    return made.absolute()


def _difference(here: Path) -> str:
    """What the working tree has that the commit has not; empty for a wheel."""
    try:
        command = ["git", "-C", str(here), "diff", "HEAD", "--", "dist_train", "launch", "configs", "setup.py"]
        return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
