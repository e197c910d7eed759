"""Optional libraries, and the extras of this package that install them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dist_train.errors import UserError


@contextmanager
def needs_extra(extra: str, purpose: object) -> Iterator[None]:
    """Turn the failed import of an optional library into one line that names the extra to install.

    Args:
        extra: its name in ``pyproject.toml``.
        purpose: what cannot be done without the library; it begins the line.

    Raises:
        UserError: a library that is imported inside the ``with`` block is missing or does not load.
    """
    try:
        yield
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("dist_train", "launch"):
            raise  # a defect of this program, which no installation mends
        absent = isinstance(error, ModuleNotFoundError) and library
        reason = f"needs {library}, which is not installed" if absent else f"cannot import what it needs ({error})"
        raise UserError(f"{purpose} {reason}: pip install 'dist-train[{extra}]'") from None
