"""The report of a small run in a real browser: light, dark, and on a phone.

Leaves screenshots in ``tests/artefacts``, or in the folder that ARTEFACTS names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browsers import VIEWS, brightness, opened

from dist_train.fewshot.results import Results
from dist_train.report.plots import method_labels
from dist_train.runs.run import Run


@pytest.fixture(params=list(VIEWS))
def page(request: pytest.FixtureRequest, browser: Any, whole_run: Run) -> Iterator[Any]:
    with opened(browser, request.param) as page:
        page.on("request", lambda sent: page.complaints.append(sent.url) if sent.url.startswith("http") else None)
        page.goto((whole_run.dir / "evaluate" / "report.html").as_uri())
        yield page


def test_page_fits_its_window_and_has_the_scheme_that_is_preferred(page: Any) -> None:
    for details in page.query_selector_all("details"):
        details.evaluate("node => node.open = true")
    wide = """() => [...document.querySelectorAll('main *')].filter(node => {
        if (node.closest('.wide, .stick') && !node.matches('.wide, .stick')) return false;  // they scroll
        return node.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
    }).map(node => node.outerHTML.slice(0, 120))"""
    assert page.evaluate(wide) == []
    content, window = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert content <= window
    assert page.evaluate("[...document.images].length") > 10
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    cut_labels = """() => [...document.querySelectorAll('figure > svg text')].filter(node => {
        const inner = node.getBoundingClientRect(), outer = node.closest('svg').getBoundingClientRect();
        return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
    }).map(node => node.textContent)"""
    assert page.evaluate(cut_labels) == []
    assert page.complaints == []

    shot = brightness(page, f"report-{page.view}")
    assert shot < 60 if page.view == "dark" else shot > 200


def test_check_boxes_show_and_hide_a_method_in_all_charts(page: Any, whole_run: Run) -> None:
    labels = method_labels(Results.read(whole_run.dir / "evaluate" / "results.json")).values()
    hidden = next(label.key for label in labels if not label.shown)  # of nine methods, one is hidden at first
    shown = next(label.key for label in labels if label.shown)

    def colours(key: str) -> set[str]:
        lines = f"[...document.querySelectorAll('.{key} polyline')].map(node => getComputedStyle(node).stroke)"
        in_charts = page.evaluate(lines)
        assert len(in_charts) == 6
        return set(in_charts)

    faint, coloured = colours(hidden), colours(shown)
    assert len(faint) == 1 and len(coloured) == 1 and faint != coloured
    for key in (hidden, shown):
        page.locator(f"label[for=show-{key}]").click()
        page.mouse.move(0, 0)
    assert colours(shown) == faint and colours(hidden).isdisjoint(faint)
