"""Training that starts from a trained network: which layers stay as they are, and how fast the others learn."""

from __future__ import annotations

from typing import Any

from dist_train.config import PretrainConfig
from dist_train.config.checks import typed
from dist_train.errors import UserError
from dist_train.models.backbones import Backbone


def freeze(network: Backbone, last: str) -> None:
    """Take the layers up to ``last`` out of the training. ``Backbone.train`` keeps their batch norms' statistics, too.

    Args:
        last: name of a layer of ``Backbone.layers``, or of the stage that layers are part of: "layer2" for "layer2.1".

    Raises:
        UserError: there is no such layer; names all.
    """
    layers = network.layers()
    ends = [number for number, (name, _) in enumerate(layers) if name == last or name.startswith(f"{last}.")]
    if not ends:
        names = ", ".join(name for name, _ in layers)
        raise UserError(
            f"pretrain.freeze={typed(last)}: no layer of this network; give one of {names}, or a stage, such as "
            "layer2 for layer2.0 and layer2.1"
        )
    for _, parameters in layers[: ends[-1] + 1]:
        for parameter in parameters:
            parameter.requires_grad_(False)


def layer_groups(network: Backbone, config: PretrainConfig) -> list[dict[str, Any]]:
    """Return parameter groups whose ``lr_scale`` is ``config.layer_decay`` to the power of a layer's distance from the
    classifier, and ``config.head_lr_scale`` for the classifier (BEiT's layer-wise decay; Bao et al. 2022, appendix).

    Norms, biases and what the network itself names (timm's ``no_weight_decay``: position embeddings, class tokens) have
    no weight decay. Frozen parameters are in no group.
    """
    undecayed: set[str] = getattr(network.body, "no_weight_decay", set)()
    spared = {id(p) for name, p in network.body.named_parameters() if name in undecayed}
    layers = network.layers()
    groups = []
    for number, parameters in enumerate([*(parameters for _, parameters in layers), list(network.head.parameters())]):
        distance = len(layers) - number
        scale = config.layer_decay**distance if distance else config.head_lr_scale
        trained = [p for p in parameters if p.requires_grad]
        decayed = [p for p in trained if p.ndim > 1 and id(p) not in spared]
        others = [p for p in trained if p.ndim <= 1 or id(p) in spared]
        for chosen, weight_decay in ((decayed, config.weight_decay), (others, 0.0)):
            if chosen:
                groups.append({"params": chosen, "weight_decay": weight_decay, "lr_scale": scale})
    return groups
