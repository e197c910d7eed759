"""What classes are called, and which belong together: names and hierarchy of a devkit, kept in the index."""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dist_train.names import is_class_name

# WordNet 3.0 lists its nouns by subject (lexnames(5WN)), and a wnid is a place in that list: the first wnid of
# each subject that ImageNet has classes of, and of what follows it.
_SUBJECTS = {
    "n01313093": "animal", "n02665985": "artifact", "n04615866": "other", "n06251781": "communication",
    "n07283364": "other", "n07555863": "food", "n07938773": "other", "n09186064": "natural object",
    "n09483738": "person", "n11408559": "other", "n11529603": "plant", "n13240514": "other",
}  # fmt: skip


@dataclass(frozen=True)
class Synsets:
    """Nothing is known of a class that is missing here; shards without a devkit have an empty one.

    Attributes:
        words: wnid -> its words, "monarch, monarch butterfly, Danaus plexippus".
        children: inner node -> its children, all as wnids; classes are the leaves.
    """

    words: dict[str, str] = field(default_factory=dict)
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Any) -> Synsets:
        """From ``index.json``: the fields as JSON has them, or None.

        Raises:
            ValueError: it is anything else.
        """
        if entry is None:
            return cls()
        if not isinstance(entry, dict) or set(entry) != {"words", "children"}:
            raise ValueError("synsets must have words and children")
        words, children = entry["words"], entry["children"]
        if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
            raise ValueError("synsets: words must be strings")
        if not isinstance(children, dict) or not all(
            isinstance(some, list) and all(isinstance(wnid, str) for wnid in some) for some in children.values()
        ):
            raise ValueError("synsets: children must be lists of wnids")
        return cls(words, {wnid: tuple(some) for wnid, some in children.items()})

    def names(self, classes: Sequence[str]) -> list[str]:
        """A short name for each class, all different: the first of its words, with the wnid where two classes
        share it (ImageNet has two cranes); the wnid where there are none, or none that a class can be called."""
        short = [self._short(wnid) for wnid in classes]
        shared = Counter(short)
        return [name if shared[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(short, classes, strict=True)]

    def _short(self, wnid: str) -> str:
        first = " ".join(self.words.get(wnid, "").partition(",")[0].split())
        return first if is_class_name(first) else wnid

    def groups(self, classes: Sequence[str], limit: int = 8) -> list[str]:
        """The name of the group that each class belongs to: of at most ``limit`` parts of the hierarchy where it
        holds at least half of the classes, else of WordNet's subjects (animal, artifact, food, ...) where the
        classes are wnids. "other" for what is in none; "" for all where there are no groups.

        From the top down: the largest part gives way to those of its children that have 2% of the classes, as
        long as these have two thirds of it.
        """
        below = {node: held for node in self.children if (held := self._below(node) & set(classes))}
        held = set().union(*below.values())
        if 2 * len(held) < len(classes):
            return _subjects(classes)
        inner = {child for some in self.children.values() for child in some}
        parts = {node: some for node, some in below.items() if node not in inner}
        done, met = set[str](), set(parts)
        while todo := parts.keys() - done:
            node = min(todo, key=lambda n: (-len(parts[n]), n))
            left, new = set(parts[node]), dict[str, set[str]]()
            for child in sorted(self.children[node], key=lambda n: (-len(below.get(n, ())), n)):
                some = left & below.get(child, set())
                if 50 * len(some) >= len(held) and child not in met:
                    new[child] = some
                    left -= some
            if new and len(parts) + len(new) - 1 <= limit and 3 * len(left) <= len(parts[node]):
                del parts[node]
                parts |= new
                met |= new.keys()
            else:
                done.add(node)
        label = {wnid: self._short(node) for node, some in parts.items() for wnid in some}
        return [label.get(wnid, "other") for wnid in classes]

    def _below(self, wnid: str) -> set[str]:
        """Everything below a node, and itself. A loop in the hierarchy ends itself."""
        todo, found = [wnid], set()
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += self.children.get(node, ())
        return found


def _subjects(classes: Sequence[str]) -> list[str]:
    if not all(re.fullmatch(r"n\d{8}", wnid) for wnid in classes):
        return [""] * len(classes)
    starts, subjects = ["", *_SUBJECTS], ["other", *_SUBJECTS.values()]
    return [subjects[bisect(starts, wnid) - 1] for wnid in classes]
