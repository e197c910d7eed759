"""Which software made something: this package and its commit, the command, and versions of libraries."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dist_train.errors import command
from dist_train.runs.commit import git_commit
from dist_train.version import __version__


def software(packages: Sequence[str]) -> dict[str, Any]:
    """Return this package's version and commit, the command, and the versions of Python and of those of ``packages``
    that are installed."""
    return {
        "dist_train": __version__,
        "commit": git_commit(),
        "command": command(*sys.argv[1:]),
        "versions": {"python": platform.python_version(), **{n: v for n in packages if (v := _version(n))}},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
