"""The tags, keys, captions, headers and rows that pages name are those of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dist_train.config import Config
from dist_train.config.io import list_keys
from dist_train.fewshot.methods import LABELS, METHODS, NUMBERS
from dist_train.fewshot.results import Counts, Interval, MethodResult, Results, SplitFacts
from dist_train.report import paper
from dist_train.report.comparison import PAIRED_METRICS
from dist_train.report.markdown import joint_markdown
from dist_train.report.wording import footnote, marked_name
from dist_train.runs import inputs
from dist_train.runs.run import Run
from launch.grid.seeds import _tables

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TAG = re.compile(r"(train|eval|optim|time|memory|data|progress|checkpoint)/[a-z]\w*(\([^)]*\))?")


def codes(page: Path) -> list[str]:
    """Return the texts between ` and `, outside of blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def written_tags() -> Iterator[str]:
    """Yield the names of scalars that the code writes: keys of dictionaries, and keys that are assigned to."""
    for path in [*(ROOT / "dist_train" / "training").glob("*.py"), *(ROOT / "dist_train" / "stages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            keys = node.keys if isinstance(node, ast.Dict) else [node.slice] if isinstance(node, ast.Subscript) else []
            for key in keys:
                if isinstance(key, ast.Constant) and TAG.fullmatch(str(key.value)):
                    yield str(key.value)


def test_tags_in_pages_are_tags_that_are_written(whole_run: Run) -> None:
    known = set(written_tags())
    lines = [path.read_text() for path in whole_run.dir.rglob("metrics.jsonl")]
    real = {tag for text in lines for tag in re.findall(r'"([a-z]+/[^"]+)"', text)}
    assert len(real) > 10 and real <= known, real - known
    named = {code: page.name for page in PAGES for code in codes(page) if TAG.fullmatch(code) and "." not in code}
    folders = {code for code in named if (ROOT / "tests" / code).exists() or (ROOT / code).exists()}
    assert len(named) >= 6 and named.keys() - folders <= known, {code: named[code] for code in named.keys() - known}


def test_keys_in_pages_are_keys() -> None:
    known = {*list_keys(Config), *(f"evaluate.options.{name}" for name in (*NUMBERS, "NAME"))}
    sections = "data|pretrain|extract|networks|learn|evaluate|cache|monitor|pack"
    for page in PAGES:
        for code in codes(page):
            for key in re.findall(rf"(?<![\w/.])(?:--)?((?:{sections})\.[A-Za-z_0-9.]+)", code):
                gone = key in inputs.GONE and "is a value of" in code  # the message that says so
                assert key in known or key.endswith((".py", ".md", ".json", ".sh")) or gone, (page.name, code)


def test_the_page_on_keys_that_may_change_names_them_all() -> None:
    text = (ROOT / "docs" / "training.md").read_text().split("## Keys that may change")[1].split("\n## ")[0]
    named = {"shards", "split", "methods", "options", "log_every", "checkpoint_every"}  # in words there, or elsewhere
    for section, keys in inputs._NEUTRAL.items():
        assert not {f"`{key}`" for key in keys if key not in named and f"`{key}`" not in text}, section
    for key in ("precision", "compile", "deepspeed"):
        assert f"`{key}`" in text


def printed(shots: list[int]) -> list[str]:
    """Return the lines of a table of all methods, with any figures."""
    metrics = dict.fromkeys([*PAIRED_METRICS, "base_top5", "novel_top5"], Interval(50.0, 1.0, (49.0, 51.0)))
    results = Results(
        methods={name: MethodResult(dict.fromkeys(shots, metrics)) for name in METHODS if not METHODS[name].oracle},
        oracles={name: metrics for name in METHODS if METHODS[name].oracle},
        shots=shots,
        draws=2,
        interval="95% t-interval over support draws",
        classes=Counts(1, 1),
        queries=Counts(1, 1),
        split=SplitFacts("s", "h"),
        shards="",
        commit="",
        command="",
    )
    return joint_markdown(results).splitlines()


def printed_of_seeds(shots: list[int]) -> list[str]:
    """Return the lines of the tables over seeds of all methods, with any figures."""
    cells = [(name, k, metric) for name in METHODS for k in shots for metric in PAIRED_METRICS]
    return "\n".join(_tables(dict.fromkeys(cells, np.ones((2, 2, 2))), shots)).splitlines()


@pytest.mark.parametrize(("name", "shots"), [("demo", [1, 2, 3]), ("tiny_imagenet", [1, 2, 3, 5])])
def test_captions_headers_and_rows_of_tables(name: str, shots: list[int]) -> None:
    lines = (ROOT / "docs" / "results" / f"{name}.md").read_text().splitlines()
    code = [*printed(shots), *printed_of_seeds(shots)]
    rows = {line.split(" | ")[0] for line in code if line.startswith("| ")}
    tables = [number for number, line in enumerate(lines) if line.startswith("| --- |")]
    for number in tables:
        assert lines[number - 1] in code, f"no table has this header: {lines[number - 1]}"
        caption = lines[number - 3]
        assert not caption.endswith(":") or caption in code, f"no table has this caption: {caption}"
        for row in lines[number + 1 :]:
            if not row.startswith("| "):
                break
            assert row.split(" | ")[0] in rows, f"no table has this row: {row[:60]}"
    facts = [line for line in lines if line.startswith("Percent; mean ± half-width of the 95% t-interval")]
    marked = [m for m in METHODS if any(line.startswith(f"| {marked_name(m)} | ") for line in lines)]
    assert len(facts) == 1 and footnote(marked) in facts[0]
    theirs = [line for line in lines if "(paper, ImageNet" in line]
    for method, whole in paper.LAST_LAYER.items():  # a figure of ours beside theirs says what is not the same
        beside = any(line.startswith(f"| {paper.TABLE_1[whole].method}") for line in theirs)
        ours = f"| {LABELS[method]} ¹ | ", f"| {LABELS[whole]} | "
        assert not beside or any(line.startswith(ours) for line in lines), method


def test_columns_of_studies_and_rows_of_the_readme() -> None:
    studies = (ROOT / "docs" / "results" / "studies.md").read_text().splitlines()
    for number, line in enumerate(studies):
        if line.startswith("| --- |"):
            columns = [cell.strip() for cell in studies[number - 1].strip("| ").split("|")]
            titles = {re.sub(r"^\d+-shot ", "", column) for column in columns if "-shot" in column}
            assert titles and titles <= set(PAIRED_METRICS.values()), columns
    readme = (ROOT / "README.md").read_text()
    names = re.findall(r"^\| \[?([^|\]]+?)(?:\]\([^)]*\))? \| \d", readme, re.MULTILINE)
    assert len(names) > 3 and set(names) <= set(LABELS.values())
