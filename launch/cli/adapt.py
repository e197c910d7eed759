"""The command adapt: make a model from a run or on a trained network, or change a model."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dist_train.config import Config
from dist_train.config.io import load_config
from dist_train.data.account import Account
from dist_train.errors import UserError, counted
from dist_train.names import class_name, shown
from launch.cli.create import NetworkOptions, add, estimate_lines, new_model, photos_of_folder
from launch.cli.measuring import LabelledPhotos, labelled_photos
from launch.cli.photo_arguments import find_photos, is_there, print_account
from launch.cli.reserving import reserved
from launch.cli.signature import Option, Options

if TYPE_CHECKING:
    import torch

    from dist_train.classifier.choosing import MethodChoice
    from dist_train.classifier.classifier import Classifier


@dataclass(kw_only=True)
class AdaptOptions(Options):
    """The changes to make, and the folder for the model."""

    out: Path | None = None
    """Folder for the model; default: the model itself is changed."""
    photos: Annotated[list[str], Option(name="class", metavar="NAME=PHOTOS")] = field(default_factory=list)
    """Add a class from a photo, a folder or a quoted pattern. Repeat it for more classes, or for more photos of one."""
    update: bool = False
    """Give the photos of --class and --classes to classes that exist, which keep those that they have."""
    classes: Annotated[Path | None, Option(metavar="DIR")] = None
    """Add a class for each folder in DIR, by its name."""
    remove: Annotated[list[str], Option(metavar="NAME")] = field(default_factory=list)
    """Remove a class (name or wnid)."""
    rename: Annotated[list[str], Option(metavar="OLD=NEW")] = field(default_factory=list)
    """Rename a class."""
    remove_photo: Annotated[list[str], Option(metavar="NAME=PHOTO")] = field(default_factory=list)
    """Remove a photo of a class, by its file's name or the id that --list_photos prints."""
    undo: bool = False
    """Undo the last change; repeat the command for those before it, up to ten."""
    print_classes: Annotated[bool, Option(name="list")] = False
    """Print the classes, one a line, as they are after the changes; lines on these go to standard error then."""
    list_photos: Annotated[str | None, Option(metavar="NAME")] = None
    """Print the photos that the model keeps of a class, one a line: id, name, day; see --list."""
    history: bool = False
    """Print the changes of the model, one a line: time, text; see --list."""
    method: str | None = None
    """Method of the run to take; default: the best of its table for so many photos. See docs/methods.md."""
    rule: str | None = None
    """How several photos count in a model from a run: max (the paper), mean, or rows; default: unchanged."""
    held_out: Annotated[Path | None, Option(metavar="DIR")] = None
    """Folder with a folder of photos for each class (name or wnid), on which the model is measured after the changes,
    and the effect of additions on a run's classes; default for that: the run's validation images."""

    @property
    def changes(self) -> bool:
        """Whether classes or photos are added, removed or renamed."""
        return bool(self.photos or self.classes or self.remove or self.rename or self.remove_photo)

    @property
    def prints(self) -> bool:
        """Whether something of the model is printed."""
        return self.print_classes or self.list_photos is not None or self.history


def adapt(options: AdaptOptions, network: NetworkOptions, source: Path | None = None) -> int:
    """Add classes from photos, without training.

    Makes a model from a run or, with --backbone, of photos alone; or changes a model: adds classes from one photo or
    more each, gives photos to classes that exist, renames and removes classes, removes photos. Changes are made in the
    order remove, rename, remove_photo, class; where one of them fails, none is made. All changes of a command are one
    in the history, and undone together.

    Args:
        source: RUNS/NAME whose learn is done, or a model that adapt or create has made; none with --backbone.
    """
    from dist_train.classifier import model_folder

    network.check()
    if source is None:
        return _adapt_network(options, network)
    _check_network(source, options, network)
    config = None if model_folder.is_model(source) else load_config(source)
    _check(source, options, network, config)
    out = options.out or (source if config is None else None)
    others = options.changes or config or options.rule or network.choices
    writes = out is not None and bool(others or options.undo or options.out)
    with reserved(out, source, config is None) if writes and out else nullcontext():
        choice = _choice(options, config) if config and not options.method else None
        model = _open(source, replace(options, method=choice.method) if choice else options, config, network)
        lines = [f"undone: {model.undo()}"] if options.undo else _change(model, options, config)
        lines = [*([choice.reason] if choice else []), *lines]
        _check_listed(model, options)
        if writes and out:
            model.save(out)
    _print(model, options, lines, out if writes else None)
    return 0


def _check_network(source: Path, options: AdaptOptions, network: NetworkOptions) -> None:
    """Check that ``source`` is a run or a model, and that no network for a new model is given beside it.

    Raises:
        UserError: it is not, or one is.
    """
    from dist_train.classifier import model_folder

    if source.is_file():
        raise model_folder.no_folder(source)
    if model_folder.is_model(source) or (source / "config.yaml").is_file():
        network.check_unused(f"a new model is made with it, and {source} has its own network; leave one of the two out")
    elif network.backbone:
        photos = f"its photos by --classes {source} and its folder by --out" if source.is_dir() else ""
        folder = f"its folder by --out {source}"
        remedy = f"give {photos or folder}" if options.out is None else f"leave {source} out"
        raise UserError(f"{source}: no such run or model; --backbone makes a new model: {remedy}")
    elif source.exists():
        raise model_folder.no_model(source, "a run (no config.yaml) or a model (no model.json)")
    else:
        raise UserError(f"{source}: no such run or model; give RUNS/NAME, or a folder made by adapt or create")


def _check(source: Path, options: AdaptOptions, network: NetworkOptions, config: Config | None) -> None:
    """Check options for the model in ``source``, or for a run (``config``), before photos are read and networks loaded.

    Raises:
        UserError: a value is wrong, an option is missing, or options do not belong together.
    """
    from dist_train.classifier import model_folder
    from dist_train.classifier.maker import check_kind
    from dist_train.classifier.predicted import check_rule

    others = options.changes or options.rule or network.choices or options.held_out
    if config is not None and options.out is None and (others or not options.prints):
        raise UserError("--out is required: the folder for the model")
    if config is None and options.method:
        raise UserError(f"--method {shown(options.method)}: is chosen when a model is made of a run; {source} is a "
                        f"model already; leave it out, or give the run")  # fmt: skip
    if options.update and not (options.photos or options.classes):
        raise UserError("--update: gives photos to classes that exist; give the photos too, by --class or --classes")
    if options.undo and (others or config):
        raise UserError("--undo: is a change of its own, of a model; give it without others")
    if options.rule:
        check_rule(options.rule)
    if config is None:
        check_kind(model_folder.is_fitted(source), network.head, options.rule, network.prior)
    else:
        # Here, as it imports the stages, which a model does not need.
        from dist_train.classifier.from_run import check_finished, trained_method

        if network.head:
            raise UserError(
                f"--head {network.head}: is of models of photos alone; for a model from a run give --method"
            )
        check_kind(False, prior=network.prior)
        check_finished(config)
        if options.method:
            trained_method(config, options.method)


def _adapt_network(options: AdaptOptions, network: NetworkOptions) -> int:
    """Make a model of photos alone.

    Raises:
        UserError: an option is missing, or is of models that are there already.
    """
    if network.backbone is None:
        raise UserError("SOURCE is required: a run or a model; or give --backbone, to make a model of photos alone")
    if options.out is None:
        raise UserError("--out is required: the folder for the model")
    for name in ("remove", "rename", "remove_photo", "update", "undo", "method", "rule"):
        if getattr(options, name):
            raise UserError(f"--{name}: is of a run or of a model that is there; leave it out with --backbone")
    if not (options.photos or options.classes):
        raise UserError("--classes is required with --backbone: the folder of photos; or --class NAME=PHOTOS")
    with reserved(options.out, options.classes):
        model = new_model(network)
        lines = _change(model, options, None)
        _check_listed(model, options)
        model.save(options.out)
    _print(model, options, lines, options.out)
    return 0


def _check_listed(model: Classifier, options: AdaptOptions) -> None:
    """Check that the class to list is there after the changes, before these are saved.

    Raises:
        UserError: it is not.
    """
    if options.list_photos is not None:
        model.photos(options.list_photos)


def _print(model: Classifier, options: AdaptOptions, lines: list[str], out: Path | None) -> None:
    """Print what was done, and what is asked of the model as it is now.

    Args:
        lines: on what was done.
        out: where the model was written to; None: nowhere.
    """
    if out is not None:
        choice = f"prior {model.prior}" if model.fitted else f"rule {model.rule}"
        lines = [*lines, f"{out}: {counted(len(model.classes), 'class')}, {model.method}, {choice}"]
    if not options.prints or out is not None or options.held_out:
        # Beside a list they go to standard error, so that the list alone can be read by a program.
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr if options.prints else sys.stdout)
    if options.print_classes:
        for entry in model.classes:
            print(f"{entry.name}\t{shown(entry.wnid) or '-'}\t{entry.photos or '-'}")
    for photo in [] if options.list_photos is None else model.photos(options.list_photos):
        print(f"{photo.id}\t{photo.name or '-'}\t{photo.added or '-'}")
    if options.history:
        for change in model.history:
            print(f"{change.time}\t{change.text}")


def _open(source: Path, options: AdaptOptions, config: Config | None, network: NetworkOptions) -> Classifier:
    """Return the model in the folder ``source``, or, where it is a run (``config``), a new model from the run; with
    another head or prior, and without pictures, where that is asked for."""
    if config is not None:
        from dist_train.classifier.from_run import from_run

        model = from_run(config, options.method, options.rule)
    else:
        from dist_train.classifier.classifier import Classifier

        model = Classifier.load(source)
        if options.rule:
            model.rule = options.rule
    if network.head:
        model.choose_head(network.head)
    if network.prior:
        model.prior = network.prior
    if network.no_pictures:
        model.drop_pictures()
    return model


def _change(model: Classifier, options: AdaptOptions, config: Config | None) -> list[str]:
    """Remove, rename and add classes and photos; return lines on what was done.

    Raises:
        UserError: a class is not there or is there already, or no photo for a class can be used.
    """
    done = []
    for name in options.remove:
        model.remove_class(name)
        done.append(f"{shown(name)}: removed")
    for text in options.rename:
        old, new = _class_and_word(text, "--rename", "OLD=NEW", model)
        model.rename_class(old, new)
        done.append(f"{shown(old)}: renamed to {shown(new)}")
    for text in options.remove_photo:
        name, photo = _class_and_word(text, "--remove_photo", "NAME=PHOTO", model)
        model.remove_photos(name, photo)
        done.append(f"{shown(name)}: photo {shown(photo)} removed")
    account = Account()
    photos = _photos_by_class(options, account)
    _check_names(model, photos, options.update)  # all of them before the work begins
    before = model.copy()
    add(model, photos, account)
    lines = _lines_on_photos(model, before, options.update)
    held_out = labelled_photos(model, options.held_out, "--held_out", account) if options.held_out else None
    print_account(account)
    if model.fitted:
        lines += [*estimate_lines(model), *_price_lines(model, before)]
    else:
        images = _base_images(model, config if photos else None, held_out)
        lines = _with_base_accuracy(lines, model, before, images) if images else lines
    return [*done, *lines, *([_measured_line(model, held_out, options.held_out)] if held_out else [])]


def _check_names(model: Classifier, names: Iterable[str], update: bool) -> None:
    """Check the names of classes that are to get photos.

    Raises:
        UserError: a class of that name exists, and is not to be updated.
    """
    there = {name for entry in model.classes for name in (entry.name, entry.wnid)}
    for name in names:
        if name not in there:
            model.check_new(name)
        elif not update:
            raise UserError(f"class {name!r}: exists already; give --update to add these photos to it, or take another "
                            f"name")  # fmt: skip


def _lines_on_photos(model: Classifier, before: Classifier, update: bool) -> list[str]:
    """Return a line on each class that got photos, in the order of the classes."""
    counts, lines = {entry.name: entry.photos for entry in before.classes}, []
    for entry in model.classes:
        more = entry.photos - counts.get(entry.name, 0)
        if more and entry.name in counts:
            lines.append(f"{entry.name}: {counted(more, 'photo')} added, {entry.photos} now")
        elif more:
            lines.append(f"{entry.name}: {'a new class, ' * update}added from {counted(more, 'photo')}")
    return lines


def _price_lines(model: Classifier, before: Classifier) -> list[str]:
    """Return a line on what new classes of a model of photos alone did to the accuracy on the old ones; no line where
    no photo of these can be held out, or no class is new."""
    import torch

    from dist_train.classifier.heads.prior import frequencies

    old, answers = len(before.classes), model.head().answers
    estimate = next((one for one in before.head().estimates if one.head == model.method), None) if old else None
    if estimate is None or answers is None or old == len(model.classes):
        return []
    answers = answers[:old].cpu().double()
    counts = torch.tensor([entry.photos for entry in model.classes[:old]])
    weights = frequencies(model.prior, counts) * (answers.sum(1) > 0)
    shares = answers.diagonal() / answers.sum(1).clamp(min=1)
    after = 100 * float((weights * shares).sum() / weights.sum())
    return [f"old classes: {estimate.accuracy:.1f}% of held-out photos before, {after:.1f}% beside the new classes "
            f"({round(after - estimate.accuracy, 1) + 0.0:+.1f})"]  # fmt: skip  # + 0.0: no minus zero


def _with_base_accuracy(
    lines: list[str], model: Classifier, before: Classifier, images: tuple[torch.Tensor, list[int]]
) -> list[str]:
    """Return the lines with what each class's photos did to the accuracy on the run's classes, and a line on all."""
    rates = model.base_accuracy(*images, before)
    summary = f"{rates[0]:.2f}% before, {rates[-1]:.2f}% after" if lines else f"{rates[0]:.2f}%"
    lines = [f"{text}; base {now:.2f}% ({now - then:+.2f})"
             for text, then, now in zip(lines, rates, rates[1:], strict=False)]  # fmt: skip
    return [*lines, f"base accuracy on {counted(len(images[1]), 'held-out image')}: {summary}"]


def _measured_line(model: Classifier, held_out: LabelledPhotos, folder: Path | None) -> str:
    """Return a line on how the model does on the photos of a folder, of all its classes that have a folder there."""
    from dist_train.classifier.measuring import measure
    from dist_train.report.per_class import with_interval

    m = measure(model, held_out.activations, held_out.labels)
    warning = (
        f"; of these {counted(m.photos, 'photo')} the model has {m.known} itself, so they say nothing"
        if m.known
        else ""
    )
    return f"{with_interval(m.mean, m.low, m.high)} of the photos in {shown(folder)}, mean over classes{warning}"


def _class_and_word(text: str, option: str, form: str, model: Classifier) -> tuple[str, str]:
    """Return the class and the word in CLASS=WORD. Both may contain a =: the first CLASS that is there counts."""
    pairs = _pairs(text, option, form)
    of_classes = [pair for pair in pairs if any(pair[0] in (entry.name, entry.wnid) for entry in model.classes)]
    return (of_classes or pairs)[0]


def _pairs(text: str, option: str, form: str) -> list[tuple[str, str]]:
    """Return the two words in NAME=WORD, both of which may contain a =; the shortest name first.

    Raises:
        UserError: there is no = between words.
    """
    pairs = [(text[:n], text[n + 1 :]) for n, sign in enumerate(text) if sign == "=" and 0 < n < len(text) - 1]
    if not pairs:
        raise UserError(f"{option} {text}: give {form}")
    return pairs


def _photos_by_class(options: AdaptOptions, account: Account) -> dict[str, list[Path]]:
    """Return {name: photos} of the classes to add, or to give photos to."""
    photos: dict[str, list[Path]] = {}
    for text in options.photos:
        pairs = _pairs(text, "--class", "NAME=PHOTOS")
        name, where = next((pair for pair in pairs if is_there(pair[1])), pairs[0])
        photos.setdefault(class_name(name), []).extend(find_photos(where, f"--class {text}", account))
    if options.classes:
        for name, files in photos_of_folder(options.classes, "--classes", account).items():
            photos.setdefault(name, []).extend(files)
    return photos


def _choice(options: AdaptOptions, config: Config) -> MethodChoice:
    """Return the method for a model of a run, by how many photos each class to add has."""
    from dist_train.classifier.from_run import choice_for

    return choice_for(config, [len(files) for files in _photos_by_class(options, Account()).values()])


def _base_images(
    model: Classifier, config: Config | None, held_out: LabelledPhotos | None
) -> tuple[torch.Tensor, list[int]] | None:
    """Return activations of images of the classes that came with the run, and their places in ``model.classes``: those
    of a folder, else the run's validation images; None where there are none."""
    if held_out is not None:
        activations = held_out.activations
        place = {
            name: n for n, entry in enumerate(model.classes) if not entry.added for name in (entry.wnid, entry.name)
        }
        places = [place.get(label) for label in held_out.labels]
    elif config is not None:
        from dist_train.classifier.from_run import held_out_activations

        activations, labels = held_out_activations(config)
        numbers = {label: number for number, label in enumerate(model.kept)}
        places = [numbers.get(label) for label in labels]
    else:
        return None
    rows = [row for row, known in enumerate(places) if known is not None]
    return (activations[rows], [known for known in places if known is not None]) if rows else None
