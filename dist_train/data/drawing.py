"""Image classes that the program draws, for the whole way from images to table without any data.

A class is a combination of a shape, a texture and a palette, for example ``ring-stripes-sunset``; everything else
(place, size, turn, light, backdrop, other objects, noise) varies within it. The grid of combinations
is hardly larger than the number of classes, so that most classes differ from another class in one
attribute only and a backbone has to learn all three. A novel class is a new combination of values
that all occur in base classes, so that what the backbone learned on the base carries over.

A picture is a pure function of (seed, subset, class, number), given the versions of the libraries.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dist_train.config import DrawConfig, to_dict
from dist_train.data.splits import Split
from dist_train.distributed.pool import advance, progress_bar, run_tasks
from dist_train.errors import UserError, counted

Array = npt.NDArray[np.floating[Any]]

VERSION = 1
"""Version of the pictures. Raise it with any change that alters a picture."""
MARKER = "drawn.json"
ROOM = 1.25
"""Combinations in the grid per class asked for: the closer to 1, the more similar is a class's nearest neighbour."""


Field = Callable[[Array, Array], Array]
"""A function from u, v (float32 [height, width], the object's own frame) to values of the same shape."""

# A shape's value is about the distance to the outline in units of the object's radius, positive inside.


def _polygon(sides: int) -> Field:
    angles = [2 * math.pi * k / sides for k in range(sides)]
    middle = math.cos(math.pi / sides)
    return lambda u, v: np.minimum.reduce([middle - math.cos(a) * u - math.sin(a) * v for a in angles])


def _petals(count: int, inner: float) -> Field:
    """Return a flower with radius 1 at the tips of its petals and ``inner`` between them."""
    mean, swing = (1 + inner) / 2, (1 - inner) / 2
    return lambda u, v: mean + swing * np.cos(count * np.arctan2(v, u)) - np.hypot(u, v)


def _bar(u: Array, v: Array) -> Any:
    return np.minimum(1 - np.abs(u), 0.33 - np.abs(v))


SHAPES: dict[str, Field] = {
    "ellipse": lambda u, v: 1 - np.hypot(u, 1.5 * v),
    "triangle": _polygon(3),
    "ring": lambda u, v: 0.22 - np.abs(np.hypot(u, v) - 0.78),
    "cross": lambda u, v: np.maximum(_bar(u, v), _bar(v, u)),
    "bar": _bar,
    "flower": _petals(5, 0.45),
    "crescent": lambda u, v: np.minimum(1 - np.hypot(u, v), np.hypot(u - 0.55, v) - 0.75),
    "square": _polygon(4),
    "bow": lambda u, v: np.minimum(1 - np.abs(u), 0.8 * np.abs(u) - np.abs(v) + 0.1),
    "clover": _petals(3, 0.25),
}

# A texture is a wave; where it is positive the object has its second colour.

TEXTURES: dict[str, Field] = {
    "stripes": lambda u, v: np.sin(9 * u),
    "dots": lambda u, v: np.cos(9 * u) + np.cos(9 * v) - 0.7,
    "plain": lambda u, v: np.full_like(u, -1),
    "checks": lambda u, v: 2 * np.sin(6 * u) * np.sin(6 * v),
    "rings": lambda u, v: np.sin(10 * np.hypot(u, v)),
    "zigzag": lambda u, v: np.sin(9 * u + 2 * np.arcsin(np.sin(7 * v))),
    "grid": lambda u, v: np.maximum(np.cos(8 * u), np.cos(8 * v)) - 0.8,
    "spokes": lambda u, v: np.sin(8 * np.arctan2(v, u)),
}

# A palette has a first and a second colour, RGB.

PALETTES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "sunset": ((240, 120, 40), (110, 30, 110)),
    "ocean": ((20, 60, 150), (90, 210, 220)),
    "forest": ((25, 90, 45), (170, 210, 80)),
    "candy": ((240, 100, 170), (250, 235, 240)),
    "ink": ((25, 25, 35), (225, 225, 215)),
    "honey": ((245, 200, 50), (120, 70, 20)),
    "poppy": ((200, 25, 35), (40, 40, 45)),
    "mint": ((150, 235, 195), (30, 110, 110)),
    "lilac": ((175, 140, 230), (70, 40, 150)),
    "flag": ((215, 45, 50), (40, 70, 190)),
}


def split_of(options: DrawConfig) -> Split:
    """Return the classes that ``options`` draws, base and novel.

    Values are spread evenly over the base classes, and every value of a novel class occurs in a base
    class. The base classes drawn last, as many as there are novel classes, are marked pseudo-novel where
    that leaves at least as many others.

    Raises:
        UserError: there are more classes than combinations, or too few base classes to cover the novel classes.
    """
    # The seed decides the order, and so between equals.
    grid = sorted(_grid(options.base_classes + options.novel_classes), key=lambda c: _hash(options.seed, "class", *c))
    base: list[tuple[str, ...]] = []
    used: Counter[str] = Counter()
    for _ in range(options.base_classes):
        rarest = min(grid, key=lambda c: sum(used[value] ** 2 for value in c))
        grid.remove(rarest)
        base.append(rarest)
        used.update(rarest)
    combinations = [c for c in grid if all(used[value] for value in c)]
    if len(combinations) < options.novel_classes:
        raise UserError(
            f"draw.novel_classes={options.novel_classes}: the values of {counted(options.base_classes, 'base class')} "
            f"leave only {counted(len(combinations), 'new combination')}; ask for fewer, or for more draw.base_classes"
        )
    novel = sorted(combinations, key=lambda c: _hash(options.seed, "novel", *c))[: options.novel_classes]
    pseudo = base[-options.novel_classes :] if 2 * options.novel_classes <= len(base) else []
    names = [tuple(sorted("-".join(c) for c in kind)) for kind in (base, novel, pseudo)]
    text = "Drawn classes: novel ones are new combinations of values that all occur in base classes."
    return Split(f"drawn_{len(base)}_{len(novel)}", names[0], names[1], names[2], text)


def _grid(classes: int) -> list[tuple[str, ...]]:
    """Return combinations of the first values of each attribute, at least ROOM per class if there are so many."""
    axes = [list(SHAPES), list(TEXTURES), list(PALETTES)]
    available = math.prod(map(len, axes))
    if classes > available:
        raise UserError(
            f"draw.base_classes + draw.novel_classes = {classes}: there are {available} combinations of shape, "
            "texture and palette; ask for fewer classes"
        )
    lengths = [2, 2, 2]
    while math.prod(lengths) < min(ROOM * classes, available):
        growing = [k for k in range(3) if lengths[k] < len(axes[k])]
        lengths[min(growing, key=lambda k: lengths[k])] += 1
    return list(itertools.product(*(axis[:length] for axis, length in zip(axes, lengths, strict=True))))


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:16], "big")


def picture(options: DrawConfig, subset: str, name: str, number: int) -> tuple[Image.Image, int]:
    """Draw picture ``number`` of class ``name`` in "train" or "val": an RGB image and its JPEG quality.

    Its longer side is 0.8 to 1.4 times ``options.size``, its aspect ratio up to 1.5 either way.
    """
    shape, texture, palette = name.split("-")
    rng = np.random.default_rng(_hash(options.seed, subset, name, number))
    longer = options.size * rng.uniform(0.8, 1.4)
    sides = (round(longer), round(longer / rng.uniform(1, 1.5)))
    width, height = sides if rng.random() < 0.5 else sides[::-1]

    # In the picture's frame the shorter side reaches from -1 to 1.
    unit = min(width, height) / 2
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = (y - (height - 1) / 2) / unit, (x - (width - 1) / 2) / unit

    scene = _backdrop(rng, width, height)
    surface, mask = _object(rng, shape, texture, palette, x, y, unit)
    scene += (surface - scene) * mask[..., None]
    # Light: brightness, a slope across the picture, a tint; then the sensor's noise.
    slope_x, slope_y = rng.normal(0, 0.15), rng.normal(0, 0.15)
    light = rng.uniform(0.7, 1.15) * (1 + slope_x * x + slope_y * y)
    scene *= light[..., None] * rng.normal(1, 0.06, 3)
    scene += rng.normal(0, rng.uniform(2, 12), scene.shape)
    return Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8)), int(rng.integers(75, 96))


def _object(
    rng: np.random.Generator, shape: str, texture: str, palette: str, x: Array, y: Array, unit: float
) -> tuple[Array, Array]:
    """Draw the object somewhere in the picture's frame x, y, in which 1 is ``unit`` pixels.

    Returns:
        its colours [height, width, 3] in 0..255, and its coverage [height, width] in 0..1.
    """
    radius = rng.uniform(0.45, 0.85)
    cx, cy = (rng.uniform(-1, 1) * max(float(side.max()) - 0.8 * radius, 0) for side in (x, y))
    turn, stretch = rng.uniform(0, 2 * math.pi), math.exp(rng.normal(0, 0.12))
    cos, sin = math.cos(turn), math.sin(turn)
    u = (cos * (x - cx) + sin * (y - cy)) * (stretch / radius)
    v = (cos * (y - cy) - sin * (x - cx)) / (stretch * radius)

    pixels = radius * unit  # for edges about one pixel soft
    mask = np.clip(SHAPES[shape](u, v) * pixels + 0.5, 0, 1)
    pitch = math.exp(rng.normal(0, 0.12))
    wave = TEXTURES[texture](u * pitch + rng.uniform(-0.2, 0.2), v * pitch + rng.uniform(-0.2, 0.2))
    share = np.clip(wave * (pixels / 9) + 0.5, 0, 1)[..., None]
    first, second = np.array(PALETTES[palette]) + rng.normal(0, 14, (2, 3))
    return first * (1 - share) + second * share, mask


def _backdrop(rng: np.random.Generator, width: int, height: int) -> npt.NDArray[np.float64]:
    """Draw a smooth field of dull colours and a few bright blobs on it: float64 [height, width, 3] in 0..255."""
    dull = rng.uniform(40, 215, 3) + rng.normal(0, 35, (4, 4, 3))
    coarse = Image.fromarray(np.clip(dull, 0, 255).astype(np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 7)):
        x, y = rng.uniform(0, [width, height])
        half = rng.uniform(0.03, 0.2, 2) * min(width, height)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        shape = canvas.ellipse if rng.random() < 0.5 else canvas.rectangle
        shape((x - half[0], y - half[1], x + half[0], y + half[1]), fill=colour)
    return np.asarray(image).astype(np.float64)


def draw(options: DrawConfig, train: Path, val: Path, progress: bool = True, workers: int = 0) -> None:
    """Draw ``train/CLASS/CLASS_NUMBER.JPEG`` and ``val/CLASS/CLASS_val_NUMBER.JPEG``; a folder that holds
    them already is left as it is.

    A folder appears whole or not at all: it is filled under the name FOLDER.partial and renamed.

    Args:
        workers: processes, 0 = one per usable CPU. The pictures do not depend on it.

    Raises:
        UserError: a folder holds something else or pictures drawn with other options, or there are
            no such classes (see ``split_of``).
    """
    split = split_of(options)
    folders = {"train": (train, options.train_per_class), "val": (val, options.val_per_class)}
    missing = {s: (folder, count) for s, (folder, count) in folders.items() if not _is_drawn(options, folder, s)}
    tasks: list[Task] = []
    for subset, (folder, count) in missing.items():
        shutil.rmtree(_partial(folder), ignore_errors=True)
        _partial(folder).mkdir(parents=True)
        tasks += [(options, _partial(folder), subset, name, count) for name in sorted(split.base + split.novel)]
    if tasks:
        with progress_bar(sum(task[-1] for task in tasks), "draw", "image", progress) as bar:
            run_tasks(_draw_class, tasks, len(tasks), workers, bar)
    for subset, (folder, _) in missing.items():
        (_partial(folder) / MARKER).write_text(json.dumps(_marker(options, subset), indent=1) + "\n")
        os.replace(_partial(folder), folder)


def check_drawn(options: DrawConfig, train: Path, val: Path) -> None:
    """Check that nothing stands in the way of ``draw``.

    Raises:
        UserError: a folder holds something else, or pictures drawn with other options.
    """
    for subset, folder in (("train", train), ("val", val)):
        _is_drawn(options, folder, subset)


Task = tuple[DrawConfig, Path, str, str, int]
"""Options, folder, subset, class, pictures."""


def _draw_class(task: Task, threads: int) -> None:
    options, root, subset, name, count = task
    folder = root / name
    folder.mkdir()
    stem = name if subset == "train" else f"{name}_{subset}"  # no file name in both: they become keys
    for number in range(count):
        image, quality = picture(options, subset, name, number)
        image.save(folder / f"{stem}_{number}.JPEG", quality=quality)
        advance(1)


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _marker(options: DrawConfig, subset: str) -> dict[str, object]:
    return {"version": VERSION, "subset": subset, "options": to_dict(options)}


def _is_drawn(options: DrawConfig, folder: Path, subset: str) -> bool:
    """Tell whether ``folder`` holds the pictures asked for; an empty or absent folder does not."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder}: was not drawn by this program; name another folder to draw into") from None
    if marker != _marker(options, subset):
        raise UserError(f"{folder}: drawn with other options, see {MARKER}; remove the folder or name another one")
    return True
