"""classify: photos in; answers on the terminal, in files, or as folders of sorted photos."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tqdm import tqdm

from dist_train.data.account import Account
from dist_train.errors import UserError, counted
from dist_train.names import shown, spelt, utf8
from launch.cli.photo_arguments import check_files, named_photos, print_account
from launch.cli.signature import Option, Options

if TYPE_CHECKING:
    from dist_train.classifier.answer import Answer
    from dist_train.classifier.batch_run import Journal
    from dist_train.classifier.classifier import Classifier
    from dist_train.classifier.exported import Exported
    from dist_train.classifier.reading import Source


@dataclass(kw_only=True)
class AnswerFiles(Options):
    """Where the answers for many photos go."""

    csv: Annotated[Path | None, Option(metavar="FILE")] = None
    """File for a table of the answers, a row a photo."""
    parquet: Annotated[Path | None, Option(metavar="FILE")] = None
    """The same table as a parquet file."""
    move_to: Annotated[Path | None, Option(metavar="DIR")] = None
    """Folder to move the photos to, into a folder for each class, and "not sure" for the rest."""
    link_to: Annotated[Path | None, Option(metavar="DIR")] = None
    """The same with symbolic links; the photos stay where they are."""

    @property
    def given(self) -> list[Path]:
        """What is to be written."""
        return [path for path in (self.csv, self.parquet, self.move_to, self.link_to) if path is not None]

    def check(self, images: list[str]) -> None:
        """Check, before any work, that what is asked for can be written.

        Raises:
            UserError: it cannot.
        """
        check_files({"csv": self.csv, "parquet": self.parquet})
        if self.move_to and self.link_to:
            raise UserError(f"--link_to {self.link_to}: is given together with --move_to; give one of them")
        option, folder = ("--move_to", self.move_to) if self.move_to else ("--link_to", self.link_to)
        for word in images if folder else ():
            inside = (
                folder is not None and Path(word).is_dir() and folder.resolve().is_relative_to(Path(word).resolve())
            )
            if inside:
                raise UserError(
                    f"{option} {folder}: lies in {word}, whose photos are asked for; give a folder elsewhere"
                )
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UserError(f"{option} {folder}: is no folder; give one, or a name that is free")

    def check_movable(self, photos: Iterable[Source]) -> None:
        """Check that photos that are to be moved, or linked to, are files.

        Raises:
            UserError: one came by standard input.
        """
        option = f"--move_to {self.move_to}" if self.move_to else f"--link_to {self.link_to}" if self.link_to else ""
        if option and any(isinstance(photo, bytes) for _, photo in photos):
            raise UserError(f"{option}: the photo on standard input is no file that could lie in a folder of its "
                            "class; give its path, or write its answer by --csv or --parquet")  # fmt: skip

    def journal(self) -> Path:
        """Return the file that keeps the answers until they are written; its folder is made where need be.

        Raises:
            UserError: the folder cannot be made.
        """
        first = self.given[0]
        if first in (self.csv, self.parquet):
            return first.with_name(f".{first.name}.part")
        try:
            first.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{first}: {error.strerror}; give a folder that can be made") from None
        return first / ".classify.part"


def classify(
    model: Path,
    images: list[str],
    *,
    topk: int = 5,
    min_confidence: float | None = None,
    as_json: Annotated[bool, Option(name="json")] = False,
    files: AnswerFiles,
) -> int:
    """Say what is on photos.

    "Not sure" stands beside a photo where the model does not stand by its answer, and "unlike its classes" where 95 of
    100 known photos look more familiar than the photo does. A photo that cannot be read is named and left out; the exit
    code is 1 then. With --csv, --parquet, --move_to or --link_to, answers go there; a run that was killed goes on when
    the same command is given again.

    Args:
        model: Folder made by adapt or create, or the .onnx file of its export, which answers sooner.
        images: Photos, folders, quoted patterns; - reads one photo, or paths one a line, from standard input.
        topk: Classes to name.
        min_confidence: Probability, from 0 to 1, from which on an answer is sure; default: by the model's own
            thresholds, which 95% of known photos pass.
        as_json: Print a JSON object a line. A name that is not UTF-8 has its bytes as \\xff in it, as in all files
            and lines of answers.
    """
    from dist_train.classifier.answer import checked_confidence, checked_topk

    checked_topk(topk, "--topk")
    checked_confidence(min_confidence, "--min_confidence")
    files.check(images)
    classifier, account = _opened(model), Account()
    classifier.min_confidence = min_confidence
    if files.given:
        return _to_files(classifier, model, images, topk, as_json, files)
    for answer in classifier.stream(named_photos(images, account), topk):
        _print(answer, as_json, account)
    print_account(account, details=False)
    return 1 if account.left_out else 0


def _opened(model: Path) -> Classifier | Exported:
    """Return a model from its folder, or from the ONNX file that it was exported to."""
    from dist_train.classifier.exported import SUFFIX, Exported

    if model.suffix.lower() == SUFFIX and not model.is_dir():
        return Exported(model)
    from dist_train.classifier.classifier import Classifier  # which loads torch

    return Classifier.load(model)


def _to_files(
    classifier: Classifier | Exported, model: Path, images: list[str], topk: int, as_json: bool, files: AnswerFiles
) -> int:
    """Classify many photos into files; return the exit code."""
    from dist_train.classifier.batch_run import Journal, write_csv, write_parquet
    from dist_train.classifier.sorting import check_folders
    from dist_train.distributed.pool import progress_bar
    from dist_train.files import file_sha256

    if files.move_to or files.link_to:
        check_folders(entry.name for entry in classifier.classes)
    account, topk = Account(), min(topk, len(classifier.classes))
    photos = list(named_photos(images, account))
    files.check_movable(photos)
    run = {"model": file_sha256(model / "model.json" if model.is_dir() else model), "topk": topk, "photos": images,
           "min_confidence": classifier.min_confidence}  # fmt: skip
    journal = Journal(files.journal(), run)
    left = dict(journal.without_answers(photos))
    account.taken = len(journal.answers.keys() | left)  # those that an earlier process has moved away among them
    for answer in list(journal.answers.values()):
        if answer.photo not in left:
            _note(answer, as_json, account)
    with progress_bar(len(left), "photos", "img", show=not as_json) as bar:
        for answer in classifier.stream(left.items(), topk):
            journal.add(answer)
            _note(answer, as_json, account)
            bar.update()
    answers = list(journal.answers.values())
    for file, write in ((files.csv, write_csv), (files.parquet, write_parquet)):
        if file is not None:
            write(file, answers, topk)
            print(f"{file}: {counted(len(answers), 'photo')}", file=sys.stderr)
    _sort(journal, files, account)
    journal.remove()
    print_account(account, details=False)
    return 1 if account.left_out else 0


def _sort(journal: Journal, files: AnswerFiles, account: Account) -> None:
    """Move photos, or link to them, and print how many are in each folder."""
    from dist_train.classifier.sorting import UNSURE, sort_photos

    folder = files.move_to or files.link_to
    if folder is None:
        return
    counts, failed = sort_photos(journal, folder, move=files.move_to is not None)
    for name, reason in failed:
        _leave_out(account, name, reason)
    print(f"{folder}: {counted(counts.total(), 'photo')} {'moved' if files.move_to else 'linked to'}", file=sys.stderr)
    for group, count in sorted(counts.items(), key=lambda pair: (pair[0] == UNSURE, -pair[1], pair[0])):
        print(f"{count:8}  {group}", file=sys.stderr)


def _note(answer: Answer, as_json: bool, account: Account) -> None:
    """Print a fault, and an answer only as JSON: in text they would bury the rest."""
    if answer.fault or as_json:
        _print(answer, as_json, account)


def _print(answer: Answer, as_json: bool, account: Account) -> None:
    """Print an answer on standard output, or a fault on standard error."""
    if answer.fault:
        _leave_out(account, answer.photo, answer.fault)
        if as_json:
            print(_json_line({"image": spelt(answer.photo), "error": utf8(answer.fault)}))
    elif as_json:
        classes = [asdict(prediction) for prediction in answer]
        more = {"sure": answer.sure, "familiarity": answer.familiarity}
        print(_json_line({"image": spelt(answer.photo), "classes": classes, **more}))
    else:
        doubts = [] if answer.sure else ["not sure"]
        doubts += [f"unlike its classes, familiarity {answer.familiarity:.0f}%"] if answer.strange else []
        print(shown(spelt(answer.photo)) + (f"  ({'; '.join(doubts)})" if doubts else ""))
        print("\n".join(f"{100 * p.probability:7.2f}%  {p.name}" for p in answer))
    sys.stdout.flush()


def _leave_out(account: Account, name: str, reason: str) -> None:
    account.taken -= 1
    account.leave_out(name, reason)
    # Beside a bar, not behind it.
    tqdm.write(f"dist-train: error: {shown(spelt(name))}: {shown(reason)}", file=sys.stderr)


def _json_line(content: dict[str, Any]) -> str:
    """Return JSON in one line: in ASCII where the text has what a terminal would not show."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return text if shown(text) == text else json.dumps(content, allow_nan=False)
