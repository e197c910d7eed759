"""Checks of configuration values."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def require(ok: bool, key: str, value: object, wanted: str) -> None:
    """Raise ValueError unless ``ok``; it names the key, its value and what the value must be."""
    if not ok:
        raise ValueError(f"{key}={value!r}: must be {wanted}")


def at_least(owner: object, prefix: str, minimum: float, *names: str) -> None:
    """Raise ValueError for the first attribute of these names that is below ``minimum``; None is no value."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value >= minimum, f"{prefix}.{name}", value, f">= {minimum:g}")


def texts_without_zero(values: dict[str, Any], prefix: str = "") -> None:
    """Raise ValueError for the first text or path that holds a zero byte, which no file's name can have."""
    for name, value in values.items():
        if isinstance(value, dict):
            texts_without_zero(value, f"{prefix}{name}.")
        elif isinstance(value, (str, Path)):
            require("\0" not in str(value), f"{prefix}{name}", str(value), "a text without a zero byte")
