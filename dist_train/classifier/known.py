"""Known photos of a model from a run: images that the run held out, and photos of added classes left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from dist_train.classifier.doubt_fit import Known, directions, fitted_doubt
from dist_train.classifier.head import Head

_OF_CLASS, _TOGETHER = 5, 1000
"""Photos of a class, and of all classes, that are left out in turn: so many tell the thresholds well."""
_WITH = 50
"""Photos of a class that the class is made of while one of them is left out."""

Rows = Callable[[torch.Tensor], torch.Tensor]
"""From photos [n, k, dim] of n classes to their rows [n, r, dim]."""


@dataclass(frozen=True)
class RunImages:
    """What a model keeps of the images of its run, to know when it is not sure.

    Attributes:
        means: of the training images of each class of the run, [classes, dim].
        activations: of images of these classes that were not trained on, [N, dim].
        labels: the number of each of their classes in the run, int64 [N].
    """

    means: torch.Tensor
    activations: torch.Tensor
    labels: torch.Tensor

    def on(self, device: torch.device) -> RunImages:
        """Return the same on a device."""
        return RunImages(self.means.to(device), self.activations.to(device), self.labels.to(device))

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Return the tensors as a model folder has them."""
        return {
            "means": self.means,
            "held_out.activations": self.activations.half(),
            "held_out.labels": self.labels,
        }

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> RunImages | None:
        """Return what ``tensors`` has written; None where the model is older than that."""
        if "means" not in tensors:
            return None
        return cls(tensors["means"], tensors["held_out.activations"].float(), tensors["held_out.labels"])

    def doubting(self, head: Head, kept: Sequence[int], photos: Sequence[torch.Tensor], rows_of: Rows) -> Head:
        """Return a head with its class means and its doubt.

        Args:
            head: of the classes.
            kept: the classes of the run that it has.
            photos: activations [k, dim] of the photos of each added class.
            rows_of: predicts rows of photos.
        """
        means = F.normalize(self.means[list(kept)], dim=1)
        head = replace(head, means=torch.cat([means, directions(photos)]) if photos else means)
        places = self.labels.new_full((len(self.means),), -1)
        places[list(kept)] = torch.arange(len(kept), device=places.device)
        there = places[self.labels] >= 0
        held_out = self.activations[there], places[self.labels[there]]
        return replace(head, doubt=fitted_doubt(_known(head, held_out, len(kept), photos, rows_of)))


def _known(
    head: Head,
    held_out: tuple[torch.Tensor, torch.Tensor],
    base: int,
    photos: Sequence[torch.Tensor],
    rows_of: Rows,
) -> Known:
    """Return the known photos with the scores that the model gives them.

    Args:
        head: the model's head, with its class means.
        held_out: images of the run's classes, activations [N, dim] and the places of their classes, int64 [N].
        base: classes of the run, which come first.
        photos: activations [k, dim] of the photos of each added class.
        rows_of: predicts rows of photos. The offset of a class is taken as it is with the photo.
    """
    activations, labels = held_out
    parts = [Known(head.scores(activations), head.nearness(activations), labels)]
    several = [place for place, own in enumerate(photos) if len(own) > 1]
    most = min(_OF_CLASS, max(1, _TOGETHER // max(1, len(several))))
    parts += [_left_out(head, base + place, photos[place][:_WITH], most, rows_of) for place in several]
    return Known(
        torch.cat([part.scores for part in parts]),
        torch.cat([part.nearness for part in parts]),
        torch.cat([part.labels for part in parts]),
    )


def _left_out(head: Head, place: int, photos: torch.Tensor, most: int, rows_of: Rows) -> Known:
    """Return the first photos of a class, ``most`` at most, each as a model without it sees it."""
    assert head.means is not None
    left_out, unit = photos[:most], F.normalize(photos, dim=1)
    others = torch.stack([torch.cat([photos[:n], photos[n + 1 :]]) for n in range(len(left_out))])
    queries = head.query(left_out)
    rows = rows_of(others)  # [n, r, dim]
    offset = head.offset[head.owner == place].amax()
    scores = head.scores(left_out)
    scores[:, place] = (rows @ queries[:, :, None])[:, :, 0].amax(1) + offset
    cosines = unit[:most] @ head.means.T
    cosines[:, place] = (unit[:most] * F.normalize(unit.sum(0) - unit[:most], dim=1)).sum(1)
    labels = torch.full((len(left_out),), place, device=scores.device)
    return Known(scores, cosines.amax(1), labels)
