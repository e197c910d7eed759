"""The code that a row of the table is made by: exactly the modules that can change one of its numbers.

These are ``stages/scoring.py``, for rows with a network of their own ``stages/network_scoring.py``, the method's own
file, and all modules of dist_train that they import, as read from the sources, except those in ``CARRIERS``. None of
them imports tables, charts or pages. Comments, docstrings and formatting change no number and do not count.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from dist_train.config import NETWORK_OF
from dist_train.fewshot.methods import METHODS
from dist_train.version import PACKAGE

CARRIERS = {
    "dist_train": "the version, and names for users",
    "dist_train.config": "its values are among a row's inputs",
    "dist_train.distributed.context": "gathers what ranks computed",
    "dist_train.files": "writes files whole",
    "dist_train.distributed.pool": "shows progress",
    "dist_train.data.shards.index": "a hash of the images is among a row's inputs",
    "dist_train.training.checkpoint": "reads tensors whose hashes it checks",
    "dist_train.distributed.stopping": "stops between draws",
    "dist_train.errors": "the exceptions",
}
"""Modules that scoring and methods import but that compute no number of a row, each with the reason."""

_PACKAGE = PACKAGE
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")
"""Where statements hold statements; expressions hold none, and no import."""


def code_of(method: str, package: Path = _PACKAGE) -> dict[str, str]:
    """Return the code that makes the row ``method``: {module: 12 hex digits of the sha256 of its normalised source}.

    Args:
        package: folder of ``dist_train``, or of a copy.
    """
    kind = METHODS[method]
    modules = {"dist_train.stages.scoring", kind.__module__}
    if method in NETWORK_OF:
        modules.add("dist_train.stages.network_scoring")
    if kind.base_as:  # it is named, not imported
        modules.add(METHODS[kind.base_as].__module__)
    return {name: _read(name, file)[1] for name, file in sorted(_reached(modules, package).items())}


def _reached(modules: Iterable[str], package: Path) -> dict[str, Path]:
    """Return {module: file} of these modules and all modules that they import, without ``CARRIERS``."""
    reached: dict[str, Path] = {}
    open_modules = set(modules)
    while open_modules:
        name = open_modules.pop()
        file = _file(name, package)
        if file is not None and name not in reached and name not in CARRIERS:
            reached[name] = file
            open_modules |= _read(name, file)[0]
    return reached


def _file(module: str, package: Path) -> Path | None:
    """Return the source file of a module of dist_train; None for other modules, and for names within a module."""
    top, *parts = module.split(".")
    path = package.joinpath(*parts)
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if top == "dist_train" and file.is_file()), None)


@cache  # files may change during a process, whose code stays the same
def _read(module: str, file: Path) -> tuple[frozenset[str], str]:
    """Return the modules that a module imports, anywhere in its code, and the digest of its code."""
    tree = ast.parse(file.read_bytes())
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    imported: set[str] = set()
    for node in _statements(tree, running=True):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            imported |= {f"{start}.{alias.name}" for alias in node.names}  # modules, or names in them
    # Importing a module runs the packages around it.
    reached = {name.rsplit(".", cut)[0] for name in imported for cut in range(name.count(".") + 1)}
    for node in _statements(tree):
        if body := getattr(node, "body", None):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return frozenset(reached), hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]


def _statements(tree: ast.AST, running: bool = False) -> Iterator[ast.AST]:
    """Yield a module and all statements within it; with ``running`` those under ``if TYPE_CHECKING`` are left out."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        typing = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        blocks = _BLOCKS[1:] if running and typing else _BLOCKS
        waiting += [line for block in blocks for line in getattr(node, block, ())]


def _is_text(line: ast.stmt) -> bool:
    """Return whether a line is a docstring: of a module, class or function, or below a name."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
