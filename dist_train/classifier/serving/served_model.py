"""The model that the page shows, and its changes.

The model that answers is never changed: a change is made on a copy, written to disk, and only then put in its place,
one change at a time. So no answer sees half of one, and what a client was told is added is on disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.serving.scheduling import BatchedNetwork, ClientShares, DecodingPools
from dist_train.data.images.photos import SUFFIXES, SYSTEM_FILES, SYSTEM_FOLDERS, open_photo
from dist_train.errors import UserError

REMEMBERED = 2000
"""Photos whose activations are kept, so that a change shows without another upload."""


@dataclass(frozen=True)
class Limits:
    """Of one upload in bytes, of one photo in pixels, and of all classes."""

    upload: int = 64_000_000
    pixels: int = 64_000_000
    classes: int = 5000

    def __post_init__(self) -> None:
        if min(self.upload, self.pixels, self.classes) < 1:
            raise UserError("--max_upload_mb, --max_megapixels and --max_classes: must be >= 1")


@dataclass(frozen=True)
class EmbeddedPhoto:
    """A photo's key, by which its activation is remembered, and its activation [1, dim]."""

    key: str
    activation: torch.Tensor


class ServedModel:
    """The model in use, and its changes. All methods may be called by several threads."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.model = Classifier.load(path)
        self.model.head()
        self._change = threading.Lock()
        # What is decoded and waits for the network lies in memory: of each client no more than a batch.
        size = self.model.network.batch
        self._lanes, self._batches, self._shares = (
            DecodingPools(),
            BatchedNetwork(self.model.embed, size),
            ClientShares(size),
        )
        self._seen: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._look_up = threading.Lock()

    async def embed(self, files: Sequence[tuple[str, BinaryIO]], client: str) -> list[EmbeddedPhoto | UserError]:
        """Photos, given by name and file, to activations: side by side, and in the order given. An error is that of
        one photo: it cannot be decoded, or is too large."""
        work = (self._embed(file, name, client) for name, file in files)
        found = await asyncio.gather(*work, return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, UserError):
                raise error
        return found  # type: ignore[return-value]

    async def _embed(self, file: BinaryIO, name: str, client: str) -> EmbeddedPhoto:
        key, pixels = await self._lanes.looks.run(client, _look, file)
        activation = self.remembered(key)
        if activation is None:
            async with self._shares.of(client):
                image = await self._lanes.of(pixels).run(client, self._prepare, file, name)
                activation = await self._batches.activation(image)
        self._remember(key, activation)
        return EmbeddedPhoto(key, activation)

    def _prepare(self, file: BinaryIO, name: str) -> torch.Tensor:
        """The image of a photo, [1, 3, size, size]."""
        file.seek(0)
        pixels = self.model.pixels(file.read(), name, self.limits.pixels)
        return self.model.network.preprocess.batch([pixels])

    def _remember(self, key: str, activation: torch.Tensor) -> None:
        with self._look_up:
            self._seen[key] = activation
            self._seen.move_to_end(key)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)

    def remembered(self, key: str) -> torch.Tensor | None:
        """The activation [1, dim] of a photo that was seen, by its key."""
        with self._look_up:
            return self._seen.get(key)

    def change(self, make: Callable[[Classifier], None]) -> None:
        """Change a copy, write it, and put it in place.

        Raises:
            UserError: of ``make``; nothing is changed.
            OSError: it cannot be written; nothing is changed.
        """
        with self._change:
            changed = self.model.copy()
            make(changed)
            changed.head()
            changed.save(self.path)
            self.model = changed

    def add(self, name: str, activations: torch.Tensor) -> None:
        def make(model: Classifier) -> None:
            if len(model.classes) >= self.limits.classes:
                raise UserError(f"there are {len(model.classes)} classes, the limit of this server; remove some first")
            model.add_activations(name, activations)

        self.change(make)

    def archive(self) -> Path:
        """The model as a zip in a temporary folder, whose owner removes it."""
        made = Path(tempfile.mkdtemp()) / "model.zip"
        try:
            with self._change, zipfile.ZipFile(made, "w") as file:
                for path in sorted([self.path / "model.json", *self.path.glob("*.safetensors")]):
                    file.write(path, f"{self.path.absolute().name}/{path.name}")
        except OSError as error:
            shutil.rmtree(made.parent)
            raise UserError(f"the model cannot be read ({error.strerror}); look at its folder") from None
        return made

    def about(self) -> dict[str, Any]:
        model = self.model
        return {
            "name": self.path.absolute().name,
            "method": model.network.method,
            "classes": [asdict(one) for one in model.classes],
            "limits": asdict(self.limits),
            "photos": sorted(SUFFIXES),
            "system": {"files": sorted(SYSTEM_FILES), "folders": sorted(SYSTEM_FOLDERS)},
        }

    def answer(self, activations: torch.Tensor) -> list[list[dict[str, Any]]]:
        return [[asdict(one) for one in best] for best in self.model.answers(activations)]


def _look(file: BinaryIO) -> tuple[str, int]:
    """The key of a photo, and how many pixels its header names: 0 where it is not to be read, which ``photos.load``
    says."""
    key, pixels = hashlib.file_digest(file, "sha256").hexdigest(), 0  # type: ignore[arg-type]
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.seek(0)
        with open_photo(file) as image:
            pixels = image.width * image.height
    return key, pixels
