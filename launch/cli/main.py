"""The command line: ``dist-train COMMAND``. Options and YAML keys are the same names."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import set_parsing_settings

from dist_train.config import Config, configs_dir
from dist_train.config.givers import naming_files, options_in
from dist_train.config.io import check_yaml, find_yaml, section_kind
from dist_train.distributed.cpus import keep_freed_memory
from dist_train.version import __version__
from launch import terminal
from launch.cli import adapt, classify, create, data, launching, measuring, models, runs
from launch.cli.parser import CommandParser
from launch.cli.signature import Command, add_arguments, bound, configuration_of, description, has_option, summary


@dataclass(frozen=True)
class Entry:
    """A command, with what ``main`` has to know of it.

    Attributes:
        run: the function that is the command.
        read: it prints what a person may read through ``head``; the others have work to finish when nobody reads any
            more.
        photos: it sees photos, batch after batch.
        saves_at_once: it writes each change at once and whole, so that Ctrl-C leaves none half-made.
    """

    run: Command
    read: bool = False
    photos: bool = False
    saves_at_once: bool = False


COMMANDS = {
    "pack": Entry(data.pack),
    "verify": Entry(data.verify, read=True),
    "split": Entry(data.split),
    "draw": Entry(data.draw),
    "run": Entry(runs.run),
    "prepare": Entry(runs.prepare),
    "pretrain": Entry(runs.pretrain),
    "extract": Entry(runs.extract),
    "networks": Entry(runs.networks),
    "learn": Entry(runs.learn),
    "evaluate": Entry(runs.evaluate),
    "study": Entry(runs.study),
    "collect": Entry(runs.collect, read=True),
    "status": Entry(runs.status, read=True),
    "logs": Entry(runs.logs, read=True),
    "cancel": Entry(runs.cancel),
    "verify-resume": Entry(runs.verify_resume),
    "launch local": Entry(launching.local, read=True),
    "launch slurm": Entry(launching.slurm, read=True),
    "launch tensorboard": Entry(launching.tensorboard, read=True),
    "doctor": Entry(launching.doctor, read=True),
    "create": Entry(create.create, read=True, photos=True, saves_at_once=True),
    "adapt": Entry(adapt.adapt, read=True, photos=True, saves_at_once=True),
    "classify": Entry(classify.classify, read=True, photos=True),
    "evaluate-model": Entry(measuring.evaluate_model, read=True, photos=True, saves_at_once=True),
    "export": Entry(models.export, saves_at_once=True),
    "serve": Entry(models.serve, photos=True, saves_at_once=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named, and return its exit code: see ``dist_train.errors``; 130 for Ctrl-C."""
    terminal.set_up()
    command, code = None, None
    try:
        words = [_underscored(word) for word in (sys.argv[1:] if arguments is None else arguments)]
        words = _with_paths_of_configs(words)
        with naming_files(words):
            parser = build_parser(words)
            parsed = parser.parse_args(words)
            name = f"launch {parsed.launch.launcher}" if parsed.command == "launch" else parsed.command
            command = COMMANDS[name]
            values = bound(command.run, parser, parsed, name.split())
            if command.photos:
                keep_freed_memory()
            code = command.run(**values)  # which checks names of methods, split and the like
        sys.stdout.flush()  # here, where a closed pipe is still noticed
        return code
    except BrokenPipeError:
        if code is None and not (command and command.read):
            raise
        # The reader has enough (dist-train status | head), or all work is done.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 0
    except KeyboardInterrupt:
        return terminal.interrupted(nothing_to_save=command is not None and command.saves_at_once)
    except Exception as error:
        reported = terminal.report(error)
        if reported is None:
            raise
        return reported


def build_parser(words: Sequence[str]) -> CommandParser:
    """Return the parser for a command line of these words.

    Only commands among the words get their arguments: those of a run take a tenth of a second to make.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = CommandParser(
        prog="dist-train",
        description="Few-shot image recognition by predicting parameters from activations (Qiao et al. 2018): "
        "ImageNet archives to shards, backbone, activations, predictor, table.",
        version=__version__,
    )
    launch = CommandParser(description="Start a run on this machine (local) or as SLURM jobs (slurm); or TensorBoard.")
    commands = parser.add_subcommands(dest="command", required=True)
    commands.add_subcommand("launch", launch, help="start a run on this machine or on SLURM; TensorBoard")
    launchers = launch.add_subcommands(dest="launcher", required=True)
    for name, command in COMMANDS.items():
        *group, last = name.split()
        subparser = CommandParser(description=description(command.run))
        subparser.commands_with = _commands_with
        if last in words:
            add_arguments(subparser, command.run)
        (launchers if group else commands).add_subcommand(last, subparser, help=summary(command.run))
    return parser


def _commands_with(option: str) -> list[str]:
    return [name for name, command in COMMANDS.items() if has_option(command.run, option)]


def _underscored(word: str) -> str:
    """Write ``--shorter-side=256`` as ``--shorter_side=256``; a value keeps its dashes."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _with_paths_of_configs(words: Sequence[str]) -> list[str]:
    """Replace the name of a packaged configuration by its path, as in ``--config demo``; check every configuration,
    and every file of a section, as in ``--pretrain FILE``.

    Raises:
        UserError: a file is not there, or has a wrong key.
    """
    replaced = []
    entry = COMMANDS.get(" ".join(words[:1])) or COMMANDS.get(" ".join(words[:2]))
    kind = configuration_of(entry.run) if entry else None
    for option, file in options_in(words):
        section = section_kind(kind, option)
        if section and os.path.isfile(file):  # else its keys and values themselves, which are checked with the options
            check_yaml(Path(file), section, f"{option}.")
    for before, word in zip(["", *words], words, strict=False):
        flag, value = ("--config=", word[9:]) if word.startswith("--config=") else ("", word)
        if flag or before == "--config":
            value = str(find_yaml("--config", value, configs_dir(), "*.yaml", "recipes/*.yaml"))
            if Path(value).is_file():  # a pipe can be read only once
                check_yaml(Path(value), Config)
        replaced.append(flag + value)
    return replaced
