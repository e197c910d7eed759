"""Folders of photos: a folder and everything below it, or a folder with one folder per class."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from dist_train.data.account import Account
from dist_train.data.images.photos import (
    HEAD,
    IN_SYSTEM_FOLDERS,
    File,
    is_photo_head,
    is_photo_name,
    is_system_file,
    is_system_folder,
    photos_among,
)
from dist_train.errors import UserError
from dist_train.names import class_name, shown

# Names of the parts of a data set. A class may have such a name too, but then it holds photos.
_PARTS = {
    "--train": ("train", "training"),
    "--val": ("val", "valid", "validation"),
    "other": ("test", "testing", "eval", "dev"),
}
_DEPTH, _LOOKED_AT = 6, 2000  # how many levels below class folders are looked for, and among how many folders a level

_WALKED = "link to a folder that is walked already"


def folder_photos(root: Path, account: Account, below: str = "") -> list[File]:
    """Return the photos below ``root``, or below its folder ``below``, sorted by name; the account counts all files.

    Links are followed, to files and to folders, each folder once. Only regular files are opened. A broken
    link that has a photo's name is left out by name.

    Returns:
        the files, with their names below ``root``.

    Raises:
        UserError: a folder cannot be read.
    """
    files = sorted(_files(root, below, account))
    return photos_among(files, lambda file: file_head(root / file.name), lambda name: f"{root}/{name}", account)


def listed_photos(root: Path, paths: Iterable[Path], account: Account) -> list[File]:
    """Return the photos among files that lie below ``root``; the account counts all of them, see ``folder_photos``."""
    files = [file for path in paths for file in _regular(path, str(path.relative_to(root)), account)]
    return photos_among(files, lambda file: file_head(root / file.name), lambda name: f"{root}/{name}", account)


def class_folders(root: Path, option: str, account: Account, empty: bool = False) -> Iterator[tuple[str, list[File]]]:
    """Yield the classes of a folder with one folder per class, sorted by name, each with its photos.

    Folders whose names differ only in Unicode's form (NFC, NFD) are one class. In a class folder photos may lie in
    folders of their own (``class/images/x.jpg``). Files beside the class folders that are no photos are passed over.

    Args:
        option: how ``root`` was given ("--train"), for errors.
        empty: whether a class may have no photo.

    Raises:
        UserError: a folder cannot be read; there is no class folder, or a photo beside them; the class folders lie a
            level below; a folder's name cannot be a class name; a class has no photo.
    """
    folders = class_names(root, option, account)
    for name, paths in folders.items():
        here = Account()
        files = [file for path in paths for file in folder_photos(root, here, path)]
        if not files and not empty:
            passed = f" ({here.line()})" if here.found else ""
            raise UserError(f"{root / paths[0]}: the class has no image{passed}; add some or remove the folder")
        account.add(here)
        yield name, files


def class_names(root: Path, option: str, account: Account) -> dict[str, list[str]]:
    """Return class name -> its folders in ``root``, sorted; see ``class_folders``, which has their photos too."""
    listed, files = _listed(root, "", account)
    up = [folder for folder in listed if _leads_up(os.path.realpath(root / folder), os.path.realpath(root))]
    for folder in up:
        account.pass_over(f"{root}/{folder}", _WALKED)
    folders = [folder for folder in listed if folder not in up]
    check_level(root, folders, option)
    beside = Account()
    loose = photos_among(files, lambda file: file_head(root / file.name), lambda name: f"{root}/{name}", beside)
    if loose:
        raise UserError(
            f"{root}: image '{shown(loose[0].name)}' lies in no class folder; move or remove it, or give a folder with "
            f"one folder per class as {option}"
        )
    account.add(beside)
    if not folders:
        raise UserError(f"{root}: holds no class folder; give a folder with one folder per class as {option}")
    classes: dict[str, list[str]] = {}
    for folder in folders:
        try:
            classes.setdefault(class_name(folder), []).append(folder)
        except UserError as error:
            raise UserError(f"{root}: a class folder cannot be called so: {error}") from None
    for name, same in classes.items():
        if len(same) > 1:
            forms = ", ".join(ascii(folder) for folder in same)
            account.notes.append(f"{root}: the folders {forms} have one name, {name!r}: they are one class")
    return dict(sorted(classes.items()))


def subfolders(root: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without system folders.

    Raises:
        UserError: the folder cannot be read.
    """
    return _listed(root, "", Account())[0]


def file_head(path: Path) -> bytes:
    """Return a regular file's first ``HEAD`` bytes; no bytes where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


# ---- walking


def _files(root: Path, below: str, account: Account) -> list[File]:
    """Return all regular files. Folders come before links to folders, so that a file has the name of its real place."""
    files: list[File] = []
    start = os.path.realpath(root / below)
    seen, todo, links = {start}, [below], list[str]()
    while todo or links:
        if not todo:
            link = links.pop(0)
            target = os.path.realpath(root / link)
            if target in seen or _leads_up(target, start):
                account.pass_over(f"{root}/{link}", _WALKED)
                continue
            seen.add(target)
            todo.append(link)
        here = todo.pop()
        folders, here_files = _listed(root, here, account)
        files += here_files
        for folder in reversed(folders):
            path = root / folder
            if path.is_symlink():
                links.append(folder)
            elif (real := os.path.realpath(path)) in seen:  # below a link, where another link has led already
                account.pass_over(f"{root}/{folder}", _WALKED)
            else:
                seen.add(real)
                todo.append(folder)
        links.sort()
    return files


def _leads_up(target: str, start: str) -> bool:
    """Tell whether ``start`` lies in ``target``, or is the same; both are real paths."""
    return f"{start}/".startswith(target.rstrip("/") + "/")


def _listed(root: Path, below: str, account: Account) -> tuple[list[str], list[File]]:
    """Return the folders and the regular files of a folder, by their names below ``root``, sorted. Other entries go
    into the account."""
    folders, files = [], []
    prefix = f"{below}/" if below else ""
    for entry in _entries(root / below):
        if not _is_folder(entry):
            files += _regular(entry, prefix + entry.name, account)
        elif is_system_folder(entry.name):
            inside = sum(len(files) for _, _, files in os.walk(entry.path))
            account.pass_over(entry.path, IN_SYSTEM_FOLDERS, inside)
        else:
            folders.append(prefix + entry.name)
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _regular(path: os.DirEntry[str] | Path, name: str, account: Account) -> list[File]:
    """Return the file at a path in a list; an empty list, and an entry in the account, if it is no regular file."""
    where = os.fspath(path)
    try:
        if path.is_file():
            return [File(name, 0, path.stat().st_size)]
        if os.path.exists(where):
            account.pass_over(where, "no regular file")
            return []
    except OSError:  # a link to itself
        pass
    if is_photo_name(path.name):
        account.leave_out(where, "a broken link; mend or remove it")
    else:
        account.pass_over(where, "broken link")
    return []


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


# ---- the right level


def check_level(root: Path, folders: list[str], option: str) -> None:
    """Check that ``folders``, which lie in ``root``, are the classes, and that the classes are not a level below them.

    Raises:
        UserError: they are a level below; the line has the right path, where there is such a path.
    """
    wrong = _branching(root, folders)
    if wrong is None:
        return
    right = _right_folder(root, option)
    remedy = f"give {option} {shlex.quote(str(right))}" if right else "give the folder that holds the class folders"
    if any(_is_class(root / name) for name in folders):
        remedy += f"; or, if '{shown(wrong)}' is a class too, move its photos out of its folders"
    raise UserError(
        f"{option} {shlex.quote(str(root))}: is a level too high, its folder '{shown(wrong)}' holds folders and no "
        f"photo; {remedy}"
    )


def _branching(root: Path, folders: list[str]) -> str | None:
    """Return a folder that holds classes instead of photos; None where no folder does, or another folder is a class."""
    parts = {name for names in _PARTS.values() for name in names}
    for name in folders:
        photos, below = _look(root / name) if name.lower() in parts else (True, [])
        if below and not photos:
            return name
    if any(_is_class(root / name) for name in folders):
        return None
    return next((name for name in folders if _look(root / name)[1]), None)


def _is_class(folder: Path) -> bool:
    """Tell whether photos lie in a folder, or in the only folder in it, and so on."""
    for _ in range(_DEPTH):
        photos, below = _look(folder)
        if photos or len(below) != 1:
            return photos
        folder = folder / below[0]
    return False


def _look(folder: Path) -> tuple[bool, list[str]]:
    """Return whether a photo lies directly in a folder, and if not, the folders in it."""
    folders = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders += [] if is_system_folder(entry.name) else [entry.name]
                elif is_photo_name(entry.name) or _begins_like_a_photo(entry):
                    return True, []
    except OSError:  # the walk reports it
        return False, []
    return False, sorted(folders)


def _begins_like_a_photo(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and not is_system_file(entry.name) and is_photo_head(file_head(Path(entry.path)))


def _right_folder(root: Path, option: str) -> Path | None:
    """Return the nearest folder below ``root`` that holds class folders (or photos, for --val). Folders that have the
    name of the option's part of a data set come first."""
    part = "--val" if option in ("--val", "--held_out") else "--train"
    level = candidates = [root]
    for _ in range(_DEPTH):
        level = [folder / name for folder in level for name in _look(folder)[1]][:_LOOKED_AT]
        candidates = candidates + level
    for path in sorted(candidates, key=lambda path: path.name.lower() not in _PARTS[part]):
        photos, below = _look(path)
        flat = photos and option == "--val" and path.name.lower() in _PARTS[part]
        if flat or (any(_is_class(path / name) for name in below) and _branching(path, below) is None):
            return path
    return None
