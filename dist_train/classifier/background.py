"""A background for models of photos alone: how images of other classes vary within their classes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from dist_train.classifier.classifier import Classifier, batches
from dist_train.classifier.heads.contract import Background, Sample
from dist_train.data.shards.index import open_shards
from dist_train.data.shards.source import ShardSource
from dist_train.errors import UserError

_PER_CLASS, _IMAGES = 20, 5000
"""Images of each class, and of all classes, that are taken from shards; that many tell a covariance well."""


def of_features(path: Path, dim: int) -> Background:
    """Return the background of activations from elsewhere: an .npz of ``activations`` [N, D] and ``labels`` [N].

    Raises:
        UserError: the file cannot be read, or does not hold finite activations of ``dim`` numbers with a label each.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rows, labels = arrays["activations"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"--base_features {path}: cannot be read ({text}); give an .npz of activations and labels") \
            from None  # fmt: skip
    if rows.ndim != 2 or rows.shape[1] != dim or rows.dtype.kind != "f":
        raise UserError(f"--base_features {path}: activations are {rows.dtype} {list(rows.shape)}; this network's are "
                        f"floats [N, {dim}]")  # fmt: skip
    if labels.shape != rows.shape[:1]:
        raise UserError(f"--base_features {path}: {len(rows)} activations have labels of the shape "
                        f"{list(labels.shape)}; give a label each")  # fmt: skip
    if not np.isfinite(rows).all():
        raise UserError(f"--base_features {path}: has activations that are not finite; leave them out")
    order = np.argsort(labels, kind="stable")
    ends = [0, *(np.flatnonzero(labels[order][1:] != labels[order][:-1]) + 1).tolist(), len(labels)]
    return _of([torch.from_numpy(rows[order[first:last]].astype(np.float32)) for first, last in pairwise(ends)],
               f"--base_features {path}")  # fmt: skip


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
    try:
        classes = []
        for label in np.unique(labels)[: _IMAGES // 2]:
            ids = np.flatnonzero(labels == label)[:count]
            encoded = [bytes(blob) for blob in reader.read(ids)]
            classes.append(torch.cat([model.activations(part) for part in batches(encoded)]))
    finally:
        reader.close()
    return _of(classes, f"--base {source}")


def _of(classes: list[torch.Tensor], option: str) -> Background:
    sample = Sample.of(classes)
    if sample.freedom < 2:
        raise UserError(f"{option}: has no two images of a class; give several of each")
    return Background.of(sample)
