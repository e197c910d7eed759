"""Networks made anew from what a backbone says of its architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dist_train.models.backbones import ours, timm_source, torchvision_source
from dist_train.models.backbones.backbone import Backbone

_BUILDERS: dict[str, Callable[..., Backbone]] = {
    "ours": ours.untrained,
    "timm": timm_source.build,
    "torchvision": torchvision_source.build,
}


def build(architecture: Mapping[str, Any]) -> Backbone:
    """Return the network of a ``Backbone.architecture``, untrained. Without a source, it is ours."""
    options = {key: value for key, value in architecture.items() if key != "source"}
    return _BUILDERS[architecture.get("source", "ours")](**options)
