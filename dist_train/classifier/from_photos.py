"""A model of photos alone: a trained network, and a head that is fitted to the photos of all classes."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.heads.contract import Background
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Preprocess
from dist_train.errors import UserError, command
from dist_train.models.backbones import Pretrained
from dist_train.runs.commit import git_commit
from dist_train.version import __version__


def without_classes(pretrained: Pretrained, head: str = "auto", background: Background | None = None) -> Classifier:
    """Return a classifier on a trained network that has no class yet, on the GPU where there is one.

    Args:
        pretrained: the network; the rows of its own classes are not used.
        head: a name in ``heads.choice.HEADS``, or "auto" for the one that classifies held-out photos best.
        background: how images of other classes vary.

    Raises:
        UserError: there is no such head.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    maker = FittedHeads(head, background=background).on(device)
    pretrained.backbone.set_head(0)
    network = Network(pretrained.backbone, Preprocess(pretrained.preprocessing)).on(device)
    return Classifier(network, maker, provenance=_provenance(pretrained))


def add_classes(model: Classifier, activations: Mapping[str, torch.Tensor]) -> None:
    """Add classes to a model of photos alone.

    Raises:
        UserError: a class has no photo, a name is taken, or there would be a single class; no class is added.
    """
    for name, rows in activations.items():
        model.check_new(name)
        if not len(rows):
            raise UserError(f"class {name!r}: no photo of it can be used; add some, or leave the class out")
    if len(model.classes) + len(activations) < 2:
        raise UserError(f"class {next(iter(activations), '')!r}: is the only class; give photos of two classes or more")
    for name, rows in activations.items():
        model.add_activations(name, rows)


def _provenance(pretrained: Pretrained) -> dict[str, Any]:
    origin = asdict(pretrained.origin)
    return {
        "dist_train": __version__,
        "commit": git_commit(),
        "command": command(*sys.argv[1:]),
        "versions": {"python": platform.python_version(), "torch": version("torch"),
                     "scikit-learn": version("scikit-learn")},
        "backbone": {**origin, "seen": None if origin["seen"] is None else list(origin["seen"])},
    }  # fmt: skip
