"""The page in a real browser, against the real server: light, dark, on a phone; by mouse and by keyboard alone.

One server has two models of the same classes for all tests of this file; each test names its classes by itself.
"""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browsers import brightness, keep, opened, violations
from clients import added_names
from clients import photo as drawn
from fixtures.processes import WarmPython
from PIL import Image

from dist_train import Classifier
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.measuring import Measurement

TOKEN = "a token of more than 16"
TINTS = {"red": (255, 60, 60), "blue": (60, 60, 255), "grey": (128, 128, 128)}


_first_seed = 0


@pytest.fixture(autouse=True)
def photos_of_its_own(request: pytest.FixtureRequest) -> None:
    """Draw other photos in each test: the server takes no photo into a second class."""
    global _first_seed
    _first_seed = zlib.crc32(request.node.nodeid.encode())


def photo(number: int, side: int = 60) -> bytes:
    """Return a photo of the test that runs."""
    return drawn((_first_seed + number) % 2**32, side)


class Site:
    """Hold a running server: its address, and the folder of its first model."""

    def __init__(self, url: str, model: Path) -> None:
        self.url, self.model = url, model
        self.web = httpx.Client(base_url=f"{url}api/v1/models", timeout=300)

    def names(self) -> list[str]:
        """Return the names of all classes."""
        return [entry["name"] for entry in self.web.get(self.model.name).json()["classes"]]


@pytest.fixture(scope="module")
def site(untrained_model: Path, tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython) -> Iterator[Site]:
    """Serve a model of photos alone, and a model with two classes of a run; both networks have random weights."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(untrained_model, folder / "things")
    network = Classifier.load(untrained_model).network
    model = Classifier(network, FittedHeads("imprint"))
    for name, tint in TINTS.items():
        model.add_class(name, [drawn(seed, tint=tint) for seed in range(100, 104)])
    model.save(folder / "animals")
    with serving(warm_python, str(folder / "animals"), str(folder / "things")) as url:
        yield Site(url, folder / "animals")


class serving:
    """Run ``dist-train serve`` on a free port; the context is the address that it prints."""

    def __init__(self, python: WarmPython, *words: str) -> None:
        self.process: subprocess.Popen[str] = python.start(
            "serve", *words, "--port", "0", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> str:
        assert self.process.stdout
        lines = []
        while not (line := self.process.stdout.readline().strip()).startswith("http"):
            lines.append(line)
            assert line, lines
        return line

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.stdout and "Traceback" not in self.process.stdout.read()
        self.process.wait()


DARK = pytest.param("dark", marks=pytest.mark.long)


@pytest.fixture(params=["light", DARK, "phone"])
def view(request: pytest.FixtureRequest, browser: Any, site: Site) -> Iterator[Any]:
    yield from looked_at(browser, site.url, request.param)


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    yield from looked_at(browser, site.url, "light")


def looked_at(browser: Any, url: str, view: str, **options: Any) -> Iterator[Any]:
    with opened(browser, view, permissions=["camera"], **{"locale": "en-US", **options}) as page:
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        yield page


def sent(*photos: bytes) -> list[dict[str, Any]]:
    return [{"name": f"photo {n}.jpg", "mimeType": "image/jpeg", "buffer": data} for n, data in enumerate(photos)]


def said(page: Any, text: str) -> None:
    page.wait_for_function("text => document.getElementById('status').textContent.includes(text)", arg=text)


def go_to(page: Any, view: str) -> None:
    """Open a view by its link, and wait until it is shown: photos dropped earlier belong to the view before."""
    page.click(f"nav a[href='#{view}']")
    page.wait_for_selector(f"#{view}", state="visible")


def name_card(page: Any, place: int, name: str) -> None:
    """Name what is on a photo, by its card."""
    field = page.locator(".card").nth(place).locator(".naming input")
    field.fill(name)
    field.press("Enter")


def is_sound(page: Any) -> None:
    """Check that nothing is wider than the window, no control too small for a finger, and nothing against axe-core."""
    assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    small = """() => [...document.querySelectorAll('button, .button, select, nav a, input:not([type=checkbox])')]
        .filter(node => !node.matches('.hidden') && node.getBoundingClientRect().height)
        .filter(node => node.getBoundingClientRect().height < 34)
        .map(node => node.outerHTML)"""
    assert page.evaluate(small) == []
    assert violations(page) == []


# Drop, name, see.


def test_drop_name_see(view: Any, site: Site) -> None:
    """The first view says what to do; photos get answers; a photo that is named changes the answers."""
    fresh = f"okapi {view.view}"
    assert [heading.inner_text() for heading in view.locator(".steps h3").all()] == ["Drop", "Name", "See"]
    assert f"Tells {len(site.names())} classes apart" in view.inner_text(".model")
    assert "imprint" not in view.inner_text("body")
    is_sound(view)
    keep(view, f"page-first-{view.view}")

    view.set_input_files("#files", sent(photo(1, 200), photo(2, 120), b"text called .jpg", photo(3)))
    said(view, "3 photos seen. 1 could not be read.")
    cards = view.locator(".card")
    assert cards.count() == 4 and not view.is_visible(".steps")
    assert "photo 2.jpg is no image of a known format." in cards.nth(2).inner_text()
    assert "photo 0.jpg" in cards.nth(0).inner_text()
    assert (
        cards.nth(0).locator("ol li").count() == min(5, len(site.names()))
        and not cards.nth(0).locator("ol").is_visible()
    )
    cards.nth(0).locator("summary").click()
    assert cards.nth(0).locator("ol").is_visible()
    is_sound(view)

    name_card(view, 0, fresh)
    said(view, f"{fresh} is a new class, from 1 photo.")
    assert fresh in cards.nth(0).inner_text() and "Before: " in cards.nth(0).inner_text()
    assert fresh in added_names(site.model)
    shot = brightness(view, f"page-answers-{view.view}")
    assert shot < 60 if view.view == "dark" else shot > 200
    is_sound(view)
    assert view.complaints == []


def test_an_example_is_tried_with_one_press(page: Any) -> None:
    page.click("button[aria-label='Try the photo of a cat']")
    said(page, "1 photo seen.")
    assert "cat.jpg" in page.inner_text(".card")
    page.click("button[aria-label='Put cat.jpg away']")
    assert page.locator(".card").count() == 0 and page.is_visible(".steps")
    assert page.complaints == []


def test_another_answer_is_chosen_with_one_press(page: Any, site: Site) -> None:
    page.set_input_files("#files", sent(photo(4)))
    said(page, "1 photo seen.")
    page.locator(".card summary").click()
    names = [line.inner_text() for line in page.locator(".card li .name").all()]
    page.locator(f"button[aria-label='It is {names[1]}: learn it']").click()
    said(page, f"{names[1]} has learned from 1 more photo.")


def test_a_model_that_is_not_sure_says_so(page: Any) -> None:
    """The server's answer is made unsure on its way, as a model of random weights is sure of what it has never seen."""

    def doubt(route: Any) -> None:
        answer = route.fetch()
        results = [{**result, "sure": False, "strange": True} for result in answer.json()["results"]]
        route.fulfill(response=answer, json={"results": results})

    page.route("**/classify", doubt)
    page.set_input_files("#files", sent(photo(8)))
    said(page, "1 photo seen.")
    text = page.inner_text(".card")
    for line in ("Not sure", "Perhaps ", "Unlike the photos that the model has learned from."):
        assert line in text
    is_sound(page)


def test_several_photos_are_named_together(page: Any, site: Site) -> None:
    page.set_input_files("#files", sent(photo(5), photo(6), photo(7)))
    said(page, "3 photos seen.")
    for place in (0, 2):
        page.locator(".card input[type=checkbox]").nth(place).check()
    assert "2 photos chosen" in page.inner_text("#chosen")
    is_sound(page)
    page.fill("#chosen input", "gnu")
    assert page.inner_text("#chosen button.main") == "New class"
    page.press("#chosen input", "Enter")
    said(page, "gnu is a new class, from 2 photos.")
    assert not page.is_visible("#chosen") and page.locator(".card input:checked").count() == 0
    [gnu] = [entry for entry in Classifier.load(site.model).classes if entry.name == "gnu"]
    assert gnu.photos == 2 and page.complaints == []


def test_photos_dropped_and_pasted(page: Any) -> None:
    give = """([kind, data]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(data)], 'given.jpg', {type: 'image/jpeg'}));
        const fields = {bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer};
        const event = kind === 'drop' ? new DragEvent('drop', fields) : new ClipboardEvent('paste', fields);
        document.body.dispatchEvent(event);
    }"""
    for count, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(give, [kind, list(photo(count))])
        page.wait_for_function("count => document.querySelectorAll('.card .naming').length === count", arg=count)
    assert page.complaints == []


def test_files_that_are_not_photos_are_named(page: Any) -> None:
    kinds = {"notes.txt": "text/plain", "Thumbs.db": "", "clip.mp4": "video/mp4", "a.pdf": "application/pdf"}
    other = [{"name": name, "mimeType": kind, "buffer": b"I am text"} for name, kind in kinds.items()]
    heic = {"name": "IMG_1.HEIC", "mimeType": "image/heic", "buffer": photo(2)}
    page.set_input_files("#files", [*sent(photo(1)), heic, *other])
    said(page, "2 photos seen. 4 files are no photos and are left out: notes.txt, Thumbs.db, clip.mp4, …")
    page.set_input_files("#files", other[:1])
    said(page, "There is no photo among these files. 1 file is no photo and is left out: notes.txt.")


def test_a_dropped_folder_brings_the_folders_below_it(page: Any, tmp_path: Path) -> None:
    inside = {"a.jpg": 1, "deep/b.jpg": 2, "@eaDir/a.jpg": 3, "deep/.thumbnails/b.jpg": 4}
    for name, seed in inside.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(photo(seed))
    (tmp_path / "photos" / "Thumbs.db").write_bytes(b"I am none")
    drop_folder(page, tmp_path / "photos")
    said(page, "2 photos seen. 3 files are no photos and are left out: ")
    cards = page.locator(".card").all_inner_texts()
    assert len(cards) == 2 and "a.jpg" in "".join(cards) and "b.jpg" in "".join(cards)


def drop_folder(page: Any, folder: Path, over: tuple[int, int] = (100, 200), at: tuple[int, int] = (100, 200)) -> None:
    """Drag a folder over a point of the page, and let it go at the same or another point."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind, (x, y) in {"dragEnter": over, "dragOver": over, "drop": at}.items():
        session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})


@pytest.mark.parametrize("place", ["header", ".give"])
def test_files_that_are_let_go_as_they_come_over_an_element_are_taken(page: Any, tmp_path: Path, place: str) -> None:
    """The browser sends a single dragenter, and no dragover, to what they are over then."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(photo(1))
    if place == ".give":
        go_to(page, "classes")
        page.click("#new")
    box = page.locator(place).bounding_box()
    drop_folder(page, tmp_path / "photos", at=(box["x"] + box["width"] // 2, box["y"] + 3))
    page.wait_for_selector(".card" if place == "header" else ".tray button")


def test_a_photo_over_the_limit_names_its_size(page: Any) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((9000, 9000), np.uint8)).save(out, "PNG")
    page.set_input_files("#files", sent(out.getvalue()))
    said(page, "1 could not be read.")
    assert "photo 0.jpg has too many pixels; 64,000,000 are the limit." in page.locator(".card").inner_text()


def test_an_upload_shows_its_progress(page: Any) -> None:
    """On a line of 2 MB/s; the bar is hidden once the upload is done."""
    slow = page.context.new_cdp_session(page)
    slow.send("Network.enable")
    limits = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 2_000_000}
    slow.send("Network.emulateNetworkConditions", limits)
    page.evaluate("""() => { window.seen = []; const bar = document.getElementById('progress');
        new MutationObserver(() => bar.hidden || seen.push(bar.value)).observe(bar, {attributes: true}); }""")
    page.set_input_files("#files", sent(photo(1, 1800), photo(2, 1800)))
    said(page, "2 photos seen.")
    seen = page.evaluate("() => window.seen")
    assert len(set(seen)) > 2 and seen == sorted(seen) and 0 < seen[0] < 1 and seen[-1] == 1
    assert not page.is_visible("#progress")


def test_the_live_camera_answers_until_the_page_is_hidden(page: Any) -> None:
    page.click("#watch")
    page.wait_for_function("() => document.getElementById('live-rest').textContent.includes('%')")
    is_sound(page)
    keep(page, "page-live")
    page.click("#live-keep")
    said(page, "1 photo seen.")
    assert "camera" in page.inner_text(".card")
    assert page.evaluate("() => document.getElementById('live-video').srcObject.active")
    page.evaluate("""() => { Object.defineProperty(document, 'hidden', {value: true});
        document.dispatchEvent(new Event('visibilitychange')); }""")
    assert not page.is_visible("#live")
    assert not page.evaluate("() => document.getElementById('live-video').srcObject.active")
    assert page.complaints == []


# Classes.


def test_a_class_from_the_camera_its_new_name_and_its_end(view: Any, site: Site) -> None:
    old, fresh = f"green {view.view}", f"lime {view.view}"
    go_to(view, "classes")
    view.click("#new")
    view.fill("#new-name", old)
    view.get_by_role("button", name="Camera", exact=True).click()
    view.wait_for_function("() => document.querySelector('dialog video').videoWidth > 0")
    for count in (1, 2):
        view.click("text=Take the picture")
        view.wait_for_function("count => document.querySelectorAll('.tray button').length === count", arg=count)
    is_sound(view)
    keep(view, f"page-new-class-{view.view}")
    view.click("text=Add the class")
    said(view, f"{old} is a new class, from 2 photos.")
    assert not view.is_visible("#dialog")
    is_sound(view)
    keep(view, f"page-classes-{view.view}")

    view.click(f"button[aria-label='{old}, 2 photos']")
    view.locator("#dialog input[type=text]").fill(fresh)
    view.click("text=Rename")
    said(view, f"{old} is now {fresh}.")
    view.wait_for_selector(f"#dialog-title:text-is('{fresh}')")
    assert fresh in added_names(site.model)
    is_sound(view)
    view.click("text=Remove the class")
    view.click(f"text=Yes, remove {fresh}")
    said(view, f"{fresh} is removed.")
    assert fresh not in added_names(site.model) and not view.is_visible("#dialog")


def test_a_class_of_a_run_is_found_renamed_and_removed(page: Any, site: Site) -> None:
    page.goto(f"{site.url}?model=things")
    page.wait_for_selector("body[data-ready]")
    name = "cat"
    go_to(page, "classes")
    page.fill("#filter", name)
    page.locator("#tiles button").first.click()
    page.locator("#dialog input[type=text]").fill(f"{name} again")
    page.click("text=Rename")
    said(page, f"{name} is now {name} again.")
    page.wait_for_selector(f"#dialog-title:text-is('{name} again')")
    page.click("text=Remove the class")
    page.click(f"text=Yes, remove {name} again")
    said(page, f"{name} again is removed.")
    assert page.inner_text("#more") == "No class has such a name."
    assert "cat" not in [entry.name for entry in Classifier.load(site.model.with_name("things")).classes]


def test_photos_of_a_class_come_and_go_and_a_change_is_undone(page: Any, site: Site) -> None:
    go_to(page, "classes")
    page.click("button[aria-label='blue, 4 photos']")
    kept = page.locator("dialog .kept button")
    kept.nth(3).wait_for()
    page.set_input_files("dialog .give label:not(.touch) input", sent(drawn(104, tint=TINTS["blue"])))
    page.click("text=Add the photos")
    said(page, "blue has learned from 1 more photo.")
    kept.nth(4).wait_for()
    assert page.locator("dialog .kept img").evaluate_all("all => all.map(one => one.src.includes('/pictures/'))")[4]
    kept.nth(0).click()
    kept.nth(1).click()
    is_sound(page)
    keep(page, "page-class")
    page.click("text=Remove 2 photos")
    said(page, "2 photos of blue are removed.")
    page.wait_for_function("() => document.querySelectorAll('dialog .kept button').length === 3")
    page.keyboard.press("Escape")
    page.click("#undo")
    page.wait_for_selector("button[aria-label='blue, 5 photos']")
    page.click("#undo")
    page.wait_for_selector("button[aria-label='blue, 4 photos']")
    assert [entry.photos for entry in Classifier.load(site.model).classes if entry.name == "blue"] == [4]
    page.click("#history")
    page.locator(".changes li").nth(3).wait_for()
    assert "blue" in page.inner_text(".changes li:first-child")
    is_sound(page)
    keep(page, "page-history")
    assert page.complaints == []


def test_errors_appear_at_their_form_and_nothing_is_lost(page: Any, site: Site) -> None:
    taken = site.names()[-1]
    go_to(page, "classes")
    page.click("#new")
    page.set_input_files(
        "dialog .give label:not(.touch) input",
        [*sent(photo(1)), {"name": "a.txt", "mimeType": "text/plain", "buffer": b"x"}],
    )
    assert page.inner_text("dialog .fault") == "1 file is no photo and is left out: a.txt."
    page.fill("#new-name", taken)
    page.click("text=Add the class")
    page.wait_for_function("() => document.querySelector('dialog .fault').textContent.includes('exists already')")
    assert page.locator(".tray button").count() == 1 and page.input_value("#new-name") == taken
    is_sound(page)
    page.route("**/classes", lambda route: route.abort())
    page.fill("#new-name", "never")
    page.click("text=Add the class")
    page.wait_for_function(
        "() => document.querySelector('dialog .fault').textContent.includes('Is dist-train serve still running?')"
    )
    assert page.locator(".tray button").count() == 1 and "never" not in site.names()


def test_the_downloaded_model_is_the_served_model(page: Any, site: Site, tmp_path: Path) -> None:
    page.click("button[aria-label='About this model']")
    is_sound(page)
    keep(page, "page-about")
    assert "imprint" in page.inner_text("#about") and "taken to be the same for all" in page.inner_text("#about")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "download.zip")
    shutil.unpack_archive(tmp_path / "download.zip", tmp_path / "download")
    assert download.value.suggested_filename == "animals.zip"
    assert Classifier.load(tmp_path / "download" / "animals").classes == Classifier.load(site.model).classes


# Measure.


def test_a_folder_of_folders_is_measured(view: Any, site: Site, tmp_path: Path) -> None:
    """All files are accounted for, and every figure has its place; photos are shown, and the figures saved."""
    tints = {"red": "red", "blue": "blue", "grey": "red", "unknown": "grey", "": "grey"}
    for place, (folder, tint) in enumerate(tints.items()):
        (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
        for seed in range(200 + 3 * place, 203 + 3 * place):
            (tmp_path / "photos" / folder / f"{seed}.jpg").write_bytes(drawn(seed, tint=TINTS[tint]))
    (tmp_path / "photos" / "red" / "bad.jpg").write_bytes(b"no photo")
    shutil.copy(tmp_path / "photos" / "red" / "200.jpg", tmp_path / "photos" / "red" / "copy.jpg")
    go_to(view, "measure")
    is_sound(view)
    view.set_input_files("#folder", tmp_path / "photos")
    view.wait_for_selector(".facts")
    text = view.inner_text("#result")
    lines = ["1 folder has the name of no class and is left out: unknown.", "9 photos; classes: 3 of ",
             "3 photos lie outside the folders of classes and are left out.",
             "1 photo could not be read and does not count: bad.jpg.",
             "1 photo is a copy of another and does not count.", "grey taken for red", "3 times"]  # fmt: skip
    assert [line for line in lines if line not in text] == []
    shown = "() => [...document.querySelectorAll('#result img')].every(one => one.naturalWidth > 0)"
    assert view.evaluate(shown) and view.locator(".mistakes li").count() == 3
    assert view.locator("#result .chart .point").count() > 0 and view.locator("tbody th").count() == 3
    is_sound(view)
    brightness(view, f"page-measured-{view.view}")
    with view.expect_download() as download:
        view.click("text=Save the figures (JSON)")
    assert Measurement.from_json(json.loads(Path(download.value.path()).read_text())).photos == 9
    assert view.complaints == []


def test_a_folder_without_a_known_class_is_refused_by_its_names(page: Any, tmp_path: Path) -> None:
    for folder in ("okapi", "zebra"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        (tmp_path / "photos" / folder / "1.jpg").write_bytes(photo(1))
    go_to(page, "measure")
    drop_folder(page, tmp_path / "photos")
    page.wait_for_function("() => document.getElementById('measure-fault').textContent")
    assert page.inner_text("#measure-fault") == "No folder has the name of a class. The folders are: okapi, zebra."
    is_sound(page)


def test_a_folder_without_a_readable_photo_is_refused_by_their_names(page: Any, tmp_path: Path) -> None:
    (tmp_path / "photos" / "red").mkdir(parents=True)
    (tmp_path / "photos" / "red" / "bad.jpg").write_bytes(b"no photo")
    go_to(page, "measure")
    drop_folder(page, tmp_path / "photos")
    page.wait_for_function("() => document.getElementById('measure-fault').textContent")
    assert page.inner_text("#measure-fault") == "1 photo could not be read and does not count: bad.jpg."


# The page as a whole.


def test_by_keyboard_alone(page: Any, site: Site) -> None:
    """Tab reaches every control in order and shows the focus; Enter teaches; Escape closes."""
    page.set_input_files("#files", sent(photo(21)))
    said(page, "1 photo seen.")
    page.focus(".skip")
    reached, outlines = [], []
    active = """() => { const {activeElement: node} = document;
        return node.id || node.getAttribute('aria-label') || node.textContent; }"""
    outline = """() => { const {activeElement: node} = document;
        return getComputedStyle(node.closest('label.pick') ?? node).outlineStyle; }"""
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(active))
        outlines.append(page.evaluate(outline))
    others = next(name for name in reached if name.startswith("Other answers"))
    header = ["models", "About this model", "Photos", "Classes", "Measure", "language"]
    card = ["Choose photo 0.jpg", "Put photo 0.jpg away", others, "What is on photo 0.jpg?"]
    assert reached == [*header, "files", "watch", *card], reached
    assert set(outlines) <= {"solid", "auto"}
    page.keyboard.type("kudu")
    page.keyboard.press("Enter")
    said(page, "kudu is a new class, from 1 photo.")
    assert "kudu" in added_names(site.model)
    page.focus("nav a[href='#classes']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#new")  # a control that is hidden still takes no focus
    page.focus("#new")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'new-name'")
    page.keyboard.press("Escape")
    assert not page.is_visible("#dialog") and page.evaluate("() => document.activeElement.id") == "new"


@pytest.mark.parametrize("name", ["light", DARK, "phone"])
def test_german_is_chosen_by_the_browser_and_english_is_remembered(browser: Any, site: Site, name: str) -> None:
    for page in looked_at(browser, site.url, name, locale="de-AT"):
        assert page.evaluate("() => document.documentElement.lang") == "de" and "Klassen" in page.inner_text("header")
        page.set_input_files("#files", sent(photo(31)))
        said(page, "1 Foto angesehen.")
        is_sound(page)
        keep(page, f"page-german-{name}")
        go_to(page, "measure")
        is_sound(page)
        page.select_option("#language", "en")
        assert "Classes" in page.inner_text("header")
        go_to(page, "photos")
        assert page.locator(".card .naming input").get_attribute("placeholder") == "What is it?"
        page.goto(site.url)
        page.wait_for_selector("body[data-ready]")
        assert page.evaluate("() => document.documentElement.lang") == "en"
        assert page.complaints == []


def test_the_changes_and_the_faults_of_the_server_are_german_on_a_german_page(browser: Any, site: Site) -> None:
    """What the server says of its own reaches no visitor in English: faults of a photo, a form and a request, the last
    change, the history, and what was undone."""
    for page in looked_at(browser, site.url, "light", locale="de"):
        page.set_input_files("#files", [*sent(photo(1), photo(2)), {"name": "b.jpg", "mimeType": "", "buffer": b"x"}])
        said(page, "1 war nicht lesbar.")
        assert "b.jpg ist kein Bild eines bekannten Formats." in page.locator(".card").nth(2).inner_text()
        name_card(page, 0, "Gnu")
        said(page, "Gnu ist eine neue Klasse, aus 1 Foto.")
        page.locator(".card").nth(0).locator("summary").wait_for()
        name_card(page, 0, "Gnu")
        page.wait_for_function("() => document.querySelector('.naming .fault').textContent")
        assert page.locator(".card .naming .fault").nth(0).inner_text() == "photo 0.jpg ist schon in Gnu."
        name_card(page, 1, "a/b")
        page.wait_for_function("() => document.querySelectorAll('.naming .fault')[1].textContent")
        assert "„a/b“ geht nicht als Name einer Klasse." in page.locator(".card .naming .fault").nth(1).inner_text()
        for name, text in (
            ("NotFoundError", "Dieses Gerät hat keine Kamera."),
            ("Else", "Die Kamera ist nicht verfügbar."),
        ):
            page.evaluate(
                """name => { navigator.mediaDevices.getUserMedia =
                () => Promise.reject(new DOMException("in the browser's own language", name)); }""",
                name,
            )
            page.click("#watch")
            page.wait_for_function("text => document.getElementById('live-fault').textContent === text", arg=text)
        go_to(page, "classes")
        assert page.inner_text("#last") == "Letzte Änderung: Gnu hinzugefügt, aus 1 Foto."
        page.click("#undo")
        said(page, "Rückgängig gemacht: Gnu hinzugefügt, aus 1 Foto.")
        page.click("#history")
        page.locator(".changes li").nth(1).wait_for()
        assert page.locator(".changes li span").nth(0).inner_text() == "rückgängig: Gnu hinzugefügt, aus 1 Foto"
        page.keyboard.press("Escape")
        page.route("**/models", lambda route: route.fulfill(status=503, json={"detail": "x", "code": "server.full"}))
        page.reload()
        said(page, "Der Server hat zu viele Besucher.")


def test_another_model_is_picked(page: Any, site: Site) -> None:
    page.select_option("#models", "things")
    page.wait_for_url("**/?model=things")
    page.wait_for_selector("body[data-ready]")
    assert page.input_value("#models") == "things" and "things" in page.title()
    assert page.get_attribute("#download", "href") == "api/v1/models/things/download"


@pytest.mark.parametrize("name", ["light", "dark"])
def test_the_login_takes_the_token_and_says_when_it_is_wrong(browser: Any, site: Site, name: str, login: str) -> None:
    with opened(browser, name, locale="en-US") as page:
        page.goto(login.partition("?")[0])
        page.wait_for_selector("text=This model is for invited visitors")
        assert violations(page) == []
        keep(page, f"page-login-{name}")
        page.fill("input[name=token]", "wrong")
        page.click("button.main")
        page.wait_for_selector("text=That is not the token.")
        page.fill("input[name=token]", TOKEN)
        page.click("button.main")
        page.wait_for_selector("body[data-ready]")
        assert "token" not in page.url and page.inner_text("#name") == "model"


@pytest.fixture(scope="module")
def login(untrained_model: Path, tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython) -> Iterator[str]:
    """Serve a model behind a token."""
    copy = shutil.copytree(untrained_model, tmp_path_factory.mktemp("served") / "model")
    with serving(warm_python, str(copy), "--token", TOKEN) as url:
        yield url
