"""The commands that make data: pack, verify, split, draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dist_train.config import DrawConfig, FeaturesConfig, PackConfig
from dist_train.errors import UserError, counted
from dist_train.names import class_name
from launch.cli.signature import Keys, Option, Options

if TYPE_CHECKING:
    from dist_train.data.splits import Split


def pack(options: Annotated[PackConfig, Keys(skip=frozenset({"draw"}))], *, out: Path) -> int:
    """Pack archives or image folders into shards.

    The shards are those of WebDataset, with an index. Started again, a pack continues.

    Args:
        out: Folder for the shards.
    """
    from dist_train.data.packing.pack import pack

    pack(options, out)
    return 0


def verify(shards: Path, *, workers: int = 0) -> int:
    """Check shards completely.

    Compares hashes and counts, decodes every image with the training decoder, and names shard and key of what is wrong.

    Args:
        shards: Folder made by pack.
        workers: Processes; 0 = one per usable CPU.
    """
    from dist_train.data.packing.verify import verify

    problems = verify(shards, workers)
    for problem in problems:
        print(problem)
    print(f"{shards}: {counted(len(problems), 'problem')}" if problems else f"{shards}: all is well")
    return 1 if problems else 0


@dataclass(kw_only=True)
class SplitOptions(Options):
    """Where a split's classes come from, and which of them are novel."""

    shards: Path | None = None
    """Take the classes of these shards ..."""
    features: Path | None = None
    """... or of this file of features (docs/features.md) ..."""
    activations: str | None = None
    """With --features: features.activations of the run."""
    labels: str | None = None
    """With --features: features.labels of the run."""
    classes: Path | None = None
    """With --features: features.classes of the run, the names of numbered classes."""
    wnids: Path | None = None
    """... or of this file: the first word of each line."""
    split: str | None = None
    """... or those of another split (a name or a file), with their roles."""
    without: Annotated[list[str], Option(metavar="CLASS")] = field(default_factory=list)
    """Leave a class out; may be repeated."""
    novel: int | None = None
    """Number of novel classes, drawn by the seed; 0: none, for a model of all classes."""
    pseudo_novel: int = 0
    """Number of base classes to mark as pseudo-novel."""
    novel_list: Path | None = None
    """Novel classes from a file instead."""
    seed: int = 0
    """Seed of the drawing."""
    out: Path
    """Split file to write (.json)."""


_OF_FEATURES = ("activations", "labels", "classes")
"""Options that have the names of keys of ``features``."""


def split(options: SplitOptions) -> int:
    """Make a split file.

    The file names the base, novel and pseudo-novel classes, drawn by a seed or taken from lists.
    """
    from dist_train.data.splits import load_split, save_split

    out = options.out
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give the .json file to write")
    if [options.shards, options.features, options.wnids, options.split].count(None) != 3:
        raise UserError("split: give the classes by --shards, --features, --wnids or --split, one of the four")
    for key in _OF_FEATURES:
        if getattr(options, key) is not None and options.features is None:
            raise UserError(f"--{key} {getattr(options, key)}: goes with --features alone; leave it out")
    if options.split:
        if options.novel is not None or options.novel_list or options.pseudo_novel:
            raise UserError("--split: names its novel classes; leave --novel, --novel_list and --pseudo_novel out")
        new_split = load_split(options.split).without([class_name(text) for text in options.without], out.stem)
    else:
        new_split = _new_split(options)
    save_split(new_split, out)
    print(
        f"{out}: {len(new_split.base)} base ({len(new_split.pseudo_novel)} pseudo-novel), "
        f"{len(new_split.novel)} novel, hash {new_split.hash}"
    )
    return 0


def _new_split(options: SplitOptions) -> Split:
    """Return a split of the classes of shards, of features or of a list.

    Raises:
        UserError: a class that is named is not there, or options do not go together.
    """
    from dist_train.data.features.feature_set import label_classes
    from dist_train.data.shards.index import open_shards
    from dist_train.data.splits import Split, draw_split, read_classes

    if (options.novel is None) == (options.novel_list is None):
        raise UserError("split: give the novel classes by --novel N or by --novel_list FILE, one of the two")
    if options.wnids:
        classes = read_classes(options.wnids)
    elif options.features:
        keys = {key: value for key in _OF_FEATURES if (value := getattr(options, key)) is not None}
        features = FeaturesConfig(train=options.features, val=options.features, **keys)
        classes = label_classes(options.features, features)
    else:
        assert options.shards is not None  # split() has checked
        classes = list(open_shards(options.shards).classes)
    novel = read_classes(options.novel_list, classes) if options.novel_list else []
    without = [class_name(text) for text in options.without]
    for option, named in (("--without", without), (options.novel_list, novel)):
        unknown = sorted(set(named) - set(classes))
        if unknown:
            raise UserError(
                f"{option}: class {unknown[0]!r} is not among the {counted(len(classes), 'class')}; mend the list"
            )
    classes = sorted(set(classes) - set(without))
    if options.novel is not None:
        return draw_split(options.out.stem, classes, options.novel, options.pseudo_novel, options.seed)
    novel = sorted(set(novel) - set(without))
    if not novel:
        raise UserError(f"{options.novel_list}: names no novel class; for a split without them, give --novel 0")
    base = sorted(set(classes) - set(novel))
    text = f"novel = the list {options.novel_list.name if options.novel_list else ''}"
    pseudo: tuple[str, ...] = ()
    if options.pseudo_novel:
        pseudo = draw_split("", base, options.pseudo_novel, 0, options.seed).novel
        text += (
            f", pseudo-novel = the {options.pseudo_novel} base wnids with the smallest sha256('{options.seed}:WNID')"
        )
    return Split(options.out.stem, tuple(base), tuple(novel), pseudo, text)


def draw(options: DrawConfig, *, out: Path) -> int:
    """Draw example images.

    The image folder has base and novel classes, to try everything without data.

    Args:
        out: Folder: gets train/, val/ and split.json.
    """
    from dist_train.data.drawing import draw, split_of
    from dist_train.data.splits import save_split

    draw(options, out / "train", out / "val")
    save_split(split_of(options), out / "split.json")
    print(f"{out}: train/, val/ and split.json")
    return 0
