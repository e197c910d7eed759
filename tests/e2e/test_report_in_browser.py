"""The report of a small run in a real browser: light, dark, and on a phone.

Leaves screenshots in ``tests/artefacts``, or in the folder that ARTEFACTS names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browsers import VIEWS, brightness, opened

from dist_train.runs.run import Run


@pytest.fixture(params=list(VIEWS))
def page(request: pytest.FixtureRequest, browser: Any, whole_run: Run) -> Iterator[Any]:
    with opened(browser, request.param) as page:
        page.on("request", lambda asked: page.complaints.append(asked.url) if asked.url.startswith("http") else None)
        page.goto((whole_run.dir / "evaluate" / "report.html").as_uri())
        yield page


def test_page_fits_and_looks_as_told(page: Any) -> None:
    for details in page.query_selector_all("details"):
        details.evaluate("node => node.open = true")
    wide = """() => [...document.querySelectorAll('main *')].filter(node => {
        if (node.closest('.wide, .stick') && !node.matches('.wide, .stick')) return false;  // they scroll
        return node.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
    }).map(node => node.outerHTML.slice(0, 120))"""
    assert page.evaluate(wide) == []
    sizes = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert sizes[0] <= sizes[1]
    assert page.evaluate("[...document.images].length") > 10
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    texts = """() => [...document.querySelectorAll('figure > svg text')].filter(node => {
        const inner = node.getBoundingClientRect(), outer = node.closest('svg').getBoundingClientRect();
        return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
    }).map(node => node.textContent)"""
    assert page.evaluate(texts) == []  # no label is cut off
    assert page.complaints == []

    shot = brightness(page, f"report-{page.view}")
    assert shot < 60 if page.view == "dark" else shot > 200


def test_check_boxes_show_and_hide_a_method_in_all_charts(page: Any) -> None:
    ink = "() => [...document.querySelectorAll('.m8 polyline')].map(node => getComputedStyle(node).stroke)"
    other = ink.replace(".m8", ".m0")
    faint = page.evaluate(ink)
    assert len(faint) == 6 and len(set(faint)) == 1  # nine methods: the last is not shown at first
    shown = page.evaluate(other)
    assert faint[0] != shown[0]
    page.locator("label[for=show-m8]").click()
    page.mouse.move(0, 0)
    page.locator("label[for=show-m0]").click()
    page.mouse.move(0, 0)
    assert page.evaluate(other) == faint and page.evaluate(ink)[0] not in (faint[0],)
