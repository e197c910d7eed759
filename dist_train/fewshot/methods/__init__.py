"""The methods: every file in this folder that defines a ``Method``, found by import."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from dist_train.config import NETWORK_OF, Config
from dist_train.data.activations import load
from dist_train.errors import UserError
from dist_train.fewshot.method import Base, Method


def _discover() -> dict[str, type[Method]]:
    """Import the files of this folder, and return {name of a row: its class}.

    Raises:
        UserError: two files define the same name.
    """
    kinds: dict[str, type[Method]] = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Method) and kind.__module__ == module.__name__:
                for name in vars(kind).get("labels", ()):  # a class without labels is a base class of others
                    if name in kinds:
                        raise UserError(f"{module.__file__}: {name!r} is a method of {kinds[name].__module__} already")
                    kinds[name] = kind
    return kinds


METHODS = _discover()
"""Name in ``evaluate.methods`` -> its class."""
FROZEN = [name for name in METHODS if name not in NETWORK_OF]
"""Names of the rows that need no network but the frozen backbone."""
LABELS = {name: kind.labels[name] for name, kind in METHODS.items()}
"""Name -> name in tables."""
_OPTIONS = {key: number for kind in METHODS.values() for key, number in kind.numbers.items()}
NUMBERS = {key: number.default for key, number in _OPTIONS.items()}
"""Name in ``evaluate.options`` -> default."""
LEARNED = {name: network for kind in METHODS.values() for name, network in kind.learns.items()}
"""Name in ``learn.methods`` -> the network that is trained."""


def check_methods(learn: Sequence[str], evaluate: Sequence[str], options: Mapping[str, float]) -> None:
    """Check ``learn.methods``, ``evaluate.methods`` and ``evaluate.options`` against each other.

    Raises:
        UserError: a name is not known, its predictor would not be trained, or an option's value is not allowed.
    """
    for name in learn:
        if name not in LEARNED:
            raise UserError(f"learn.methods: {name!r} is not known; give some of {', '.join(LEARNED)}")
    for name in evaluate:
        if name not in METHODS:
            raise UserError(f"evaluate.methods: {name!r} is not known; give some of {', '.join(METHODS)}")
        needed = METHODS[name].learned(name)
        if needed in LEARNED and needed not in learn:
            raise UserError(f"evaluate.methods: {name!r} needs {needed!r} in learn.methods ({', '.join(learn)}) too")
    if all(METHODS[name].oracle for name in evaluate):
        raise UserError(
            f"evaluate.methods: {', '.join(evaluate)}: oracles only stand beside a table; name another method too"
        )
    for name, value in options.items():
        if name not in _OPTIONS:
            raise UserError(f"evaluate.options: {name!r} is not known; give some of {', '.join(_OPTIONS)}")
        whole = _OPTIONS[name].whole
        if not 0 < value < np.inf or (whole and value % 1):
            raise UserError(f"evaluate.options: {name}={value:g}: must be a {'whole ' * whole}number above 0")


def options_of(name: str, options: Mapping[str, float]) -> dict[str, float]:
    """Return the values of ``evaluate.options`` that the row ``name`` depends on."""
    own = METHODS[name].numbers.items()
    return {key: options.get(key, number.default) for key, number in own if not number.rows or name in number.rows}


def open_base(config: Config, rows: torch.Tensor, bias: torch.Tensor) -> Base:
    """Open what a run's methods may use of its base classes, on the device of ``rows`` and ``bias``.

    Args:
        rows, bias: the classifier that was trained with the backbone.
    """
    folder, options = config.run_dir, config.evaluate
    means = torch.from_numpy(np.load(folder / "extract" / "means.f32.npy")).to(rows.device)
    train = load(folder / "extract", "base_train")
    numbers = {**NUMBERS, **options.options}
    return Base(train, means, rows, bias, folder / "learn", config.learn, options.rule, numbers)


def make(name: str, base: Base) -> Method:
    """Make the method of a name in ``METHODS`` from the base classes."""
    return METHODS[name](name, base)
