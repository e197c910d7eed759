"""The project's own files agree: versions, links of the site, the templates of GitHub."""

from __future__ import annotations

import pydoc
import re
import sys
from pathlib import Path

import pytest
import yaml

from dist_train.version import __version__

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert (citation["version"], citation["date-released"]) == newest.groups()
    assert citation["version"] == __version__


def test_the_templates_of_github_are_yaml() -> None:
    files = [*(ROOT / ".github").rglob("*.yaml"), *(ROOT / ".github").rglob("*.yml")]
    assert len(files) >= 4
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text()), dict), file


def test_the_navigation_of_the_site_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = set(re.findall(r": (\S+\.md)$", text, re.MULTILINE))
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert named == there | {"index.md", "contributing.md", "changelog.md"}


def test_names_on_the_pages_of_the_api_exist() -> None:
    names = [name for page in (ROOT / "docs" / "api").glob("*.md")
             for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]  # fmt: skip
    assert len(names) > 10
    assert not [name for name in names if pydoc.locate(name) is None]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(
    str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))])  # fmt: skip
def test_links_of_a_page_lead_to_files_and_headings(page: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)", text):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them; the second of a name ends with -1."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return {name + (f"-{n}" if n else "") for name in found for n in range(found.count(name))}
