"""The part of a classifier from pixels to activations, which stays as it is when classes come and go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from dist_train.classifier.photos import Preprocess
from dist_train.classifier.reading import Pace
from dist_train.distributed.cpus import usable_cpus
from dist_train.models.backbones import Backbone
from dist_train.models.folding import folded
from dist_train.training.precision import round_products


@dataclass(frozen=True)
class Network:
    """A trained backbone, and what photos go through before it.

    Attributes:
        backbone: maps images to activations.
        preprocess: maps pixels to images.
    """

    backbone: Backbone
    preprocess: Preprocess

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self.backbone.head.weight.device

    @property
    def batch(self) -> int:
        """Images per batch: of 256 x 256 pixels 32, on a CPU 4, or one a core where that is more; of larger ones fewer;
        never more than 32.

        On a CPU the feature maps of more images are over 32 MB, which the C library returns to the kernel each time and
        gets back cleared page by page: a third of the time of a small network (docs/results/batch.md)."""
        most = max(4, usable_cpus()) if self.device.type == "cpu" else 32
        return max(1, min(32, most * 256**2 // self.preprocess.spec.size**2))

    @property
    def pace(self) -> Pace:
        """How photos are read for this network; on a CPU 16 batches at a time, which 16 images of the largest networks
        are, and 80 of the common 224 pixels."""
        on_gpu = self.device.type != "cpu"
        return Pace(self.batch, (3 if on_gpu else 16) * self.batch, meanwhile=on_gpu)

    @cached_property
    def _body(self) -> nn.Module:
        return folded(self.backbone.body)

    def activations(self, images: torch.Tensor) -> torch.Tensor:
        """Return the activations float32 [B, dim] of preprocessed images [B, 3, size, size]; equal to the backbone's
        but for rounding, and computed in less time."""
        rows: torch.Tensor = self._body(images.contiguous(memory_format=torch.channels_last))
        return rows.float()

    def on(self, device: torch.device) -> Network:
        """Return the network on a device. Its modules are moved, not copied, frozen and put into evaluation mode; from
        then on GPUs compute exact float32 products in this process, as they do for the tables."""
        round_products(False)
        for module in (self.backbone, self.preprocess):
            module.eval().requires_grad_(False).to(device)
        self.backbone.to(memory_format=torch.channels_last)
        return self
