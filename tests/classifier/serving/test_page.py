"""The page in a real browser, against the real server: light, dark, on a phone; by mouse and by keyboard alone."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import VIEWS, brightness, opened
from clients import added_names, photo, start
from fixtures.processes import WarmPython
from PIL import Image

from dist_train import Classifier


@pytest.fixture
def served(model: Path, warm_python: WarmPython) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process, url = start(warm_python, model)
    yield process, url
    process.send_signal(signal.SIGINT)
    process.wait()


@pytest.fixture(params=list(VIEWS))
def page(request: pytest.FixtureRequest, browser: Any, served: tuple[Any, str]) -> Iterator[Any]:
    yield from looked_at(browser, served[1], request.param)


@pytest.fixture
def light(browser: Any, served: tuple[Any, str]) -> Iterator[Any]:
    yield from looked_at(browser, served[1], "light")


def looked_at(browser: Any, url: str, view: str) -> Iterator[Any]:
    with opened(browser, view, permissions=["camera"]) as page:
        page.on("dialog", lambda dialog: dialog.accept("cat" if dialog.type == "prompt" else None))
        page.goto(url)
        page.wait_for_selector("#list li")
        yield page


def sent(*photos: bytes) -> list[dict[str, Any]]:
    return [{"name": f"photo {n}.jpg", "mimeType": "image/jpeg", "buffer": data} for n, data in enumerate(photos)]


def said(page: Any, text: str) -> None:
    page.wait_for_function("text => document.getElementById('status').textContent.includes(text)", arg=text)


def test_drop_photos_add_a_class_and_see_what_changes(page: Any, model: Path) -> None:
    page.set_input_files("#files", sent(photo(1, 200), photo(2, 120), b"text called .jpg", photo(3)))
    said(page, "3 photos classified, 1 could not be read.")
    cards = page.locator("article.card")
    assert cards.count() == 4 and cards.nth(0).locator("li").count() == 5
    assert "not an image of a known format" in cards.nth(2).inner_text()
    assert "photo 0.jpg" in cards.nth(0).inner_text()

    page.set_input_files("#examples", sent(photo(1, 200), photo(9)))
    page.fill("#new", "okapi")
    page.click("#send")
    said(page, "okapi is added, from 2 photos.")
    first = cards.nth(0).locator("li").nth(0)
    assert "okapi" in first.inner_text() and "new" in (first.get_attribute("class") or "")
    assert "was: " in cards.nth(0).inner_text()
    assert "7 classes, 1 of them added" in page.inner_text("#about")
    assert added_names(model) == ["okapi"]

    wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert page.evaluate(wide)[0] <= page.evaluate(wide)[1]
    small = """() => [...document.querySelectorAll('button, .pick, input:not(.hidden), #drop')].filter(node =>
        node.getBoundingClientRect().height && node.getBoundingClientRect().height < 34).length"""
    assert page.evaluate(small) == 0  # a finger's breadth
    shot = brightness(page, f"serve-{page.view}")
    assert shot < 60 if page.view == "dark" else shot > 200

    page.click("button[aria-label='Rename okapi']")
    said(page, "okapi is now cat.")
    page.click("button[aria-label='Remove cat']")
    said(page, "cat is removed.")
    assert added_names(model) == [] and "okapi" not in cards.nth(0).inner_text()
    page.fill("#filter", Classifier.load(model).classes[2].name)
    assert page.locator("#list li").count() == 1
    assert page.complaints == []


def test_by_keyboard_alone(light: Any, model: Path) -> None:
    """Tab reaches every control in order and shows the focus; Enter adds the class, and leaves a photo out."""
    light.set_input_files("#examples", sent(photo(1), photo(2)))
    reached = []
    for _ in range(12):
        light.keyboard.press("Tab")
        reached.append(light.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    assert reached[:5] == ["download", "files", "new", "examples", "camera"], reached
    assert "Leave out photo 0.jpg" in reached
    light.focus("#tray button")
    outline = light.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    light.keyboard.press("Enter")
    assert light.locator("#tray button").count() == 1
    light.focus("#new")
    light.keyboard.type("okapi")
    light.keyboard.press("Enter")
    said(light, "okapi is added, from 1 photo.")
    assert added_names(model) == ["okapi"] and outline in ("solid", "auto")


def test_the_camera_teaches_a_class(light: Any, model: Path) -> None:
    light.click("#camera")
    light.wait_for_function("() => document.getElementById('video').videoWidth > 0")
    light.click("#shoot")
    light.click("#shoot")
    light.wait_for_function("() => document.querySelectorAll('#tray button').length === 2")
    light.click("#off")
    assert not light.is_visible("#video")
    light.fill("#new", "green")
    light.click("#send")
    said(light, "green is added, from 2 photos.")
    assert Classifier.load(model).classes[-1].photos == 2 and light.complaints == []


def test_photos_dropped_and_pasted_and_a_misclassified_photo_taught(light: Any, model: Path) -> None:
    give = """([kind, data]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(data)], 'given.jpg', {type: 'image/jpeg'}));
        const fields = {bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer};
        const event = kind === 'drop' ? new DragEvent('drop', fields) : new ClipboardEvent('paste', fields);
        document.body.dispatchEvent(event);
    }"""
    light.evaluate(give, ["drop", list(photo(1))])
    said(light, "1 photo classified.")
    light.evaluate(give, ["paste", list(photo(2))])
    light.wait_for_function("() => document.querySelectorAll('article.card ol li').length === 10")
    light.locator("article.card").nth(1).get_by_text("Use for a class").click()
    assert light.evaluate("document.activeElement.id") == "new"
    light.keyboard.type("mine")
    light.keyboard.press("Enter")
    said(light, "mine is added, from 1 photo.")
    assert "mine" in light.locator("article.card").nth(1).locator("li").nth(0).inner_text()
    light.locator("article.card").nth(0).get_by_text("Close").click()
    assert light.locator("article.card").count() == 1


def test_the_downloaded_model_is_the_served_model(light: Any, model: Path, tmp_path: Path) -> None:
    with light.expect_download() as download:
        light.click("#download")
    download.value.save_as(tmp_path / "download.zip")
    shutil.unpack_archive(tmp_path / "download.zip", tmp_path / "download")
    assert download.value.suggested_filename == "model.zip"
    assert Classifier.load(tmp_path / "download" / "model").classes == Classifier.load(model).classes


def test_errors_appear_beside_the_form_and_nothing_is_lost(light: Any, served: tuple[Any, str], model: Path) -> None:
    taken = Classifier.load(model).classes[0].name
    light.set_input_files("#examples", sent(photo(1)))
    light.fill("#new", taken)
    light.click("#send")
    said(light, "exists already; take another name")
    assert light.locator("#tray button").count() == 1 and light.input_value("#new") == taken  # nothing is lost
    served[0].send_signal(signal.SIGKILL)
    served[0].wait()
    light.click("#send")
    said(light, "the server cannot be reached; is dist-train serve still running?")


def test_files_that_are_not_photos_are_named(light: Any) -> None:
    kinds = {"notes.txt": "text/plain", "Thumbs.db": "", "clip.mp4": "video/mp4", "a.pdf": "application/pdf"}
    other = [{"name": name, "mimeType": kind, "buffer": b"I am text"} for name, kind in kinds.items()]
    heic = {"name": "IMG_1.HEIC", "mimeType": "image/heic", "buffer": photo(2)}
    light.set_input_files("#files", [*sent(photo(1)), heic, *other])
    said(light, "2 photos classified. 4 files passed over: notes.txt, Thumbs.db, clip.mp4, …")
    light.set_input_files("#files", other[:1])
    said(light, "No images among these files. 1 file passed over: notes.txt.")
    light.set_input_files("#examples", [*sent(photo(3)), other[1]])
    said(light, "1 file passed over: Thumbs.db.")
    assert light.locator("#tray > *").count() == 1


def test_a_dropped_folder_brings_the_folders_below_it(light: Any, tmp_path: Path) -> None:
    inside = {"a.jpg": 1, "deep/b.jpg": 2, "@eaDir/a.jpg": 3, "deep/.thumbnails/b.jpg": 4}
    for name, seed in inside.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(photo(seed))
    (tmp_path / "photos" / "Thumbs.db").write_bytes(b"I am none")
    session = light.context.new_cdp_session(light)
    data = {"items": [], "files": [str(tmp_path / "photos")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 100, "y": 100, "data": data})
    said(light, "2 photos classified. 3 files passed over: ")
    cards = light.locator("article.card").all_inner_texts()
    assert len(cards) == 2 and "a.jpg" in "".join(cards) and "b.jpg" in "".join(cards)


def test_a_photo_over_the_limit_names_its_size(light: Any) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((9000, 9000), np.uint8)).save(out, "PNG")
    light.set_input_files("#files", sent(out.getvalue()))
    said(light, "could not be read")
    assert "9000 x 9000 pixels, and 64000000 are the limit" in light.locator("article.card").inner_text()


def test_an_upload_shows_its_progress(light: Any) -> None:
    """On a line of 2 MB/s; the bar is hidden once the upload is done."""
    slow = light.context.new_cdp_session(light)
    slow.send("Network.enable")
    limits = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 2_000_000}
    slow.send("Network.emulateNetworkConditions", limits)
    light.evaluate("""() => { window.seen = []; new MutationObserver(() => {
        const bar = document.getElementById('progress'); if (bar.className === 'on') seen.push(bar.value);
    }).observe(document.getElementById('progress'), {attributes: true}); }""")
    light.set_input_files("#files", sent(photo(1, 1800), photo(2, 1800)))
    said(light, "2 photos classified.")
    seen = light.evaluate("window.seen")
    assert len(set(seen)) > 2 and seen == sorted(seen) and 0 < seen[0] < 1 and seen[-1] == 1
    assert light.evaluate("getComputedStyle(document.getElementById('progress')).visibility") == "hidden"
