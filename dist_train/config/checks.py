"""Checks of configuration values."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def require(ok: bool, key: str, value: object, wanted: str) -> None:
    """Raises ValueError that names the key, its value and what it must be."""
    if not ok:
        raise ValueError(f"{key}={value!r}: must be {wanted}")


def at_least(owner: object, prefix: str, minimum: float, *names: str) -> None:
    """Raises ValueError for the first of ``names`` that is below ``minimum``; None is none."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value >= minimum, f"{prefix}.{name}", value, f">= {minimum:g}")


def texts_without_zero(values: dict[str, Any], prefix: str = "") -> None:
    """Raises ValueError for the first text or path with a zero byte in it, which no file's name can have."""
    for name, value in values.items():
        if isinstance(value, dict):
            texts_without_zero(value, f"{prefix}{name}.")
        elif isinstance(value, (str, Path)):
            require("\0" not in str(value), f"{prefix}{name}", str(value), "a text without a zero byte")
