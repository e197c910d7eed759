"""An open run: its configuration, shards and split, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch

from dist_train.config import NETWORK_OF, Config, PretrainConfig
from dist_train.data.features.feature_set import FeatureSet, open_features
from dist_train.data.loading.order import Order, rank_slice
from dist_train.data.shards.index import SUBSETS, ShardSet, open_shards
from dist_train.data.splits import Groups, Split, View, load_split, make_groups, make_view
from dist_train.errors import UserError, counted
from dist_train.fewshot import methods
from dist_train.runs.commit import git_commit
from dist_train.training import precision
from dist_train.training.strategies.deepspeed import deepspeed_options


@dataclass(frozen=True)
class Run:
    """Hold a run's configuration, its images or features, and its split.

    Attributes:
        samples: the shards of its images, or features from elsewhere.
        base, novel: classes (wnids) in these roles, as the split and ``data.holdout`` say; ``novel`` may be empty.
    """

    config: Config
    samples: ShardSet | FeatureSet
    split: Split
    base: tuple[str, ...]
    novel: tuple[str, ...]
    _groups: dict[tuple[str, str], Groups] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def dir(self) -> Path:
        """The run's folder."""
        return self.config.run_dir

    @property
    def features(self) -> FeatureSet | None:
        """The features of a run without images."""
        return self.samples if isinstance(self.samples, FeatureSet) else None

    @property
    def shards(self) -> ShardSet:
        """The shards of the run's images.

        Raises:
            UserError: it has none.
        """
        if isinstance(self.samples, ShardSet):
            return self.samples
        raise UserError(f"{self.dir}: this run is of features, it has no images; take a run of images for that")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have classes: without novel classes only ``base``."""
        return ("base", "novel") if self.novel else ("base",)

    @property
    def scored(self) -> tuple[str, ...]:
        """The base classes that are scored beside the novel classes; all of them, except in a split by halves."""
        return self.split.scored(self.config.data.holdout)

    @property
    def kept(self) -> list[int]:
        """Positions of ``scored`` in ``base``."""
        return self.split.kept(self.config.data.holdout)

    def groups(self, subset: str, role: str) -> Groups:
        """Return the samples of the ``base``, ``scored`` or ``novel`` classes in ``train`` or ``val``; they are grouped
        once."""
        if (subset, role) not in self._groups:
            classes = {"base": self.base, "scored": self.scored, "novel": self.novel}[role]
            samples, split = self.samples, self.config.data.split
            self._groups[subset, role] = (
                make_view(samples[subset], samples.classes, classes, split)
                if isinstance(samples, ShardSet)
                else make_groups(samples[subset], samples.classes, classes, split)
            )
        return self._groups[subset, role]

    def view(self, subset: str, role: str) -> View:
        """Return ``groups`` as a view of the shards.

        Raises:
            UserError: the run has no images.
        """
        assert self.shards
        view = self.groups(subset, role)
        assert isinstance(view, View)
        return view


def open_run(config: Config, world: int = 1) -> Run:
    """Open a run's shards or features, and its split.

    Raises:
        UserError: shards, features or split are missing or unfit, or keys do not fit them or ``world`` ranks.
    """
    git_commit()  # read and remembered now, while the checkout is still the running code
    split = load_split(config.data.split)
    base, novel = split.roles(config.data.holdout)
    samples: ShardSet | FeatureSet
    if config.features:
        samples = open_features(config.features)
    else:
        samples = open_shards(config.data.shards, config.cache, config.data.block_shards)
    run = Run(config, samples, split, base, novel)
    for subset, role in product(SUBSETS, run.roles):
        run.groups(subset, role)
    # Errors that would otherwise appear hours later, or after a stage has begun, appear here.
    if config.trains:
        Order(len(run.view("train", "base")), config.pretrain.global_batch, config.seed)  # refuses too few images
    check_config(config, world)
    _check_evaluation(run)
    return run


def _check_evaluation(run: Run) -> None:
    """Check that the run has the classes and images that its evaluation asks for.

    Raises:
        UserError: it does not; the key is named.
    """
    config = run.config.evaluate
    if run.config.networks_to_train:
        _check_images_of_networks(run)
    if not run.novel:
        if config.protocol != "joint":
            raise UserError(
                f"evaluate.protocol={config.protocol}: split {run.split.name} has no novel classes; give joint"
            )
        return
    fewest = int(np.diff(run.groups("train", "novel").bounds).min())
    if config.images > fewest:
        more = "" if config.protocol == "joint" else f", {config.images} needed with the queries"
        raise UserError(
            f"evaluate.shots={config.shots}: a novel class has only {counted(fewest, 'training image')}{more}"
        )
    if config.protocol != "joint" and config.ways > len(run.novel):
        raise UserError(f"evaluate.ways={config.ways}: the split has only {counted(len(run.novel), 'novel class')}")


def _check_images_of_networks(run: Run) -> None:
    """Check that there are images for the trainings of the stage ``networks``.

    Raises:
        UserError: there are not; the key or row is named.
    """
    options, images = run.config.networks, len(run.groups("train", "base"))
    if "finetune_network" in run.config.networks_to_train and not run.novel:
        raise UserError(
            f"evaluate.methods: finetune_network trains on novel images too, and split {run.split.name} has no novel "
            "classes; leave it out"
        )
    if images < options.global_batch:
        raise UserError(
            f"networks.global_batch={options.global_batch}: the base classes have only "
            f"{counted(images, 'training image')}; "
            "choose at most that"
        )
    classes = options.global_batch // options.triplet_images
    if "triplet_network" in run.config.networks_to_train and classes > len(run.base):
        raise UserError(
            f"networks.global_batch={options.global_batch}: holds {counted(classes, 'class')} of "
            f"networks.triplet_images={options.triplet_images}, and the split has "
            f"{counted(len(run.base), 'base class')}; "
            f"choose a batch of at most {len(run.base) * options.triplet_images}, or more images"
        )


def check_config(config: Config, world: int) -> None:
    """Check that the keys of a configuration fit together, and pretrain's batch ``world`` ranks; machine and images do
    not matter.

    Raises:
        UserError: keys do not fit; it names the key.
    """
    methods.check_methods(config.learn.methods, config.evaluate.methods, config.evaluate.options)
    for name in config.evaluate.methods:
        if config.evaluate.protocol != "joint" and methods.METHODS[name].oracle:
            raise UserError(f"evaluate.methods: {name} is shown all images; it needs evaluate.protocol=joint")
    check_networks(config, 1)
    if not config.trains:
        return
    share = rank_slice(np.arange(config.pretrain.global_batch), 0, world * config.pretrain.accumulate)
    if len(share) < 2:
        raise UserError(
            "pretrain.global_batch: leaves 1 image a rank and pass, batch norm needs 2; choose a larger one"
        )
    if config.pretrain.strategy != "ddp":
        deepspeed_options(config.pretrain, world)


def check_networks(config: Config, world: int) -> None:
    """Check that the networks which rows need can be trained with these keys, on ``world`` ranks.

    Raises:
        UserError: they cannot; the key or row is named.
    """
    rows, options = [name for name in config.evaluate.methods if name in NETWORK_OF], config.networks
    if not rows:
        return
    if config.features:
        raise UserError(f"evaluate.methods: {rows[0]} trains a network on images, and features have none; leave it out")
    if config.evaluate.protocol != "joint":
        raise UserError(f"evaluate.methods: {rows[0]} needs evaluate.protocol=joint")
    if options.draws > config.evaluate.draws:
        raise UserError(f"networks.draws={options.draws}: must be <= evaluate.draws={config.evaluate.draws}")
    parts = world * options.accumulate
    images, odd = divmod(options.global_batch, parts)
    given = f"networks.global_batch={options.global_batch}"
    if odd or images < 2:
        raise UserError(
            f"{given}: does not divide into {counted(world, 'rank')} x {counted(options.accumulate, 'pass')} of 2 "
            "images or more; "
            f"choose a multiple of {parts}"
        )
    each = options.triplet_images
    if "triplet_network" in config.networks_to_train and (images % each or images < 2 * each):
        raise UserError(
            f"{given}: {counted(images, 'image')} a rank and pass, not 2 or more classes of "
            f"networks.triplet_images={each}; "
            f"choose a multiple of {parts * each}, at least {2 * parts * each}"
        )
    if options.strategy != "ddp":
        deepspeed_options(PretrainConfig(strategy=options.strategy, accumulate=options.accumulate,
                                         global_batch=options.global_batch), world)  # fmt: skip


def check_weights(config: Config) -> None:
    """Check that the weights of a trained network can be read, where the run has not taken them in yet.

    Raises:
        UserError: they cannot; says where they must be.
    """
    options = config.backbone or config.pretrain.init
    if options and not (config.run_dir / "pretrain" / "done.json").is_file():
        from dist_train.models.backbones import weights_sha256  # not above: torchvision, which it needs, takes seconds

        weights_sha256(options, "backbone" if config.backbone else "pretrain.init")


def check_device(config: Config) -> None:
    """Check that this machine can do what all stages ask for.

    Raises:
        UserError: it cannot; the key is named.
    """
    check_weights(config)
    if torch.cuda.is_available():
        return
    if config.data.decoder == "mixed":
        raise UserError("data.decoder=mixed: needs a GPU, and there is none; use auto or cpu")
    sections = ("pretrain", "extract", "learn", *(["networks"] if config.networks_to_train else []))
    for section in sections:
        if getattr(config, section).precision == "fp16" and not precision.cpu_has("fp16"):
            raise UserError(f"{section}.precision=fp16: this CPU has no fp16 instructions; use bf16 or fp32")
    if config.pretrain.sync_batchnorm:
        raise UserError("pretrain.sync_batchnorm: PyTorch has it for GPUs only; leave it out on CPUs")
