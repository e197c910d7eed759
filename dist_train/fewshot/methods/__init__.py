"""The rows of the table: every file here that has a ``Method``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence

from dist_train.errors import UserError
from dist_train.fewshot.method import Base, Method


def _found() -> dict[str, type[Method]]:
    kinds = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Method) and kind.__module__ == module.__name__:
                kinds.update(dict.fromkeys(kind.labels, kind))
    return kinds


METHODS = _found()
"""Name in ``evaluate.methods`` -> its class."""
LABELS = {name: kind.labels[name] for name, kind in METHODS.items()}
"""Name -> name in tables."""


NUMBERS = {key: value for kind in METHODS.values() for key, value in kind.defaults.items()}
"""Name in ``evaluate.options`` -> default."""


def check(names: Sequence[str], options: Mapping[str, float]) -> None:
    """Raises UserError for the first name that is no method's, or no method's number."""
    for name in names:
        if name not in METHODS:
            raise UserError(f"evaluate.methods: {name!r} is not known; give some of {', '.join(METHODS)}")
    for name in options:
        if name not in NUMBERS:
            raise UserError(f"evaluate.options: {name!r} is not known; give some of {', '.join(NUMBERS)}")


def make(name: str, base: Base) -> Method:
    """The method of a name in ``METHODS``, prepared."""
    return METHODS[name](name, base)
