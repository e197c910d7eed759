"""A finished run as a model."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.parts import Class, Network, row_method
from dist_train.classifier.photos import Preprocess
from dist_train.config import Config
from dist_train.data import activations
from dist_train.data.shards import open_shards
from dist_train.data.synsets import Synsets
from dist_train.engine import checkpoint
from dist_train.errors import UserError
from dist_train.fewshot import calibration
from dist_train.fewshot.methods import NUMBERS
from dist_train.models.backbone import Backbone

PREFERRED = ("phi_plus", "phi2", "phi1", "phi2star", "phi2mean", "attention")
"""The method where none is named: the first of these that was trained, as docs/results has them."""

_HELD_OUT = 50  # validation images of a class that say what additions do to the base classes


def from_run(config: Config, method: str | None = None, rule: str | None = None, device: str = "cpu") -> Classifier:
    """The base classes of a run, by one of its methods. Needs its first three stages, and of its shards no more than
    the names of the classes.

    Args:
        method: a name in ``evaluate.methods``; None: the first of ``PREFERRED`` that was trained.
        rule: None: the run's ``evaluate.rule``.

    Raises:
        UserError: a stage is not finished, or the method was not trained or gives no rows.
    """
    folder = config.run_dir
    for stage in ("pretrain", "extract", "learn"):
        if not (folder / stage / "done.json").is_file():
            raise UserError(f"{folder}: {stage} is not finished; run dist-train run first")
    trained = [name for name in PREFERRED if (folder / "learn" / name / "final").is_dir()]
    name = method or (trained[0] if trained else PREFERRED[0])
    kind = row_method(name)
    weights = folder / "learn" / kind.uses.get(name, name) / "final"
    if not weights.is_dir():
        raise UserError(f"{folder}: {name} was not trained; give one of {', '.join(trained)}, or learn it first")

    saved = checkpoint.load(folder / "pretrain" / "final")
    wnids: Sequence[str] = saved.state["classes"]
    architecture = {"name": saved.state["model"], "num_classes": len(wnids), "small_stem": saved.state["small_stem"]}
    backbone = Backbone(**architecture)
    backbone.load_state_dict(saved.tensors["model"])
    means = torch.from_numpy(np.load(folder / "extract" / "means.f32.npy"))
    phi = kind.network.build(kind.uses.get(name, name), means, backbone.head.weight.detach(), config.learn)
    phi.load_state_dict(checkpoint.load(weights).tensors["model"])
    for module in (backbone, phi):
        module.eval().requires_grad_(False)
    with torch.no_grad():
        base_rows = phi.base_rows(means).clone()
    cost = {**NUMBERS, **config.evaluate.options}["calibration_cost"]
    sample = (means[:0], torch.zeros(0, dtype=torch.int64))
    if kind.calibrated:
        sample = calibration.sample(activations.load(folder / "extract", "base_train"), torch.device("cpu"))
    network = Network(
        backbone.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        architecture, name, phi.to(device), config.learn, base_rows.to(device),
        (sample[0].to(device), sample[1].to(device)), cost,
        Preprocess(config.data.eval_resize, config.data.eval_size).to(device),
    )  # fmt: skip
    base = [Class(called, wnid) for called, wnid in zip(_names(config, wnids), wnids, strict=True)]
    provenance = json.loads((folder / "provenance.json").read_text())
    return Classifier(network, base, range(len(base)), rule or config.evaluate.rule, provenance)


def held_out(config: Config) -> tuple[torch.Tensor, list[int]]:
    """Activations of the run's validation images of base classes, at most 50 a class, and their classes."""
    table = activations.load(config.run_dir / "extract", "base_val")
    ends = zip(table.offsets[:-1], table.offsets[1:], strict=True)
    rows = np.concatenate([np.arange(first, min(last, first + _HELD_OUT)) for first, last in ends])
    return torch.from_numpy(table.rows[rows].astype(np.float32)), table.labels[rows].tolist()


def _names(config: Config, wnids: Sequence[str]) -> list[str]:
    try:
        synsets = open_shards(config.data.shards, config.cache, config.data.block_shards).synsets
    except UserError:  # a model does not need its images; without them classes are called by their wnids
        synsets = Synsets()
    return synsets.names(wnids)
