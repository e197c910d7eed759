"""Hooks of mkdocs (mkdocs.yml): pages from the files at the top of the repository, and links out of docs/.

The pages of docs/ are read on GitHub too, where ``../dist_train/errors.py`` is a link to the file. On the site such a
link leads to the repository where ``REPOSITORY_URL`` says where that is (https://HOST/OWNER/NAME), and is the file's
name as text where it does not.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of ``PAGES`` to those of docs/."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page's text with its links as the site has them."""
    uri = page.file.src_uri
    source = PAGES.get(uri, posixpath.join("docs", uri))
    return LINK.sub(lambda match: _link(match, source, uri), markdown)


def _link(match: re.Match[str], source: str, uri: str) -> str:
    """Return one link of the file ``source``, which is the page ``uri``."""
    image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    pages = {file: name for name, file in PAGES.items()}
    inside = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
    if inside:
        return f"{image}[{text}]({posixpath.relpath(inside, posixpath.dirname(uri) or '.')}{anchor})"
    repository = os.environ.get("REPOSITORY_URL", "")
    return f"[{text}]({repository}/blob/main/{path}{anchor})" if repository else text
