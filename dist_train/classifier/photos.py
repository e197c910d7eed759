"""Photos of any kind to network input: decoding by Pillow, then the evaluation's resize and crop.

Training and evaluation decode with DALI (data/loading/dali.py), from shards and many at a time. What people hand to a
classifier is a few photos of any format, as files, bytes, arrays or tensors; here they become the same pixels, by the
same functions (data/loading/preprocessing.py), and are turned upright by the rule that the model's run was packed by.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn
from torch.nn.functional import interpolate

from dist_train.config import Orientation
from dist_train.data.account import Account
from dist_train.data.images.photos import (
    IN_SYSTEM_FOLDERS,
    MAX_PIXELS,
    SUFFIXES,
    is_system_folder,
    open_photo,
    size_fault,
)
from dist_train.data.images.pillow import Unusable, upright
from dist_train.data.loading.preprocessing import MEAN, STD, evaluation
from dist_train.data.sources.folders import folder_photos, listed_photos
from dist_train.errors import UserError

Photo: TypeAlias = str | Path | bytes | Image.Image | npt.NDArray[Any] | torch.Tensor
"""A file, its bytes, a PIL image, or pixels: uint8, or floats in [0, 1]. An array is [height, width, 3] or
[height, width]; a tensor is [3, height, width] or [1, height, width]."""


def load(photo: Photo, name: str = "image", max_pixels: int = MAX_PIXELS, rule: Orientation = "exif") -> torch.Tensor:
    """uint8 [3, height, width], RGB. Of an animation, the first frame; on transparency, what lies below it.

    Args:
        name: how to call a photo that is not a file in an error.
        rule: whether the photo's orientation is obeyed (``Preprocess.orientation`` of the model that it is for).

    Raises:
        UserError: it cannot be decoded, or is larger than ``max_pixels``.
    """
    if isinstance(photo, torch.Tensor):
        return _pixels(photo, photo.detach().cpu(), name, max_pixels)
    if isinstance(photo, np.ndarray):
        try:
            tensor = torch.from_numpy(np.array(photo, photo.dtype.newbyteorder("=")))
        except TypeError:
            raise UserError(f"{name}: an array of {photo.dtype}; give uint8, or floats in [0, 1]") from None
        tensor = tensor.movedim(-1, 0) if tensor.ndim > 2 else tensor[None]
        return _pixels(photo, tensor, name, max_pixels)
    if isinstance(photo, Image.Image):
        return _decoded(photo, name, max_pixels, rule)
    if isinstance(photo, (str, Path)):
        name = str(photo)
    if not isinstance(photo, (str, Path, bytes)):
        raise UserError(f"{name}: {type(photo).__name__} is no photo; give a path, bytes, PIL image, array or tensor")
    if not isinstance(photo, bytes) and os.path.exists(photo) and not os.path.isfile(photo):
        what = "Is a directory" if os.path.isdir(photo) else "no regular file"  # to open a pipe would wait for a writer
        raise UserError(f"{name}: {what}; give the path of an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are looked at below, and of odd EXIF
            with open_photo(photo) as image:
                return _decoded(image, name, max_pixels, rule)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        what = f"{pixels[1] if pixels else 'too many'} pixels, and {max_pixels} are the limit; make it smaller"
        raise UserError(f"{name}: {what}") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image of a known format; convert it to JPEG or PNG") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{name}: {error.strerror}; give the path of an image") from None
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file
        raise _damaged(name, error) from None


def in_folder(folder: Path, account: Account) -> list[Path]:
    """The photos of a folder and of those below it, sorted; the account has all files (see ``data.folders``).

    Raises:
        UserError: there is none, or a folder cannot be read.
    """
    here = Account()
    found = [folder / file.name for file in folder_photos(folder, here)]
    if not found:
        raise _none(str(folder), here)
    account.add(here)
    return found


def matching(pattern: str, account: Account) -> list[Path]:
    """The photos among the files that match a pattern, and in the folders that do; none where nothing matches.

    Raises:
        UserError: something matches, and no photo is among it; a folder cannot be read.
    """
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    folders = [path for path in matches if path.is_dir()]
    folders = [path for path in folders if not set(folders) & set(path.parents)]
    listed = [path for path in matches if not path.is_dir() and not set(folders) & set(path.parents)]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1]))
    here = Account()
    found = [fixed / file.name for file in listed_photos(fixed, listed, here)]
    for folder in folders:
        if folder != fixed and is_system_folder(folder.name):
            here.pass_over(str(folder), IN_SYSTEM_FOLDERS, sum(len(files) for _, _, files in os.walk(folder)))
        else:
            found += [folder / file.name for file in folder_photos(folder, here)]
    if matches and not found:
        raise _none(pattern, here)
    account.add(here)
    return sorted(found)


def _none(where: str, account: Account) -> UserError:
    known = account.line() if account.found else ", ".join(sorted(SUFFIXES))
    return UserError(f"{where}: holds no photos ({known}); give a folder with some")


class Preprocess(nn.Module):
    """Pixels to network input, as in the evaluation: shorter side to ``resize`` pixels (bilinear, antialiased), a
    centre crop of ``size``, ImageNet's mean and standard deviation.

    ``batch`` is the evaluation itself, which rounds to bytes after the resize. ``forward`` is for exports: in floats
    throughout, so that it is the same in every runtime, and half a step of 255 beside the evaluation at the most.

    Attributes:
        orientation: the rule by which photos are turned upright before.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, resize: int, size: int, orientation: Orientation = "exif") -> None:
        super().__init__()
        self.resize, self.size, self.orientation = resize, size, orientation
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, height, width] of any one size -> float32 [B, 3, size, size]."""
        short: Any = torch.sym_min(*images.shape[-2:])
        height, width = (self.resize * side // short for side in images.shape[-2:])
        resized = interpolate(images.float(), size=(height, width), mode="bilinear", antialias=True)
        top, left = _centre(height - self.size), _centre(width - self.size)
        crop = resized[..., top : top + self.size, left : left + self.size]
        return (crop - self.mean) / self.std

    def batch(self, pixels: Iterable[torch.Tensor]) -> torch.Tensor:
        """Photos of any sizes, each uint8 [3, height, width] -> float32 [B, 3, size, size]. Resized on the CPU, where
        they were decoded: bytes throughout, so that a large photo takes no more memory than its pixels."""
        return torch.stack([evaluation(image.cpu(), self.resize, self.size) for image in pixels]).to(self.mean.device)


def _centre(free: int) -> int:
    """Half of it, rounded to even, as ``augment.centre_anchor``; in arithmetic that an export can follow."""
    half = free // 2
    return half + (free % 2) * (half % 2)


def is_image(data: bytes) -> bool:
    """Whether these are the bytes of an image, by how they begin."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_photo(data).close()
    except UnidentifiedImageError:
        return False
    except Exception:  # a damaged one is one
        return True
    return True


def _decoded(image: Image.Image, name: str, max_pixels: int, rule: Orientation) -> torch.Tensor:
    _check_size(image.width, image.height, name, max_pixels)
    try:
        return torch.from_numpy(np.array(upright(image, rule))).permute(2, 0, 1)
    except Unusable as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:
        raise _damaged(name, error) from None


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    fault = size_fault(width, height, max_pixels)
    if fault:
        raise UserError(f"{name}: {fault}")


def _damaged(name: str, error: Exception) -> UserError:
    return UserError(f"{name}: damaged or cut off ({' '.join(str(error).split())[:200]}); get the file again")


def _pixels(photo: Any, image: torch.Tensor, name: str, max_pixels: int) -> torch.Tensor:
    """Checked, as uint8 [3, H, W]."""
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        wanted = "[height, width, 3] or [height, width]" if isinstance(photo, np.ndarray) else "[3 or 1, height, width]"
        raise UserError(f"{name}: shape {list(photo.shape)}; give {wanted}")
    _check_size(image.shape[2], image.shape[1], name, max_pixels)
    if image.is_floating_point():
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise UserError(f"{name}: floats outside [0, 1]; give these, not normalised, or uint8")
        image = (255 * image.float()).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise UserError(f"{name}: {image.dtype}; give uint8, or floats in [0, 1]")
    return image.expand(3, -1, -1)
