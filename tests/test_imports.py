"""Imports flow one way, without a circle between any two files, and heavy libraries are imported in one module each."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import draw_rooms  # noqa: E402

# What each room may import from: itself, and the rooms of earlier lines.
FLOORS = [
    ["ground"], ["config"], ["distributed"], ["data", "models"], ["training"], ["fewshot"], ["report", "runs"],
    ["stages"], ["classifier"], ["launch"], ["entry"],
]  # fmt: skip
# Who may import a library; for all others it comes through this file.
DOORS = {
    "nvidia.dali": "dist_train.data.loading.dali",
    "deepspeed": "dist_train.training.strategies.deepspeed",
    "submitit": "launch.slurm.submit",
}


def test_no_file_imports_itself_through_others() -> None:
    circle = draw_rooms.cycle(draw_rooms.file_graph())
    assert not circle, " -> ".join(circle)


def test_imports_flow_one_way() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    against = [
        f"{module} imports {target}"
        for module, targets in draw_rooms.file_graph().items()
        for target in targets
        if (here := draw_rooms.room_of(module)) != (there := draw_rooms.room_of(target)) and floor[there] >= floor[here]
    ]
    assert not against, against


def test_nothing_below_the_command_line_knows_it() -> None:
    users = {m for m, targets in draw_rooms.file_graph().items() if any(t.startswith("launch.cli") for t in targets)}
    assert all(user.startswith("launch.cli") or user == "dist_train.__main__" for user in users), users


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    users = set()
    for module, file in draw_rooms.sources().items():
        text = file.read_text(encoding="utf-8")
        by_name = any(f'{start}"{library}' in text for start in ("f", "import_module("))
        if by_name or any(name == library or name.startswith(f"{library}.") for name in _names(file)):
            users.add(module)
    assert users == {DOORS[library]}


def test_nothing_imports_the_tools() -> None:
    users = {m for m, file in draw_rooms.sources().items() if any(n.split(".")[0] == "tools" for n in _names(file))}
    assert not users


def _names(file: Path) -> set[str]:
    """Return the dotted names that a file imports."""
    statements = list(draw_rooms.import_statements(file))
    return {module for module, _ in statements} | {f"{module}.{name}" for module, names in statements for name in names}


@pytest.mark.parametrize(
    "statement",
    [
        "from planted import second",
        "import planted.second",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from planted.second import Thing",
        "def later():\n    from planted import second",
    ],
)
def test_a_circle_is_noticed_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "first.py").write_text(statement + "\n")
    (folder / "second.py").write_text("from planted.first import other\n")
    monkeypatch.setattr(draw_rooms, "PACKAGES", ("planted",))
    circle = draw_rooms.cycle(draw_rooms.file_graph(tmp_path))
    assert set(circle) == {"planted.first", "planted.second"}


def test_the_picture_in_contributing_is_of_these_imports() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "draw_rooms.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_old_picture_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / draw_rooms.PAGE).write_text(f"{draw_rooms.BEGIN}\nold\n{draw_rooms.END}\n")
    monkeypatch.setattr(sys, "argv", ["draw_rooms.py", "--check"])
    monkeypatch.setattr(draw_rooms, "page", lambda: tmp_path / draw_rooms.PAGE)
    with pytest.raises(SystemExit, match=r"run tools/draw_rooms\.py"):
        draw_rooms.main()


MAX_LINES, MAX_PARAMETERS = 60, 7


def test_functions_fit_a_screen_and_take_few_parameters() -> None:
    too_much = []
    for file in [*draw_rooms.sources().values(), *(ROOT / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len(given) - (bool(given) and given[0].arg in ("self", "cls"))
                if lines > MAX_LINES or count > MAX_PARAMETERS:
                    too_much.append(f"{file.relative_to(ROOT)}: {node.name} ({lines} lines, {count} parameters)")
    assert not too_much, too_much
