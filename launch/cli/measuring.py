"""The command evaluate-model: how a model does on photos that lie in a folder for each class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dist_train.data.account import SHOWN, Account
from dist_train.errors import UserError, counted
from dist_train.files import write_text
from dist_train.names import shown, spelt, utf8
from launch.cli.create import photos_of_folder
from launch.cli.photo_arguments import check_files, find_photos, print_account
from launch.cli.signature import Option, Options

if TYPE_CHECKING:
    import torch

    from dist_train.classifier.classifier import Classifier
    from dist_train.classifier.measuring import Measurement

_MISTAKES = 5  # wrong answers that the terminal shows


@dataclass(kw_only=True)
class MeasureOptions(Options):
    """What is measured beside the classes, and the files to write."""

    others: Annotated[Path | None, Option(metavar="DIR")] = None
    """Folder of photos of no class of the model, to see how often it says "not sure"."""
    as_json: Annotated[Path | None, Option(name="json", metavar="FILE")] = None
    """File for all figures and all photos, as JSON."""
    as_csv: Annotated[Path | None, Option(name="csv", metavar="FILE")] = None
    """File for a row for each photo: class, answer, probability, whether it is right and sure."""
    report: Annotated[Path | None, Option(metavar="FILE")] = None
    """Page to write, one self-contained HTML file with the worst mistakes."""

    @property
    def files(self) -> dict[str, Path | None]:
        """The files to write, by the names of their options."""
        return {"json": self.as_json, "csv": self.as_csv, "report": self.report}


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos that the network has seen: activations [N, dim], the name or wnid of each photo's class, and the files."""

    activations: torch.Tensor
    labels: list[str]
    files: list[Path]


def evaluate_model(model: Path, photos: Path, options: MeasureOptions) -> int:
    """Measure a model on photos whose classes are known.

    All classes of the model take part, added ones included: accuracy, each class with its interval, confusions, the
    worst mistakes, and what its probabilities are worth. The folder has a folder of photos for each class, by its name
    or wnid; folders of no class are passed over and counted, and classes whose folder has no photo are named.

    Args:
        model: Folder made by adapt or create.
        photos: Folder with a folder of photos for each class.
    """
    from dist_train.classifier.classifier import Classifier
    from dist_train.classifier.measuring import csv_text, measure

    check_files(options.files)
    account = Account()
    classifier = Classifier.load(model)
    labelled = labelled_photos(classifier, photos, "PHOTOS", account)
    others = _other_photos(classifier, options.others, account)
    measurement = measure(classifier, labelled.activations, labelled.labels, list(map(str, labelled.files)),
                          others.activations, list(map(str, others.files)))  # fmt: skip
    if options.as_json:
        text = json.dumps(measurement.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(options.as_json, text + "\n")
    if options.as_csv:
        write_text(options.as_csv, csv_text(measurement))
    if options.report:
        write_text(options.report, utf8(_report(classifier, measurement, model, photos)))
    print_account(account)
    print(f"{shown(model)} on {shown(photos)}: {counted(measurement.photos, 'photo')} of {measurement.classes} of its "
          f"{counted(measurement.of_classes, 'class')}", *summary_lines(measurement), sep="\n")  # fmt: skip
    return 0


def labelled_photos(model: Classifier, folder: Path, option: str, account: Account) -> LabelledPhotos:
    """Return the photos of a folder that has a folder for each class, by its name or wnid.

    Photos that cannot be used are left out, by name; folders of no class of the model are passed over. Classes of which
    there is no photo then are named in the account.

    Args:
        option: what errors name.

    Raises:
        UserError: no folder is of a class, no photo can be decoded, or a photo is in two classes.
    """
    names = {name for entry in model.classes for name in (entry.name, entry.wnid) if name}
    by_class = photos_of_folder(folder, option, account, empty=True)
    others = {name: by_class.pop(name) for name in list(by_class) if name not in names}
    for name, files in others.items():
        account.taken -= len(files)
        account.pass_over(f"{folder}/{name}", "in folders of no class of the model", len(files))
    if not by_class:
        raise UserError(f"{option} {folder}: holds no folder with the name or wnid of a class; make such folders")
    empty = [name for name, files in others.items() if not files]
    if empty:
        account.notes.append(
            f"{folder}: {counted(len(empty), 'folder')} of no class of the model, without a photo: {_listed(empty)}"
        )
    labelled = _embedded(model, by_class, account)
    if not labelled.labels:
        broken = [reason for name, reason in account.left_out if Path(name).is_relative_to(folder)]
        why = f"no photo in it can be decoded; {broken[0]}" if broken else "its class folders hold no photo; add some"
        raise UserError(f"{option} {folder}: {why}")
    measured = set(labelled.labels)
    absent = [name for name in by_class if name not in measured]
    if absent:
        classes = counted(len(absent), "class") + (" has" if len(absent) == 1 else " have")
        account.notes.append(f"{folder}: {classes} a folder without a usable photo, not measured: {_listed(absent)}")
    return labelled


def _listed(names: Sequence[str]) -> str:
    """Return the first of the names, and dots for the others."""
    return ", ".join(map(shown, names[:SHOWN])) + ", ..." * (len(names) > SHOWN)


def _other_photos(model: Classifier, folder: Path | None, account: Account) -> LabelledPhotos:
    """Return photos of no class; none without a folder."""
    files = [] if folder is None else find_photos(str(folder), "--others", account)
    if folder is not None and not files:
        raise UserError(f"--others {folder}: holds no photos; give a folder of photos")
    return _embedded(model, {"": files}, account)


def _embedded(model: Classifier, by_class: dict[str, list[Path]], account: Account) -> LabelledPhotos:
    import torch

    from dist_train.classifier.embedding import embed
    from dist_train.distributed.pool import progress_bar, working

    total = sum(map(len, by_class.values()))
    with progress_bar(total, "photos", "img", total > 20) as bar, working("photos", total <= 20):
        embedded = embed(model, by_class, account, bar, pictures=False)
    labels = [name for name, own in embedded.items() for _ in own.paths]
    files = [path for own in embedded.values() for path in own.paths]
    return LabelledPhotos(torch.cat([own.activations for own in embedded.values()]), labels, files)


def summary_lines(measurement: Measurement) -> list[str]:
    """Return a measurement as a terminal shows it."""
    from dist_train.report.per_class import with_interval

    m = measurement
    lines = [
        f"right: {m.top1:.1f}% of the photos, {m.top5:.1f}% among the first five answers; "
        f"{with_interval(m.mean, m.low, m.high)} as the mean over classes",
        f"probability: {m.said:.1f}% said on average, expected calibration error {m.calibration_error:.1f} points",
        f"sure of {m.sure:.1f}% of the photos, and right about {m.sure_right:.1f}% of these",
    ]
    if m.others:
        lines.append(f"photos of no class: {m.others.photos:,}, not sure of {m.others.not_sure:.1f}% of them; AUROC "
                     f"{m.others.auroc_probability:.1f}% by probability, {m.others.auroc_familiarity:.1f}% by "
                     f"familiarity")  # fmt: skip
    if m.known:
        lines.append(f"warning: of these {counted(m.photos, 'photo')} the model has {m.known:,} itself, so that they "
                     "say nothing; measure on others")  # fmt: skip
    return [*lines, "", *_class_lines(m), *_mistake_lines(m)]


def _class_lines(measurement: Measurement) -> list[str]:
    rows = sorted(measurement.per_class, key=lambda row: row.top1)
    width = max(5, *(len(shown(row.name)) for row in rows[:SHOWN]))
    lines = [f"{'class':<{width}}  photos   right  95% interval  often taken for"]
    for row in rows[:SHOWN]:
        interval = f"{row.low:.0f} to {row.high:.0f}%"
        taken_for = f"{shown(row.taken_for)} ({row.taken_for_photos})" if row.taken_for else ""
        lines.append(
            f"{shown(row.name):<{width}}  {row.photos:6}  {row.top1:5.1f}%  {interval:>12}  {taken_for}".rstrip()
        )
    if len(rows) > SHOWN:
        lines.append(
            f"and {counted(len(rows) - SHOWN, 'further class')}, no worse; --json, --csv and --report have all"
        )
    return lines


def _mistake_lines(measurement: Measurement) -> Sequence[str]:
    worst = measurement.worst(_MISTAKES)
    lines = [f"{shown(spelt(photo.photo))}: {shown(photo.answer)}, {100 * photo.probability:.1f}%, but is "
             f"{shown(photo.truth)}" for photo in worst]  # fmt: skip
    return ["", "the wrong answers that it was surest of:", *lines] if lines else []


def _report(classifier: Classifier, measurement: Measurement, model: Path, photos: Path) -> str:
    from dist_train.classifier.measurement_page import measurement_html, pictures_of
    from dist_train.runs.software import software

    facts = {"model": model, "photos": photos, "method": classifier.method, **software(("torch",))}
    title = f"{model.absolute().name} on {photos.absolute().name}"
    return measurement_html(measurement, pictures_of(classifier, measurement), title, facts)
