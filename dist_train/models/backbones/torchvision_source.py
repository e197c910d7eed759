"""Backbones of torchvision: any of its networks for classification that ends in a linear layer."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from dist_train.config import BackboneConfig, Preprocessing
from dist_train.errors import UserError
from dist_train.models.backbones import fetching, weights
from dist_train.models.backbones.backbone import Backbone
from dist_train.models.backbones.cutting import Misfit, check_size, cut, fill
from dist_train.models.backbones.pretrained import Origin, Pretrained
from dist_train.models.backbones.trained_on import TrainingData, classes_of

_ROWS = 1000

# These two normalise images themselves where they have weights, and have classifiers at their middle for training.
_INCEPTIONS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
_SWAG = ("cc-by-nc-4.0", "3.6 billion photos of Instagram, then ImageNet-1k")
"""Licence and data of the weights that torchvision has from SWAG (Singh et al. 2022)."""

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def open_network(name: str, options: BackboneConfig) -> Pretrained:
    """Open a network of torchvision with trained weights.

    Args:
        name: NAME or NAME.TAG, where TAG is a name of torchvision's weights, IMAGENET1K_V1. Without a tag it is
            torchvision's default, whatever file is given.
        options: with the file of the weights; without it, torchvision's own are looked up in the cache of downloads.

    Raises:
        UserError: there is no such network, it does not take that size, or the weights are not there or do not fit.
    """
    network, entry = _entry(name)
    source = f"torchvision:{network}.{entry.name}"
    preprocessing = _preprocessing(entry, options.size, source)
    fixed = preprocessing.size if _option_of_size(network) else None
    try:
        backbone = build(network, 0, fixed)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"backbone.size={options.size}: {source} does not take that size ({error})") from None
    check_size(backbone, preprocessing.size, source)
    path = weights_file(name, options)
    state, notes = weights.read_weights(path)
    state = _resized(network, state, backbone)
    try:
        notes += fill(backbone, backbone.architecture["classifier"], _ROWS, state)
    except Misfit as error:
        raise weights.refuse_misfit(path, source, str(error)) from None
    classes = classes_of(_ROWS) if backbone.head.out_features else None
    licence, trained_on = ("bsd-3-clause", "ImageNet-1k") if "SWAG" not in entry.name else _SWAG
    data = TrainingData(trained_on, tuple(sorted(classes_of(_ROWS) or ())), complete="SWAG" not in entry.name)
    origin = Origin.of(source, path, licence, data, own=classes is not None)
    return Pretrained(backbone, preprocessing, classes, origin, tuple(notes))


def weights_file(name: str, options: BackboneConfig) -> Path:
    """Return the file of the weights, fetched where that is allowed.

    Raises:
        UserError: there is no such network, or its weights are not there.
    """
    network, entry = _entry(name)
    return options.weights or fetching.url_file(f"torchvision:{network}.{entry.name}", entry.url, options.download)


def build(name: str, num_classes: int, size: int | None = None, classifier: str | None = None) -> Backbone:
    """Return an untrained network of torchvision.

    Args:
        name: of the network.
        num_classes: rows of the backbone's head.
        size: side of the images in pixels, for networks of a fixed size.
        classifier: name of the linear layer that gives the logits; None for the last one.

    Raises:
        UserError: the network has no linear layer.
    """
    network = torchvision.models.get_model(name, weights=None, **options_of(name, size))
    linear = [layer for layer, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"backbone.source=torchvision:{name}: has no linear classifier; name another network")
    classifier = classifier or linear[-1]
    dim = cut(network, classifier)
    architecture = {"source": "torchvision", "name": name, "classifier": classifier}
    return Backbone(network, dim, num_classes, architecture | ({"size": size} if size else {}))


def options_of(name: str, size: int | None) -> dict[str, Any]:
    """Return the arguments that torchvision's network takes beside its classes, for images of that size."""
    if name in _INCEPTIONS:
        return {"transform_input": True, "aux_logits": False, "init_weights": False}
    if size:
        return {"image_size": size} if _option_of_size(name) == "image_size" else {"input_size": (size, size)}
    return {}


def check(name: str, options: BackboneConfig) -> None:
    """Check that torchvision has a network, NAME or NAME.TAG, and the file of weights, where one is given.

    Raises:
        UserError: it has not, or the file is not there, or none by its name.
    """
    _entry(name)
    weights.check_file(options.weights)


def _entry(name: str) -> tuple[str, Any]:
    """Return a network's name and the member of torchvision's enumeration of its weights.

    Raises:
        UserError: torchvision has no such network, or no such weights of it.
    """
    network, _, tag = name.partition(".")
    known = torchvision.models.list_models(module=torchvision.models)
    if network not in known:
        near = difflib.get_close_matches(network, known, n=3)
        nearest = f"the nearest are {', '.join(near)}" if near else "torchvision.models.list_models() lists them"
        raise UserError(f"backbone.source=torchvision:{name}: torchvision has no such network; {nearest}")
    entries = torchvision.models.get_model_weights(network)
    if tag and tag not in entries.__members__:
        tags = ", ".join(entries.__members__)
        raise UserError(f"backbone.source=torchvision:{name}: not a name of its weights; give one of {tags}")
    return network, entries[tag or "DEFAULT"]


def _preprocessing(entry: Any, size: int | None, source: str) -> Preprocessing:
    """Return what images go through, by the transforms of the weights; another size keeps the share of the crop."""
    transforms = entry.transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    interpolation = transforms.interpolation.value
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(f"backbone.source={source}: its interpolation {interpolation!r} is not offered; name another")
    own = Preprocessing(
        resize=resize,
        size=crop,
        interpolation=interpolation,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
    return own.at(size)


def _option_of_size(network: str) -> str | None:
    """Return torchvision's name of the size of images, for networks of a fixed size."""
    return "image_size" if network.startswith("vit_") else "input_size" if network == "maxvit_t" else None


def _resized(network: str, state: weights.State, backbone: Backbone) -> weights.State:
    """Return the tensors in today's names, and position embeddings for the size of the network's images."""
    state = {_OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_INCEPTIONS.get(network, ("\0",)))}
    key = "encoder.pos_embedding"
    body: Any = backbone.body
    if network.startswith("vit_") and key in state and state[key].shape[1] != body.seq_length:
        with_embeddings: Any = {**state}
        try:
            return dict(interpolate_embeddings(body.image_size, body.patch_size, with_embeddings))
        except ValueError:
            return state  # of another network; filling it says so
    return state
