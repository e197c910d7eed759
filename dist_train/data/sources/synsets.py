"""The names of classes and their hierarchy, which a devkit has and the index keeps."""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dist_train.names import is_class_name

# WordNet 3.0 lists its nouns by subject (lexnames(5WN)), and a wnid is a place in that list. These are the first wnid
# of each subject that ImageNet has classes of, and of the subject that follows it.
_SUBJECTS = {
    "n01313093": "animal", "n02665985": "artifact", "n04615866": "other", "n06251781": "communication",
    "n07283364": "other", "n07555863": "food", "n07938773": "other", "n09186064": "natural object",
    "n09483738": "person", "n11408559": "other", "n11529603": "plant", "n13240514": "other",
}  # fmt: skip


@dataclass(frozen=True)
class Synsets:
    """Hold the names and the hierarchy of classes. Shards that were packed without a devkit have empty ``Synsets``.

    Attributes:
        words: wnid -> its words, "monarch, monarch butterfly, Danaus plexippus".
        children: inner node -> its children, all as wnids; classes are the leaves.
    """

    words: dict[str, str] = field(default_factory=dict)
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Any) -> Synsets:
        """Read an entry of ``index.json``: the fields as JSON has them, or None.

        Raises:
            ValueError: the entry is anything else.
        """
        if entry is None:
            return cls()
        if not isinstance(entry, dict) or set(entry) != {"words", "children"}:
            raise ValueError("synsets must have words and children")
        words, children = entry["words"], entry["children"]
        if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
            raise ValueError("synsets: words must be strings")
        if not isinstance(children, dict) or not all(
            isinstance(nodes, list) and all(isinstance(wnid, str) for wnid in nodes) for nodes in children.values()
        ):
            raise ValueError("synsets: children must be lists of wnids")
        return cls(words, {wnid: tuple(nodes) for wnid, nodes in children.items()})

    def names(self, classes: Sequence[str]) -> list[str]:
        """Return a short name for each class, all different.

        It is the first of the class's words, with the wnid where two classes share it (ImageNet has two cranes);
        and the wnid alone where there are no words, or where the first cannot be a class name.
        """
        short = [self._short(wnid) for wnid in classes]
        shared = Counter(short)
        return [name if shared[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(short, classes, strict=True)]

    def _short(self, wnid: str) -> str:
        first = " ".join(self.words.get(wnid, "").partition(",")[0].split())
        return first if is_class_name(first) else wnid

    def groups(self, classes: Sequence[str], limit: int = 8) -> list[str]:
        """Return the name of the group that each class belongs to.

        The groups are at most ``limit`` parts of the hierarchy where it holds at least half of the classes, else
        WordNet's subjects (animal, artifact, food, ...) where the classes are wnids. A class in no group has "other";
        where there are no groups, every class has "".

        The parts are found from the top down: the largest part is replaced by its children that have 2% of the classes
        each, as long as these children have two thirds of it together.
        """
        below = {node: held for node in self.children if (held := self._below(node) & set(classes))}
        held = set().union(*below.values())
        if 2 * len(held) < len(classes):
            return _subjects(classes)
        inner = {child for children in self.children.values() for child in children}
        parts = {node: classes_below for node, classes_below in below.items() if node not in inner}
        done, met = set[str](), set(parts)
        while todo := parts.keys() - done:
            node = min(todo, key=lambda n: (-len(parts[n]), n))
            left, new = set(parts[node]), dict[str, set[str]]()
            for child in sorted(self.children[node], key=lambda n: (-len(below.get(n, ())), n)):
                own = left & below.get(child, set())
                if 50 * len(own) >= len(held) and child not in met:
                    new[child] = own
                    left -= own
            if new and len(parts) + len(new) - 1 <= limit and 3 * len(left) <= len(parts[node]):
                del parts[node]
                parts |= new
                met |= new.keys()
            else:
                done.add(node)
        label = {wnid: self._short(node) for node, members in parts.items() for wnid in members}
        return [label.get(wnid, "other") for wnid in classes]

    def _below(self, wnid: str) -> set[str]:
        """Return all nodes below a node, and itself. A loop in the hierarchy does no harm."""
        todo, nodes = [wnid], set()
        while todo:
            node = todo.pop()
            if node not in nodes:
                nodes.add(node)
                todo += self.children.get(node, ())
        return nodes


def _subjects(classes: Sequence[str]) -> list[str]:
    if not all(re.fullmatch(r"n\d{8}", wnid) for wnid in classes):
        return [""] * len(classes)
    starts, subjects = ["", *_SUBJECTS], ["other", *_SUBJECTS.values()]
    return [subjects[bisect(starts, wnid) - 1] for wnid in classes]
