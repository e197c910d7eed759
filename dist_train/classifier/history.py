"""The changes of a model: those that its folder names, those that can be undone, and those that are not saved yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dist_train.classifier.model_json import MAX_CHANGES, MAX_PAST, MAX_TEXT, Change, Part, Past
from dist_train.errors import UserError
from dist_train.names import shown

_NAMED = 3  # parts of a change that its text names


@dataclass(frozen=True)
class History:
    """Hold the changes of a model. It does not change; each change gives another history.

    A change is what lies between two saves: a command, or a call of the API. So each state that can be restored was
    saved, and lies in the model folder.

    Attributes:
        saved: the changes that were saved, the last at the end.
        past: those that can be undone, the last at the end.
        here: the state, in the folder, that the changes which are not saved were made on; None: there is none.
        undone: the texts of the changes that were undone since the last save.
        texts: what was changed since the last save, or since the last of ``undone``.
    """

    saved: tuple[Change, ...] = ()
    past: tuple[Past, ...] = ()
    here: Part | None = None
    undone: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def last(self) -> str | None:
        """The text of what would be undone; None where nothing can be."""
        if self.texts:
            return summary(self.texts)
        return self.past[-1].text if self.past else None

    def noting(self, text: str) -> History:
        """Return the history with a further change that is not saved."""
        return replace(self, texts=(*self.texts, shown(text)))

    def undoing(self) -> tuple[Past, History]:
        """Return the last change that was saved, and the history once it is undone.

        Raises:
            UserError: no change can be undone.
        """
        if not self.past:
            raise UserError(f"nothing to undo: a model folder keeps the states before its last {MAX_PAST} changes, and "
                            f"begins without them where a model is written to it for the first time")  # fmt: skip
        last = self.past[-1]
        return last, replace(self, past=self.past[:-1], here=last.before, undone=(*self.undone, last.text), texts=())

    def saving(self, to_another_folder: bool) -> History:
        """Return the history with all changes as saved, but for ``here``.

        Args:
            to_another_folder: where none of the states are.
        """
        past = () if to_another_folder else self.past
        if not (self.texts or self.undone):
            return replace(self, past=past)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.texts and self.here is not None and not to_another_folder:
            past = (*past, Past(time=now, text=summary(self.texts), before=self.here))
        change = Change(time=now, text=summary([*(f"undid: {text}" for text in self.undone), *self.texts]))
        saved = (*self.saved, change)[-MAX_CHANGES:]
        return History(saved, past[-MAX_PAST:], self.here)


def summary(texts: Sequence[str]) -> str:
    """Return the texts of the parts of a change as a single text."""
    more = f"; {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    text = "; ".join(texts[:_NAMED])
    return (text if len(text) <= MAX_TEXT - len(more) else text[: MAX_TEXT - len(more) - 3] + "...") + more


def photos_text(count: int) -> str:
    """Return "1 photo" or "3 photos"."""
    return f"{count:,} photo{'s' * (count != 1)}"
