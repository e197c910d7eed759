"""``dist-train study``: choices varied one at a time over one backbone, on pseudo-novel classes.

Each setting is a member, a run in RUN/study/NAME/. Members run one after the other in this process; what is done is
skipped, so the same command continues. ``launch/grid/report.py`` compares them with the member ``default``.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_train.config import STAGES, Config
from dist_train.config.io import changed, check_yaml, fields, unknown_key
from dist_train.errors import STOPPED, UserError
from launch.grid.members import Axis, Member, combinations, link_stages

log = logging.getLogger("dist_train")

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
    """KEY: [VALUE, ...] each; of several keys all combinations; ``methods`` for the rows that it concerns."""


@dataclass(frozen=True)
class Choice:
    """An entry of a study file: one or more keys that are varied together.

    Attributes:
        keys: of the configuration.
        methods: the rows that the choice concerns.
        settings: options of the command line of each combination of values, by its name, in the file's order.
    """

    keys: tuple[str, ...]
    methods: tuple[str, ...]
    settings: dict[str, list[str]]

    @property
    def first(self) -> str:
        """The first stage that it changes."""
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
        raise UserError(f"{path}: choices: {entry!r}: give KEY: [VALUE, ...], as in learn.p_mean: [0.3, 0.9]")
    varied = {key: values for key, values in entry.items() if key != "methods"}
    for key in varied:
        _check_key(path, str(key))
    if not varied:
        raise UserError(f"{path}: choices: {entry!r}: varies nothing; give KEY: [VALUE, ...]")
    axes: list[Axis] = [
        [(key, value if isinstance(value, str) else json.dumps(value)) for value in values]
        for key, values in varied.items()
    ]
    return Choice(tuple(varied), tuple(entry.get("methods", methods)), combinations(axes))


def _check_key(path: Path, key: str) -> None:
    """Refuse a key that a study cannot vary."""
    keys = list(fields(Config))
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
        config: of the base run.
        path: of the study file.
        seeds: trainings of each setting, with the seeds ``learn.seed``, ``learn.seed + 1``, ...

    Raises:
        UserError: a value is wrong, or a method unknown.
    """
    configs, first = {DEFAULT: config}, {DEFAULT: "learn"}
    methods = {DEFAULT: [name for choice in choices for name in choice.methods]}
    default = _with_all_options(changed(config, []))
    for choice in choices:
        for name, options in choice.settings.items():
            try:
                setting = changed(config, options)
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
            members[name].append(Member(replace(setting, learn=learn, runs=folder, name=own_name), first[name]))
    return members


def _with_all_options(config: Config) -> Config:
    """Return a configuration that also says the methods' options that ``evaluate.options`` leaves out."""
    from dist_train.fewshot.methods import NUMBERS

    return replace(config, evaluate=replace(config.evaluate, options={**NUMBERS, **config.evaluate.options}))


def _with_methods(path: Path, config: Config, names: list[str]) -> Config:
    """Return a configuration that evaluates these methods, and learns what they are made from."""
    from dist_train.fewshot.methods import LEARNED, METHODS
    from dist_train.runs.run import check_options

    sources = (METHODS[name].learned(name) for name in names if name in METHODS)
    learned = list(dict.fromkeys(name for name in sources if name in LEARNED))
    learn = replace(config.learn, methods=learned or config.learn.methods[:1])  # learn needs a method
    if all(name in METHODS and METHODS[name].oracle for name in names):
        names = ["mean", *names]  # evaluate needs a method that is no oracle
    config = replace(config, learn=learn, evaluate=replace(config.evaluate, methods=names))
    try:
        check_options(config, 1)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def run_study(config: Config, path: Path, seeds: int) -> int:
    """Run the members that are not done, and write RUN/study/NAME.md and NAME.json.

    Returns:
        0, or ``STOPPED``.

    Raises:
        UserError: bad input, novel classes, or members that were made from other inputs.
    """
    from launch.grid.report import write_study

    _check_study(config, seeds)
    choices = read_study(path)
    settings = study_members(config, path, choices, seeds)
    default = settings[DEFAULT][0].config
    base = Member(replace(default, name=config.name, runs=config.runs), "pretrain")
    deadline = time.monotonic() + 60 * config.max_minutes if config.max_minutes else None
    for stage in ("prepare", *STAGES[: STAGES.index("learn")]):
        if code := _run_stage(base, stage, deadline):
            return code
    _link_members(base, settings)
    members = [member for of_setting in settings.values() for member in of_setting]
    for number, member in enumerate(members, 1):
        log.info("study %s: %d of %d, %s", path.stem, number, len(members), member.name)
        for stage in member.own:
            if code := _run_stage(member, stage, deadline):
                return code
    print(write_study(config.run_dir / "study" / path.stem, choices, settings))
    return 0


def _check_study(config: Config, seeds: int) -> None:
    if config.data.holdout == "novel":
        raise UserError("data.holdout=novel: choosing on the novel classes is tuning on the test set; leave it out, "
                        "and the split's pseudo-novel classes take their place")  # fmt: skip
    if config.evaluate.protocol != "joint":
        raise UserError(f"evaluate.protocol={config.evaluate.protocol}: a study compares base and novel classes scored "
                        "together; take joint")  # fmt: skip
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be >= 1")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("study: runs in one process; start it without torchrun")


def _link_members(base: Member, settings: Settings) -> None:
    """Make the members' folders. Their shared stages are links to the base run's; where only ``evaluate`` differs,
    ``learn`` is a link to that of the default with the same seed.

    Raises:
        UserError: a member was made from other inputs.
    """
    from dist_train.runs.inputs import check_inputs
    from dist_train.runs.run import open_run

    run = open_run(base.config)
    for members in settings.values():
        for member, default in zip(members, settings[DEFAULT], strict=True):
            link_stages(member, {stage: default.run if stage == "learn" else base.run for stage in member.shared})
            for stage in member.own:
                remedy = f"delete {member.config.runs}, and the study makes it again"
                check_inputs(replace(run, config=member.config), stage, remedy)


def _run_stage(member: Member, stage: str, deadline: float | None) -> int:
    """Run a stage of a member in this process; return 0, or ``STOPPED``.

    Args:
        deadline: by ``time.monotonic``; None: there is none.
    """
    from launch.rank import work

    config = member.config
    if deadline is not None:
        minutes_left = (deadline - time.monotonic()) / 60
        if minutes_left <= 0:
            log.info("study: max_minutes are over; the same command continues")
            return STOPPED
        config = replace(config, max_minutes=minutes_left)
    return work(config, stage, False)
