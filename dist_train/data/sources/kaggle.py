"""ImageNet as Kaggle distributes it ("imagenet-object-localization-challenge").

ROOT/ILSVRC/Data/CLS-LOC/train/WNID/*.JPEG, val/*.JPEG, test/*.JPEG
ROOT/LOC_val_solution.csv        ImageId,PredictionString: "ILSVRC2012_val_00000001,n01978287 85 1 499 272 ..."
ROOT/LOC_synset_mapping.txt      "n01440764 tench, Tinca tinca"
"""

from __future__ import annotations

import csv
import shlex
import tarfile
import zipfile
import zlib
from pathlib import Path

from dist_train.errors import UserError

SOLUTION, WORDS = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
IMAGES = "ILSVRC/Data/CLS-LOC"
COLUMNS = ["ImageId", "PredictionString"]
SOLUTION_REMEDY = f"give {SOLUTION} of Kaggle, as it is"


def solution_of(val: Path) -> Path | None:
    """Return the file of labels, in the folder that holds ILSVRC/ as Kaggle has it, or beside the images; else None."""
    path = val.absolute()
    roots = [path.parent, *(parent.parent for parent in path.parents if parent.name == "ILSVRC")]
    return next((root / SOLUTION for root in roots if (root / SOLUTION).is_file()), None)


def words_of(solution: Path) -> Path | None:
    """Return the file of the classes' words beside the file of labels, or None."""
    path = solution.with_name(WORDS)
    return path if path.is_file() else None


def is_csv(path: Path) -> bool:
    """Tell by the name whether a file is to be read as Kaggle's CSV."""
    return path.suffix.lower() == ".csv"


def read_solution(path: Path) -> dict[str, str]:
    """Read LOC_val_solution.csv: image id -> wnid.

    A row has five words for each object in the image, and the first of the five is the wnid; all objects of an image
    are of its class.

    Raises:
        UserError: the file is missing or not as described; a row is without a class or has two.
    """
    classes: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if header != COLUMNS:
                raise UserError(f"{path}: its columns are {','.join(header)[:100]!r}, not {','.join(COLUMNS)!r}; "
                                f"{SOLUTION_REMEDY}")  # fmt: skip
            for row in rows:
                wnids = set(row[1].split()[::5]) if len(row) == 2 else set()
                if len(wnids) != 1 or classes.get(row[0], *wnids) not in wnids:
                    raise UserError(f"{path}: line {rows.line_num}: not one image and one class; {SOLUTION_REMEDY}")
                classes[row[0]] = wnids.pop()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {SOLUTION_REMEDY}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error}); {SOLUTION_REMEDY}") from None
    if not classes:
        raise UserError(f"{path}: labels no image; {SOLUTION_REMEDY}")
    return classes


def read_words(path: Path) -> dict[str, str]:
    """Read LOC_synset_mapping.txt: wnid -> its words.

    Raises:
        UserError: the file cannot be read, or a line is not a wnid and words.
    """
    remedy = f"give {WORDS} of Kaggle as it is, or remove it"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    words = {}
    for number, line in enumerate(lines, 1):
        wnid, space, text = line.strip().partition(" ")
        if not space:
            raise UserError(f"{path}: line {number}: not a wnid and its words; {remedy}")
        words[wnid] = text
    return words


def refuse_root(path: Path, option: str) -> None:
    """Refuse a folder of Kaggle's above train/ and val/.

    Raises:
        UserError: ``path`` is such a folder; the line names train/ and val/.
    """
    parts = IMAGES.split("/")
    for start in range(len(parts) + 1):
        images = path.joinpath(*parts[start:])
        if images.absolute().parts[-2:] == tuple(parts[-2:]) and all((images / n).is_dir() for n in ("train", "val")):
            raise UserError(f"{option} {path}: is a folder of Kaggle's; give {_options(images)}")


def _options(images: Path) -> str:
    return f"--train {shlex.quote(str(images / 'train'))} --val {shlex.quote(str(images / 'val'))}"


def unpack_remedy(path: Path, kind: str) -> str | None:
    """Return what to do with Kaggle's archive, a zip file or a (compressed) tar; None for another archive."""
    if not any(name.startswith("ILSVRC/") for name in _first_names(path, kind)):
        return None
    folder = path.absolute().parent
    tool = f"unzip -q {shlex.quote(str(path))} -d" if kind == "zip" else f"tar -xf {shlex.quote(str(path))} -C"
    return f"is Kaggle's archive; unpack it ({tool} {shlex.quote(str(folder))}) and give {_options(folder / IMAGES)}"


def _first_names(path: Path, kind: str) -> list[str]:
    try:
        if kind == "zip":
            with zipfile.ZipFile(path) as archive:
                return archive.namelist()[:100]
        with tarfile.open(path, "r|*") as tar:
            first = tar.next()
            return [first.name + "/"] if first else []
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, ValueError):
        return []  # the next function that opens it reports the error
