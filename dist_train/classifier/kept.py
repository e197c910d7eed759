"""What a model keeps of the photos of its classes: activation, id, name, day and a small picture."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image

from dist_train.classifier.answer import Class
from dist_train.errors import UserError
from dist_train.names import shown, spelt

SIDE, QUALITY = 96, 80
"""The longer side of a picture in pixels, and its JPEG quality: 2 to 4 kB."""
MAX_NAME = 200
"""Characters of a photo's name that are kept."""
_SMALLEST = 1e-3
"""Least size of the largest number of an activation that float16 keeps to four digits; trained networks give near 1."""
_SAME = 1e-3
"""Difference, as a share of its length, up to which an activation is of the same photo. Rounding to float16 in another
batch or on another device gives 2e-4, and saving a photo again at JPEG quality 95 at least 2e-2 (the starter, 32
photos)."""
_ROWS = 256  # photos that are compared at a time with those of a class


@dataclass(frozen=True)
class KeptPhoto:
    """A photo of a class.

    Attributes:
        id: the first digits of the sha256 of its pixels as the network takes them, or of its activation where only that
            is known.
        name: the name of its file; "" where it had none.
        added: the day it was added, as "2026-11-25"; "" where that is not known.
        picture: the id of its small picture; "" where there is none.
    """

    id: str
    name: str = ""
    added: str = ""
    picture: str = ""


@dataclass(frozen=True)
class NewPhoto:
    """A photo that a class is to get.

    Attributes:
        id: see ``KeptPhoto``.
        name: see ``KeptPhoto``.
        picture: the small picture, a JPEG; empty where none is to be kept.
    """

    id: str
    name: str = ""
    picture: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, image: torch.Tensor, pixels: torch.Tensor | None, name: str | Path = "") -> NewPhoto:
        """Return what a model keeps of a photo.

        Args:
            image: the photo as the network takes it.
            pixels: the whole photo, uint8 [3, height, width]; None: no picture is kept.
            name: the path or name of its file.
        """
        picture = b"" if pixels is None else small_picture(pixels)
        return cls(short_hash(image.cpu().numpy().tobytes()), file_name(name), picture)

    @property
    def picture_id(self) -> str:
        """The id of the small picture, the first digits of its sha256; "" where there is none."""
        return hashlib.sha256(self.picture).hexdigest()[:32] if self.picture else ""


@dataclass(frozen=True)
class Member:
    """A class of a model with its photos. It does not change; each change gives another member.

    Attributes:
        name: see ``Class``.
        activations: of its photos, [k, dim], as float32 that float16 can hold: what a model folder keeps of them.
        photos: the same photos.
        wnid: see ``Class``.
        added: see ``Class``.
        number: the number of a class in the run that it came with; None for an added class.
    """

    name: str
    activations: torch.Tensor = field(repr=False)
    photos: tuple[KeptPhoto, ...] = ()
    wnid: str = ""
    added: str = ""
    number: int | None = None

    @property
    def entry(self) -> Class:
        """The class without its photos."""
        return Class(self.name, self.wnid, len(self.photos), self.added)

    def twins(self, activations: torch.Tensor, ids: Sequence[str] = ()) -> list[KeptPhoto | None]:
        """Return for each activation [B, dim] the photo of this class that is the same photo; None where there is none.

        Args:
            ids: of the photos, where they are known.
        """
        by_id = {photo.id: photo for photo in self.photos}
        twins = [by_id.get(known) for known in ids] or [None] * len(activations)
        if not self.photos:
            return twins
        own, places, near = self.activations.double(), list[int](), list[bool]()
        for rows in torch.split(rounded(activations).to(own), _ROWS):
            distance, place = torch.cdist(rows, own).min(1)
            places += place.tolist()
            near += (distance <= _SAME * rows.norm(dim=1)).tolist()
        return [twin or (self.photos[place] if same else None)
                for twin, place, same in zip(twins, places, near, strict=True)]  # fmt: skip

    def with_photos(self, activations: torch.Tensor, photos: Sequence[NewPhoto] = ()) -> Member:
        """Return the class with further photos.

        Args:
            activations: [k, dim].
            photos: what is to be kept of each; empty: nothing but the activations is known.

        Raises:
            UserError: there are no photos; the activations are not finite, of another shape, or too small for float16;
                or a photo is in the class already, or is given twice.
        """
        kept = rounded(activations)
        if not len(kept):
            raise UserError(f"class {self.name!r}: no photos; give at least one")
        dim = self.activations.shape[1]
        if kept.ndim != 2 or kept.shape[1] != dim or not bool(kept.isfinite().all()):
            raise UserError(f"class {self.name!r}: shape {list(kept.shape)}; give finite activations [k, {dim}], of at "
                            f"most 65504", "model.broken")  # fmt: skip
        largest = activations.abs().amax(1)
        if bool(((largest > 0) & (largest < _SMALLEST)).any()):
            raise UserError(f"class {self.name!r}: activations of at most {largest.max():.1e}, too small for half "
                            f"precision; give a network that is trained", "model.broken")  # fmt: skip
        photos = list(photos) or [NewPhoto(activation_id(row)) for row in kept]
        given: dict[str, NewPhoto] = {}
        twins = self.twins(kept, [photo.id for photo in photos])
        for number, (photo, twin) in enumerate(zip(photos, twins, strict=True), 1):
            same = twin or given.get(photo.id)
            if same is not None:
                where = "is in it already" if twin else "is given twice"
                other = f", as {same.name}" if same.name not in ("", photo.name) else ""
                called = photo.name or f"photo {number}"
                raise UserError(f"class {self.name!r}: {called} {where}{other}; give each photo once",
                                "photo.there" if twin else "photo.twice", photo=called, name=self.name)  # fmt: skip
            given[photo.id] = photo
        new = [KeptPhoto(photo.id, photo.name, today(), photo.picture_id) for photo in photos]
        activations = torch.cat([self.activations, kept.to(self.activations)])
        return replace(self, photos=(*self.photos, *new), activations=activations)

    def without(self, ids: Collection[str]) -> Member:
        """Return the class without some of its photos.

        Raises:
            UserError: it has no such photo.
        """
        unknown = next((wanted for wanted in ids if wanted not in {photo.id for photo in self.photos}), None)
        if unknown is not None:
            raise UserError(f"class {self.name!r}: has no photo {shown(unknown)}; list its photos first", "photo.gone",
                            name=self.name)  # fmt: skip
        places = [place for place, photo in enumerate(self.photos) if photo.id not in ids]
        return replace(self, photos=tuple(self.photos[n] for n in places), activations=self.activations[places])

    def without_pictures(self) -> Member:
        """Return the class with no photo that names a picture."""
        return replace(self, photos=tuple(replace(photo, picture="") for photo in self.photos))

    def ids_of(self, name_or_id: str) -> list[str]:
        """Return the id of a photo that is given by its id or its file's name.

        Raises:
            UserError: there is no such photo, or several have that name.
        """
        wanted = (name_or_id, file_name(name_or_id))  # a name as the list of photos has it, or a file's own
        named = [photo.id for photo in self.photos if photo.name in wanted or photo.id == name_or_id]
        if len(set(named)) > 1 and name_or_id not in named:
            raise UserError(f"class {self.name!r}: {len(named)} photos are called {shown(name_or_id)}; give one of "
                            f"their ids: {', '.join(named)}")  # fmt: skip
        return [name_or_id] if name_or_id in named else named[:1] or [name_or_id]


def rounded(activations: torch.Tensor) -> torch.Tensor:
    """Return activations as float32, rounded to what float16 can hold."""
    return activations.detach().half().float()


def today() -> str:
    """Return the day as "2026-11-25", in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def activation_id(activation: torch.Tensor) -> str:
    """Return the id of a photo of which only the activation [dim] is known."""
    return short_hash(activation.half().cpu().contiguous().numpy().tobytes())


def short_hash(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of data."""
    return hashlib.sha256(data).hexdigest()[:16]


def file_name(path: str | Path) -> str:
    """Return the name of a photo's file as it is kept: without folders and without characters that cannot be seen.
    Bytes that are not UTF-8 are as ``names.spelt`` has them, so that no other name looks the same."""
    return shown(spelt(Path(path).name))[:MAX_NAME]


def small_picture(pixels: torch.Tensor) -> bytes:
    """Return the small picture of a photo uint8 [3, height, width]: a JPEG of at most 96 x 96 pixels."""
    image = Image.fromarray(pixels.cpu().permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
