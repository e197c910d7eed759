"""Backbones: our own ResNets and trained networks of other libraries, one file a source, behind one contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dist_train.models.backbones import ours
from dist_train.models.backbones.backbone import Backbone
from dist_train.models.backbones.pretrained import Origin, Pretrained, open_pretrained

__all__ = ["Backbone", "Origin", "Pretrained", "build", "open_pretrained"]


def build(architecture: Mapping[str, Any]) -> Backbone:
    """Return the network of a ``Backbone.architecture``, untrained."""
    return ours.resnet(**architecture)
