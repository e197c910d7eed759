"""Backbones: our own ResNets and trained networks of other libraries, one file a source, behind one contract."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dist_train.config import BackboneConfig
from dist_train.errors import UserError
from dist_train.files import file_sha256
from dist_train.models.backbones import ours, timm_source, torchvision_source
from dist_train.models.backbones.backbone import Backbone
from dist_train.models.backbones.pretrained import Origin, Pretrained
from dist_train.models.backbones.starter import open_starter

__all__ = ["Backbone", "Origin", "Pretrained", "build", "open_pretrained", "weights_sha256"]

_BUILDERS = {"ours": ours.resnet, "timm": timm_source.build, "torchvision": torchvision_source.build}


def build(architecture: Mapping[str, Any]) -> Backbone:
    """Return the network of a ``Backbone.architecture``, untrained. Without a source, it is ours."""
    options = {key: value for key, value in architecture.items() if key != "source"}
    return _BUILDERS[architecture.get("source", "ours")](**options)


def open_pretrained(options: BackboneConfig) -> Pretrained:
    """Open a trained network.

    Raises:
        UserError: there is no such network, its weights are not there, or they do not fit.
    """
    source, _, name = options.source.partition(":")
    if options.source == "starter":
        return open_starter(options)
    if source == "timm" and name:
        return timm_source.open_timm(name, options)
    if source == "torchvision" and name:
        return torchvision_source.open_torchvision(name, options)
    raise UserError(f"backbone.source={options.source}: give timm:NAME, torchvision:NAME or starter")


def weights_sha256(options: BackboneConfig) -> str:
    """Return the sha256 of a trained network's weights. They are read once in a process, unless their file changes.

    Raises:
        UserError: as ``open_pretrained``.
    """
    if options.weights is None:
        return _own_sha256(options.source, options.download)
    try:
        about = options.weights.stat()
        return _sha256(options.weights, about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"backbone weights {options.weights}: cannot be read ({error.strerror}); give the file of the weights"
        ) from None


@cache
def _own_sha256(source: str, download: bool) -> str:
    return open_pretrained(BackboneConfig(source=source, download=download)).origin.sha256


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)
