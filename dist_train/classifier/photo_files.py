"""Files of photos: found in folders and by patterns, and decoded by Pillow. Nothing here needs torch."""

from __future__ import annotations

import glob
import itertools
import os
import re
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from dist_train.config import Orientation
from dist_train.data.account import Account
from dist_train.data.images.photos import (
    IN_SYSTEM_FOLDERS,
    MAX_PIXELS,
    MAX_RATIO,
    SUFFIXES,
    is_system_folder,
    open_photo,
    size_fault,
)
from dist_train.data.images.pillow import Unusable, upright
from dist_train.data.sources.folders import folder_photos, listed_photos
from dist_train.errors import UserError


def in_folder(folder: Path, account: Account) -> list[Path]:
    """Return the photos of a folder and of the folders below it, sorted; the account counts all files.

    Raises:
        UserError: there is no photo, or a folder cannot be read.
    """
    own_account = Account()
    photos = [folder / file.name for file in folder_photos(folder, own_account)]
    if not photos:
        raise _no_photos(str(folder), own_account)
    account.add(own_account)
    return photos


def matching(pattern: str, account: Account) -> list[Path]:
    """Return the photos among the files that match a pattern and in the folders that match it, sorted; an empty list
    where nothing matches.

    Raises:
        UserError: something matches, but no photo is among it; or a folder cannot be read.
    """
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    folders = [path for path in matches if path.is_dir()]
    folders = [path for path in folders if not set(folders) & set(path.parents)]
    listed = [path for path in matches if not path.is_dir() and not set(folders) & set(path.parents)]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1]))
    own_account = Account()
    photos = [fixed / file.name for file in listed_photos(fixed, listed, own_account)]
    for folder in folders:
        if folder != fixed and is_system_folder(folder.name):
            number = sum(len(files) for _, _, files in os.walk(folder))
            own_account.pass_over(str(folder), IN_SYSTEM_FOLDERS, number)
        else:
            photos += [folder / file.name for file in folder_photos(folder, own_account)]
    if matches and not photos:
        raise _no_photos(pattern, own_account)
    account.add(own_account)
    return sorted(photos)


def _no_photos(where: str, account: Account) -> UserError:
    reason = account.line() if account.found else ", ".join(sorted(SUFFIXES))
    return UserError(f"{where}: holds no photos ({reason}); give a folder with some")


def is_image(data: bytes) -> bool:
    """Return whether these are the bytes of an image, judged by their beginning; a damaged image is an image too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_photo(data).close()
    except UnidentifiedImageError:
        return False
    except Exception:  # a known format, and damaged
        return True
    return True


def decoded(
    photo: str | Path | bytes | Image.Image,
    name: str = "image",
    max_pixels: int = MAX_PIXELS,
    rule: Orientation = "exif",
) -> npt.NDArray[np.uint8]:
    """Return the pixels of a photo, upright under the rule: uint8 [height, width, 3].

    Args:
        photo: a file, its bytes, or a PIL image.
        name: how errors call a photo that is not a file.
        max_pixels: the limit of height x width.
        rule: whether the photo's orientation tag is obeyed.

    Raises:
        UserError: the photo cannot be decoded, or is larger than ``max_pixels``.
    """
    if isinstance(photo, Image.Image):
        return _decode(photo, name, max_pixels, rule)
    if isinstance(photo, bytes):
        return _load_file(photo, name, max_pixels, rule)
    if os.path.exists(photo) and not os.path.isfile(photo):  # to open a pipe would wait for a writer
        what = "Is a directory" if os.path.isdir(photo) else "no regular file"
        raise UserError(f"{photo}: {what}; give the path of an image")
    return _load_file(photo, str(photo), max_pixels, rule)


def _load_file(photo: str | Path | bytes, name: str, max_pixels: int, rule: Orientation) -> npt.NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are checked below, and about odd EXIF
            with open_photo(photo) as image:
                return _decode(image, name, max_pixels, rule)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        what = f"{pixels[1] if pixels else 'too many'} pixels, and {max_pixels} are the limit; make it smaller"
        raise UserError(f"{name}: {what}", "photo.large", photo=name, limit=max_pixels) from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image of a known format; convert it to JPEG or PNG", "photo.format",
                        photo=name) from None  # fmt: skip
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{name}: {error.strerror}; give the path of an image") from None
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file
        raise _damaged(name, error) from None


def _decode(image: Image.Image, name: str, max_pixels: int, rule: Orientation) -> npt.NDArray[np.uint8]:
    check_size(image.width, image.height, name, max_pixels)
    try:
        return np.array(upright(image, rule))
    except Unusable as error:
        raise UserError(f"{name}: {error}", "photo.depth", photo=name) from None
    except Exception as error:
        raise _damaged(name, error) from None


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Check the size of a photo.

    Args:
        width, height: in pixels.
        name: how the error calls it.
        max_pixels: the limit of width x height.

    Raises:
        UserError: it is too large, or too long for its width.
    """
    fault = size_fault(width, height, max_pixels)
    if fault:
        kind = "photo.large" if width * height > max_pixels else "photo.long"
        raise UserError(f"{name}: {fault}", kind, photo=name, limit=max_pixels if kind == "photo.large" else MAX_RATIO)


def _damaged(name: str, error: Exception) -> UserError:
    text = f"{name}: damaged or cut off ({' '.join(str(error).split())[:200]}); get the file again"
    return UserError(text, "photo.damaged", photo=name)
