"""The command line: ``dist-train COMMAND``. Options and YAML keys are the same names."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings

from dist_train.config import STAGES, Config, DrawConfig, PackConfig, configs_dir
from dist_train.config.io import check_yaml, config_of, find_yaml, load_config, one_line
from dist_train.errors import CRASHED, UserError
from dist_train.version import __version__
from launch import terminal
from launch.cli import commands as commands_around
from launch.cli import models
from launch.cli import split as split_file
from launch.cli.parsing import CommandParser


def build_parser(words: Sequence[str]) -> CommandParser:
    """The parser of a command line of these words: only the commands among them get the options of a run, whose
    making takes a tenth of a second for each."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = CommandParser(
        prog="dist-train",
        description="Few-shot image recognition by predicting parameters from activations (Qiao et al. 2018): "
        "ImageNet archives to shards, backbone, activations, predictor, table.",
        version=__version__,
    )
    commands = parser.add_subcommands(dest="command", required=True)

    pack = CommandParser(
        description="Archives or image folders to WebDataset shards with an index; repeat to continue."
    )
    pack.add_class_arguments(PackConfig, skip={"draw"})
    pack.add_argument("--out", type=Path, required=True, help="Folder for the shards.")
    commands.add_subcommand("pack", pack, help="archives or image folders to shards")

    verify = CommandParser(
        description="Hashes, counts and a full decode with the training decoder; names shard and key."
    )
    verify.add_argument("shards", type=Path, help="Folder made by pack.")
    verify.add_argument("--workers", type=int, default=0, help="Processes; 0 = one per usable CPU.")
    commands.add_subcommand("verify", verify, help="check shards completely")

    split_file.add(commands, CommandParser)

    draw = CommandParser(description="Draw an image folder with base and novel classes, to try things without data.")
    draw.add_class_arguments(DrawConfig)
    draw.add_argument("--out", type=Path, required=True, help="Folder: gets train/, val/ and split.json.")
    commands.add_subcommand("draw", draw, help="draw example images")

    status = CommandParser(
        description="What a run, or every run of a folder, is doing: stages, step, epoch, loss, images/s, time left, "
        "last checkpoint, last sign of life, and what it died of. Reads the run's folder alone."
    )
    status.add_argument("run", type=Path, nargs="?", default=Path("runs"), help="RUNS/NAME, or RUNS for all.")
    status.add_argument("--watch", action="store_true", help="Again every few seconds, until Ctrl-C.")
    commands.add_subcommand("status", status, help="what a run is doing")

    resume = CommandParser(
        description="Prove for a run and its data that resuming is exact: sample ids, crop windows and pixel "
        "checksums of the batches after the newest checkpoint, from a stream that comes from before it and from "
        "new ones on 1, 2 and 4 ranks."
    )
    resume.add_argument("run", type=Path, help="Folder of the run (RUNS/NAME).")
    resume.add_argument("--batches", type=int, default=4, help="Global batches to compare.")
    commands.add_subcommand("verify-resume", resume, help="prove that resuming is exact")

    models.add(commands, CommandParser)
    commands_around.add(commands, CommandParser, words)

    whole = "all stages in turn (pack where asked, pretrain, extract, learn, evaluate), skipping what is done"
    told = {"run": whole, "prepare": "draw and pack, where the configuration asks for it"}
    for name in ("run", "prepare", *STAGES):
        stage = CommandParser(description=f"Run {told[name]}." if name == "run" else f"Run the stage {name}.")
        if name in words:
            commands_around.add_run_options(stage)
        stage.add_argument("--redo", action="store_true", help="Delete what is there of the stage(s) and start again.")
        if name == "run":
            stage.add_argument("--dry_run", action="store_true", help="Print steps, memory and time; start nothing.")
            stage.add_argument("--ranks", type=int, default=1, help="Ranks to plan for, with --dry-run.")
        commands.add_subcommand(name, stage, help=told.get(name, f"the stage {name} alone"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: see ``dist_train.errors``; 130 for Ctrl-C where there was nothing to save."""
    terminal.set_up()
    command = ""
    try:
        words = _named_configs(sys.argv[1:] if arguments is None else list(arguments))
        parser = build_parser(words)
        options = parser.parse_args(words)
        command = options.command
        actions = {
            "pack": _pack,
            "verify": _verify,
            "split": split_file.make,
            "draw": _draw,
            "verify-resume": _verify_resume,
            "status": _status,
            "launch": lambda given: _launch(parser, options),
            "study": lambda given: commands_around.study(_config(parser, options, "study"), given),
            "logs": commands_around.logs,
            "cancel": commands_around.cancel,
            "collect": commands_around.collect,
            "doctor": commands_around.doctor,
            "adapt": lambda given: models.adapt(given, load_config),
            "classify": models.classify,
            "export": models.export,
            "serve": models.serve,
        }
        if command not in actions:
            return _stages(parser, options)
        code = actions[command](options[command])
        sys.stdout.flush()  # or a closed pipe is found when it is too late
        return code
    except BrokenPipeError:
        if command not in ("status", "logs", "collect", "doctor", "verify", "launch", "adapt", "classify"):
            raise
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # whoever read has enough: dist-train status | head
        return 0
    except KeyboardInterrupt:
        return terminal.interrupted(nothing_to_save=command in models.NAMES)
    except Exception as error:
        reported = terminal.report(error)
        if reported is None:
            raise
        return reported


def main_of_rank(arguments: Sequence[str]) -> int:
    """``main`` for a launcher's rank: a crash has its own exit code, and is started again."""
    sys.argv = ["dist-train", *arguments]  # for the record of how a number was made
    try:
        return main(arguments)
    except Exception:
        traceback.print_exc()
        return CRASHED


def _pack(given: Namespace) -> int:
    from dist_train.data.packing.pack import pack

    values = given.as_dict()
    out = values.pop("out")
    pack(_make(PackConfig, values), out)
    return 0


def _verify(given: Namespace) -> int:
    from dist_train.data.packing.verify import verify

    problems = verify(given.shards, given.workers)
    for problem in problems:
        print(problem)
    print(f"{given.shards}: {len(problems)} problem(s)" if problems else f"{given.shards}: all is well")
    return 1 if problems else 0


def _draw(given: Namespace) -> int:
    from dist_train.data.drawing import draw, split_of
    from dist_train.data.splits import save_split

    values = given.as_dict()
    out = values.pop("out")
    options = _make(DrawConfig, values)
    draw(options, out / "train", out / "val")
    save_split(split_of(options), out / "split.json")
    print(f"{out}: train/, val/ and split.json")
    return 0


def _status(given: Namespace) -> int:
    from launch.status import show

    if not given.watch:
        print(show(given.run))
        return 0
    with suppress(KeyboardInterrupt):
        while True:
            print(f"\x1b[2J\x1b[H{show(given.run)}", flush=True)
            time.sleep(5)
    return 0


def _verify_resume(given: Namespace) -> int:
    from dist_train.runs.run import open_run
    from dist_train.stages.verify_resume import verify_resume

    if given.batches < 1:
        raise UserError(f"--batches {given.batches}: must be >= 1")
    run = open_run(load_config(given.run))
    lines, differences = verify_resume(run, given.batches)
    print("batch  first sample (window)  uninterrupted  resumed")
    for line in lines:
        print(f"{line.number}  {line.sample} ({line.window})  {line.before}  {line.after}")
    for difference in differences:
        print(difference)
    state = f"{len(differences)} difference(s)" if differences else "resuming is exact, on 1, 2 and 4 ranks"
    print(f"{given.run}: {state}")
    return 1 if differences else 0


def _stages(parser: CommandParser, options: Namespace) -> int:
    command = options.command
    redo = options[command].pop("redo")
    dry, ranks = options[command].pop("dry_run", False), options[command].pop("ranks", 1)
    config = _config(parser, options, command)
    if dry:
        from dist_train.stages.dry_run import dry_run

        if ranks < 1:
            raise UserError(f"--ranks {ranks}: must be >= 1")
        print("\n".join(dry_run(config, ranks)))
        return 0

    from launch.rank import work

    return work(config, command, redo)


def _config(parser: CommandParser, options: Namespace, *commands: str) -> Config:
    """The configuration that was given to a command (of a command)."""
    given = options
    for command in commands:
        given = given[command]
    given.pop("config", None)
    try:
        made = parser.instantiate(options)
        for command in commands:
            made = made[command]
        return config_of(made)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(str(error))) from None


def _launch(parser: CommandParser, options: Namespace) -> int:
    given = options.launch
    if given.launcher == "tensorboard":
        return commands_around.tensorboard(given.tensorboard)
    chosen = given[given.launcher]
    config = _config(parser, options, "launch", given.launcher)
    return (commands_around.launch_slurm if given.launcher == "slurm" else commands_around.launch_local)(config, chosen)


def _make(kind: type[Any], values: dict[str, Any]) -> Any:
    try:
        return kind(**{key: value for key, value in values.items() if key in kind.__dataclass_fields__})
    except ValueError as error:
        raise UserError(str(error)) from None


def _named_configs(arguments: list[str]) -> list[str]:
    """``--config demo`` is the packaged configs/demo.yaml, unless a file of that name is there; and
    options may be written with dashes (``--shorter-side``)."""
    arguments = [_underscored(argument) for argument in arguments]
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag, value = ("--config=", argument[9:]) if argument.startswith("--config=") else ("", argument)
        if flag or before == "--config":
            value = str(find_yaml("--config", value, configs_dir(), "*.yaml", "recipes/*.yaml"))
            if Path(value).is_file():  # a pipe can be read once
                check_yaml(Path(value), Config)
        found.append(flag + value)
    return found


def _underscored(argument: str) -> str:
    """``--shorter-side=256`` as ``--shorter_side=256``; a value keeps its dashes."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
