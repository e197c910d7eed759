"""Backbones of timm: any of its networks, with its weights and what it knows about them."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from dist_train.config import BackboneConfig, Interpolation, Preprocessing
from dist_train.errors import UserError
from dist_train.models.backbones import fetching, weights
from dist_train.models.backbones.backbone import Backbone
from dist_train.models.backbones.cutting import Misfit, check_size, cut, fill
from dist_train.models.backbones.pretrained import Origin, Pretrained
from dist_train.models.backbones.trained_on import classes_of, seen_by_tag

Facts = Mapping[str, Any]
"""timm's ``pretrained_cfg`` of a network and a tag: where its weights are, and how they were trained."""


def open_network(name: str, options: BackboneConfig) -> Pretrained:
    """Open a network of timm with trained weights.

    Args:
        name: NAME or NAME.TAG. Without a tag it is timm's first tag of that network, whatever file is given.
        options: with the file of the weights; without it, timm's own are looked up in the cache of downloads.

    Raises:
        UserError: there is no such network, it does not take that size, or the weights are not there or do not fit.
    """
    facts = facts_of(name)
    path = weights_file(name, options)
    state, notes = weights.read_weights(path)
    return opened(facts, _source(facts), path, state, options.size).noting(notes)


def weights_file(name: str, options: BackboneConfig) -> Path:
    """Return the file of the weights, fetched where that is allowed.

    Raises:
        UserError: there is no such network, or its weights are not there.
    """
    facts = facts_of(name)
    return options.weights or fetching.timm_file(_source(facts), facts, options.download)


def opened(facts: Facts, source: str, path: Path, state: weights.State, size: int | None) -> Pretrained:
    """Return timm's network with the weights that were read from ``path``.

    Args:
        facts: of the network and its weights.
        source: what users call it.
        path: file of the weights.
        state: the tensors of that file.
        size: side of the images in pixels; None for that of the weights.

    Raises:
        UserError: the network does not take that size, or the weights do not fit.
    """
    preprocessing = preprocessing_of(facts, source, size)
    fixed = preprocessing.size if facts["fixed_input_size"] else None
    classes = classes_of(facts["num_classes"])
    try:
        backbone = build(facts["architecture"], classifier_of(facts) if classes else None, 0, fixed)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        line = str(error).partition("\n")[0][:120]
        raise UserError(f"backbone.size={size}: {source} does not take that size ({line})") from None
    check_size(backbone, preprocessing.size, source)
    notes: list[str] = []
    if backbone.architecture["classifier"] is None:
        state, notes = _without_heads(facts, state)
    try:
        notes += _fill(backbone, facts, state)
    except Misfit as error:
        larger = _of_own_size(facts, fixed, backbone.architecture["classifier"], state)
        if larger is None:
            raise weights.refuse_misfit(path, source, str(error)) from None
        backbone, more = larger
        check_size(backbone, preprocessing.size, source)
        notes += more
    own = bool(backbone.head.out_features) == bool(classes)
    classes = classes if own else None
    origin = Origin.of(source, path, facts.get("license"), seen_by_tag(facts.get("tag", ""), classes), own)
    return Pretrained(backbone, preprocessing, classes, origin, tuple(notes))


def _fill(backbone: Backbone, facts: Facts, state: weights.State) -> list[str]:
    """Load a file's tensors into a network, after timm's own conversion where they need one; return lines for the user.

    Raises:
        Misfit: they are not those of the network.
    """
    classifier = backbone.architecture["classifier"]
    try:
        return fill(backbone, classifier, facts["num_classes"], state)
    except Misfit:
        converted = _converted(facts, classifier, backbone.architecture.get("size"), state)
        if converted is None:
            raise
        return fill(backbone, classifier, facts["num_classes"], converted)


def _of_own_size(
    facts: Facts, size: int | None, classifier: str | None, state: weights.State
) -> tuple[Backbone, list[str]] | None:
    """Return a network for images of its weights' own size with these weights, and lines for the user.

    timm resizes the position embeddings of some networks when it loads them. Others do so with every image, such as
    CLIP's ResNets: they take images of another ``size``, but weights of their own only.

    Returns:
        None where the network is of that size already, or the weights do not fit either.
    """
    own = facts["input_size"][1]
    if size in (None, own):
        return None
    backbone = build(facts["architecture"], classifier, 0, own)
    with suppress(Misfit):
        return backbone, _fill(backbone, facts, state)
    return None


def facts_of(name: str) -> Facts:
    """Return what timm knows about a network and its weights.

    Args:
        name: NAME or NAME.TAG.

    Raises:
        UserError: timm has no such network, or no such tag of it; the line names the nearest.
    """
    import timm
    from timm.models import PretrainedCfg, get_pretrained_cfg

    network, _, tag = name.partition(".")
    if not timm.is_model(network):
        near = difflib.get_close_matches(network, timm.list_models(), n=3)
        nearest = f"the nearest are {', '.join(near)}" if near else "timm.list_models() lists them"
        raise UserError(f"backbone.source=timm:{name}: timm {timm.__version__} has no such network; {nearest}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(network)]
    if tag and tag not in tags:
        raise UserError(
            f"backbone.source=timm:{name}: not a tag of its weights; give one of {', '.join(tags) or 'none'}"
        )
    facts: Any = get_pretrained_cfg(name) or PretrainedCfg()
    return {**facts.to_dict(), "architecture": network}


def check(name: str, options: BackboneConfig) -> None:
    """Check that timm has a network, NAME or NAME.TAG, and the file of weights, where one is given.

    Raises:
        UserError: it has not (see ``facts_of``), or the file is not there, or none by its name.
    """
    facts_of(name)
    weights.check_file(options.weights)


def _source(facts: Facts) -> str:
    """Return what users call a network and its weights."""
    tag = facts.get("tag")
    return f"timm:{facts['architecture']}" + (f".{tag}" if tag else "")


def classifier_of(facts: Facts) -> str | None:
    """Return the name of a network's classifier; None where it has several."""
    classifier = facts["classifier"]
    return classifier if isinstance(classifier, str) else None


def preprocessing_of(facts: Facts, source: str, size: int | None) -> Preprocessing:
    """Return what images go through, as timm's own evaluation does it (``create_transform``).

    Raises:
        UserError: images of these weights are not square, or are resized in a way that is not offered.
    """
    from timm.data import config

    resolve: Any = config.resolve_data_config  # which has no types
    data = resolve({"img_size": size}, pretrained_cfg=dict(facts))
    _, height, width = data["input_size"]
    if height != width:
        raise UserError(f"backbone.source={source}: its images are {height}x{width} pixels; only square ones are taken")
    if data["crop_mode"] not in ("center", "squash"):
        raise UserError(f"backbone.source={source}: its crop mode {data['crop_mode']!r} is not offered; name another")
    if data["crop_pct"] > 1:  # three weights of VOLO, whose images have a black frame
        raise UserError(f"backbone.source={source}: its crop share {data['crop_pct']} is not offered; name another")
    if data["interpolation"] not in get_args(Interpolation):
        raise UserError(f"backbone.source={source}: its interpolation {data['interpolation']!r} is not offered")
    return Preprocessing(
        resize=math.floor(height / data["crop_pct"]),
        size=height,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        squash=data["crop_mode"] == "squash",
    )


def build(name: str, classifier: str | None, num_classes: int, size: int | None = None) -> Backbone:
    """Return an untrained network of timm.

    Args:
        name: of the network, without a tag.
        classifier: name of the linear layer that gives the logits; None for timm's own features. A layer of another
            kind counts as none.
        num_classes: rows of the backbone's head.
        size: side of the images in pixels, for networks of a fixed size.
    """
    network: Any = create(name, 1 if classifier else 0, size)
    if classifier and not isinstance(network.get_submodule(classifier), nn.Linear):
        network, classifier = create(name, 0, size), None
    dim = cut(network, classifier) if classifier else int(getattr(network, "head_hidden_size", network.num_features))
    architecture = {"source": "timm", "name": name, "classifier": classifier}
    return Backbone(network, dim, num_classes, architecture | ({"size": size} if size else {}))


def create(name: str, rows: int, size: int | None, **loading: Any) -> nn.Module:
    """Return timm's network with a classifier of ``rows`` rows, untrained unless ``loading`` says otherwise."""
    import timm

    network: nn.Module = timm.create_model(name, num_classes=rows, img_size=size, **loading)
    return network


def _without_heads(facts: Facts, state: weights.State) -> tuple[weights.State, list[str]]:
    """Return the tensors without those of classifiers that are not taken: several for one image, CLIP's projection."""
    names = facts["classifier"] or ()
    names = (names,) if isinstance(names, str) else names
    heads = [key for key in state if key.startswith(tuple(f"{name}." for name in names))]
    notes = [f"{', '.join(names)} is left aside: it is no linear classifier of known classes"] if heads else []
    return {key: tensor for key, tensor in state.items() if key not in heads}, notes


def _converted(facts: Facts, classifier: str | None, size: int | None, state: weights.State) -> weights.State | None:
    """Return the tensors after timm's own conversion of other layouts (DINOv2's, CLIP's, another size of images).

    Returns:
        Tensors by timm's names; None where timm cannot make the network of them.
    """
    rows = facts["num_classes"]
    logging.getLogger("timm").setLevel(logging.ERROR)  # it lists all tensors that it does not use
    # timm loads some networks without asking for every tensor. A state of NaN shows which tensors come from the file:
    # whatever timm makes of it is NaN too.
    all_nan = {name: torch.full_like(t, torch.nan) if t.is_floating_point() else t for name, t in state.items()}
    for head in (rows, 1) if classifier else (0,):  # a classifier of other rows than timm's is dropped by it
        with suppress(Exception):  # the conversions stumble over other networks' tensors in many ways
            marked, loaded = (_loaded(facts, head, size, tensors) for tensors in (all_nan, state))
            body = [tensor for name, tensor in marked.items() if not _is_head(name, classifier)]
            if all(tensor.isnan().any() for tensor in body if tensor.is_floating_point()):
                return {
                    name: tensor for name, tensor in loaded.items() if head == rows or not _is_head(name, classifier)
                }
    return None


def _loaded(facts: Facts, rows: int, size: int | None, state: weights.State) -> weights.State:
    """Return the tensors of timm's network after it has loaded these."""
    loading = {"pretrained": True, "pretrained_cfg": {**facts, "state_dict": state}}
    return create(facts["architecture"], rows, size, **loading).state_dict()


def _is_head(name: str, classifier: str | None) -> bool:
    return classifier is not None and name.startswith(f"{classifier}.")
