"""Read, change and freeze a configuration: the only way to one, from YAML files and from options of a command line.

Bad input is one line: the file, the key, the value, what it must be, and the nearest valid key.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from dist_train.config import GONE, Config, PackConfig, to_dict, to_yaml
from dist_train.errors import UserError
from dist_train.files import write_text

_KINDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "list": "a list: [A, B]",
    "dict": "names and values: {A: B}",
}  # fmt: skip


class Parser(ArgumentParser):
    """Parse as jsonargparse does; bad input becomes one line."""

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
        """Raises UserError: the message in one line."""
        keys = [action.dest for action in self._actions]
        if "pack" in keys:
            keys += [f"pack.{name}" for name in PackConfig.__dataclass_fields__]
        raise UserError(one_line(message, keys))


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


def read_config(path: Path) -> Config:
    """Return the configuration in a file, as ``freeze`` and older versions have written it.

    Raises:
        UserError: the file is damaged, or a key or value is wrong.
    """
    parser = Parser()
    parser.add_class_arguments(Config)
    values = _of_older_version(path)
    if values is None:
        check_yaml(path, Config)
    else:
        check_keys(path, values, Config)
    made = parser.instantiate(
        parser.parse_path(str(path.absolute())) if values is None else parser.parse_object(values)
    )
    return config_of(made)


def _of_older_version(path: Path) -> dict[str, Any] | None:
    """The configuration of a run that an older version has written, as JSON, without keys that are gone; else None."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    for section, _, key in (name.partition(".") for name in GONE):
        if isinstance(values.get(section), dict):
            values[section].pop(key, None)
    return values


def config_of(made: Namespace) -> Config:
    """The configuration in what a parser instantiated."""
    return Config(**{key: getattr(made, key) for key in Config.__dataclass_fields__})


def changed(config: Config, options: Sequence[str]) -> Config:
    """A configuration with some options changed, checked.

    Raises:
        UserError: an unknown key or a wrong value.
    """
    parser = Parser()
    parser.add_class_arguments(Config)
    given = parser.parse_object(to_dict(config))
    try:
        made = parser.instantiate(parser.parse_args(list(options), namespace=given))
        return config_of(made)
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
