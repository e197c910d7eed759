"""The command split: a file of base, novel and pseudo-novel classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from dist_train.errors import UserError
from dist_train.names import class_name

if TYPE_CHECKING:
    from dist_train.data.splits import Split


def add(commands: Any, parser: Callable[..., Any]) -> None:
    """Add the parser of this command."""
    split = parser(description="Make a split file (base, novel and pseudo-novel wnids) from a seed or from lists.")
    split.add_argument("--shards", type=Path, help="Take the classes of these shards ...")
    split.add_argument("--wnids", type=Path, help="... or of this file: the first word of each line.")
    split.add_argument("--split", help="... or those of another split (a name or a file), with their roles.")
    split.add_argument("--without", action="append", default=[], metavar="CLASS", help="Leave a class out; repeat it.")
    split.add_argument("--novel", type=int, help="Number of novel classes, drawn by the seed.")
    split.add_argument("--pseudo_novel", type=int, default=0, help="Number of base classes to mark as pseudo-novel.")
    split.add_argument("--novel_list", type=Path, help="Novel classes from a file instead.")
    split.add_argument("--seed", type=int, default=0, help="Seed of the drawing.")
    split.add_argument("--out", type=Path, required=True, help="Split file to write (.json).")
    commands.add_subcommand("split", split, help="make a split file")


def make(given: Namespace) -> int:
    """Write the split file that the command line asks for.

    Raises:
        UserError: classes that are not there, or options that do not go together.
    """
    from dist_train.data.splits import load_split, save_split

    if given.out.is_dir():
        raise UserError(f"--out {given.out}: is a folder; give the .json file to write")
    if [given.shards, given.wnids, given.split].count(None) != 2:
        raise UserError("split: give the classes by --shards, by --wnids or by --split, one of the three")
    if given.split:
        if given.novel or given.novel_list or given.pseudo_novel:
            raise UserError("--split: names its novel classes; leave --novel, --novel_list and --pseudo_novel out")
        split = load_split(given.split).without([class_name(text) for text in given.without], given.out.stem)
    else:
        split = _new_split(given)
    save_split(split, given.out)
    print(
        f"{given.out}: {len(split.base)} base ({len(split.pseudo_novel)} pseudo-novel), "
        f"{len(split.novel)} novel, hash {split.hash}"
    )
    return 0


def _new_split(given: Namespace) -> Split:
    """From the classes of shards or of a list: novel ones drawn, or by a list."""
    from dist_train.data.shards.index import open_shards
    from dist_train.data.splits import Split, draw_split, read_classes

    if (given.novel is None) == (given.novel_list is None):
        raise UserError("split: give the novel classes by --novel N or by --novel_list FILE, one of the two")
    classes = list(open_shards(given.shards).classes) if given.shards else read_classes(given.wnids)
    novel = read_classes(given.novel_list, classes) if given.novel_list else []
    without = [class_name(text) for text in given.without]
    for option, some in (("--without", without), (given.novel_list, novel)):
        unknown = sorted(set(some) - set(classes))
        if unknown:
            raise UserError(f"{option}: class {unknown[0]!r} is not among the {len(classes)} classes; mend the list")
    classes = sorted(set(classes) - set(without))
    if given.novel is not None:
        return draw_split(given.out.stem, classes, given.novel, given.pseudo_novel, given.seed)
    novel = sorted(set(novel) - set(without))
    base = sorted(set(classes) - set(novel))
    text = f"novel = the list {given.novel_list.name}"
    pseudo: tuple[str, ...] = ()
    if given.pseudo_novel:
        pseudo = draw_split("", base, given.pseudo_novel, 0, given.seed).novel
        text += f", pseudo-novel = the {given.pseudo_novel} base wnids with the smallest sha256('{given.seed}:WNID')"
    return Split(given.out.stem, tuple(base), tuple(novel), pseudo, text)
