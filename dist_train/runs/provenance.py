"""What made a number: commit, versions, hashes, seeds, machine, command."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dist_train
from dist_train.distributed.context import Context
from dist_train.errors import command

if TYPE_CHECKING:
    from dist_train.runs.stage import Run


def provenance(run: Run, context: Context) -> dict[str, Any]:
    """Enough to make a number again: commit, versions, hashes, seeds, machine, command."""
    packages = (
        "torch",
        "torchvision",
        "nvidia-dali-cuda130",
        "nvidia-dali-cuda120",
        "webdataset",
        "numpy",
        "deepspeed",
        "timm",
        "scikit-learn",
    )
    return {
        "dist_train": dist_train.__version__,
        "commit": git_commit(),
        "command": command(*sys.argv[1:]),
        "versions": {"python": platform.python_version(), **{n: v for n in packages if (v := _version(n))}},
        "machine": {"platform": platform.platform(), "ranks": context.world, "device": str(context.device)},
        "shards": run.shards.hash,
        "orientation": run.shards.orientation,
        "split": {"name": run.split.name, "hash": run.split.hash, "holdout": run.config.data.holdout},
        "seeds": {"seed": run.config.seed, "evaluate.seed": run.config.evaluate.seed},
    }


@cache
def git_commit() -> str:
    """The checkout's commit when this process first asked (it may move under a long run), ``-dirty``
    where files are changed; "not a checkout" in a wheel. A snapshot (launch/slurm/snapshot.py) carries it."""
    here = Path(dist_train.__file__).parent.parent
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
