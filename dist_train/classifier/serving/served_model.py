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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import torch

from dist_train.classifier import model_folder
from dist_train.classifier.adding import check_other_classes
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.kept import NewPhoto, file_name
from dist_train.classifier.measuring import Measurement, measure
from dist_train.classifier.serving.metrics import Metrics
from dist_train.classifier.serving.replies import (
    About,
    Changes,
    ClassPhotos,
    PhotoAnswer,
    ServedClass,
    ServedLimits,
    ShownChange,
    ShownDeeds,
    ShownPhoto,
    ShownPrediction,
    SystemNames,
)
from dist_train.classifier.serving.scheduling import SMALL, BatchedNetwork, ClientShares, DecodingPools
from dist_train.data.images.photos import SUFFIXES, SYSTEM_FILES, SYSTEM_FOLDERS, open_photo
from dist_train.errors import UserError, counted
from dist_train.names import shown

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
        key: the sha256 of its bytes, by which it is remembered.
        activation: [1, dim].
        photo: what a class would keep of it.
    """

    key: str
    activation: torch.Tensor
    photo: NewPhoto


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
        # Decoded images wait in memory: of each client no more than a batch, and one of large photos, which are decoded
        # one at a time: the client's small photos do not wait for those.
        self._small, self._large = ClientShares(size), ClientShares(size)
        self._remembered: OrderedDict[str, EmbeddedPhoto] = OrderedDict()  # by key, the most recent last
        self._remembered_lock = threading.Lock()
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
            photo, result = self.remembered(key), "remembered"
            if photo is None:
                result = "computed"
                async with (self._small if pixels <= SMALL else self._large).of(client):
                    try:
                        image, new = await self._pools.for_size(pixels).run(client, self._decode, file, name)
                    except UserError:
                        self._metrics.photos.labels(self.name, "unreadable").inc()
                        raise
                    photo = EmbeddedPhoto(key, await self._batches.activation(image), new)
        self._metrics.photos.labels(self.name, result).inc()
        photo = replace(photo, photo=replace(photo.photo, name=file_name(name)))
        self._remember(photo)
        return photo

    def _decode(self, file: BinaryIO, name: str) -> tuple[torch.Tensor, NewPhoto]:
        """Return a photo as the network takes it, [1, 3, size, size], and what a class would keep of it."""
        file.seek(0)
        pixels = self.model.pixels(file.read(), name, self.limits.pixels)
        image = self.model.network.preprocess.batch([pixels])
        return image, self.model.new_photo(image, pixels, name)

    def _remember(self, photo: EmbeddedPhoto) -> None:
        with self._remembered_lock:
            self._remembered[photo.key] = photo
            self._remembered.move_to_end(photo.key)
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)

    def remembered(self, key: str) -> EmbeddedPhoto | None:
        """Return a photo seen before, by its key; None where it is forgotten."""
        with self._remembered_lock:
            return self._remembered.get(key)

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
                strange=answer.strange,
                predictions=[ShownPrediction.model_validate(best) for best in answer],
            )
            for photo, answer in zip(photos, answers, strict=True)
        ]

    def measure(self, labelled: Sequence[tuple[str, str]]) -> Measurement:
        """Measure the model on photos that were seen before, each (key, name or wnid of its class).

        Raises:
            UserError: a photo is forgotten or given twice, or a label is no class.
        """
        known = [self.remembered(key) for key, _ in labelled]
        forgotten = [key for (key, _), photo in zip(labelled, known, strict=True) if photo is None]
        if forgotten:
            raise UserError(f"{counted(len(labelled), 'photo')}, {len(forgotten)} of them not remembered, the first: "
                            f"{shown(forgotten[0])}; classify them again first", "photos.forgotten", n=len(forgotten),
                            all=len(labelled))  # fmt: skip
        if len(dict(labelled)) < len(labelled):
            raise UserError("a photo is given twice; give each of them once", "photos.twice")
        keys, labels = zip(*labelled, strict=True)
        return measure(self.model, torch.cat([photo.activation for photo in known if photo]), labels, keys)

    def change(self, apply: Callable[[Classifier], object]) -> None:
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

    def add_class(self, name: str, photos: Sequence[EmbeddedPhoto]) -> None:
        """Add a class from its photos.

        Raises:
            UserError: the name is taken, a photo is given twice or is in another class, or there are too many classes;
                nothing is changed.
            OSError: the model cannot be written; nothing is changed.
        """
        activations, new = _to_keep(photos)

        def apply(model: Classifier) -> None:
            if len(model.classes) >= self.limits.classes:
                raise UserError(f"{counted(len(model.classes), 'class')}: the limit of this server; remove some first",
                                "classes.full", limit=len(model.classes))  # fmt: skip
            check_other_classes(model, name, activations)
            model.add_activations(name, activations, new)

        self.change(apply)

    def add_photos(self, name: str, photos: Sequence[EmbeddedPhoto]) -> None:
        """Give further photos to a class.

        Raises:
            UserError: there is no such class, or a photo is given twice, or in it or another class already; nothing is
                changed.
            OSError: the model cannot be written; nothing is changed.
        """
        activations, new = _to_keep(photos)

        def apply(model: Classifier) -> None:
            check_other_classes(model, name, activations)
            model.add_photo_activations(name, activations, new)

        self.change(apply)

    def remove_photos(self, name: str, ids: Sequence[str]) -> None:
        """Remove photos of a class.

        Raises:
            UserError: there is no such class or photo, or none would be left; nothing is changed.
            OSError: the model cannot be written; nothing is changed.
        """
        self.change(lambda model: model.remove_photos(name, ids))

    def undo(self) -> None:
        """Undo the last change.

        Raises:
            UserError: there is nothing to undo; nothing is changed.
            OSError: the model cannot be written; nothing is changed.
        """
        self.change(lambda model: model.undo())

    def photos(self, name: str) -> ClassPhotos:
        """Return the photos that the model keeps of a class.

        Raises:
            UserError: there is no such class.
        """
        return ClassPhotos(photos=[ShownPhoto(**{**asdict(photo), "picture": photo.picture or None})
                                   for photo in self.model.photos(name)])  # fmt: skip

    def history(self) -> Changes:
        """Return the changes of the model, the last at the end."""
        return Changes(changes=[ShownChange.model_validate(change) for change in self.model.history])

    def picture(self, photo: str) -> bytes | None:
        """Return a small picture, a JPEG, by its id; None where there is none."""
        return self.model.picture(photo)

    def archive(self) -> Path:
        """Return the model folder as a zip file in a temporary folder, which the caller removes: the model as it is,
        and not the states that undo restores.

        Raises:
            UserError: the model's files cannot be read.
        """
        archive = Path(tempfile.mkdtemp()) / "model.zip"
        try:
            with self._change_lock, zipfile.ZipFile(archive, "w") as file:
                model_folder.pack(self.path, self.name, file)
        except (OSError, ValueError, UserError) as error:
            shutil.rmtree(archive.parent)
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"the model cannot be read ({reason}); look at its folder", "model.unreadable") from None
        return archive

    def about(self) -> About:
        """Return what the page shows of the model, and the rules by which it tells photos from other files."""
        model = self.model
        return About(
            name=self.name,
            method=model.method,
            prior=model.prior,
            threshold=model.threshold,
            classes=[
                ServedClass(**asdict(entry), picture=picture or None)
                for entry, picture in zip(model.classes, model.pictures, strict=True)
            ],
            last_change=model.last_change,
            last=None if model.last_told is None else ShownDeeds.model_validate(model.last_told),
            limits=ServedLimits(**asdict(self.limits), remembered=REMEMBERED),
            suffixes=sorted(SUFFIXES),
            system=SystemNames(files=sorted(SYSTEM_FILES), folders=sorted(SYSTEM_FOLDERS)),
        )


def model_name(path: Path) -> str:
    """Return the name of a model folder; that of the folder itself for ``.`` and ``..``."""
    return os.path.basename(os.path.abspath(path))


def _to_keep(photos: Sequence[EmbeddedPhoto]) -> tuple[torch.Tensor, list[NewPhoto]]:
    """Return the activations [k, dim] of photos, and what a class keeps of each."""
    return torch.cat([photo.activation for photo in photos]), [photo.photo for photo in photos]


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
