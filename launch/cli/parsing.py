"""The parser of the command line: its errors name the option and the remedy, its help has no names of Python's."""

from __future__ import annotations

import re
import shlex
from typing import Any

from dist_train.config import STAGES, PackConfig
from dist_train.config.io import Parser, one_line
from dist_train.errors import UserError, command


class CommandParser(Parser):
    """Parse a command line of dist-train; bad input becomes one line with the remedy."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        missing = re.search(r"arguments are required: ([\w.]+)", message)
        if missing:
            raise UserError(f"{self._spelt(missing[1].split('.'))} is required; see --help")
        choice = re.search(r"argument launcher: invalid choice: '(.+?)' \(choose from (.*)\)", message)
        if choice:
            own = f"; {choice[1]} is a command of its own: {command(choice[1])}" if choice[1] in _COMMANDS else ""
            raise UserError(f"launch {choice[1]}: give one of {choice[2]}" + own)
        if re.match(r"unrecognized arguments: --redo\b", message):
            raise UserError(
                f"--redo: is taken by {command('run')} and by each stage, as in {command('evaluate', '--redo')}"
            )
        loose = re.match(r"unrecognized arguments: (?!-)(\S+)", message)
        valued = re.match(r"argument (--\w+).*: ignored explicit argument '(.*)'", message)
        if loose or valued:
            raise UserError(self._not_taken(loose[1]) if loose else _no_value(valued[1], valued[2]))
        keys = [action.dest for action in self._actions]
        if "pack" in keys:
            keys += [f"pack.{name}" for name in PackConfig.__dataclass_fields__]
        raise UserError(one_line(message, keys))

    def _not_taken(self, word: str) -> str:
        """What to do with a word that no option before it takes."""
        key, equals, value = word.partition("=")
        keys = [action.dest for action in self._actions]
        named = [name for name in keys if equals and key in (name, name.rpartition(".")[2])]
        if named:
            return f"{word!r}: options begin with two dashes: {shlex.join([f'--{named[0]}={value}'])}"
        flags = ", ".join(
            f"--{a.dest}" for a in self._actions if a.nargs == 0 and not a.dest.endswith(("help", "version"))
        )
        text = f"{word!r}: no option takes it" + (f" ({flags}: without a value)" if flags else "")
        return text + (_stage(word) or "; quote a value with spaces, and give a list as [A, B]")

    def format_help(self) -> str:
        """Without Python's names for what is no news: that a path is a path, and that nothing is the default."""
        path = r"type:\s+<class\s+'Path'>"
        text = re.sub(rf"\s*\((required,\s+)?{path}(,\s+default:\s+null)?\)", "", super().format_help())
        text = re.sub(rf"\({path},\s+", "(", text)
        return re.sub(r"\s*\(default:\s+(null|\[\]|False)\)", "", text)

    def _spelt(self, path: list[str]) -> str:
        """An argument as it is typed: ``--cluster``, or ``RUN``."""
        parser: Any = self
        for name in path[:-1]:
            parser = parser._subcommands_action._name_parser_map[name]
        typed = any(action.dest == path[-1] and action.option_strings for action in parser._actions)
        return f"--{path[-1]}" if typed else path[-1].upper()


def _no_value(option: str, value: str) -> str:
    return f"{option}: takes no value; leave {value!r} out" + _stage(value)


def _stage(word: str) -> str:
    """How the stage of this name is made."""
    if word not in ("prepare", *STAGES):
        return ""
    return f"; the stage {word} alone: {command(word)}, and made again: {command(word, '--redo')}"


_COMMANDS = ("doctor", "status", "logs", "cancel", "collect")
