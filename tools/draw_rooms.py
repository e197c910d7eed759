#!/usr/bin/env python3
"""Draw the rooms of the code from its imports, as the picture in CONTRIBUTING.md.

    tools/draw_rooms.py            # write the picture
    tools/draw_rooms.py --check    # fail where the picture is old

Every import counts: those for types only and those inside functions too. An arrow leads from a room to a room that it
imports from; an arrow that other arrows already imply is left out (the transitive reduction), so that the picture can
be read.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dist_train", "launch")
PAGE = "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms: written by tools/draw_rooms.py -->", "<!-- end of rooms -->"
Graph = dict[str, set[str]]


def module_of(file: Path, root: Path = ROOT) -> str:
    """Return the dotted name of a source file: ``dist_train.data.splits``; a package's is that of its folder."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the packages, by its dotted name."""
    files = (file for package in PACKAGES for file in sorted((root / package).rglob("*.py")))
    return {module_of(file, root): file for file in files}


def import_statements(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each import of a file, anywhere in it: the module, and the names that are taken from it ([]: itself).

    Raises:
        ValueError: an import is relative; the project's are absolute.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError(f"{file}:{node.lineno}: a relative import; write it as an absolute one")
            yield node.module, [alias.name for alias in node.names]


def imports(file: Path, modules: Mapping[str, Path]) -> set[str]:
    """Return which of ``modules`` a file imports. ``from package import name`` is an import of the module
    ``package.name`` where there is such a module, else of ``package``."""
    wanted = set()
    for module, names in import_statements(file):
        wanted |= {full if (full := f"{module}.{name}") in modules else module for name in names} or {module}
    return wanted & modules.keys()


def file_graph(root: Path = ROOT) -> Graph:
    """Return which of the packages' modules each module imports."""
    modules = sources(root)
    return {name: imports(file, modules) - {name} for name, file in modules.items()}


def cycle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the nodes of a cycle, the first of them again at the end; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [str(name) for name in error.args[1]][::-1]
    return []


def room_of(module: str) -> str:
    """Return the room of a module: its folder within ``dist_train``, ``launch``, ``ground`` for the files that stand
    alone in ``dist_train``, and ``entry`` for what users import or start: ``dist_train`` itself."""
    parts = module.split(".")
    if module in ("dist_train", "dist_train.__main__"):
        return "entry"
    if parts[0] == "launch":
        return "launch"
    return parts[1] if (ROOT / "dist_train" / parts[1]).is_dir() else "ground"


def inner_room_of(package: str) -> dict[str, str]:
    """Return the room within a package for each of its modules: the folder, or the file where it stands alone."""
    depth = package.count(".") + 1
    rooms = {}
    for module in sources():
        if module.startswith(package + "."):
            rooms[module] = module.split(".")[depth]
    return rooms


def rooms_graph(files: Graph, rooms: Mapping[str, str]) -> Graph:
    """Return which rooms each room imports from; modules without a room are left out."""
    graph: Graph = {room: set() for room in rooms.values()}
    for module, targets in files.items():
        for target in targets:
            here, there = rooms.get(module), rooms.get(target)
            if here and there and here != there:
                graph[here].add(there)
    return graph


def reduced(graph: Graph) -> Graph:
    """Return a graph without the arrows that longer ways already imply. The graph must not have a cycle."""

    def reachable(start: str) -> set[str]:
        return {start}.union(*(reachable(target) for target in graph[start]))

    return {
        node: {t for t in targets if not any(t in reachable(other) for other in targets - {t})}
        for node, targets in graph.items()
    }


def mermaid(graph: Graph) -> str:
    """Return a graph in Mermaid's language."""
    order = [*graphlib.TopologicalSorter({room: sorted(graph[room]) for room in sorted(graph)}).static_order()][::-1]
    lines = ["```mermaid", "flowchart TD", *(f"    {room}" for room in order)]
    lines += [f"    {room} --> {target}" for room in order for target in sorted(reduced(graph)[room])]
    return "\n".join([*lines, "```"])


def picture() -> str:
    """Return the pictures of the house and of its two largest rooms, as Markdown.

    Raises:
        ValueError: rooms import from each other in a circle.
    """
    files = file_graph()
    parts = []
    for title, rooms in (
        ("The rooms.", {module: room_of(module) for module in sources()}),
        ("Inside `dist_train/data`.", inner_room_of("dist_train.data")),
        ("Inside `launch`.", inner_room_of("launch")),
    ):
        graph = rooms_graph(files, rooms)
        circle = cycle(graph)
        if circle:
            raise ValueError(f"{title} Rooms import from each other in a circle: {' -> '.join(circle)}")
        parts += [title, "", mermaid(graph), ""]
    return "\n".join(parts)


def page() -> Path:
    """Return the file with the picture."""
    return ROOT / PAGE


def main() -> int:
    """Write or check the picture; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Change nothing; exit with 1 where the picture is old.")
    options = parser.parse_args()
    text = page().read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{PAGE}: needs the lines {BEGIN!r} and {END!r} once each; put them where the picture belongs")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    try:
        new = f"{before}{BEGIN}\n\n{picture()}\n{END}{after}"
    except ValueError as error:
        sys.exit(str(error))
    if options.check and new != text:
        sys.exit(f"{PAGE}: its picture is not what the imports are now; run tools/draw_rooms.py and commit the page")
    if not options.check:
        page().write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
