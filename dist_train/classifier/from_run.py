"""A model from a finished run, and the images on which the effect of added classes is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch

from dist_train.classifier.answer import Class
from dist_train.classifier.choosing import MethodChoice, choose_method, trained_methods
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.known import RunImages
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Preprocess
from dist_train.classifier.posterior import Posterior
from dist_train.classifier.predicted import PredictedHead, posterior_share, row_method
from dist_train.config import Config
from dist_train.data import activations
from dist_train.data.shards.index import open_shards
from dist_train.data.sources.synsets import Synsets
from dist_train.distributed.pool import working
from dist_train.errors import UserError, command
from dist_train.fewshot.base_head import load_head
from dist_train.fewshot.method import Base, load_trained
from dist_train.fewshot.methods import METHODS, open_base
from dist_train.fewshot.methods.gaussian import BesidePlus
from dist_train.fewshot.row_method import RowMethod
from dist_train.stages.backbone import load_backbone
from dist_train.training.precision import exact_products

_HELD_OUT = 50  # validation images of a class that are enough to show what added classes do
_IMAGES = 1000  # of these, of all classes together, that a model keeps to know when it is not sure


def from_run(config: Config, method: str | None = None, rule: str | None = None) -> Classifier:
    """Return a classifier of a run's base classes, on the CPU.

    The run needs its first three stages. Its shards may be gone: without them classes are called by their wnids.

    Args:
        config: the frozen configuration of the run.
        method: a name in ``evaluate.methods``; None: as ``choose_method`` has it without photos.
        rule: how several photos of a class count; None: by the run's ``evaluate.rule``.

    Raises:
        UserError: a stage is not finished, the method was not trained, or no model can be made of it.
    """
    check_finished(config)
    folder = config.run_dir
    name = method or choose_method(folder, ()).method
    kind = trained_method(config, name)
    provenance = json.loads((folder / "provenance.json").read_text())
    run_backbone = load_backbone(config, torch.device("cpu"))
    backbone, wnids = run_backbone.network, run_backbone.classes
    rows, bias = load_head(folder, torch.device("cpu"))
    backbone.head.load_state_dict({"weight": rows, "bias": bias})
    base = open_base(config, rows, bias)
    phi = load_trained(kind.network, METHODS[name].learned(name), base)
    with torch.no_grad(), exact_products():
        base_rows, posterior = phi.base_rows(base.means), _posterior(name, base)
    device = base_rows.device
    orientation = provenance.get("orientation", "stored")
    preprocess = Preprocess(run_backbone.preprocessing, orientation)
    maker = PredictedHead(
        name, phi, config.learn, base_rows, kind.sample(base.train, device), base.numbers[METHODS[name].cost],
        base.rule if rule is None else rule, _images(config, base.means), posterior,
    ).on(device)  # fmt: skip
    classes = [Class(class_name, wnid) for class_name, wnid in zip(_names(config, wnids), wnids, strict=True)]
    return Classifier(Network(backbone, preprocess).on(device), maker, classes, range(len(classes)), provenance)


def trained_method(config: Config, name: str) -> type[RowMethod]:
    """Return the method whose rows a model of the run has, by the name of the model's method.

    Raises:
        UserError: no model can be made of that method, or the run has not trained what it needs.
    """
    folder, kind = config.run_dir, row_method(name)
    if not (folder / "learn" / METHODS[name].learned(name) / "final").is_dir():
        trained, learned = ", ".join(trained_methods(folder)), METHODS[name].learned(name)
        what = "was" if learned == name else f"needs {learned}, which was"
        others = f"; give one of {trained}, or" if trained else ", nor was any other;"
        raise UserError(f"--method {name}: {what} not trained{others} learn it first in {folder}")
    return kind


def choice_for(config: Config, photos: Sequence[int]) -> MethodChoice:
    """Choose the method for a model of a run: ``choose_method``.

    Args:
        config: the frozen configuration of the run.
        photos: of each class that is to be added.

    Raises:
        UserError: a stage is not finished, or no method that gives rows was trained.
    """
    check_finished(config)
    return choose_method(config.run_dir, photos)


def check_finished(config: Config) -> None:
    """Check that a model can be made of a run.

    Raises:
        UserError: its first three stages are not finished, or it has no network.
    """
    folder = config.run_dir
    if config.features:
        raise UserError(f"{folder}: is of features from elsewhere; it has no network, and can see no photos")
    for stage in ("pretrain", "extract", "learn"):
        if not (folder / stage / "done.json").is_file():
            rerun = command("run", "--config", folder / "config.yaml", "--runs", config.runs, "--name", config.name)
            raise UserError(f"{folder}: {stage} is not finished; first: {rerun}")


def held_out_activations(config: Config) -> tuple[torch.Tensor, list[int]]:
    """Return activations [N, dim] of the run's validation images of base classes, at most 50 per class, and the number
    of each image's class."""
    table = activations.load(config.run_dir / "extract", "base_val")
    ends = zip(table.offsets[:-1], table.offsets[1:], strict=True)
    rows = np.concatenate([np.arange(first, min(last, first + _HELD_OUT)) for first, last in ends])
    return torch.from_numpy(table.rows[rows].astype(np.float32)), table.labels[rows].tolist()


def _posterior(name: str, base: Base) -> Posterior | None:
    """Return the densities of the run's classes, where the method needs them: a pass over the stored activations."""
    share = posterior_share(name)
    if share is None:
        return None
    with working(f"{name}: covariances of the base classes"):
        return Posterior.of(BesidePlus("plda_plus", base), share)


def _images(config: Config, means: torch.Tensor) -> RunImages:
    """Return what a model keeps of the run's images; ``means`` are those of the classes, [classes, dim]."""
    rows, labels = held_out_activations(config)
    most, counts = max(1, _IMAGES // len(means)), dict.fromkeys(labels, 0)
    kept = []
    for row, label in enumerate(labels):
        counts[label] += 1
        if counts[label] <= most:
            kept.append(row)
    return RunImages(means, rows[kept], torch.tensor([labels[row] for row in kept], dtype=torch.int64))


def _names(config: Config, wnids: Sequence[str]) -> list[str]:
    try:
        synsets = open_shards(config.data.shards, config.cache, config.data.block_shards).synsets
    except UserError:  # the shards are gone
        synsets = Synsets()
    return synsets.names(wnids)
