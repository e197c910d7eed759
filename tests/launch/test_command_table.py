"""The table of commands: each is documented, and help costs no import of torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from launch.cli.main import COMMANDS, build_parser
from launch.cli.signature import description, summary


def parser_of(name: str) -> Any:
    """Return the parser of a command: ``launch slurm``."""
    parser: Any = build_parser(name.split())
    for word in name.split():
        parser = parser._subcommands_action._name_parser_map[word]
    return parser


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_every_argument_of_it_says_what_it_is(name: str) -> None:
    assert summary(COMMANDS[name].run) and description(COMMANDS[name].run).strip().endswith("."), name
    # The sections of a configuration are groups, and their fields have the help.
    arguments = [
        action for action in parser_of(name)._actions if action.nargs != 0 and "ConfigFile" not in repr(action)
    ]
    silent = [action.dest for action in arguments if not action.help and "Config" not in str(action)]
    assert not silent, silent


def test_a_flag_a_list_and_a_positional_come_from_the_signature() -> None:
    classify = parser_of("classify").parse_args(["model", "a.jpg", "b.jpg", "--json"])
    assert (str(classify.model), classify.images, classify.json, classify.topk) == (
        "model",
        ["a.jpg", "b.jpg"],
        True,
        5,
    )
    adapt = parser_of("adapt").parse_args(["model", "--class", "a=1", "--class=b=2"])
    assert adapt["class"] == ["a=1", "b=2"] and adapt.remove == [] and adapt.out is None
    slurm = parser_of("launch slurm").parse_args(["--cluster", "dev", "--sweep", "a=1", "b=2", "--sweep", "c=3"])
    assert slurm.sweep == ["a=1", "b=2", "c=3"] and slurm.here is False
    assert parser_of("study").parse_args(["unstated"]).data.holdout == "pseudo-novel"
    assert str(parser_of("status").parse_args([]).run) == "runs"


def test_help_does_not_import_torch() -> None:
    code = "import sys\nfrom launch.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
    done = subprocess.run([sys.executable, "-c", f"{code}sys.exit('torch' in sys.modules)"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
