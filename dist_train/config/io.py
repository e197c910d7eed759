"""Read, change and freeze configurations, which come from YAML files and from options of a command line.

Bad input becomes one line: the file, the key, the value, what it must be, and the nearest valid key. jsonargparse
parses, and its messages are rewritten here. pydantic was tried in its place (2.14, 2026-11): it neither offers the
nearest key nor notices a key that is there twice, its command line needs other options than ours, and it is no faster.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass, replace
from operator import getitem
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from dist_train.config import GONE, Config, PackConfig, check_meaning, to_dict, to_yaml
from dist_train.config.checks import typed
from dist_train.errors import UserError
from dist_train.files import write_text

_KINDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "list": "a list: [A, B]",
    "tuple": "a list: [A, B]", "dict": "names and values: {A: B}",
}  # fmt: skip


_NO_SECTION = r"(?:path string: |class_path '(?!dist_train\.)|Unable to load config ['\"])(.*?)['\"]?(?: - |: )"
"""What jsonargparse says of a word where keys are wanted."""


class Parser(ArgumentParser):
    """Parse as jsonargparse does; bad input becomes one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)  # a shortened key is a mistyped key

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        """Parse a command line.

        Raises:
            UserError: the command line is not valid.
        """
        try:
            return super().parse_args(*arguments, **options)
        # A zero byte where jsonargparse looks for a file of that name; or a value that is nested too deeply.
        except (ValueError, RecursionError) as error:
            raise UserError(f"the options or the configuration cannot be read ({one_line(str(error))})") from None

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise UserError with a message of argparse or jsonargparse in one line."""
        raise UserError(self.line(message))

    def line(self, message: str) -> str:
        """Return a message of argparse or jsonargparse in one line."""
        keys = [action.dest for action in self._actions]
        if "pack" in keys:
            keys += [f"pack.{name}" for name in PackConfig.__dataclass_fields__]
        return one_line(message, keys)


# Reading, changing and writing.


@functools.cache  # a study reads a hundred configurations
def _config_parser() -> Parser:
    parser = Parser()
    parser.add_class_arguments(Config)
    return parser


def load_config(folder: Path) -> Config:
    """Return the configuration of a run that was started, with the name and place that its folder has now.

    Raises:
        UserError: there is no run, or its configuration is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: not a run (no config.yaml); give the folder RUNS/NAME")
    folder = folder.absolute()
    return replace(read_config(path), name=folder.name, runs=folder.parent)


SECTION = "must be a section, whose keys are indented below it (KEY: VALUE)"
"""What is said of a value where keys are wanted."""


def read_config(path: Path) -> Config:
    """Return the configuration in a file, as ``freeze`` and older versions have written it.

    Raises:
        UserError: the file is damaged, or a key or value is wrong.
    """
    parser = _config_parser()
    values = _read_json(path)
    if values is None:
        check_yaml(path, Config)
    else:
        check_keys(path, values, Config)
    try:
        parsed = parser.parse_path(str(path.absolute())) if values is None else parser.parse_object(values)
        return _config_of(instantiated(parser, parsed))
    except UserError as error:  # of the parser, in one line already
        raise UserError(f"{path}: {error}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {one_line(str(error))}") from None


def with_options(config: Config, options: Sequence[str]) -> Config:
    """Return a configuration with these options of the command line changed: ["--learn.p_mean", "0.3"].

    Raises:
        UserError: a key is unknown, or a value is wrong.
    """
    parser = _config_parser()
    values = parser.parse_object(to_dict(config))
    try:
        return _config_of(instantiated(parser, parser.parse_args(list(options), namespace=values)))
    except (ValueError, TypeError) as error:
        raise UserError(one_line(str(error))) from None


def frozen_path(config: Config) -> Path:
    """Return the file into which ``freeze`` writes a configuration."""
    return (config.run_dir / "launch" / "config.yaml").absolute()


def freeze(config: Config) -> Path:
    """Write the configuration into the run's folder, for jobs and ranks that start later; return the file's path."""
    path = frozen_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_yaml(config))
    return path


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return a configuration that an older version has written as JSON, without keys that are gone.

    None where the file is no JSON object.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    for section, _, key in (name.partition(".") for name in GONE):
        if isinstance(values.get(section), dict):
            values[section].pop(key, None)
    return values


def instantiated(parser: Parser, parsed: Namespace, inside: Sequence[str] = ()) -> Namespace:
    """Return what a parser of a configuration has parsed, with each section as its dataclass.

    Args:
        inside: the keys that lead to the configuration, where commands have parsers of their own.

    Raises:
        ValueError, TypeError: a key has no meaning beside another one, or a value is wrong; it is named.
    """
    given = functools.reduce(getitem, inside, parsed)
    for key, field in Config.__dataclass_fields__.items():
        if is_dataclass(field.default_factory) and not isinstance(value := given[key], Namespace):
            raise ValueError(f"{key}={typed(value)}: {SECTION}")
    _refuse_null(given, Config)
    check_meaning(given)
    values: Namespace = parser.instantiate(parsed)
    return values


def _refuse_null(given: Namespace, kind: type[Any], prefix: str = "") -> None:
    """Raise ValueError for the first key of a dataclass that has null and may not: jsonargparse accepts it for any type
    within a section that is given whole, as by ``--pretrain '{epochs: null}'``."""
    types = _types(kind)
    for name, value in vars(given).items():
        if value is None and name in kind.__dataclass_fields__ and not _may_be_null(kind, name):
            raise ValueError(f"{prefix}{name}=null: must have a value; give one, or leave the key out")
        if isinstance(value, Namespace) and is_dataclass(types.get(name)):
            _refuse_null(value, types[name], f"{prefix}{name}.")


def _may_be_null(kind: type[Any], name: str) -> bool:
    """Return whether a field of a dataclass may be None."""
    return NoneType in get_args(get_type_hints(kind)[name])


def _config_of(values: Namespace) -> Config:
    return Config(**{key: getattr(values, key) for key in Config.__dataclass_fields__})


# Error lines.


def one_line(message: str, keys: list[str] | None = None) -> str:
    """Return a message of jsonargparse in one line: which key is unknown, or what its value must be.

    Args:
        keys: all keys, to find the nearest one.
    """
    line = re.sub(r"\s+", " ", message).strip()
    sections = _nested(re.findall(r'Parser key "([\w.]+)":', line))
    unknown = re.search(r"(?:[Oo]ption|[Uu]nrecognized arguments:|Key|unknown key) '?(?:--)?([\w.]+)'?", line)
    expected = re.findall(r"Expected a (?:<class '(\w+)'>|(tuple with \d+ elements|typing\.Literal\[.*?\]))", line)
    kinds = [kind or other for kind, other in expected if kind != "NoneType"]
    if unknown and ("Expected a" not in line or "is not accepted" in line or "unknown key" in line):
        return unknown_key(".".join([*sections, unknown[1]]), keys or [])
    # By a dataclass within a union; a command line spells its key as an option.
    if checked := re.search(r"- (?:--(\w+) |(\S+)=)(\S.*?: must be .*?) - Expected", line):
        return _in_its_section(f"{checked[1] or checked[2]}={checked[3]}", sections)
    if sections and not kinds and (word := re.search(_NO_SECTION, line)):
        key = sections[-1]
        return f"{key}={word[1]}: must be given by its keys, --{key}.KEY VALUE, or be a YAML file of them"
    if sections and "Not of type Path" in line:
        return f"{'.'.join(sections)}: must be a path"
    if sections and (
        lacking := re.search(r"(?:arguments are required: |- --)(\w+)(?:, \w+)*(?: is required| - )", line)
    ):
        return f"{'.'.join(sections)}: must have {lacking[1]} too"
    if not sections or not kinds:
        return line
    if "float" in kinds:
        kinds = [kind for kind in kinds if kind != "int"]
    value = _as_in_yaml(re.split(r"(?:Got|Given) value: ?", line)[-1]) or "''"
    return f"{'.'.join(sections)}={value}: must be {' or '.join(dict.fromkeys(map(_in_words, kinds)))}"


def _nested(keys: Sequence[str]) -> list[str]:
    """Return the keys that lead to a value, of which jsonargparse repeats some within a file of a section's own."""
    nested: list[str] = []
    for key in keys:
        before = ".".join(nested) + "."
        nested = [key] if key.startswith(before) else [*nested, key]
    return nested


def _as_in_yaml(value: str) -> str:
    """Return a value as YAML has it, where jsonargparse shows it as Python does: true for True."""
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return typed(read) if read is None or isinstance(read, (bool, list, dict)) else value


def _in_its_section(text: str, sections: Sequence[str]) -> str:
    """Return a dataclass's own message, which begins with its key, with the section before it that it lacks.

    Args:
        sections: keys of the message around it; where there is none, only ``pack.draw`` lacks its section.
    """
    section = ".".join(sections) or ("pack" if text.partition(".")[0] not in Config.__dataclass_fields__ else "")
    return text if not section or text.startswith(f"{section}.") else f"{section}.{text}"


def _in_words(kind: str) -> str:
    """Return a type of Python as a person calls it."""
    if kind.startswith("typing.Literal"):
        return "one of " + kind.partition("[")[2].rstrip("]").replace("'", "")
    return _KINDS.get(kind) or kind.replace("tuple with", "a list of")


def unknown_key(key: str, keys: list[str]) -> str:
    """Return the line that says that there is no such key, with the nearest of ``keys``."""
    if key in GONE:
        return f"{key}: {GONE[key]}"
    near = difflib.get_close_matches(key, [name for name in keys if name != key], 1, 0.5)
    # A key without its section is looked for in every section.
    without_section = [name for name in keys if name.rpartition(".")[2] == key and name != key]
    if near or without_section:
        return f"unknown key {key!r}; did you mean {(without_section or near)[0]!r}?"
    return f"unknown key {key!r}; see --help"


# The keys of a dataclass, and of YAML files.


def list_keys(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield every key of a dataclass: ``pretrain.epochs`` and so on."""
    for name, inner in _types(kind).items():
        yield prefix + name
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from list_keys(inner, f"{prefix}{name}.")


def takes_list(kind: type[Any], key: str) -> bool:
    """Say whether the value of a dataclass's key, as ``learn.methods``, is a list."""
    *sections, name = key.split(".")
    for section in sections:
        kind = _types(kind)[section]
    return get_origin(get_type_hints(kind)[name]) is list


def section_kind(kind: Any, key: str) -> Any:
    """Return the dataclass that is the section ``key`` of another one, as ``pretrain.init``; None for other keys."""
    for name in key.split("."):
        kind = _types(kind).get(name) if isinstance(kind, type) and is_dataclass(kind) else None
    return kind if is_dataclass(kind) else None


def _types(kind: type[Any]) -> dict[str, Any]:
    """Return {field: type} of a dataclass; the type of an optional field is without None."""
    types = {}
    for name, hint in get_type_hints(kind).items():
        members = [member for member in get_args(hint) if member is not type(None)]
        types[name] = members[0] if get_origin(hint) is not dict and len(members) == 1 else hint
    return types


def find_yaml(option: str, value: str, folder: Path, *patterns: str) -> Path:
    """Return a YAML file by its path, or by its name among the files of a folder that match the patterns.

    Raises:
        UserError: there is neither.
    """
    path = Path(value)
    if path.exists() and not path.is_dir():
        return path
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    by_name = {str(file.relative_to(folder).with_suffix("")): file for file in files}
    if file := by_name.get(value.removesuffix(".yaml")):
        return file
    if path.is_dir():
        raise UserError(f"{option} {value}: is a folder; give a YAML file")
    raise UserError(f"{option} {value}: no such file, and none of that name comes with it ({', '.join(by_name)})")


def check_yaml(path: Path, kind: type[Any], prefix: str = "") -> dict[str, Any]:
    """Return the content of a YAML file with the keys of a dataclass.

    Checked here, because jsonargparse names neither the file nor the remedy, and YAML takes the last of two equal keys.

    Args:
        prefix: what stands before the keys of ``kind``: "pretrain." in a file of that section alone.

    Raises:
        UserError: the file is not YAML of keys and values, or a key is unknown or there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        repeated = next(_repeated_keys(yaml.compose(text, yaml.SafeLoader)), None)
    except RecursionError:
        text = "nested too deeply, or a named value (&NAME) holds its own name (*NAME)"
        raise UserError(f"{path}: {text}; mend that") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; give a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}); mend that line") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no keys in it; give a YAML file of 'key: value' lines")
    if repeated:
        raise UserError(f"{path}: line {repeated[1]}: {repeated[0]!r} is there twice; keep one of them")
    check_keys(path, content, kind, prefix)
    return content


def _repeated_keys(node: Any) -> Iterator[tuple[str, int]]:
    """Yield (key, line) of each key that its mapping has already."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            yield from _repeated_keys(entry)


def check_keys(
    path: Path, content: dict[Any, Any], kind: type[Any], prefix: str = "", keys: list[str] | None = None
) -> None:
    """Check the keys of a file's content against those of a dataclass.

    Args:
        path: the file, for the message.
        prefix: what stands before the keys of ``kind``: "pretrain.".
        keys: all keys of the file, to find the nearest one.

    Raises:
        UserError: a key is unknown, has no value where it needs one, or one value where it has keys of its own.
    """
    types, keys = _types(kind), keys or list(list_keys(kind, prefix))
    for name, value in content.items():
        dotted = str(name).removeprefix(prefix)
        if name not in types and "." in str(name) and f"{prefix}{dotted}" in keys:
            nested = ": {".join(dotted.split(".")) + f": {typed(value)}" + "}" * dotted.count(".")
            raise UserError(f"{path}: {prefix}{dotted}: only options have dots; write it as {nested}")
        if name not in types:
            raise UserError(f"{path}: {unknown_key(f'{prefix}{name}', keys)}")
        # jsonargparse would accept null for any type.
        if value is None and not _may_be_null(kind, name):
            raise UserError(f"{path}: {prefix}{name} has no value; give one, or leave the key out")
        if types[name] is Path and not isinstance(value, (str, NoneType)):  # jsonargparse would not show the value
            raise UserError(f"{path}: {prefix}{name}={typed(value)}: must be a path; write it in quotes")
        if types[name] == dict[str, float] and isinstance(value, dict):
            _check_numbers(path, value, f"{prefix}{name}")
        if not dataclasses.is_dataclass(types[name]) or value is None:
            continue
        if isinstance(value, dict):
            check_keys(path, value, types[name], f"{prefix}{name}.", keys)
        elif isinstance(value, str) and os.path.isfile(path.parent / value):  # a file of the section's own
            check_yaml(path.parent / value, types[name], f"{prefix}{name}.")
        else:
            raise UserError(f"{path}: {prefix}{name}={typed(value)}: {SECTION}")


def _check_numbers(path: Path, values: dict[Any, Any], key: str) -> None:
    """Raise UserError for the first entry that is no number: of ``evaluate.options``, jsonargparse names none."""
    for name, value in values.items():
        try:
            float("not a number" if isinstance(value, bool) else value)  # 1e3 is text in YAML 1.1
        except (TypeError, ValueError):
            raise UserError(f"{path}: {key}: {name}={typed(value)}: must be a number") from None
