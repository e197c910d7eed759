"""Configuration of the trainings of the whole network, which some rows of the table need."""

from __future__ import annotations

from dataclasses import dataclass

from dist_train.config.checks import at_least, require
from dist_train.config.pretrain import Precision, Strategy

NETWORKS = {
    "triplet_network": ("triplet_network", "triplet_network10", "triplet_network1"),
    "finetune_network": ("finetune_network",),
}
"""Network that the stage ``networks`` trains -> the names in ``evaluate.methods`` of the rows that are made from it."""
NETWORK_OF = {row: network for network, rows in NETWORKS.items() for row in rows}
"""Row -> its network."""


@dataclass(kw_only=True)
class NetworksConfig:
    """Configure the trainings of the whole network, which the rows finetune_network, triplet_network,
    triplet_network10 and triplet_network1 of ``evaluate.methods`` need.

    They start from the run's backbone, with the crops of ``data`` at their last size. Plain SGD with Nesterov's
    momentum 0.9, half a cosine to zero, no warm-up, no label smoothing, no mixing. The paper names none of these
    values: they are the usual ones of fine-tuning, and were not chosen on any class of a table.
    """

    draws: int = 1
    """Draws for which finetune_network trains a network, for each number of shots anew: the first ones of
    ``evaluate.draws`` (the paper shows one draw)."""
    finetune_epochs: float = 10
    """Passes over base images and supports together."""
    finetune_lr: float = 0.1
    """Peak learning rate of finetune_network, for the whole batch: that of 256 images in Goyal et al. 2017."""
    triplet_epochs: float = 10
    """Images that triplet_network sees, as passes over the base images."""
    triplet_lr: float = 0.01
    """Peak learning rate of triplet_network, for the whole batch."""
    triplet_margin: float = 0.2
    """Margin between cosines (Schroff et al. 2015 have 0.2 between squared distances, which is 0.1 between cosines)."""
    triplet_images: int = 4
    """Images of each class in a batch of triplet_network (Hermans et al. 2017, section 4.3)."""
    global_batch: int = 256
    """Images per optimiser step, over all ranks and accumulation steps."""
    accumulate: int = 1
    """Forward/backward passes per optimiser step."""
    weight_decay: float = 1e-4
    """Weight decay of convolutions and of the classifier, as in pretrain.weight_decay."""
    strategy: Strategy = "ddp"
    """How ranks train together, as in pretrain.strategy."""
    precision: Precision = "bf16"
    """Precision of the trainings, as in pretrain.precision."""
    checkpoint_every: int = 1000
    """Optimiser steps between checkpoints."""
    log_every: int = 20
    """Optimiser steps between lines in TensorBoard and metrics.jsonl."""

    def __post_init__(self) -> None:
        at_least(self, "networks", 1, "draws", "global_batch", "accumulate", "checkpoint_every", "log_every")
        at_least(self, "networks", 2, "triplet_images")
        at_least(self, "networks", 0, "finetune_lr", "triplet_lr", "triplet_margin", "weight_decay")
        for name in ("finetune_epochs", "triplet_epochs"):
            require(getattr(self, name) > 0, f"networks.{name}", getattr(self, name), "> 0")
