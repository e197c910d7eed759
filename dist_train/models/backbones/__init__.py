"""Backbones: our own ResNets and trained networks of other libraries, one file a source, behind one contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from dist_train.config import SOURCES, BackboneConfig
from dist_train.config.backbone import in_section
from dist_train.errors import UserError, counted
from dist_train.files import file_sha256
from dist_train.models.backbones import run_source, starter, timm_source, torchvision_source
from dist_train.models.backbones.backbone import Backbone
from dist_train.models.backbones.building import build
from dist_train.models.backbones.pretrained import Origin, Pretrained

__all__ = ["Backbone", "Origin", "Pretrained", "build", "check_pretrained", "open_pretrained", "weights_sha256"]

_SOURCES: dict[str, ModuleType] = {
    "timm": timm_source, "torchvision": torchvision_source, "starter": starter, "run": run_source,
}  # fmt: skip
_NAMELESS = ("starter", "run")


def open_pretrained(options: BackboneConfig, section: str = "backbone") -> Pretrained:
    """Open a trained network.

    Args:
        options: which one, and where its weights are.
        section: the key of the configuration that holds ``options``, for errors.

    Raises:
        UserError: there is no such network, its weights are not there, do not fit, or are not finite.
    """
    with _naming(section):
        source, name = _source(options)
        opened: Pretrained = source.open_network(name, options)
    wrong = [key for key, tensor in opened.backbone.named_parameters() if not bool(tensor.isfinite().all())]
    if wrong:
        first = wrong[0].partition(".")[2]
        more = f" and {counted(len(wrong) - 1, 'more tensor')}" * (len(wrong) > 1)
        raise UserError(
            f"{opened.origin.file}: {first}{more}: values that are not finite (NaN or infinite); give other weights"
        )
    return opened


def check_pretrained(options: BackboneConfig) -> None:
    """Check what can be known of a trained network before it is opened.

    Raises:
        UserError: there is no such network, or no file of weights where one is named.
    """
    source, name = _source(options)
    source.check(name, options)


def weights_sha256(options: BackboneConfig, section: str = "backbone") -> str:
    """Return the sha256 of a trained network's weights. They are read once in a process, unless their file changes.

    Args:
        options, section: as ``open_pretrained`` takes them.

    Raises:
        UserError: as ``open_pretrained``.
    """
    with _naming(section):
        source, name = _source(options)
        path = source.weights_file(name, options)
    try:
        about = path.stat()
        return _sha256(path, about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"{section}.weights={path}: cannot be read ({error.strerror}); give the file of the weights"
        ) from None


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Let errors, which name keys of ``backbone``, name the keys of another section of the configuration."""
    try:
        yield
    except UserError as error:
        raise UserError(in_section(str(error), section)) from None


def _source(options: BackboneConfig) -> tuple[ModuleType, str]:
    """Return the file of this folder that knows the source of a trained network, and the network's name there."""
    library, _, name = options.source.partition(":")
    if library not in _SOURCES or bool(name) == (library in _NAMELESS):
        raise UserError(f"backbone.source={options.source}: give {SOURCES}")
    return _SOURCES[library], name


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)
