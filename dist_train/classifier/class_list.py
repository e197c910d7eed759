"""The classes of a model with the photos that it keeps of them, and every change of these."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dist_train.classifier import model_folder, stored
from dist_train.classifier.answer import Class
from dist_train.classifier.head import Head
from dist_train.classifier.history import History
from dist_train.classifier.kept import KeptPhoto, Member, NewPhoto, today
from dist_train.classifier.maker import HeadMaker
from dist_train.classifier.model_folder import Saved
from dist_train.classifier.model_json import Change, Deed, Told, check_added
from dist_train.classifier.network import Network
from dist_train.classifier.stored import State
from dist_train.errors import UserError, command
from dist_train.names import class_name


class ClassList:
    """The part of a ``Classifier`` that knows its classes and their photos: it adds, removes and renames, and undoes
    that. Each change gives another ``State``, so that the states of before stay as they are.

    Attributes:
        network: what turns photos into activations.
    """

    network: Network
    _state: State
    _before: State  # the changes that are not saved
    _history: History
    _keeps_pictures: bool
    _new_pictures: dict[str, bytes]  # by id, until they are saved
    _origin: tuple[Path, Saved] | None  # the folder that the model was loaded from or saved to

    @property
    def maker(self) -> HeadMaker:
        """What makes the head of the classes."""
        return self._state.maker

    @property
    def classes(self) -> list[Class]:
        """All classes in the order of ``logits``: those of the run, then the added ones."""
        return [member.entry for member in self._members]

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers of the run's classes that have not been removed, in order."""
        return tuple(member.number for member in self._members if member.number is not None)

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self.network.device

    def add_activations(self, name: str, activations: torch.Tensor, photos: Sequence[NewPhoto] = ()) -> None:
        """Add a class as ``add_class`` does, from the activations [k, dim] of its photos.

        Args:
            name: of the class.
            activations: of its photos; they are rounded to float16, as the model folder keeps them.
            photos: what else is to be kept of each, as ``look`` returns it.

        Raises:
            UserError: the name is taken or not allowed, the activations are not finite or of another shape, or a photo
                is given twice; nothing is changed.
        """
        none = torch.empty(0, self.network.backbone.dim, device=self.device)
        member = Member(self.check_new(name), none, added=today()).with_photos(activations, photos)
        self._take_pictures(photos)
        deed = Deed(kind="added", name=member.name, photos=len(activations))
        self._change(deed, [*self._members, member])

    def remove_class(self, name: str) -> None:
        """Remove a class by its name or wnid, whether it was added or came with the run.

        Raises:
            UserError: there is no such class, or it is the last.
        """
        place = self._position(name)
        if len(self._members) == 1:
            raise UserError(f"class {name!r}: the last one cannot be removed", "class.last", name=name)
        deed = Deed(kind="removed", name=self._members[place].name)
        self._change(deed, [*self._members[:place], *self._members[place + 1 :]])

    def rename_class(self, name: str, new: str) -> None:
        """Rename a class, given by its name or wnid.

        Raises:
            UserError: there is no such class, or the new name is taken or not allowed.
        """
        place = self._position(name)
        old = self._members[place]
        if new == old.name:
            return
        renamed = replace(old, name=self.check_new(new))
        self._replace(place, renamed, Deed(kind="renamed", name=old.name, new=renamed.name), self._state.head)

    def check_new(self, name: str) -> str:
        """Return the name of a new class as it is kept (see ``dist_train.names.class_name``).

        Raises:
            UserError: the name is not allowed, or is the name or wnid of a class.
        """
        name = class_name(str(name))
        if any(name in (member.name, member.wnid) for member in self._members):
            raise UserError(f"class {name!r}: exists already; take another name, or remove or rename that one first",
                            "class.exists", name=name)  # fmt: skip
        return name

    def _position(self, name: str) -> int:
        name = unicodedata.normalize("NFC", str(name))
        for position, member in enumerate(self._members):
            if name and name in (member.name, member.wnid):
                return position
        raise UserError(f"class {name!r}: there is none among the {len(self._members)}; "
                        f"{command('adapt', 'MODEL', '--list')} lists them",
                        "class.unknown", name=name)  # fmt: skip

    @property
    def _members(self) -> tuple[Member, ...]:
        return self._state.members

    def _replace(self, place: int, member: Member, deed: Deed, head: Head | None = None) -> None:
        self._change(deed, [*self._members[:place], member, *self._members[place + 1 :]], head=head)

    def _change(
        self, deed: Deed, members: Iterable[Member], maker: HeadMaker | None = None, head: Head | None = None
    ) -> None:
        """Take another state; ``deed`` tells the history what was done, ``head`` is known where it is as before."""
        if not self._history.deeds:
            self._before = self._state
        self._state, self._history = State(tuple(members), maker or self.maker, head), self._history.noting(deed)

    # The photos of a class.

    def add_photo_activations(self, name: str, activations: torch.Tensor, photos: Sequence[NewPhoto] = ()) -> None:
        """Give further photos to a class as ``add_photos`` does, from their activations; see ``add_activations``."""
        place = self._position(name)
        member = self._members[place].with_photos(activations, photos)
        self._take_pictures(photos)
        self._replace(place, member, Deed(kind="photos_added", name=member.name, photos=len(activations)))

    def remove_photos(self, name: str, ids: Iterable[str]) -> None:
        """Remove photos of a class, given by their ids or their files' names.

        Raises:
            UserError: there is no such class or photo, or no photo would be left of an added class; nothing is changed.
        """
        place = self._position(name)
        old = self._members[place]
        given = [ids] if isinstance(ids, str) else ids
        member = old.without({known for photo in given for known in old.ids_of(photo)})
        if not member.photos and member.number is None:
            raise UserError(f"class {old.name!r}: would have no photo left; remove the whole class instead",
                            "class.emptied", name=old.name)  # fmt: skip
        count = len(old.photos) - len(member.photos)
        if count:
            self._replace(place, member, Deed(kind="photos_removed", name=old.name, photos=count))

    def photos(self, name: str) -> list[KeptPhoto]:
        """Return the photos that the model keeps of a class; of a class that came with the run, those that were given
        to it later.

        Raises:
            UserError: there is no such class.
        """
        return list(self._members[self._position(name)].photos)

    @property
    def pictures(self) -> list[str]:
        """The id of a small picture of each of ``classes``, of its first photo that has one; "" where there is none."""
        return [next((photo.picture for photo in member.photos if photo.picture), "") for member in self._members]

    def picture(self, photo: str) -> bytes | None:
        """Return a small picture, a JPEG, by the ``picture`` of a photo; None where it is not there."""
        folder = self._origin[0] if self._origin else None
        return self._new_pictures.get(photo) or (model_folder.read_picture(folder, photo) if folder else None)

    def drop_pictures(self) -> None:
        """Keep no small pictures, neither of these photos nor of later ones. ``undo`` does not bring them back."""
        self._keeps_pictures, self._new_pictures = False, {}
        if not any(self.pictures):
            return
        self._change(Deed(kind="pictures_dropped"), [member.without_pictures() for member in self._members],
                     head=self._state.head)  # fmt: skip

    def _take_pictures(self, photos: Sequence[NewPhoto]) -> None:
        if self._keeps_pictures:
            self._new_pictures |= {photo.picture_id: photo.picture for photo in photos if photo.picture}

    # Changes.

    def undo(self) -> str:
        """Restore the state before the last change, and return the text of that change.

        The changes since the last save are undone first, together; then, one by one, the last ten that were saved to
        the model's folder. What is restored is on disk only after the next ``save``.

        Raises:
            UserError: there is nothing to undo, or the files of the state are missing or damaged.
        """
        if self._history.deeds:
            text, self._state = self.last_change or "", self._before
            self._history = replace(self._history, deeds=())
            return text
        last, history = self._history.undoing()
        assert self._origin is not None  # as its folder has the state
        folder, saved = self._origin
        try:
            about, added = model_folder.read_state(folder, last.before, self.device)
            if about.files.network != saved.network:
                raise UserError(f"{folder / last.before.file}: is of another network; it cannot be restored")
            check_added(folder, about, added, self.network.backbone.dim)
        except UserError as error:
            raise UserError(str(error), "undo.damaged") from None
        state = stored.state_of(about, added, self.maker)
        members = state.members if self._keeps_pictures else [member.without_pictures() for member in state.members]
        self._state, self._history = replace(state, members=tuple(members)), history
        return last.text

    @property
    def history(self) -> list[Change]:
        """The changes that were saved, the last at the end, each with its time and text."""
        return list(self._history.saved)

    @property
    def last_change(self) -> str | None:
        """The text of what ``undo`` would undo; None where there is nothing."""
        return self.last_told.text if self.last_told else None

    @property
    def last_told(self) -> Told | None:
        """What ``undo`` would undo, as a text and in parts; None where there is nothing."""
        return self._history.last

    def classes_with(self, activations: torch.Tensor) -> list[str | None]:
        """Return for each activation [B, dim] the class that keeps a photo with the same activation; else None."""
        names: list[str | None] = [None] * len(activations)
        for member in self._members:
            twins = member.twins(activations)
            names = [member.name if twin else name for twin, name in zip(twins, names, strict=True)]
        return names

    def twins(self, name: str, activations: torch.Tensor, photos: Sequence[NewPhoto]) -> list[KeptPhoto | None]:
        """Return for each of some photos, by activation [k, dim] or id, the photo of a class that is the same photo;
        None where it is not in the class.

        Raises:
            UserError: there is no such class.
        """
        return self._members[self._position(name)].twins(activations, [photo.id for photo in photos])
