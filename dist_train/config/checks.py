"""Checks of configuration values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dist_train.names import shown


def typed(value: object) -> str:
    """Return a value as YAML has it, which is how it stands behind its key in every message: ``conv4``, ``true``,
    ``null``, ``[1, 2]``. A text is in quotes only where it is empty, has spaces at its ends, or has characters that
    cannot be seen. (Names within a sentence are in quotes: unknown key 'x'.)
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(typed, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{typed(key)}: {typed(entry)}" for key, entry in value.items()) + "}"
    text = str(value)
    return text if text and text == text.strip() == shown(text) else f"'{shown(text)}'"


def require(ok: bool, key: str, value: object, wanted: str) -> None:
    """Raise ValueError unless ``ok``; it names the key, its value and what the value must be."""
    if not ok:
        raise ValueError(f"{key}={typed(value)}: must be {wanted}")


def at_least(owner: object, prefix: str, minimum: float, *names: str) -> None:
    """Raise ValueError for the first attribute of these names that is below ``minimum``; None is no value."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value >= minimum, f"{prefix}.{name}", value, f">= {minimum:g}")


def check_values(values: dict[str, Any], prefix: str = "") -> None:
    """Raise ValueError for the first text or path that holds a zero byte, which no file's name can have, and for the
    first number that is not finite."""
    for name, value in values.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            ok = not isinstance(number, float) or math.isfinite(number)
            require(ok, f"{prefix}{name}", value, "finite")
        if isinstance(value, dict):
            check_values(value, f"{prefix}{name}.")
        elif isinstance(value, (str, Path)):
            require("\0" not in str(value), f"{prefix}{name}", str(value), "a text without a zero byte")
