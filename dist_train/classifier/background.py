"""A background for models of photos alone: how images of other classes vary within their classes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.heads.contract import Background, Sample
from dist_train.classifier.reading import batches
from dist_train.config import FeaturesConfig
from dist_train.data.features.feature_set import read_raw
from dist_train.data.shards.index import open_shards
from dist_train.data.shards.source import ShardSource
from dist_train.distributed.pool import progress_bar
from dist_train.errors import UserError

_PER_CLASS, _IMAGES = 20, 5000
"""Images of each class, and of all classes, that are taken from shards; that many tell a covariance well."""


def of_features(path: Path, dim: int) -> Background:
    """Return the background of activations from elsewhere with their labels, in any form that a run takes: an .npz, an
    .npy beside its labels, or parquet.

    Raises:
        UserError: the file cannot be read, or does not hold finite activations of ``dim`` numbers with a label each.
    """
    option = f"--base_features {path}"
    try:
        raw = read_raw(path, option, FeaturesConfig(train=path, val=path))
    except UserError as error:  # the remedy of a run, whose keys name the arrays; here they have their usual names
        raise UserError(
            re.sub(r"; name it by features\.activations.*", "; write it under this name", f"{error}")
        ) from None
    if raw.shape[1] != dim:
        raise UserError(f"{option}: has activations of {raw.shape[1]} numbers; give those of this network, of {dim}")
    rows = np.concatenate([piece.astype(np.float32) for piece in raw.pieces()])
    if not np.isfinite(rows).all():
        raise UserError(f"{option}: has activations that are not finite; leave them out")
    _, places, counts = np.unique(raw.labels, return_inverse=True, return_counts=True)
    by_class = torch.from_numpy(rows[np.argsort(places, kind="stable")])
    return _of(list(torch.split(by_class, counts.tolist())), option)


def of_shards(source: str, model: Classifier) -> Background:
    """Return the background of the training images of shards, as the model's network sees them: 20 of each class, fewer
    where these are more than 5000.

    Raises:
        UserError: there are no shards, or an image cannot be decoded.
    """
    subset = open_shards(source)["train"]
    labels = np.asarray(subset.samples["label"])
    count = max(2, min(_PER_CLASS, _IMAGES // max(1, len(np.unique(labels)))))
    reader = ShardSource(subset)
    by_class = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)[: _IMAGES // 2]]
    classes = []
    try:
        with progress_bar(sum(map(len, by_class)), "background", "img", show=True) as bar:
            for ids in by_class:
                encoded = [bytes(blob) for blob in reader.read(ids)]
                classes.append(torch.cat([model.activations(part) for part in batches(encoded)]))
                bar.update(len(ids))
    finally:
        reader.close()
    return _of(classes, f"--base {source}")


def _of(classes: list[torch.Tensor], option: str) -> Background:
    sample = Sample.of(classes)
    if sample.freedom < 2:
        raise UserError(f"{option}: has no two images of a class; give several of each")
    background = Background.of(sample)
    if not bool(background.scatter.diagonal().any()):
        raise UserError(f"{option}: all images of a class have the same activations; give different ones")
    return background
