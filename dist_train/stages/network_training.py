"""The trainings of the stage ``networks``: of a triplet network, and of a network that is fine-tuned on supports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from dist_train.config import Config, DataConfig, Preprocessing, PretrainConfig
from dist_train.data.activations import Activations
from dist_train.data.loading.grouped_order import GroupedOrder
from dist_train.data.loading.loader import Batch
from dist_train.data.loading.order import Order
from dist_train.data.splits import View
from dist_train.distributed.context import Context
from dist_train.errors import counted
from dist_train.fewshot.base_head import load_head
from dist_train.fewshot.protocols.joint import support_rows
from dist_train.models.backbones import Backbone
from dist_train.runs.run import Run
from dist_train.stages.backbone import load_backbone
from dist_train.stages.image_training import ImageTraining, TrainingImages
from dist_train.training.optimizer import make_optimizer
from dist_train.training.precision import MixedPrecision, assert_float32
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.strategies.strategy import Strategy
from dist_train.training.triplet import Unit, batch_hard


def network_options(config: Config, epochs: float, lr: float) -> PretrainConfig:
    """Return the options of a training of the stage ``networks``, in the words of ``pretrain``."""
    own, before = config.networks, config.pretrain
    init = config.backbone or before.init
    network = {"init": init} if init else {"model": before.model, "small_stem": before.small_stem}
    return PretrainConfig(
        **network, epochs=epochs, lr=lr, warmup_epochs=0, label_smoothing=0.0, weight_decay=own.weight_decay,
        global_batch=own.global_batch, accumulate=own.accumulate, strategy=own.strategy, precision=own.precision,
        channels_last=before.channels_last, checkpoint_every=own.checkpoint_every, log_every=own.log_every, keep=1,
    )  # fmt: skip


def crops(config: Config, preprocessing: Preprocessing) -> DataConfig:
    """Return how training images are cropped: as in the last epochs of ``pretrain``, at the network's own size where it
    was trained elsewhere."""
    size = config.data.train_size if config.trains else preprocessing.size
    return replace(config.data, train_size=size, ramp_from=None)


class NetworkTraining(ImageTraining):
    """Train a run's backbone further.

    Attributes:
        backbone: the run's backbone, whose network is in training.
    """

    def __init__(self, run: Run, context: Context, options: PretrainConfig) -> None:
        """Load the backbone, change its head by ``prepare``, and begin from there."""
        self.backbone = load_backbone(run.config, context.device)
        network = self.backbone.network
        # DeepSpeed's first broadcast needs contiguous weights; each strategy brings them to its own memory format.
        network.to(memory_format=torch.contiguous_format)
        network.requires_grad_(True)
        self.prepare(network, run)
        assert_float32(network.to(context.device))
        precision = MixedPrecision(options.precision, context.device)
        strategy: Strategy = make_strategy(network, make_optimizer(network, options), precision, options, context)
        super().__init__(self.choose_images(run, context), strategy, options, run.config.seed)

    def prepare(self, network: Backbone, run: Run) -> None:
        """Give the network the head that it is trained with."""
        raise NotImplementedError

    def choose_images(self, run: Run, context: Context) -> TrainingImages:
        """Return the images to train on, in their order."""
        raise NotImplementedError

    def __str__(self) -> str:
        return (
            f"{self.name} on {counted(len(self.images.view), 'image')} of "
            f"{counted(len(self.images.view.classes), 'class')}, "
            f"{counted(self.schedule.steps, 'step')} of {counted(self.config.global_batch, 'image')}"
        )


class FinetuneTraining(NetworkTraining):
    """Train the network with a row more for each novel class, on base images and supports together.

    New rows start at zero, as those of ``pretrain.init``. Every image comes once an epoch, a support as often as a base
    image: the plain training of such a network on what there is. The loss is cross entropy over all classes.
    """

    remedy = "a lower networks.finetune_lr"

    def __init__(self, run: Run, context: Context, novel: Activations, draw: int, shots: int) -> None:
        """Prepare the training for a draw.

        Args:
            novel: the table of novel training images, from which all methods draw their supports.
        """
        self.name = f"finetune_network draw {draw}, {counted(shots, 'shot')}"
        rows = support_rows(novel, shots, run.config.evaluate.seed, draw)
        self.supports = novel.ids[rows]
        options = run.config.networks
        super().__init__(run, context, network_options(run.config, options.finetune_epochs, options.finetune_lr))

    def prepare(self, network: Backbone, run: Run) -> None:
        base = load_head(run.dir, network.head.weight.device)
        network.set_head(len(run.base) + len(run.novel))
        with torch.no_grad():
            for new, old in zip((network.head.weight, network.head.bias), base, strict=True):
                new.zero_()
                new[: len(old)] = old

    def choose_images(self, run: Run, context: Context) -> TrainingImages:
        config, view = run.config, with_supports(run.view("train", "base"), run.view("train", "novel"), self.supports)
        shards = view.subset.samples["shard"][view.ids] if config.data.block_shards else None
        order = Order(len(view), config.networks.global_batch, config.seed, shards, config.data.block_shards)
        preprocessing = self.backbone.preprocessing
        return TrainingImages(view, order, crops(config, preprocessing), preprocessing)


class TripletTraining(NetworkTraining):
    """Train the network so that images of a class are near each other by cosine, and others farther by a margin.

    The triplets are mined in each rank's pass, which holds ``networks.triplet_images`` images of each of its classes
    (training/triplet.py); the paper does not say how it draws them.
    """

    name = "triplet_network"
    remedy = "a lower networks.triplet_lr"

    def __init__(self, run: Run, context: Context) -> None:
        options = run.config.networks
        self.margin = options.triplet_margin
        super().__init__(run, context, network_options(run.config, options.triplet_epochs, options.triplet_lr))

    def prepare(self, network: Backbone, run: Run) -> None:
        head: nn.Module = Unit()
        network.head = head  # type: ignore[assignment]  # nothing is classified, and no parameter is left without use

    def choose_images(self, run: Run, context: Context) -> TrainingImages:
        config, view = run.config, run.view("train", "base")
        order = GroupedOrder(
            len(view), config.networks.global_batch, config.seed,
            bounds=view.bounds, images=config.networks.triplet_images,
            parts=context.world * config.networks.accumulate,
        )  # fmt: skip
        preprocessing = self.backbone.preprocessing
        return TrainingImages(view, order, crops(config, preprocessing), preprocessing)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean triplet loss, and how many images have an image of their class as the nearest."""
        return batch_hard(self.strategy.forward(batch.images), batch.labels, self.margin)


def with_supports(base: View, novel: View, supports: np.ndarray) -> View:
    """Return a view of all images of the base classes, and of the supports of the novel classes after them.

    Args:
        supports: int64 [novel classes, shots], sample ids.
    """
    lookup = np.where(novel.lookup >= 0, novel.lookup + len(base.classes), base.lookup)
    ends = base.bounds[-1] + supports.shape[1] * np.arange(1, len(supports) + 1)
    return View(
        subset=base.subset,
        ids=np.concatenate([base.ids, np.sort(supports, axis=1).ravel()]),
        bounds=np.concatenate([base.bounds, ends]),
        classes=(*base.classes, *novel.classes),
        lookup=lookup,
    )
