"""Class names that are allowed, and the display of any text so that nothing in it stays unseen.

Packing, splits, adding classes, and the opening of shards, splits and models all check class names here.
"""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Collection

from dist_train.errors import UserError

MAX_LENGTH = 200
"""Most characters of a class name."""

_JOINERS = "\u200c\u200d"  # zero-width non-joiner and joiner: Persian words and emoji are spelt with them
_SELECTORS = r"\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"  # variation selectors
# Characters that are letters or marks by their category but leave no ink: fillers, the grapheme joiner, empty Braille.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
_SPELT = re.compile(r"\\(\\|x[89a-f][0-9a-f])")
_STRAY_BYTE = re.compile(r"\\x[89a-f][0-9a-f]")
_FORMING = re.compile(f"[{_JOINERS}{_SELECTORS}]")
# Where they have nothing to join or to vary, they only make two names that look alike. "1\ufe0f\u20e3" is an emoji.
_FORMING_NOTHING = re.compile(f"(?:^|[A-Za-z\\s])[{_JOINERS}{_SELECTORS}]|[{_JOINERS}]$")


@functools.lru_cache(1 << 16)  # called for each image of a class
def class_name(text: str) -> str:
    """Return a class name as it is kept: in Unicode's composed form (NFC), so that names that look alike are equal.

    Raises:
        UserError: the text is empty, over ``MAX_LENGTH`` characters, not UTF-8 (a file name's stray bytes), begins or
            ends with a space, has a slash, or a character that cannot be seen.
    """
    name = unicodedata.normalize("NFC", text)
    cause = _fault(name)
    if cause:
        raise UserError(
            f"class name '{shown(text[: MAX_LENGTH + 1])}': {cause}; give 1 to {MAX_LENGTH} printable characters, "
            f"with no slash and no space at the ends",
            "class.name",
            name=shown(text[: MAX_LENGTH + 1]),
            most=MAX_LENGTH,
        )
    return name


def is_class_name(text: object) -> bool:
    """Tell whether a text is a class name in the form that ``class_name`` returns."""
    return isinstance(text, str) and _fault(text) is None and unicodedata.is_normalized("NFC", text)


def is_wnid(name: str) -> bool:
    """Tell whether a class name is one of WordNet's ids of nouns, as ImageNet's classes have."""
    return re.fullmatch(r"n\d{8}", name) is not None


def shown(text: object) -> str:
    """Return a text in which characters that cannot be seen, or that move other text, are escaped as Python does it.

    Control characters (line breaks and a terminal's commands among them), marks of the writing direction and spaces
    other than the usual space become ``\\n``, ``\\x1b``, ``\\u202e``; a byte of a file name that is not UTF-8 becomes
    ``\\xff``. Joiners and variation selectors stay, as Persian words and emoji are spelt with them.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _visible(char) else _escaped(char) for char in text)


def utf8(text: str) -> str:
    """Return a text in which bytes of a file name that are not UTF-8 are spelt out, as ``\\xff``, so that a UTF-8 file
    can have it. Nothing else changes."""
    return re.sub("[\ud800-\udfff]", lambda char: _escaped(char[0]), text)


def spelt(path: str) -> str:
    """Return the path of a file as files of answers have it, in UTF-8: ``path_of`` finds the file again.

    Nearly all paths stay as they are. In a path with bytes that are not UTF-8 these become ``\\xff``, and each
    backslash becomes two, as C and the shell's ``printf %b`` have it. So does a backslash in a path in which ``\\xff``
    stands itself, so that each text means a single path.
    """
    spelling = utf8(path.replace("\\", "\\\\"))
    return spelling if _STRAY_BYTE.search(spelling) else path


def path_of(text: str) -> str:
    """Return the path that ``spelt`` has made a text of."""
    if not _STRAY_BYTE.search(text):
        return text
    return _SPELT.sub(lambda part: "\\" if part[1] == "\\" else os.fsdecode(bytes([int(part[1][1:], 16)])), text)


def _fault(name: str) -> str | None:
    """Return why a text cannot be a class name, or None."""
    if not name:
        return "it is empty"
    if len(name) > MAX_LENGTH:
        return f"it has {len(name)} characters"
    if any("\ud800" <= char <= "\udfff" for char in name):
        return "it is not UTF-8"
    if "/" in name:
        return "it has a slash"
    if name != name.strip():
        return "it begins or ends with a space"
    unseen = next((char for char in name if not _visible(char)), None)
    if unseen:
        return f"it has the character {_escaped(unseen)}, which cannot be seen"
    if _FORMING_NOTHING.search(name):
        return "it has a joiner or a variation selector that joins or varies nothing"
    if name in (".", ".."):
        return "it is a folder's own name"
    return None


def _visible(char: str) -> bool:
    return (char.isprintable() and char not in _BLANK) or bool(_FORMING.match(char))


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # Python's stand-in for a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode() if char not in _BLANK else f"\\u{ord(char):04x}"


def check_choice(option: str, name: str, choices: Collection[str]) -> None:
    """Check the value of an option that takes one of a few names.

    Raises:
        UserError: it is none of them.
    """
    if name not in choices:
        raise UserError(f"{option} {shown(name)}: give one of {', '.join(choices)}")
