"""Which file gave a key its value, for error lines. A command line gives keys one by one, in files, and in files of a
single section; a file may name such a file too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dist_train.config import STAGES, Config
from dist_train.config.checks import typed
from dist_train.config.io import list_keys
from dist_train.errors import UserError


@contextmanager
def naming_files(words: Sequence[str]) -> Iterator[None]:
    """Put the file before each error line on a key of a configuration whose value comes from a file.

    Args:
        words: the command line, ``--config FILE`` with a path.
    """
    try:
        yield
    except UserError as error:
        if file := _giver(str(error), words):
            error.args = (f"{file}: {error}",)
        raise


def options_in(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option of a command line, without its dashes, and its value: what follows "=", or the next word."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            option, equals, value = word.removeprefix("--").partition("=")
            yield option, value if equals else following


def _giver(line: str, words: Sequence[str]) -> Path | None:
    """Return the file that gave the key of an error line, "KEY=VALUE: must be ..." or "KEY: ...", the value that is
    wrong; None where the line begins otherwise, nobody gave the key, the command line gave it itself, or the line names
    another key too, which was given elsewhere: then either may be wrong."""
    found = re.match(r"([\w.]+)(?:=.*)?: ", line)
    of_stage = tuple(f"{stage}: " for stage in STAGES)  # what went wrong in it, as "pretrain: out of memory"
    givers = list(_givers(words, found[1])) if found and not line.startswith(of_stage) else []
    if not found or not givers:
        return None
    # Every file is checked by itself, so the value need not be the last that is given.
    of_value = [
        file for file, value in givers if any(line.startswith(f"{found[1]}={text}: ") for text in _texts(value))
    ]
    giver = (of_value or [givers[-1][0]])[-1]
    others = {*re.findall(r"\w+(?:\.\w+)+", line)} & {*list_keys(Config)} - {found[1]}
    elsewhere = [file for key in others for file, _ in [*_givers(words, key)][-1:] if file != giver]
    return None if elsewhere else giver


def _texts(value: Any) -> Iterator[str]:
    """Yield a value as it stands in error lines, and each of its entries: a line may be on one alone."""
    yield typed(value)
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield typed(entry)


def _givers(words: Sequence[str], key: str) -> Iterator[tuple[Path | None, Any]]:
    """Yield the file and the value each time that a command line gives a key; None is the command line itself."""
    for option, value in options_in(words):
        if option == "config":
            yield from _in_file(Path(value), key)
        elif key.startswith(f"{option}.") and os.path.isfile(value):
            yield from _in_file(Path(value), key.removeprefix(f"{option}."))
        elif key.startswith(f"{option}."):
            yield from ((None, given) for _, given in _within(_read(value), key.removeprefix(f"{option}."), Path()))
        elif key == option or option.startswith(f"{key}."):
            yield None, _read(value)


def _in_file(path: Path, key: str) -> Iterator[tuple[Path, Any]]:
    """Yield the file and the value where a file gives a key: this one, or one that it names for a section."""
    if os.path.isfile(path):  # a pipe can be read only once
        with suppress(OSError, ValueError):  # the error is on what came before it
            yield from _within(_read(path.read_text(encoding="utf-8")), key, path)


def _within(content: Any, key: str, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the file and the value where the content of a file gives a key."""
    names = key.split(".")
    for number, name in enumerate(names):
        if isinstance(content, str) and os.path.isfile(path.parent / content):
            yield from _in_file(path.parent / content, ".".join(names[number:]))
        if not isinstance(content, dict) or name not in content:
            return
        content = content[name]
    yield path, content


def _read(text: str) -> Any:
    """Return what a text is in YAML; the text itself where it is none, or a value that holds itself."""
    try:
        content = yaml.safe_load(text)
        typed(content)
        return content
    except (yaml.YAMLError, RecursionError):
        return text
