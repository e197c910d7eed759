"""The command create, and what it shares with adapt: a model of photos alone, on a trained network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dist_train.config import BackboneConfig
from dist_train.config.backbone import KEY
from dist_train.data.account import SHOWN, Account
from dist_train.errors import UserError, counted
from dist_train.files import write_text
from dist_train.names import shown
from launch.cli.photo_arguments import check_files, print_account
from launch.cli.reserving import reserved
from launch.cli.signature import Option, Options

if TYPE_CHECKING:
    from dist_train.classifier.classifier import Classifier


@dataclass(kw_only=True)
class NetworkOptions(Options):
    """The trained network of a model of photos alone, what its head is fitted with, and what it keeps."""

    backbone: Annotated[str | None, Option(metavar="SOURCE")] = None
    """The network: starter, timm:NAME, torchvision:NAME, or run for that of a run. See docs/backbones.md."""
    weights: Annotated[Path | None, Option(metavar="FILE")] = None
    """File of the network's weights: .safetensors, .pth, .pt or .bin. Not needed for starter. For run, its folder."""
    download: bool = False
    """Fetch the library's own weights where no file is given. Without it nothing is ever downloaded."""
    size: int | None = None
    """Side of the images in pixels; default: as the weights were trained."""
    head: str | None = None
    """Head to fit: mean, imprint, lda, probe, or auto, which takes the best on held-out photos; default: auto, and the
    head that it has for a model that is there. See docs/photos.md."""
    prior: str | None = None
    """How frequent the classes are taken to be: equal, all the same, or photos, each as its photos among all photos;
    default: equal, and what a model that is there has. See docs/photos.md."""
    base: Annotated[str | None, Option(metavar="SHARDS")] = None
    """Shards of other images, whose variation within classes the head lda takes into account."""
    base_features: Annotated[Path | None, Option(metavar="FILE")] = None
    """The same from activations of this network, with labels: .npz, .npy or .parquet, as docs/features.md has them."""
    no_pictures: bool = False
    """Keep no small pictures of the photos, neither of these nor of later ones: for a model that is given to others."""

    @property
    def choices(self) -> bool:
        """Whether something is chosen that changes a model which is there already."""
        return bool(self.head or self.prior or self.no_pictures)

    def check(self) -> None:
        """Check what is given, before photos are read and networks are loaded.

        Raises:
            UserError: there is no such head, prior or network, there is no file of its weights, or options contradict
                each other.
        """
        from dist_train.classifier.fitted import check_head
        from dist_train.classifier.heads.prior import check_prior
        from dist_train.data.features.feature_set import reader_of
        from dist_train.models.backbones import check_pretrained

        if self.head is not None:
            check_head(self.head)
        if self.prior is not None:
            check_prior(self.prior)
        if self.base and self.base_features:
            raise UserError(f"--base_features {self.base_features}: is given together with --base; give one of them")
        if (self.base or self.base_features) and self.head not in (None, "auto", "lda"):
            given = f"--base {self.base}" if self.base else f"--base_features {self.base_features}"
            raise UserError(f"{given}: only the head lda takes it into account; leave it out with --head {self.head}")
        if self.base_features:
            reader_of(self.base_features, f"--base_features {self.base_features}")
        if self.backbone is not None:
            with _as_typed():
                check_pretrained(self.config())

    def config(self) -> BackboneConfig:
        """Return what the network is opened with.

        Raises:
            UserError: a value is out of its range, or options contradict each other.
        """
        assert self.backbone is not None
        try:
            return BackboneConfig(source=self.backbone, weights=self.weights, download=self.download, size=self.size)
        except ValueError as error:
            raise UserError(str(error)) from None

    def check_unused(self, reason: str) -> None:
        """Check that nothing is given that makes a new model.

        Raises:
            UserError: something is; ``reason`` says why it cannot be.
        """
        names = ("backbone", "weights", "download", "size", "base", "base_features")
        given = next((name for name in names if getattr(self, name)), None)
        if given:
            raise UserError(f"--{given}: {reason}")


def create(
    photos: Path, *, out: Path, options: NetworkOptions, report: Annotated[Path | None, Option(metavar="FILE")] = None
) -> int:
    """Make a model of your own photos in one pass, without training.

    The folder has a folder of photos for each class. A trained network turns each photo into an activation, and a head
    is fitted to these: the one that classifies held-out photos best. Nothing is packed and nothing is split, as each
    photo is read once; the estimate is of photos that were held out in turn. To train a network of your own, see
    docs/quickstart.md.

    Args:
        photos: Folder with a folder of photos for each class.
        out: Folder for the model.
        report: Page to write about the estimate: the accuracy of each class, and which classes are confused.
    """
    check_files({"report": report})
    options.backbone = options.backbone or "starter"
    options.check()
    account = Account()
    by_class = photos_of_folder(photos, "PHOTOS", account)
    with reserved(out, photos):
        model = new_model(options)
        if options.no_pictures:
            model.drop_pictures()
        add(model, by_class, account)
        model.save(out)
    if report is not None:
        write_text(report, _report(model))
    print_account(account)
    print("\n".join(estimate_lines(model)))
    print(f"{out}: {counted(len(model.classes), 'class')}, {model.method}, prior {model.prior}")
    return 0


def _report(model: Classifier) -> str:
    """Return the page about a model's estimate."""
    from dist_train.classifier.heads.choice import HEADS
    from dist_train.report.photos_page import HeadRow, photos_html

    head, origin = model.head(), model.provenance["backbone"]
    assert head.answers is not None  # the head was fitted a moment ago
    heads = [HeadRow(HEADS[e.head].title, e.accuracy, e.low, e.high, e.judged_by, e.head == model.method)
             for e in head.estimates]  # fmt: skip
    facts = {**model.provenance, "backbone": {key: value for key, value in origin.items() if key != "seen"}}
    names, photos = [entry.name for entry in model.classes], [entry.photos for entry in model.classes]
    return photos_html(names, photos, head.answers.cpu().numpy(), heads, facts, model.prior == "photos")


def photos_of_folder(folder: Path, option: str, account: Account, empty: bool = False) -> dict[str, list[Path]]:
    """Return {class: its photos} of a folder with a folder of photos for each class; ``empty``: a class may have none.

    Raises:
        UserError: there is no such folder, or no class in it.
    """
    from dist_train.data.sources.folders import class_folders

    if not folder.is_dir():
        raise UserError(f"{option} {folder}: no such folder; give one that has a folder of photos for each class")
    classes = class_folders(folder, option, account, empty)
    return {name: [folder / file.name for file in files] for name, files in classes}


def new_model(options: NetworkOptions) -> Classifier:
    """Return a model without classes.

    Args:
        options: that were checked.

    Raises:
        UserError: the network or its background cannot be had.
    """
    from dist_train.distributed.pool import working

    with working(f"opening {options.backbone}", not options.download):  # a download has a bar of its own
        from dist_train.classifier import background, from_photos  # within: it takes seconds, as opening does
        from dist_train.models.backbones import open_pretrained

        with _as_typed():
            pretrained = open_pretrained(options.config())
    for note in pretrained.notes:
        print(note)
    make = partial(from_photos.without_classes, pretrained, options.head or "auto", prior=options.prior or "equal")
    if options.base_features:
        return make(background.of_features(options.base_features, pretrained.backbone.dim))
    if options.base:
        return make(background.of_shards(options.base, make()))
    return make()


@contextmanager
def _as_typed() -> Iterator[None]:
    """Let errors name the options as they are typed, and not the keys of a run."""
    try:
        yield
    except UserError as error:
        message = re.sub(rf"{KEY}(?:=(true)?)?", lambda found: _option(*found.groups("")[1:]), str(error))
        raise UserError(message) from None


def _option(key: str, flag: str) -> str:
    """Return the option for a key of a run in a message; ``flag``: its value, where it is a flag that is set."""
    name = "--backbone" if key == "source" else f"--{key}"
    return name if flag or key == "weights" else f"{name} "


def add(model: Classifier, by_class: dict[str, list[Path]], account: Account) -> None:
    """Add photos to classes that exist or are new, and make the head. Photos that cannot be used are left out, by name.

    Raises:
        UserError: see ``adding.add``.
    """
    from dist_train.classifier import adding
    from dist_train.distributed.pool import progress_bar, working

    total = sum(map(len, by_class.values()))
    with progress_bar(total, "photos", "img", total > 20) as bar, working("photos", total <= 20):
        adding.add(model, by_class, account, bar)
    with working("fitting the head"):
        model.head()


def estimate_lines(model: Classifier) -> list[str]:
    """Return lines on how well the heads classified photos that they were not fitted on."""
    from dist_train.classifier.heads.choice import HEADS
    from dist_train.report.per_class import with_interval

    head, lines = model.head(), []
    alone = [shown(entry.name) for entry in model.classes if entry.photos == 1]
    judged = len(model.classes) - len(alone)
    over = f"{judged} of {len(model.classes)} classes" if alone else "classes"
    over += ", each weighted by its photos" if model.prior == "photos" else ""
    for estimate in head.estimates:
        strength = "" if estimate.strength is None else f", strength {estimate.strength:g}"
        chosen = " (chosen)" if estimate.head == model.method and len(head.estimates) > 1 else ""
        accuracy = with_interval(estimate.accuracy, estimate.low, estimate.high)
        lines.append(f"{HEADS[estimate.head].title}: {accuracy} of held-out photos, mean over {over}, by "
                     f"{estimate.judged_by}{strength}{chosen}")  # fmt: skip
    if alone:
        names = ", ".join(alone[:SHOWN]) + ", ..." * (len(alone) > SHOWN)
        lines.append(f"{counted(len(alone), 'class')} of a single photo, which cannot be held out, not judged: {names}")
    if alone and judged == 1:
        lines.append("a single class is judged: the figures tell how few of its photos are taken for others, and not "
                     "how well classes are told apart; give two photos or more of each class")  # fmt: skip
    return lines
