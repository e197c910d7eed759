"""The loss of a triplet network, with its triplets mined in each batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Unit(nn.Module):
    """Scale activations [B, C] to unit length, as float32: the head of a network whose outputs are compared by
    cosine."""

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [B, C]."""
        return F.normalize(activations.float(), dim=1)


def batch_hard(embeddings: torch.Tensor, labels: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the triplet loss with the hardest positive and the hardest negative of each image in the batch (Hermans et
    al. 2017, eq. 5), by cosine.

    Every image has another image of its class in the batch, and images of other classes.

    Args:
        embeddings: float32 [B, C], of unit length.
        labels: int64 [B].
        margin: by how much the farthest image of the class should be nearer than the nearest of another class.

    Returns:
        The mean loss, and for how many images the nearest other image is of their class.
    """
    cosines = embeddings @ embeddings.T
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = cosines.masked_fill(~same | itself, torch.inf).amin(1)
    negative = cosines.masked_fill(same, -torch.inf).amax(1)
    nearest = cosines.masked_fill(itself, -torch.inf).argmax(1)
    return F.relu(margin + negative - positive).mean(), (labels[nearest] == labels).sum()
