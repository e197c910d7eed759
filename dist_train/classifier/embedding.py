"""Many photos to activations: decoded on all cores, then computed in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.kept import NewPhoto
from dist_train.classifier.reading import batches, read
from dist_train.data.account import Account
from dist_train.errors import UserError
from dist_train.names import shown


@dataclass(frozen=True)
class Embedded:
    """Hold the photos of a class after the network.

    Attributes:
        activations: [k, dim].
        photos: what a model keeps of each.
        paths: their files.
    """

    activations: torch.Tensor
    photos: list[NewPhoto]
    paths: list[Path]


@dataclass(frozen=True)
class _Decoded:
    """A photo as the network takes it, [1, 3, size, size], or why there is none."""

    name: str
    path: Path
    image: torch.Tensor | None = None
    kept: NewPhoto | None = None
    fault: str = ""


def embed(
    model: Classifier,
    photos: Mapping[str, Sequence[Path]],
    account: Account,
    bar: tqdm[None],
    pictures: bool = True,
) -> dict[str, Embedded]:
    """Return the activations of each class's photos.

    A photo that cannot be decoded is left out. So is a photo that is in its class already, whatever its file is called:
    a copy would count as a photo that was held out, and be known.

    Args:
        model: whose network computes.
        photos: the files of each class; all of them are in the account.
        account: gets the photos that are left out.
        bar: shows how many photos are done.
        pictures: whether the photos are for the model, which keeps a small picture of each unless it keeps none.

    Raises:
        UserError: photos are in two classes; the line counts and names them.
    """
    rows = {name: [torch.empty(0, model.network.backbone.dim, device=model.device)] for name in photos}
    taken: dict[str, list[_Decoded]] = {name: [] for name in photos}
    classes_of: dict[str, dict[str, Path]] = {}  # of a photo, by its id
    for batch in batches(_decoded(model, photos, pictures), model.network.batch):
        new = []
        for photo in batch:
            if photo.image is None:
                leave_out(account, photo.path, photo.fault)
                continue
            assert photo.kept is not None
            classes = classes_of.setdefault(photo.kept.id, {})
            if photo.name in classes:
                leave_out(account, photo.path, f"the same photo as {classes[photo.name]}")
            else:
                new.append(photo)
            classes.setdefault(photo.name, photo.path)
        if new:
            images = torch.cat([photo.image for photo in new if photo.image is not None])
            for photo, row in zip(new, model.embed(images.to(model.device)), strict=True):
                rows[photo.name].append(row[None])
                taken[photo.name].append(photo)
        bar.update(len(batch))
    _check_one_class([list(classes.values()) for classes in classes_of.values() if len(classes) > 1])
    embedded = {}
    for name, own in taken.items():
        kept = [photo.kept for photo in own if photo.kept is not None]
        embedded[name] = Embedded(torch.cat(rows[name]), kept, [photo.path for photo in own])
    return embedded


def leave_out(account: Account, path: Path, reason: str) -> None:
    """Note that a photo which was counted as taken is left out."""
    account.taken -= 1
    account.leave_out(str(path), reason)


def _decoded(model: Classifier, photos: Mapping[str, Sequence[Path]], pictures: bool) -> Iterator[_Decoded]:
    """Yield all photos in order, decoded."""

    def decode(file: tuple[str, Path]) -> _Decoded:
        name, path = file
        try:
            pixels = model.pixels(path)
            image = model.network.preprocess.batch([pixels]).cpu()
            return _Decoded(name, path, image, model.new_photo(image, pixels if pictures else None, path))
        except UserError as error:
            return _Decoded(name, path, fault=str(error).removeprefix(f"{path}: "))

    files = [(name, path) for name, paths in photos.items() for path in paths]
    return read(decode, files, model.network.pace)


def _check_one_class(shared: Sequence[Sequence[Path]]) -> None:
    if shared:
        first, second = shared[0][:2]
        count = f"{len(shared)} photos are" if len(shared) > 1 else "a photo is"
        raise UserError(f"{count} in two classes: {shown(first)} and {shown(second)}; leave each in one of them")
