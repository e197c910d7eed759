"""Arguments of a command, from the signature and the docstring of its function.

Parameters before the ``*`` are positional arguments, those after it options. A bool is a flag; an option whose type is
a list may be repeated. A parameter that is a dataclass stands for its fields: each is an option, of an ``Options`` by
these same rules, of a configuration as a key of its YAML file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import Namespace

from dist_train.config import Config
from dist_train.config.io import Parser, instantiated, one_line
from dist_train.errors import UserError

Command = Callable[..., int]


class Options:
    """Mark a dataclass whose fields are the options of a command."""


@dataclass(frozen=True)
class Option:
    """Hold what the type and the docstring of an option cannot say.

    Attributes:
        name: the name to type, where Python keeps the word for itself.
        metavar: the name of the value in the help.
        short: a second name, of one letter.
        several: whether several values may follow the option.
        help: the help, where it is computed.
    """

    name: str = ""
    metavar: str | None = None
    short: str = ""
    several: bool = False
    help: str = ""


@dataclass(frozen=True)
class Keys:
    """Hold which keys of a configuration a command leaves out, and which have another default."""

    skip: frozenset[str] = frozenset()
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Argument:
    """A parameter of a function, or a field of its options."""

    name: str
    kind: Any
    extra: Any
    default: Any
    help: str
    positional: bool = False

    @property
    def key(self) -> str:
        """The name of its value in what a parser returns."""
        return (self.extra.name if isinstance(self.extra, Option) else "") or self.name


def summary(command: Command) -> str:
    """Return the first line of a command's docstring, as a list of commands shows it."""
    first = description(command).partition("\n")[0].rstrip(".")
    return first[:1].lower() + first[1:]


def description(command: Command) -> str:
    """Return a command's docstring without its sections."""
    return docstring_parser.parse(inspect.getdoc(command) or "").description or ""


def add_arguments(parser: Parser, command: Command) -> None:
    """Add the arguments of a command to its parser."""
    for argument in _parameters(command):
        if _is_options(argument.kind):
            for option in _fields(argument.kind):
                _add_argument(parser, option)
        elif not is_dataclass(argument.kind):
            _add_argument(parser, argument)
        else:
            keys = argument.extra or Keys()
            if argument.kind is Config:
                parser.add_argument("--config", action="config", help="YAML file, or the name of one in configs/.")
            parser.add_class_arguments(argument.kind, skip=set(keys.skip))
            parser.set_defaults(keys.defaults)


def has_option(command: Command, option: str) -> bool:
    """Return whether a command has an option of this name, which is no key of a configuration."""
    for argument in _parameters(command):
        options = _fields(argument.kind) if _is_options(argument.kind) else (argument,)
        if any(found.key == option and not found.positional and found.kind is not Config for found in options):
            return True
    return False


def configuration_of(command: Command) -> type[Any] | None:
    """Return the dataclass whose keys are options of a command, as ``Config``; None where it takes none."""
    kinds = (argument.kind for argument in _parameters(command))
    return next((k for k in kinds if isinstance(k, type) and is_dataclass(k) and not _is_options(k)), None)


def bound(command: Command, parser: Parser, parsed: Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a command from the values that a parser has returned.

    Args:
        words: the command's name, as it is typed: ["launch", "slurm"].

    Raises:
        UserError: a value is wrong.
    """
    arguments = list(_parameters(command))
    try:
        if any(is_dataclass(argument.kind) and not _is_options(argument.kind) for argument in arguments):
            if Config in (argument.kind for argument in arguments):
                _inside(parsed, words).pop("config", None)
                parsed = instantiated(parser, parsed, words)
            else:
                parsed = parser.instantiate(parsed)
        values = _inside(parsed, words)
        return {argument.name: _value(argument, values) for argument in arguments}
    except (ValueError, TypeError) as error:
        raise UserError(one_line(str(error))) from None


def _inside(parsed: Namespace, words: Sequence[str]) -> Namespace:
    for word in words:
        parsed = parsed[word]
    return parsed


def _value(argument: _Argument, values: Namespace) -> Any:
    """Return the value of a parameter, of several options where it is a dataclass."""
    kind: Any = argument.kind
    if _is_options(kind):
        return kind(**{option.name: _given(option, values[option.key]) for option in _fields(kind)})
    if isinstance(kind, type) and is_dataclass(kind):
        return kind(**{key.name: values[key.name] for key in fields(kind) if key.name in values})
    return _given(argument, values[argument.key])


def _given(argument: _Argument, value: Any) -> Any:
    """Return what was given for a single argument; the parser leaves paths as words.

    Raises:
        UserError: it is empty, as the path "" would be the working folder.
    """
    if "" in (value if isinstance(value, list) else [value]):
        name = argument.key.upper() if argument.positional else f"--{argument.key}"
        raise UserError(f"{name}: is empty; give a value" + " or leave it out" * (argument.default is not MISSING))
    if argument.kind is Path and isinstance(value, str):
        return Path(value)
    return [Path(word) for word in value] if argument.kind == list[Path] else value


def _is_options(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Options)


def _parameters(command: Command) -> Iterator[_Argument]:
    """Yield the parameters of a command, in order."""
    hints, texts = get_type_hints(command, include_extras=True), _texts(command)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, extra = _split(hints[name])
        default = MISSING if parameter.default is parameter.empty else parameter.default
        positional = parameter.kind is not parameter.KEYWORD_ONLY
        yield _Argument(name, kind, extra, default, texts.get(name, ""), positional)


def _fields(options: type[Any]) -> Iterator[_Argument]:
    """Yield the fields of an ``Options``, in order."""
    hints, texts = get_type_hints(options, include_extras=True), _texts(options)
    for item in fields(options):
        kind, extra = _split(hints[item.name])
        default = item.default if item.default_factory is MISSING else item.default_factory()
        yield _Argument(item.name, kind, extra, default, texts.get(item.name, ""))


def _texts(documented: Any) -> dict[str, str]:
    """Return {name: what its docstring says} of the parameters of a function, or of the fields of a dataclass."""
    parameters = docstring_parser.parse_from_object(documented).params
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parameters}


def _split(hint: Any) -> tuple[Any, Any]:
    """Return a type without None and without its annotation, and the annotation."""
    extra = None
    if get_origin(hint) is Annotated:
        hint, extra = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    return hint, extra


def _add_argument(parser: Parser, argument: _Argument) -> None:
    """Add a single argument by its type, as argparse wants it."""
    extra = argument.extra or Option()
    settings: dict[str, Any] = {"help": extra.help or argument.help, "metavar": extra.metavar}
    listed = get_origin(argument.kind) is list
    (kind,) = get_args(argument.kind) if listed else (argument.kind,)
    if argument.kind is bool:
        settings = {"help": settings["help"], "action": "store_true"}
    elif listed and argument.positional:
        settings |= {"nargs": "+"}
    elif listed and extra.several:
        settings |= {"nargs": "+", "action": "extend", "default": argument.default}
    elif listed:
        settings |= {"action": "append", "default": argument.default}
    else:
        settings |= {"default": None if argument.default is MISSING else argument.default}
        if argument.positional and argument.default is not MISSING:
            settings |= {"nargs": "?"}
    if kind not in (bool, str, Path):  # words are argparse's own type, which the help need not name
        settings["type"] = kind
    if argument.positional:
        names = [argument.key]
    else:
        names = [*([extra.short] if extra.short else []), f"--{argument.key}"]
        settings |= {"required": True} if argument.default is MISSING else {}
    parser.add_argument(*names, **{key: value for key, value in settings.items() if value is not None})
