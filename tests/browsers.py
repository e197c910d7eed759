"""For tests in a real browser. Screenshots go to ``tests/artefacts``, or to the folder that ARTEFACTS names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARTEFACTS = Path(os.environ.get("ARTEFACTS") or Path(__file__).parent / "artefacts")
SLOW = 300_000  # milliseconds: a busy machine without a GPU draws slowly
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light", "is_mobile": True, "has_touch": True},
}


@contextmanager
def opened(browser: Any, view: str, **options: Any) -> Iterator[Any]:
    """Open a page in one of the ``VIEWS``. ``page.complaints`` collects the lines of its console and its errors."""
    context = browser.new_context(**VIEWS[view], **options)
    page = context.new_page()
    page.set_default_timeout(SLOW)
    page.view, page.complaints = view, []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    context.close()


def brightness(page: Any, name: str) -> float:
    """Return the brightness, 0 to 255, of most of the page, and keep the screenshot under this name."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTEFACTS / f"{name}.png"
    page.screenshot(path=path, full_page=True, timeout=SLOW)
    with Image.open(path) as shot:
        return float(ImageStat.Stat(shot.convert("L")).median[0])


def violations(page: Any) -> list[str]:
    """Return what axe-core has against the page as it is: the rule, and the elements that break it."""
    from axe_playwright_python.sync_playwright import Axe

    rules = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {[node['html'] for node in rule['nodes']]}" for rule in rules]


def keep(page: Any, name: str) -> None:
    """Keep a screenshot of what is in view under this name."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", timeout=SLOW)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window; its camera is drawn."""
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install chromium")
    # Root, as in a container, has no sandbox; the pages are ours.
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options, timeout=SLOW)
        yield started
        started.close()
