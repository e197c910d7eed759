"""What the sources do with messages: commands in them are quoted by one function, and no decision is read from one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from dist_train.errors import counted

ROOT = Path(__file__).parents[1]

# Messages of other programs, where these have no type or code for it: read in one place each, and made a type or code.
FOREIGN = {
    "dist_train/classifier/photo_files.py": "Pillow's DecompressionBombError names the pixels in its text only",
}


def sources() -> list[Path]:
    return [*(ROOT / "dist_train").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]


def unquoted(tree: ast.AST) -> Iterator[int]:
    """Lines of f-strings that put a value into a command."""
    for node in ast.walk(tree):
        for part, following in zip(getattr(node, "values", []), getattr(node, "values", [])[1:], strict=False):
            text = part.value if isinstance(node, ast.JoinedStr) and isinstance(part, ast.Constant) else ""
            if isinstance(following, ast.FormattedValue) and re.search(r"(dist-train|--logdir) [^;,):]*$", str(text)):
                yield following.lineno


def decided_by_text(tree: ast.AST) -> Iterator[int]:
    """Lines in which the text of a caught exception is searched."""
    for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name):
        for node in ast.walk(handler):
            called = node.func if isinstance(node, ast.Call) else None
            asked: list[ast.expr] = []
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.In | ast.NotIn) for op in node.ops):
                asked = node.comparators
            elif isinstance(called, ast.Attribute) and called.attr in ("search", "match", "fullmatch", "findall"):
                asked = node.args[1:]  # type: ignore[attr-defined]
            elif isinstance(called, ast.Attribute) and called.attr in ("startswith", "endswith", "count", "find"):
                asked = [called.value]
            if any(ast.unparse(one) == f"str({handler.name})" for one in asked):
                yield node.lineno  # type: ignore[attr-defined]


NOUNS = r"(photo|image|file|folder|shard|draw|rank|step|predictor|sample|row|start|problem|thread|process|class)(e?s)\b"
SEVERAL = {
    "dist_train/data/splits.py": "part of the code of a row: to change a message would mark all rows as older",
    "dist_train/fewshot/protocols/joint.py": "the same",
    "dist_train/distributed/rendezvous.py": "the same; there are several ranks",
    "dist_train/data/loading/order.py": "a batch that ranks do not divide, of which there are several",
    "dist_train/report/wording.py": "base and novel classes together, or more than one draw",
    "dist_train/classifier/adding.py": "a single one is written out",
    "dist_train/classifier/embedding.py": "a single one is written out",
    "dist_train/classifier/kept.py": "several of one name",
    "dist_train/models/backbones/run_source.py": "stored in runs and models as it is",
    "launch/cli/create.py": "classes of which some have a single photo: two or more",
    "launch/out_of_memory.py": "more ranks than before",
    "dist_train/training/classification.py": "an assertion",
}
"""Files with counts that are written by hand, and why these are several."""


def left_open(tree: ast.AST) -> Iterator[int]:
    """Lines of f-strings with "(s)" or "(es)"."""
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
        for part in node.values:
            if isinstance(part, ast.Constant) and re.search(r"[A-Za-z]\(e?s\)(?!://)", str(part.value)):
                yield part.lineno


def counted_by_hand(tree: ast.AST) -> Iterator[int]:
    """Lines of f-strings with a number and its noun in the plural."""
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
        for part, following in zip(node.values, [*node.values[1:], None], strict=True):
            text = following.value if isinstance(following, ast.Constant) else ""
            value = ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else "counted("
            number = re.search(r"len\(|counts?\b|images|draws|world", value) and not value.startswith("counted(")
            if number and re.match(rf" ([\w-]+ )?{NOUNS}", str(text)):
                yield part.lineno


def test_counts_have_their_nouns_in_the_singular_too() -> None:
    found = {f"{path.relative_to(ROOT)}": list(counted_by_hand(ast.parse(path.read_text()))) for path in sources()}
    assert {path for path, lines in found.items() if lines} == set(SEVERAL), found
    files = [*sources(), *(ROOT / "tools").glob("*.py")]
    brackets = [f"{path.relative_to(ROOT)}:{n}" for path in files for n in left_open(ast.parse(path.read_text()))]
    assert not brackets, f"write these by dist_train.errors.counted: {brackets}"
    assert [counted(1, "photo"), counted(0, "base class"), counted(1234, "process"), counted(1.5, "epoch")] == [
        "1 photo", "0 base classes", "1,234 processes", "1.5 epochs"]  # fmt: skip


def test_values_in_commands_are_quoted() -> None:
    wrong = [f"{path.relative_to(ROOT)}:{n}" for path in sources() for n in unquoted(ast.parse(path.read_text()))]
    assert not wrong, f"write these commands by dist_train.errors.command: {wrong}"


def test_no_decision_is_read_from_the_text_of_an_exception() -> None:
    found = {
        f"{path.relative_to(ROOT)}": list(decided_by_text(ast.parse(path.read_text())))
        for path in [*sources(), *(ROOT / "tools").glob("*.py")]
    }
    assert {path for path, lines in found.items() if lines} == set(FOREIGN), found


def test_the_searches_find() -> None:
    bad = 'raise UserError(f"{run}: not done; dist-train status {run} says how it is")'
    assert list(unquoted(ast.parse(bad))) == [1]
    assert not list(unquoted(ast.parse(bad.replace("dist-train status {run}", "{command(1)}"))))
    for text in ("{len(paths)} photos", "{count:,} base classes"):
        assert list(counted_by_hand(ast.parse(f'f"{text}"'))) == [1], text
    for text in ("2 rank(s) of {x}", "{n} GPU(s)", "{n} class(es)"):
        assert list(left_open(ast.parse(f'f"{text}"'))) == [1], text
    fine = ast.parse("f\"{counted(len(a), 'photo')} of http(s)://{b}\"")
    assert not list(counted_by_hand(fine)) and not list(left_open(fine))
    for test in ("'no index' in str(error)", "re.search('a', str(error))", "str(error).startswith('a')"):
        body = f"try:\n    a()\nexcept UserError as error:\n    if {test}:\n        b()"
        assert list(decided_by_text(ast.parse(body))) == [4], test
