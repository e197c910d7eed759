"""A model of photos alone: a trained network, and a head that is fitted to the photos of all classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.heads.contract import Background
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Preprocess
from dist_train.errors import UserError
from dist_train.models.backbones import Pretrained
from dist_train.runs.software import software


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
        UserError: a class has no photo, a name is taken, there would be a single class, or a class that the model has
            holds one of the photos; no class is added.
    """
    for name, rows in activations.items():
        model.check_new(name)
        if not len(rows):
            raise UserError(f"class {name!r}: no photo of it can be used; add some, or leave the class out")
        there = [other for other in model.classes_with(rows) if other is not None]
        if there:
            count = "a photo of it is" if len(there) == 1 else f"{len(there)} photos of it are"
            raise UserError(
                f"class {name!r}: {count} in the model already, in class {there[0]!r}; leave each in one class"
            )
    check_several(model, activations)
    for name, rows in activations.items():
        model.add_activations(name, rows)


def check_several(model: Classifier, new: Iterable[str]) -> None:
    """Check that a model with new classes of these names has two classes or more.

    Raises:
        UserError: it has one.
    """
    names = [*(entry.name for entry in model.classes), *new]
    if len(names) == 1:
        raise UserError(f"class {names[0]!r}: is the only class; give photos of two classes or more")


def _provenance(pretrained: Pretrained) -> dict[str, Any]:
    origin = asdict(pretrained.origin)
    return {
        **software(("torch", "scikit-learn")),
        "backbone": {**origin, "seen": None if origin["seen"] is None else list(origin["seen"])},
    }
