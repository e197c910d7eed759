"""Bad input as one line: the file, the key, the value, what it must be, and the nearest valid key."""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from dist_train.config import GONE, STAGES, PackConfig
from dist_train.errors import UserError, command
from dist_train.names import shown

_KINDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "list": "a list: [A, B]",
    "dict": "names and values: {A: B}",
}  # fmt: skip


class Parser(ArgumentParser):
    """jsonargparse's parser; bad input becomes one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)  # a shortened key is a mistyped key

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        """Parse a command line.

        Raises:
            UserError: it is not valid.
        """
        try:
            return super().parse_args(*arguments, **options)
        except ValueError as error:  # a zero byte where jsonargparse looks for a file of that name
            raise UserError(f"the options or the configuration cannot be read ({one_line(str(error))})") from None

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


def in_one_line(error: Exception) -> str:
    """An error's text in one line that a terminal can show: it may have a file's or a class's name in it, and that a
    line break, or what moves the cursor."""
    return shown(error)


def one_line(message: str, keys: list[str] | None = None) -> str:
    """jsonargparse's message in one line: the key that is unknown, or what its value must be."""
    line = re.sub(r"\s+", " ", message).strip()
    inside = re.findall(r'Parser key "([\w.]+)":', line)
    unknown = re.search(r"(?:[Oo]ption|[Uu]nrecognized arguments:|Key|unknown key) '?(?:--)?([\w.]+)'?", line)
    wanted = re.findall(r"Expected a (?:<class '(\w+)'>|(tuple with \d+ elements|typing\.Literal\[.*?\]))", line)
    wanted = [kind or other for kind, other in wanted if kind != "NoneType"]
    if unknown and ("Expected a" not in line or "is not accepted" in line or "unknown key" in line):
        return unknown_key(".".join([*inside, unknown[1]]), keys or [])
    nested = re.search(r"- (\S+=.*?: must be .*?) - Expected", line)
    if nested:
        return f"{inside[0]}.{nested[1]}"
    if not inside or not wanted:
        return line
    if "float" in wanted:
        wanted = [kind for kind in wanted if kind != "int"]
    value = re.split(r"(?:Got|Given) value: ", line)[-1]
    return f"{'.'.join(inside)}={value}: must be {' or '.join(dict.fromkeys(map(_kind, wanted)))}"


def _kind(wanted: str) -> str:
    if wanted.startswith("typing.Literal"):
        return "one of " + wanted.partition("[")[2].rstrip("]").replace("'", "")
    return _KINDS.get(wanted) or wanted.replace("tuple with", "a list of")


def unknown_key(key: str, keys: list[str]) -> str:
    """That there is no such key, and the nearest one that there is."""
    if key in GONE:
        return f"{key}: {GONE[key]}"
    # A key without its section is looked for in every section.
    near = difflib.get_close_matches(key, [name for name in keys if name != key], 1, 0.5)
    ends = [name for name in keys if name.rpartition(".")[2] == key and name != key]
    if near or ends:
        return f"unknown key {key!r}; did you mean {(ends or near)[0]!r}?"
    return f"unknown key {key!r}; see --help"


def fields(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Every key of a dataclass: ``pretrain.epochs`` and so on."""
    for name, inner in _inner(kind).items():
        yield prefix + name
        if dataclasses.is_dataclass(inner):
            yield from fields(inner, f"{prefix}{name}.")


def takes_list(kind: type[Any], key: str) -> bool:
    """Whether a key of a dataclass, ``learn.methods``, has a list for its value."""
    *sections, name = key.split(".")
    for section in sections:
        kind = _inner(kind)[section]
    return get_origin(get_type_hints(kind)[name]) is list


def _inner(kind: type[Any]) -> dict[str, Any]:
    """Field -> its type; without the None of what may be left out."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        some = [part for part in get_args(hint) if part is not type(None)]
        found[name] = some[0] if get_origin(hint) is not dict and len(some) == 1 else hint
    return found


def find_yaml(option: str, value: str, folder: Path, *patterns: str) -> Path:
    """A YAML file by its path, or by its name among those of a folder that match the patterns.

    Raises:
        UserError: neither is there.
    """
    path = Path(value)
    if path.exists() and not path.is_dir():
        return path
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    named = {str(file.relative_to(folder).with_suffix("")): file for file in files}
    found = named.get(value.removesuffix(".yaml"))
    if found:
        return found
    if path.is_dir():
        raise UserError(f"{option} {value}: is a folder; give a YAML file")
    raise UserError(f"{option} {value}: no such file, and none of that name comes with it ({', '.join(named)})")


def check_yaml(path: Path, kind: type[Any]) -> dict[str, Any]:
    """The content of a YAML file with the keys of a dataclass. jsonargparse names neither the file nor the
    remedy, and YAML takes the last of two equal keys.

    Raises:
        UserError: not a YAML file of keys and values, a key is unknown, or there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; give a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}); mend that line") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no keys in it; give a YAML file of 'key: value' lines")
    twice = next(_twice(yaml.compose(text, yaml.SafeLoader)), None)
    if twice:
        raise UserError(f"{path}: line {twice[1]}: {twice[0]!r} is there twice; keep one of them")
    check_keys(path, content, kind)
    return content


def _twice(node: Any) -> Iterator[tuple[str, int]]:
    """(key, line) of keys that a mapping has already."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _twice(value)


def check_keys(
    path: Path, content: dict[Any, Any], kind: type[Any], prefix: str = "", keys: list[str] | None = None
) -> None:
    """Raises UserError where a key of ``content`` is none of the dataclass ``kind``, which is at ``prefix``, or
    has no value where it needs one."""
    inner, keys = _inner(kind), keys or list(fields(kind, prefix))
    for name, value in content.items():
        if name not in inner:
            raise UserError(f"{path}: {unknown_key(f'{prefix}{name}', keys)}")
        if value is None and type(None) not in get_args(
            get_type_hints(kind)[name]
        ):  # jsonargparse takes it for any type
            raise UserError(f"{path}: {prefix}{name} has no value; give one, or leave the key out")
        if isinstance(value, dict) and dataclasses.is_dataclass(inner[name]):
            check_keys(path, value, inner[name], f"{prefix}{name}.", keys)
