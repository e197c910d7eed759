"""The parser of the command line: its errors name the option and the remedy, and its help shows no Python names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from dist_train.config import STAGES, Config
from dist_train.config.io import Parser, list_keys
from dist_train.errors import UserError, command

_KEYS = frozenset(Config.__dataclass_fields__)
_OF_CLASSES = ("--remove", "--rename", "--remove_photo", "--list_photos")
_CLASSES = command("adapt", "MODEL", "--list")
_ABOUT_RUNS = ("doctor", "status", "logs", "cancel", "collect")  # people look for them under launch


class CommandParser(Parser):
    """Parse a command line of dist-train; bad input becomes one line with the remedy."""

    commands_with: Callable[[str], Sequence[str]] = staticmethod(lambda option: ())
    """Returns the names of the commands with this option; set by who knows them."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise UserError for a message of argparse or jsonargparse."""
        if missing := re.search(r"arguments are required: ([\w.-]+)", message):
            raise UserError(f"{self._spelling(missing[1].split('.'))} is required; see --help")
        if choice := re.search(r"argument launcher: invalid choice: '(.+?)' \(choose from (.*)\)", message):
            own = f"; {choice[1]} is a command of its own: {command(choice[1])}" if choice[1] in _ABOUT_RUNS else ""
            raise UserError(f"launch {choice[1]}: give one of {choice[2]}" + own)
        if re.match(r"unrecognized arguments: --redo\b", message):
            raise UserError(
                f"--redo: is taken by {command('run')} and by each stage, as in {command('evaluate', '--redo')}"
            )
        if (of_another := re.match(r"unrecognized arguments: --(\w+)", message)) and not self._is_key(of_another[1]):
            names = [command(*name.split()) for name in self.commands_with(of_another[1])]
            if names:
                raise UserError(f"--{of_another[1]}: is an option of {', '.join(names)}; leave it out here")
        if loose := re.match(r"unrecognized arguments: (?!-)(\S+)", message):
            raise UserError(self._no_option_takes(loose[1]))
        if valued := re.match(r"argument (--[\w.]+).*: ignored explicit argument '(.*)'", message):
            raise UserError(f"{valued[1]}: takes no value; leave {valued[2]!r} out" + _stage_alone(valued[2]))
        if lacking := re.match(r"argument (?:-\w/)?(--[\w.]+): expected (?:one|at least one) argument", message):
            listing = f"; {_CLASSES} lists the classes" if lacking[1] in _OF_CLASSES else ""
            raise UserError(f"{lacking[1]}: a value has to follow it{listing}; see --help")
        super().error(message, ex)

    def line(self, message: str) -> str:
        """Return a message in one line, which names an option as it is typed and a key as it stands in a file."""
        line = super().line(message)
        key, equals, rest = line.partition("=")
        options = {action.dest for action in self._actions}
        if not equals or key not in options or ("config" in options and key.partition(".")[0] in _KEYS):
            return line
        return f"{self._spelling([key])} {rest}"

    def _is_key(self, name: str) -> bool:
        """Return whether a key of a configuration has this name, in any section."""
        return any(name == key.rpartition(".")[2] for key in list_keys(Config))

    def _no_option_takes(self, word: str) -> str:
        """Return the line for a word that belongs to no option, with what was probably meant."""
        key, equals, value = word.partition("=")
        keys = [action.dest for action in self._actions]
        meant = [name for name in keys if equals and key in (name, name.rpartition(".")[2])]
        if meant:
            return f"{word!r}: options begin with two dashes: {shlex.join([f'--{meant[0]}={value}'])}"
        flags = ", ".join(
            f"--{a.dest}" for a in self._actions if a.nargs == 0 and not a.dest.endswith(("help", "version"))
        )
        text = f"{word!r}: no option takes it" + (f" ({flags}: without a value)" if flags else "")
        return text + (_stage_alone(word) or "; quote a value with spaces, and give a list as [A, B]")

    def format_help(self, formatter: Any = None) -> str:
        """Return the help without the obvious: that a path is a path, and that None is the default."""
        path = r"type:\s+<class\s+'Path'>"
        text = re.sub(rf"\s*\((required,\s+)?{path}(,\s+default:\s+null)?\)", "", super().format_help(formatter))
        text = re.sub(rf"\({path},\s+", "(", text)
        return re.sub(r"\s*\(default:\s+(null|\[\]|False)\)", "", text)

    def _spelling(self, path: list[str]) -> str:
        """Return an argument as it is typed, ``--cluster`` or ``RUN``; ``path`` has its commands and its name."""
        parser: Any = self
        for name in path[:-1]:
            parser = parser._subcommands_action._name_parser_map[name]
        typed = any(action.dest == path[-1] and action.option_strings for action in parser._actions)
        return f"--{path[-1]}" if typed else path[-1].upper()


def _stage_alone(word: str) -> str:
    """Return the hint that shows how to run the stage of this name alone; empty where no stage has the name."""
    if word not in ("prepare", *STAGES):
        return ""
    return f"; the stage {word} alone: {command(word)}, and made again: {command(word, '--redo')}"
