"""Choices varied one at a time over one backbone, on pseudo-novel classes: ``dist-train study unstated``.

Every setting is a member, a run of its own in RUN/study/NAME/, whose earlier stages are links: to RUN's, and to
the learn stage of the member ``default`` where only ``evaluate`` differs. Members run one after the other in this
process; what is done is skipped, so the same command continues. ``launch/grid/study_report.py`` compares them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_train.config import STAGES, Config
from dist_train.config.io import check_yaml, fields, unknown_key
from dist_train.errors import STOPPED, UserError
from launch.grid.sweep import combinations, share

log = logging.getLogger("dist_train")

_VARIED = ("extract.", "learn.", "evaluate.")
_SAME = ("methods", "protocol", "shots", "draws", "ways", "queries", "seed")
_FIXED = ("learn.methods", *(f"evaluate.{name}" for name in _SAME))
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
    """What one entry of a study varies.

    Attributes:
        keys: keys of the configuration.
        methods: the rows that it concerns.
        settings: {name: options of the command line} of all combinations of the values, in order.
    """

    keys: tuple[str, ...]
    methods: tuple[str, ...]
    settings: dict[str, list[str]]

    @property
    def first(self) -> str:
        """The first stage that it changes."""
        return min((key.partition(".")[0] for key in self.keys), key=STAGES.index)


@dataclass(frozen=True)
class Member:
    """A run of the study: its configuration, and the first stage that is its own."""

    config: Config
    first: str


def read(path: Path) -> list[Choice]:
    """The choices of a study file.

    Raises:
        UserError: it names the file and the key.
    """
    content = check_yaml(path, StudyFile)
    for name in StudyFile.__dataclass_fields__:
        if not isinstance(content.get(name), list) or not content[name]:
            raise UserError(f"{path}: {name}: give a list, as in configs/studies")
    return [_choice(path, entry, content["methods"]) for entry in content["choices"]]


def _choice(path: Path, entry: Any, methods: list[str]) -> Choice:
    if not isinstance(entry, dict) or not all(isinstance(v, list) and v for v in entry.values()):
        raise UserError(f"{path}: choices: {entry!r}: give KEY: [VALUE, ...], as in learn.p_mean: [0.3, 0.9]")
    varied = {key: values for key, values in entry.items() if key != "methods"}
    known = [key for key in fields(Config) if key.startswith(_VARIED)]
    for key in varied:
        if key in _FIXED:
            raise UserError(f"{path}: choices: {key} is the same for all members, which are compared draw by draw")
        if key in fields(Config) and key not in known:
            raise UserError(f"{path}: choices: {key}: members share one backbone; vary extract, learn or evaluate")
        if key not in known and not str(key).startswith(_NUMBERS):
            raise UserError(f"{path}: choices: {unknown_key(str(key), known)}")
    if not varied:
        raise UserError(f"{path}: choices: {entry!r}: varies nothing; give KEY: [VALUE, ...]")
    axes = [[(key, v if isinstance(v, str) else json.dumps(v)) for v in values] for key, values in varied.items()]
    return Choice(tuple(varied), tuple(entry.get("methods", methods)), combinations(axes))


def plan(config: Config, path: Path, choices: Sequence[Choice], seeds: int) -> dict[str, list[Member]]:
    """{name of the setting: its members, one a seed}, the default first. A setting that is the configuration's own
    is the default, and not there a second time.

    Args:
        config: the base run.
        seeds: each setting learns so often, from ``learn.seed`` on.

    Raises:
        UserError: a wrong value, or unknown method.
    """
    from dist_train.config.io import changed

    first, made, own = {DEFAULT: "learn"}, {DEFAULT: config}, _explicit(changed(config, []))
    methods = {DEFAULT: [name for choice in choices for name in choice.methods]}
    for choice in choices:
        for name, options in choice.settings.items():
            try:
                one = changed(config, options)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            if _explicit(one) != own:
                made[name], first[name] = one, choice.first
                methods[name] = [*methods.get(name, []), *choice.methods]
    where = config.run_dir / "study" / path.stem
    members: dict[str, list[Member]] = {}
    for name, one in made.items():
        for number in range(seeds):
            seed = one.learn.seed + number
            wanted = _with_methods(path, one, list(dict.fromkeys(methods[name])))
            wanted = replace(wanted, learn=replace(wanted.learn, seed=seed), runs=where)
            folder = f"{name},again={number}" if number else name
            members.setdefault(name, []).append(Member(replace(wanted, name=folder), first[name]))
    return members


def _explicit(config: Config) -> Config:
    """With the methods' numbers that ``evaluate.options`` leaves out."""
    from dist_train.fewshot.methods import NUMBERS

    return replace(config, evaluate=replace(config.evaluate, options={**NUMBERS, **config.evaluate.options}))


def _with_methods(path: Path, config: Config, names: list[str]) -> Config:
    """Evaluate these methods, and learn what they are made from."""
    from dist_train.fewshot.methods import LEARNED, METHODS
    from dist_train.runs.run import check_options

    sources = (METHODS[name].learned(name) for name in names if name in METHODS)
    learned = list(dict.fromkeys(name for name in sources if name in LEARNED))
    learn = replace(config.learn, methods=learned or config.learn.methods[:1])  # learn needs one
    if all(name in METHODS and METHODS[name].oracle for name in names):
        names = ["mean", *names]  # evaluate needs one that is no oracle
    made = replace(config, learn=learn, evaluate=replace(config.evaluate, methods=names))
    try:
        check_options(made, 1)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return made


def study(config: Config, path: Path, seeds: int) -> int:
    """Run the members that are not done, and leave RUN/study/NAME.md and NAME.json; returns 0, or ``STOPPED``.

    Raises:
        UserError: bad input, novel classes, or members that were made from other inputs.
    """
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
    from dist_train.runs.inputs import check_inputs
    from dist_train.runs.run import open_run
    from launch.grid.study_report import report

    choices = read(path)
    members = plan(config, path, choices, seeds)
    base = replace(members[DEFAULT][0].config, name=config.name, runs=config.runs)
    deadline = time.monotonic() + 60 * config.max_minutes if config.max_minutes else None
    for stage in ("prepare", *STAGES[: STAGES.index("learn")]):
        if code := _work(base, stage, deadline):
            return code
    run = open_run(base)
    for member, shared in _shared(config, members):
        share(member.config.run_dir, shared)
        for stage in STAGES[STAGES.index(member.first) :]:
            again = f"delete {member.config.runs}, and the study makes it again"
            check_inputs(replace(run, config=member.config), stage, again)
    every = [member for some in members.values() for member in some]
    for number, member in enumerate(every, 1):
        log.info("study %s: %d of %d, %s", path.stem, number, len(every), member.config.name)
        for stage in STAGES[STAGES.index(member.first) :]:
            if code := _work(member.config, stage, deadline):
                return code
    print(report(config.run_dir / "study" / path.stem, choices, members))
    return 0


def _shared(config: Config, members: dict[str, list[Member]]) -> Iterator[tuple[Member, dict[str, Path]]]:
    """Every member, and the runs that the stages before its own are from."""
    for some in members.values():
        for member, default in zip(some, members[DEFAULT], strict=True):
            own = STAGES.index(member.first)
            yield member, {s: default.config.run_dir if s == "learn" else config.run_dir for s in STAGES[:own]}


def _work(config: Config, stage: str, deadline: float | None) -> int:
    from launch.rank import work

    if deadline is not None:
        left = (deadline - time.monotonic()) / 60
        if left <= 0:
            log.info("study: max_minutes are over; the same command continues")
            return STOPPED
        config = replace(config, max_minutes=left)
    return work(config, stage, False)
