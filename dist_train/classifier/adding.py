"""Photos of folders into a model: new classes, and more photos of classes that exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.embedding import Embedded, embed, leave_out
from dist_train.data.account import Account
from dist_train.errors import UserError
from dist_train.names import shown


def add(model: Classifier, photos: Mapping[str, Sequence[Path]], account: Account, bar: tqdm[None]) -> None:
    """Add photos to classes; a name that is no class becomes one. Photos that cannot be used are left out, by name.

    Args:
        model: gets them all, or none where there is an error.
        photos: the files for each class, by its name or wnid; all of them are in the account.
        account: gets the photos that are left out.
        bar: shows how many photos are done.

    Raises:
        UserError: no photo for a class can be used, a photo is in another class, or a model of photos alone would have
            a single class.
    """
    _check_several(model, photos)  # before the work begins
    embedded = embed(model, photos, account, bar)
    there = {name for entry in model.classes for name in (entry.name, entry.wnid) if name in photos}
    new = {name: _new(model, name, own, account) if name in there else own for name, own in embedded.items()}
    for name, own in new.items():
        if not own.photos:
            reasons = dict(account.left_out)
            last = next((path for path in reversed(photos[name]) if str(path) in reasons), None)
            why = f" ({shown(last)}: {shown(reasons[str(last)])})" if last else ""
            raise UserError(f"class {name!r}: no photo for it can be used{why}; add some, or leave the class out")
        check_other_classes(model, name, own.activations)
    for name, own in new.items():
        if name in there:
            model.add_photo_activations(name, own.activations, own.photos)
        else:
            model.add_activations(name, own.activations, own.photos)


def _check_several(model: Classifier, names: Iterable[str]) -> None:
    names = {*names, *(entry.name for entry in model.classes)}
    if model.fitted and len(names) == 1:
        raise UserError(f"class {names.pop()!r}: is the only class; give photos of two classes or more")


def _new(model: Classifier, name: str, given: Embedded, account: Account) -> Embedded:
    """Return the photos that the class does not have yet; the others are left out."""
    twins = model.twins(name, given.activations, given.photos)
    for path, twin in zip(given.paths, twins, strict=True):
        if twin is not None:
            leave_out(account, path, f"the same photo as {twin.name or twin.id}, which is in the class already")
    places = [place for place, twin in enumerate(twins) if twin is None]
    photos, paths = [given.photos[n] for n in places], [given.paths[n] for n in places]
    return Embedded(given.activations[places], photos, paths)


def check_other_classes(model: Classifier, name: str, activations: torch.Tensor) -> None:
    """Check that no photo, by its activation [k, dim], is in another class than the one it is for.

    Raises:
        UserError: a photo is in another class.
    """
    own = {entry.name for entry in model.classes if name in (entry.name, entry.wnid)}
    others = [other for other in model.classes_with(activations) if other is not None and other not in own]
    if others:
        count = "a photo of it is" if len(others) == 1 else f"{len(others)} photos of it are"
        raise UserError(
            f"class {name!r}: {count} in the model already, in class {others[0]!r}; leave each in one class",
            "photo.elsewhere",
            n=len(others),
            other=others[0],
        )
