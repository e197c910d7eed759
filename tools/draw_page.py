"""Draw docs/page.png: the page of a model of photos that scikit-image and scikit-learn ship.

    pip install scikit-image
    python tools/draw_page.py docs/page.png

Each class is learned from parts of a photo, and asked about others of its parts; the rocket is not learned, and then
named. Licences: cat (Stéfan van der Walt) and coffee (Rachel Michetti) CC0; astronaut (NASA) and rocket (SpaceX) public
domain; coins (Brooklyn Museum) no known restrictions; temple (danielbuechele) and flower (vultilion) CC BY 2.0.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from skimage import data
from sklearn.datasets import load_sample_images

SIDE = 0.6  # of the shorter side of a photo: what a part of it takes
LEARNED = 6  # parts of each photo
ASKED = ("cat", "coffee", "rocket", "temple")


def parts(image: Image.Image, folder: Path, count: int, seed: int) -> list[Path]:
    """Write square parts of a photo, drawn at random, to a folder."""
    folder.mkdir(parents=True)
    random, side = np.random.default_rng(seed), int(SIDE * min(image.size))
    paths = []
    for number in range(count):
        left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
        paths.append(folder / f"{folder.name} {number + 1}.jpg")
        image.crop((left, top, left + side, top + side)).save(paths[-1], quality=92)
    return paths


def main(out: Path) -> None:
    """Make the model, serve it, drop photos on its page, name the rocket, and keep the picture."""
    temple, flower = (Image.fromarray(image) for image in load_sample_images().images)
    shipped = {"cat": data.chelsea, "coffee": data.coffee, "astronaut": data.astronaut, "rocket": data.rocket,
               "coins": data.coins}  # fmt: skip
    photos = {label: Image.fromarray(load()).convert("RGB") for label, load in shipped.items()}
    photos |= {"temple": temple, "flower": flower}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place, (label, image) in enumerate(photos.items()):
            if label != "rocket":
                parts(image, folder / "photos" / label, LEARNED, place)
        asked = [parts(photos[label], folder / "asked" / label, 2, 100)[0] for label in ASKED]
        model = folder / "things"
        subprocess.run([sys.executable, "-m", "dist_train", "create", folder / "photos", "--out", model], check=True)
        words = [sys.executable, "-m", "dist_train", "serve", model, "--port", "0"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            address = next(line.strip() for line in server.stdout if line.startswith("http"))
            _shoot(address, [str(path) for path in asked], out)
            server.send_signal(signal.SIGINT)


def _shoot(address: str, asked: list[str], out: Path) -> None:
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 660}, locale="en-US")
        page.set_default_timeout(300_000)  # milliseconds
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        page.set_input_files("#files", asked)
        page.locator(".card .naming input").nth(ASKED.index("rocket")).fill("rocket")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=rocket is a new class, from 1 photo.")
        page.evaluate("() => scrollTo(0, 0)")
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
