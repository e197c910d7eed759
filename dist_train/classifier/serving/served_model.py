"""The model that the page shows, and its changes.

The model that answers is never changed in place: a change is made on a copy, written to disk, and only then does the
copy replace the model, one change at a time. So no answer sees half of a change, and whatever the page has
confirmed is on disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.serving.metrics import Metrics
from dist_train.classifier.serving.replies import (
    About,
    PhotoAnswer,
    ServedClass,
    ServedLimits,
    ShownPrediction,
    SystemNames,
)
from dist_train.classifier.serving.scheduling import BatchedNetwork, ClientShares, DecodingPools
from dist_train.data.images.photos import SUFFIXES, SYSTEM_FILES, SYSTEM_FOLDERS, open_photo
from dist_train.errors import UserError

REMEMBERED = 2000
"""Photos whose activations are kept, so that a change of the classes shows without another upload."""


@dataclass(frozen=True)
class Limits:
    """What a client may send and add.

    Attributes:
        upload: bytes of an upload.
        pixels: pixels of a photo.
        classes: classes of the model, those of the run included.

    Raises:
        UserError: a limit is below 1.
    """

    upload: int = 64_000_000
    pixels: int = 64_000_000
    classes: int = 5000

    def __post_init__(self) -> None:
        if min(self.upload, self.pixels, self.classes) < 1:
            raise UserError("--max_upload_mb, --max_megapixels and --max_classes: must be >= 1")


@dataclass(frozen=True)
class EmbeddedPhoto:
    """A photo that has been through the network.

    Attributes:
        key: the sha256 of its bytes, by which its activation is remembered.
        activation: [1, dim].
    """

    key: str
    activation: torch.Tensor


@dataclass(frozen=True)
class Shared:
    """What the models of a server share.

    Attributes:
        pools: the threads that decode photos.
        metrics: what the server counts.
    """

    pools: DecodingPools = field(default_factory=DecodingPools)
    metrics: Metrics = field(default_factory=Metrics)


class ServedModel:
    """The model in a folder as it is served. All methods may be called by several threads.

    Attributes:
        path: the model folder, to which every change is written.
        name: the name of the folder, by which clients name the model.
        limits: what a client may send and add.
        model: the model that answers; replaced by each change.
    """

    def __init__(self, path: Path, limits: Limits, shared: Shared | None = None) -> None:
        """Load the model in a folder.

        Args:
            path: the model folder.
            limits: what a client may send and add.
            shared: what the models of a server share; None: there is a single model.

        Raises:
            UserError: there is no model, or it cannot be read.
        """
        shared = shared or Shared()
        self.path, self.name, self.limits = path, model_name(path), limits
        self._pools, self._metrics = shared.pools, shared.metrics
        self.model = Classifier.load(path)
        self.model.head()
        self._change_lock = threading.Lock()
        size = self.model.network.batch
        self._batches = BatchedNetwork(self.model.embed, size, self._count_batch)
        self._shares = ClientShares(size)  # decoded images wait in memory: of each client no more than a batch
        self._activations: OrderedDict[str, torch.Tensor] = OrderedDict()  # by key, the most recent last
        self._activations_lock = threading.Lock()
        self._metrics.loads.labels(self.name).inc()
        self._metrics.classes.labels(self.name).set_function(lambda: len(self.model.classes))
        self._metrics.waiting.labels(self.name).set_function(lambda: self._batches.waiting)

    def _count_batch(self, photos: int, seconds: float) -> None:
        self._metrics.batch_photos.labels(self.name).observe(photos)
        self._metrics.batch_seconds.labels(self.name).observe(seconds)

    async def try_out(self) -> None:
        """Classify a black image, as a photo that was decoded.

        Raises:
            Exception: whatever keeps the model from an answer.
        """
        size = self.model.network.preprocess.spec.size
        activation = await self._batches.activation(torch.zeros(1, 3, size, size, device=self.model.device))
        await asyncio.to_thread(self.model.scores, activation)

    async def embed(self, files: Sequence[tuple[str, BinaryIO]], client: str) -> list[EmbeddedPhoto | UserError]:
        """Return photos, given by name and file, with their activations, in the order given; computed side by side.

        A photo that cannot be decoded or is too large is a ``UserError`` in the list.
        """
        work = (self._embed_file(file, name, client) for name, file in files)
        photos = await asyncio.gather(*work, return_exceptions=True)
        for photo in photos:
            if isinstance(photo, BaseException) and not isinstance(photo, UserError):
                raise photo
        return photos  # type: ignore[return-value]

    async def _embed_file(self, file: BinaryIO, name: str, client: str) -> EmbeddedPhoto:
        with self._metrics.pending.labels(self.name).track_inprogress():
            key, pixels = await self._pools.headers.run(client, _key_and_pixels, file)
            activation, result = self.remembered(key), "remembered"
            if activation is None:
                result = "computed"
                async with self._shares.of(client):
                    try:
                        image = await self._pools.for_size(pixels).run(client, self._decode, file, name)
                    except UserError:
                        self._metrics.photos.labels(self.name, "unreadable").inc()
                        raise
                    activation = await self._batches.activation(image)
        self._metrics.photos.labels(self.name, result).inc()
        self._remember(key, activation)
        return EmbeddedPhoto(key, activation)

    def _decode(self, file: BinaryIO, name: str) -> torch.Tensor:
        """Return a photo as the network takes it: [1, 3, size, size]."""
        file.seek(0)
        pixels = self.model.pixels(file.read(), name, self.limits.pixels)
        return self.model.network.preprocess.batch([pixels])

    def _remember(self, key: str, activation: torch.Tensor) -> None:
        with self._activations_lock:
            self._activations[key] = activation
            self._activations.move_to_end(key)
            while len(self._activations) > REMEMBERED:
                self._activations.popitem(last=False)

    def remembered(self, key: str) -> torch.Tensor | None:
        """Return the activation [1, dim] of a photo seen before, by its key; None where it is forgotten."""
        with self._activations_lock:
            return self._activations.get(key)

    def answers(self, photos: Sequence[EmbeddedPhoto]) -> list[PhotoAnswer]:
        """Return what the model says of photos, in order."""
        if not photos:
            return []
        answers = self.model.answers(torch.cat([photo.activation for photo in photos]))
        return [
            PhotoAnswer(
                id=photo.key,
                sure=answer.sure,
                familiarity=answer.familiarity,
                predictions=[ShownPrediction.model_validate(best) for best in answer],
            )
            for photo, answer in zip(photos, answers, strict=True)
        ]

    def change(self, apply: Callable[[Classifier], None]) -> None:
        """Apply a change to a copy of the model, write the copy, and let it replace the model.

        Raises:
            UserError: from ``apply``; nothing is changed.
            OSError: the model cannot be written; nothing is changed.
        """
        with self._change_lock:
            changed = self.model.copy()
            apply(changed)
            changed.head()
            changed.save(self.path)
            self.model = changed
            self._metrics.changes.labels(self.name).inc()

    def add_class(self, name: str, activations: torch.Tensor) -> None:
        """Add a class from the activations [k, dim] of its photos.

        Raises:
            UserError: the name is taken, or there are too many classes; nothing is changed.
            OSError: the model cannot be written; nothing is changed.
        """

        def apply(model: Classifier) -> None:
            if len(model.classes) >= self.limits.classes:
                raise UserError(f"there are {len(model.classes)} classes, the limit of this server; remove some first")
            model.add_activations(name, activations)

        self.change(apply)

    def archive(self) -> Path:
        """Return the model folder as a zip file in a temporary folder, which the caller removes.

        Raises:
            UserError: the model's files cannot be read.
        """
        archive = Path(tempfile.mkdtemp()) / "model.zip"
        try:
            with self._change_lock, zipfile.ZipFile(archive, "w") as file:
                for path in sorted([self.path / "model.json", *self.path.glob("*.safetensors")]):
                    file.write(path, f"{self.name}/{path.name}")
        except OSError as error:
            shutil.rmtree(archive.parent)
            raise UserError(f"the model cannot be read ({error.strerror}); look at its folder") from None
        return archive

    def about(self) -> About:
        """Return what the page shows of the model, and the rules by which it tells photos from other files."""
        model = self.model
        return About(
            name=self.name,
            method=model.method,
            classes=[ServedClass.model_validate(entry) for entry in model.classes],
            limits=ServedLimits.model_validate(self.limits),
            suffixes=sorted(SUFFIXES),
            system=SystemNames(files=sorted(SYSTEM_FILES), folders=sorted(SYSTEM_FOLDERS)),
        )


def model_name(path: Path) -> str:
    """Return the name of a model folder; that of the folder itself for ``.`` and ``..``."""
    return os.path.basename(os.path.abspath(path))


def _key_and_pixels(file: BinaryIO) -> tuple[str, int]:
    """Return the key of a photo and the number of pixels in its header; 0 where the header cannot be read, as decoding
    it says why."""
    key, pixels = hashlib.file_digest(file, "sha256").hexdigest(), 0  # type: ignore[arg-type]
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.seek(0)
        with open_photo(file) as image:
            pixels = image.width * image.height
    return key, pixels
