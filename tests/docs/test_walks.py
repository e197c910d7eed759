"""docs/overview.md follows one batch and one submission: every hop is there, and no walk comes back to a file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OVERVIEW = ROOT / "docs" / "overview.md"
WALKS = ("One batch, from shard to gradient", "One submission, from command line to rank")


def hops(title: str) -> list[tuple[Path, list[str]]]:
    """Return the file of each hop of a walk, and the functions that it names."""
    text = OVERVIEW.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\d+\. (.*(?:\n   .*)*)", text, re.MULTILINE)
    return [
        ((OVERVIEW.parent / re.search(r"\]\(([^)]+)\)", line)[1]).resolve(),  # type: ignore[index]
         [name for name in re.findall(r"`([\w.]+)`", line.partition("): ")[2]) if not name.isupper()])
        for line in lines
    ]  # fmt: skip


def functions(file: Path) -> set[str]:
    """Return the functions and methods of a file: ``name`` and ``Class.name``."""
    tree = ast.parse(file.read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        names |= {f"{kind.name}.{node.name}" for node in kind.body if isinstance(node, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_has_at_most_eight_hops_and_none_leads_back(title: str) -> None:
    files = [file for file, _ in hops(title)]
    assert 1 < len(files) <= 8
    assert len(set(files)) == len(files)


@pytest.mark.parametrize("title", WALKS)
def test_each_hop_names_functions_that_its_file_has(title: str) -> None:
    for file, names in hops(title):
        assert names, file
        missing = set(names) - functions(file)
        assert not missing, f"{file.relative_to(ROOT)}: {missing}"
