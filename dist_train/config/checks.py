"""Checks of configuration values."""

from __future__ import annotations


def require(ok: bool, key: str, value: object, wanted: str) -> None:
    """Raises ValueError that names the key, its value and what it must be."""
    if not ok:
        raise ValueError(f"{key}={value!r}: must be {wanted}")


def at_least(owner: object, prefix: str, minimum: float, *names: str) -> None:
    """Raises ValueError for the first of ``names`` that is below ``minimum``; None is none."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value >= minimum, f"{prefix}.{name}", value, f">= {minimum:g}")
