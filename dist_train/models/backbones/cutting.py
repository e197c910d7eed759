"""A library's network cut into body and classifier, and filled with the weights of a file."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.func import functional_call

from dist_train.errors import UserError, counted
from dist_train.models.backbones import weights
from dist_train.models.backbones.backbone import Backbone


class Misfit(Exception):
    """Report tensors that are not those of the network; the text names them."""


def cut(network: nn.Module, classifier: str) -> int:
    """Take the linear layer of that name out of a network, so that its output is what the layer was given.

    Returns:
        The length of that output.
    """
    parent, _, name = classifier.rpartition(".")
    layer: nn.Linear = network.get_submodule(classifier)  # type: ignore[assignment]
    setattr(network.get_submodule(parent), name, nn.Identity())
    return layer.in_features


def fill(backbone: Backbone, classifier: str | None, rows: int, state: weights.State) -> list[str]:
    """Load the tensors of a file into a backbone, the classifier's too where it has ``rows`` rows.

    Args:
        backbone: what is loaded.
        classifier: name of the linear layer that ``cut`` took out of the network; None where it took none.
        rows: of the library's own classifier.
        state: tensors by the network's names.

    Returns:
        Lines for the user: what was left aside.

    Raises:
        Misfit: a tensor is missing, has another shape, or belongs to no layer.
    """
    names = [*backbone.body.state_dict(), *([f"{classifier}.weight"] if classifier else [])]
    inside = weights.matched(state, names)
    notes = []
    if len(inside) < len(state):
        notes.append(f"left aside, as tensors of other networks: {len(state) - len(inside)} of {len(state)}")
    weight, bias = (inside.pop(f"{classifier}.{part}", None) for part in ("weight", "bias"))
    words = weights.misfit(backbone.body, inside)
    if words:
        raise Misfit(words)
    if weight is not None and weight.shape == (rows, backbone.dim):
        backbone.set_head(rows)
        backbone.head.load_state_dict({"weight": weight, "bias": torch.zeros(rows) if bias is None else bias})
        return notes
    backbone.set_head(0)
    if weight is not None:
        notes.append(
            f"the file's classifier of {counted(len(weight), 'row')} is left aside: whose rows they are is not known"
        )
    elif classifier:
        notes.append(f"no classifier of {counted(rows, 'row')} is in the file")
    return notes


def check_size(backbone: Backbone, size: int, source: str) -> None:
    """Check that a backbone takes images of that size, without computing anything (PyTorch's meta tensors).

    Raises:
        UserError: it does not, or what it gives of an image is no vector.
    """
    patch = getattr(getattr(backbone.body, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if isinstance(side, int) and size % side:
        near = size - size % side
        raise UserError(
            f"backbone.size={size}: {source} cuts images into patches of {side} pixels; give a multiple, "
            f"such as {near or side} or {near + side}"
        )
    try:
        shape = _shape(backbone, size)
    except Exception as error:  # a network may fail in any way
        line = str(error).strip().partition("\n")[0][:120]
        raise UserError(f"backbone.size={size}: {source} does not take images of that size ({line})") from None
    if shape != (1, backbone.dim):
        raise UserError(f"backbone.source={source}: gives {tuple(shape)} of an image and no vector; name another")


def _shape(backbone: Backbone, size: int) -> tuple[int, ...]:
    """Return the shape of the activations of one image."""
    body = backbone.eval().body
    tensors = dict(itertools.chain(body.named_parameters(), body.named_buffers()))
    with torch.no_grad():
        try:
            meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
            shape = functional_call(body, meta, (torch.zeros(1, 3, size, size, device="meta"),)).shape
        except Exception:  # such as of a network that makes tensors of its own on the CPU: then it must compute
            shape = body(torch.zeros(1, 3, size, size)).shape
    return tuple(shape)
