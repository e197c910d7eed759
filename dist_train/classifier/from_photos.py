"""A model of photos alone: a trained network, and a head that is fitted to the photos of all classes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.heads.contract import Background
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Preprocess
from dist_train.models.backbones import Pretrained
from dist_train.runs.software import software


def without_classes(
    pretrained: Pretrained, head: str = "auto", background: Background | None = None, prior: str = "equal"
) -> Classifier:
    """Return a classifier on a trained network that has no class yet, on the GPU where there is one.

    It sees photos up to their edge: the shorter side is resized to the size of the network's images, and of the longer
    side only the ends are cut off. Evaluations of networks cut off an eighth of both, most often; a head that is fitted
    to the photos is right more often without that (docs/results/photos.md), at no cost.

    Args:
        pretrained: the network; the rows of its own classes are not used.
        head: a name in ``heads.choice.HEADS``, or "auto" for the one that classifies held-out photos best.
        background: how images of other classes vary.
        prior: how frequent the classes are taken to be, a name in ``heads.prior.PRIORS``.

    Raises:
        UserError: there is no such head or prior.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    maker = FittedHeads(head, background=background, prior=prior).on(device)
    pretrained.backbone.set_head(0)
    to_the_edge = replace(pretrained.preprocessing, resize=pretrained.preprocessing.size)
    network = Network(pretrained.backbone, Preprocess(to_the_edge)).on(device)
    return Classifier(network, maker, provenance=_provenance(pretrained))


def _provenance(pretrained: Pretrained) -> dict[str, Any]:
    origin = asdict(pretrained.origin)
    return {
        **software(("torch", "scikit-learn")),
        "backbone": {**origin, "seen": None if origin["seen"] is None else list(origin["seen"])},
    }
