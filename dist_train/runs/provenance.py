"""Where a number is from: commit, versions, hashes, seeds, machine, command."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dist_train.distributed.context import Context
from dist_train.errors import command
from dist_train.runs.commit import git_commit
from dist_train.runs.run import Run
from dist_train.version import __version__


def provenance(run: Run, context: Context) -> dict[str, Any]:
    """Return everything that is needed to reproduce a number: commit, versions, hashes, seeds, machine, command."""
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
        "dist_train": __version__,
        "commit": git_commit(),
        "command": command(*sys.argv[1:]),
        "versions": {"python": platform.python_version(), **{n: v for n in packages if (v := _version(n))}},
        "machine": {"platform": platform.platform(), "ranks": context.world, "device": str(context.device)},
        "shards": run.shards.hash,
        "orientation": run.shards.orientation,
        "split": {"name": run.split.name, "hash": run.split.hash, "holdout": run.config.data.holdout},
        "seeds": {"seed": run.config.seed, "evaluate.seed": run.config.evaluate.seed},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
