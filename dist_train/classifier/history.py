"""The changes of a model: those that its folder names, those that can be undone, and those that are not saved yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dist_train.classifier.model_json import MAX_CHANGES, MAX_PARTS, MAX_PAST, MAX_TEXT, Change, Deed, Part, Past, Told
from dist_train.errors import UserError, counted

_TEXTS = {
    "added": "added {name} ({photos})",
    "removed": "removed {name}",
    "renamed": "renamed {name} to {new}",
    "photos_added": "added {photos} to {name}",
    "photos_removed": "removed {photos} of {name}",
    "pictures_dropped": "dropped all pictures",
    "rule": "rule {name}",
    "head": "head {name}",
    "prior": "prior {name}",
}


@dataclass(frozen=True)
class History:
    """Hold the changes of a model. It does not change; each change gives another history.

    A change is what lies between two saves: a command, or a call of the API. So each state that can be restored was
    saved, and lies in the model folder.

    Attributes:
        saved: the changes that were saved, the last at the end.
        past: those that can be undone, the last at the end.
        here: the state, in the folder, that the changes which are not saved were made on; None: there is none.
        undone: the changes that were undone since the last save.
        deeds: what was done since the last save, or since the last of ``undone``.
    """

    saved: tuple[Change, ...] = ()
    past: tuple[Past, ...] = ()
    here: Part | None = None
    undone: tuple[Told, ...] = ()
    deeds: tuple[Deed, ...] = ()

    @property
    def last(self) -> Told | None:
        """What would be undone; None where nothing can be."""
        if self.deeds:
            return told(self.deeds)
        return self.past[-1] if self.past else None

    def noting(self, deed: Deed) -> History:
        """Return the history with a further deed that is not saved."""
        return replace(self, deeds=(*self.deeds, deed))

    def undoing(self) -> tuple[Past, History]:
        """Return the last change that was saved, and the history once it is undone.

        Raises:
            UserError: no change can be undone.
        """
        if not self.past:
            raise UserError(f"nothing to undo: a model folder keeps the states before its last {MAX_PAST} changes, and "
                            f"begins without them where a model is written to it for the first time", "undo.none",
                            most=MAX_PAST)  # fmt: skip
        last = self.past[-1]
        return last, replace(self, past=self.past[:-1], here=last.before, undone=(*self.undone, last), deeds=())

    def saving(self, to_another_folder: bool) -> History:
        """Return the history with all changes as saved, but for ``here``.

        Args:
            to_another_folder: where none of the states are.
        """
        past = () if to_another_folder else self.past
        if not (self.deeds or self.undone):
            return replace(self, past=past)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.deeds and self.here is not None and not to_another_folder:
            past = (*past, Past(time=now, before=self.here, **dict(told(self.deeds))))
        change = Change(time=now, **dict(told(self.deeds, self.undone)))
        saved = (*self.saved, change)[-MAX_CHANGES:]
        return History(saved, past[-MAX_PAST:], self.here)


def told(deeds: Sequence[Deed], undone: Sequence[Told] = ()) -> Told:
    """Return what was done, after changes that were undone, as a single text and in parts."""
    texts = [*(f"undid: {change.text}" for change in undone), *map(_text, deeds)]
    end = f"; {len(texts) - MAX_PARTS} more" if len(texts) > MAX_PARTS else ""
    text = "; ".join(texts[:MAX_PARTS])
    text = (text if len(text) <= MAX_TEXT - len(end) else text[: MAX_TEXT - len(end) - 3] + "...") + end
    if not all(change.parts for change in undone):  # of a model that was changed before parts were kept
        return Told(text=text)
    before = [deed.model_copy(update={"undone": True}) for change in undone for deed in change.parts]
    parts, further = (*before, *deeds), sum(change.more for change in undone)
    return Told(text=text, parts=parts[:MAX_PARTS], more=further + len(parts[MAX_PARTS:]))


def _text(deed: Deed) -> str:
    return _TEXTS[deed.kind].format(name=deed.name, new=deed.new, photos=counted(deed.photos, "photo"))
