"""A study: choices varied one at a time over one backbone (``configs/studies``).

Each setting of a choice is a member, a run in RUN/study/NAME/. ``launch/grid/run_study.py`` runs the members, and
``launch/grid/report.py`` compares them with the member ``default``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_train.config import NETWORK_OF, STAGES, Config
from dist_train.config.checks import typed
from dist_train.config.io import check_yaml, list_keys, unknown_key, with_options
from dist_train.errors import UserError
from launch.grid.members import Axis, Member, combinations, named

_VARIABLE = ("extract.", "learn.", "evaluate.")
# What must be the same for members that are compared draw by draw.
_SAME_DRAWS = ("methods", "protocol", "shots", "draws", "ways", "queries", "seed")
_FIXED = ("learn.methods", *(f"evaluate.{name}" for name in _SAME_DRAWS))
_NUMBERS = "evaluate.options."
DEFAULT = "default"


@dataclass(kw_only=True)
class StudyFile:
    """The keys of configs/studies/*.yaml."""

    methods: list[str]
    """The rows that are compared, where a choice does not name its own."""
    choices: list[dict[str, Any]]
    """Each is KEY: [VALUE, ...]. Several keys are varied together, in all combinations; ``methods`` names the rows that
    the choice concerns."""


@dataclass(frozen=True)
class Choice:
    """An entry of a study file: one or more keys that are varied together.

    Attributes:
        keys: keys of the configuration.
        methods: the rows that the choice concerns.
        settings: name of each combination of values -> its options of the command line, in the file's order.
    """

    keys: tuple[str, ...]
    methods: tuple[str, ...]
    settings: dict[str, list[str]]

    @property
    def first(self) -> str:
        """The first stage that the choice changes."""
        return min((key.partition(".")[0] for key in self.keys), key=STAGES.index)


Settings = Mapping[str, Sequence[Member]]
"""The members of each setting by its name, one for each seed; ``default`` comes first."""


def read_study(path: Path) -> list[Choice]:
    """Return the choices of a study file.

    Raises:
        UserError: it names the file and the key.
    """
    content = check_yaml(path, StudyFile)
    for name in StudyFile.__dataclass_fields__:
        if not isinstance(content.get(name), list) or not content[name]:
            raise UserError(f"{path}: {name}: give a list, as in configs/studies")
    return [_choice(path, entry, content["methods"]) for entry in content["choices"]]


def _choice(path: Path, entry: Any, methods: Sequence[str]) -> Choice:
    if not isinstance(entry, dict) or not all(isinstance(v, list) and v for v in entry.values()):
        raise UserError(f"{path}: choices: {typed(entry)}: give KEY: [VALUE, ...], as in learn.p_mean: [0.3, 0.9]")
    varied = {key: values for key, values in entry.items() if key != "methods"}
    for key in varied:
        _check_key(path, str(key))
    if not varied:
        raise UserError(f"{path}: choices: {typed(entry)}: varies nothing; give KEY: [VALUE, ...]")
    methods = entry.get("methods", methods)
    if not all(isinstance(name, str) for name in methods):
        raise UserError(f"{path}: methods: {typed(methods)}: give names of rows, as in [phi2, ridge]")
    axes: list[Axis] = [
        [(key, value if isinstance(value, str) else json.dumps(value)) for value in values]
        for key, values in varied.items()
    ]
    return Choice(tuple(varied), tuple(methods), combinations(axes))


def _check_key(path: Path, key: str) -> None:
    """Refuse a key that a study cannot vary."""
    keys = list(list_keys(Config))
    variable = [name for name in keys if name.startswith(_VARIABLE)]
    if key in _FIXED:
        raise UserError(f"{path}: choices: {key} is the same for all members, which are compared draw by draw")
    if key in keys and key not in variable:
        raise UserError(f"{path}: choices: {key}: members share one backbone; vary extract, learn or evaluate")
    if key not in variable and not key.startswith(_NUMBERS):
        raise UserError(f"{path}: choices: {unknown_key(key, variable)}")


def study_members(config: Config, path: Path, choices: Sequence[Choice], seeds: int) -> dict[str, list[Member]]:
    """Return the members of each setting by its name, the default first. A setting that is the configuration's own is
    the default, and is not listed a second time.

    Args:
        config: configuration of the base run.
        path: the study file.
        seeds: number of trainings of each setting, with the seeds ``learn.seed``, ``learn.seed + 1``, ...

    Raises:
        UserError: a value is wrong, or a method unknown.
    """
    configs, first = {DEFAULT: config}, {DEFAULT: "learn"}
    methods = {DEFAULT: [name for choice in choices for name in choice.methods]}
    default = _with_all_options(with_options(config, []))
    for choice in choices:
        for name, options in choice.settings.items():
            try:
                setting = with_options(config, options)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            if _with_all_options(setting) != default:
                configs[name], first[name] = setting, choice.first
                methods[name] = [*methods.get(name, []), *choice.methods]
    folder = config.run_dir / "study" / path.stem
    members: dict[str, list[Member]] = {name: [] for name in configs}
    for name, setting in configs.items():
        setting = _with_methods(path, setting, list(dict.fromkeys(methods[name])))
        for number in range(seeds):
            learn = replace(setting.learn, seed=setting.learn.seed + number)
            own_name = f"{name},again={number}" if number else name
            try:
                own = named(replace(setting, learn=learn), own_name, folder)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            members[name].append(Member(own, first[name]))
    return members


def _with_all_options(config: Config) -> Config:
    """Return a configuration that also says the methods' options that ``evaluate.options`` leaves out."""
    from dist_train.fewshot.methods import NUMBERS

    return replace(config, evaluate=replace(config.evaluate, options={**NUMBERS, **config.evaluate.options}))


def _with_methods(path: Path, config: Config, names: list[str]) -> Config:
    """Return a configuration that evaluates these methods, and learns what they are made from."""
    from dist_train.fewshot.methods import LEARNED, METHODS
    from dist_train.runs.run import check_config

    if trained := [name for name in names if name in NETWORK_OF]:
        raise UserError(f"{path}: methods: {trained[0]}: members share one backbone, and train none; leave it out")
    sources = (METHODS[name].learned(name) for name in names if name in METHODS)
    learned = list(dict.fromkeys(name for name in sources if name in LEARNED))
    learn = replace(config.learn, methods=learned or config.learn.methods[:1])  # learn needs a method
    if all(name in METHODS and METHODS[name].oracle for name in names):
        names = ["mean", *names]  # evaluate needs a method that is no oracle
    config = replace(config, learn=learn, evaluate=replace(config.evaluate, methods=names))
    try:
        check_config(config, 1)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config
