"""The parts of a model, from what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dist_train.classifier.doubt_fit import directions
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.head import Head
from dist_train.classifier.heads.contract import Background
from dist_train.classifier.kept import KeptPhoto, Member, activation_id
from dist_train.classifier.known import RunImages
from dist_train.classifier.maker import HeadMaker
from dist_train.classifier.model_json import About, FittedMethod
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Preprocess
from dist_train.classifier.posterior import Posterior
from dist_train.classifier.predicted import PredictedHead, posterior_share, untrained_predictor
from dist_train.models.backbones import Backbone, build

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class State:
    """What a change of a model changes.

    Attributes:
        members: the classes: those of the run, then the added ones.
        maker: makes the head of the classes.
        head: this head, where it is known.
    """

    members: tuple[Member, ...]
    maker: HeadMaker
    head: Head | None = None


def network_of(about: About, tensors: Tensors, device: torch.device) -> Network:
    """Return the network, from the tensors in its file."""
    rule = about.preprocessing.orientation
    backbone = build(about.backbone.model_dump(exclude_none=True))
    backbone.load_state_dict(_under("backbone.", tensors))
    preprocess = Preprocess(about.preprocessing.spec, "stored" if rule == "stored" else "exif")
    return Network(backbone, preprocess).on(device)


def maker_of(about: About, backbone: Backbone, tensors: Tensors) -> HeadMaker:
    """Return what makes the head, from the tensors in the network's file."""
    method = about.method
    if isinstance(method, FittedMethod):
        background = None
        if "background.scatter" in tensors:
            freedom = int(tensors["background.freedom"])
            background = Background(tensors["background.scatter"].double(), freedom)
        return FittedHeads(method.head, method.strength, background, method.prior)
    phi = untrained_predictor(method.name, tensors["base_rows"], backbone, method.learn)
    phi.load_state_dict(_under("predictor.", tensors))
    sample = tensors["sample.activations"].float(), tensors["sample.labels"]
    share, posterior = posterior_share(method.name), None
    if share is not None:
        assert method.plda_power and method.plda_temperature  # About has checked it
        posterior = Posterior.from_tensors(tensors, share, method.plda_power, method.plda_temperature)
    return PredictedHead(method.name, phi, method.learn, tensors["base_rows"], sample, method.calibration_cost,
                         method.rule, RunImages.of(tensors), posterior)  # fmt: skip


def state_of(about: About, added: Tensors, maker: HeadMaker) -> State:
    """Return the state of a model, from the tensors in the file of its photos.

    Args:
        about: its ``model.json``, as it is or as it was.
        added: the tensors.
        maker: makes the heads of the model, with any choices.
    """
    members, head, method = _members(about, added["activations"].float()), None, about.method
    if isinstance(method, FittedMethod):
        owner = torch.arange(len(members), device=added["rows"].device)
        scale = 1.0 if method.unit else None
        head = Head(added["rows"], owner, added["offset"], len(members), scale, method.to_estimates(),
                    means=directions([member.activations for member in members]), doubt=about.to_doubt())  # fmt: skip
    return State(members, maker.as_in(method.model_dump()), head)


def _members(about: About, activations: torch.Tensor) -> tuple[Member, ...]:
    classes, photos = about.to_classes(), about.to_photos()
    if photos is None:
        days = [entry.added for entry in classes for _ in range(entry.photos)]
        photos = [KeptPhoto(activation_id(row), added=day) for row, day in zip(activations, days, strict=True)]
    numbers: list[int | None] = [*about.base_rows, *[None] * (len(classes) - len(about.base_rows))]
    rows, kept = torch.split(activations, [entry.photos for entry in classes]), iter(photos)
    return tuple(
        Member(entry.name, own, tuple(next(kept) for _ in own), entry.wnid, entry.added, number)
        for entry, own, number in zip(classes, rows, numbers, strict=True)
    )


def _under(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
