"""Methods that continue to train the last layer, on base images and supports together (paper, Tables 1 and 2).

The backbone's own classifier gets a row of zeros for every novel class and is trained further by SGD on the
frozen activations of base images and supports:

- ``finetune``, the paper's "Fine-tuned ResNet": trains all rows; images are sampled uniformly. Here the layers below
  stay frozen, so that a draw takes seconds; finetune_network.py has the whole network.
- ``child``, "Learning like a Child" (Mao et al. 2015): trains the novel rows only.
- ``logistic``: trains all rows; classes are sampled uniformly, as in the baseline of Hariharan & Girshick.
- ``linear_oracle``: as ``finetune``, with all images of the novel classes.

The loss of a step is the mean over a batch of base images and the mean over novel images, each weighted by its share
of all images. The expected gradient is that of sampling from all images together, but every step sees novel ones.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from dist_train.fewshot.method import Base, Method, Number, Scorer, Support
from dist_train.fewshot.products import products

_BATCH = 256  # base images in a step
_NOVEL = 256  # novel images in a step, at most
_MOMENTUM, _DECAY = 0.9, 1e-4  # as in the training of ResNet (He et al. 2016)


class Layer:
    """Train rows [N, C] and biases [N] of a linear classifier by SGD, with a rate that falls linearly to zero.

    Args:
        towards: what the weight decay draws the rows to, [N, C]; None: to zero.
    """

    def __init__(
        self,
        weights: torch.Tensor,
        bias: torch.Tensor,
        lr: float,
        steps: int,
        decay: float = _DECAY,
        towards: torch.Tensor | None = None,
    ) -> None:
        self.weights, self.bias, self.lr, self.steps = weights, bias, lr, steps
        self.decay, self.towards = decay, towards
        self.momentum, self.momentum_bias, self.step_count = torch.zeros_like(weights), torch.zeros_like(bias), 0

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits [Q, N] of inputs [Q, C]."""
        return products(inputs, self.weights, self.bias)

    def step(self, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        """Take one step; ``gradient`` [Q, N] is that of the loss with respect to the logits of ``inputs``."""
        # In place: beside its two products a step is as fast as it moves memory, and new memory is the slowest.
        drawn = self.weights if self.towards is None else self.weights - self.towards
        self.momentum.mul_(_MOMENTUM).add_(products(gradient.T, inputs.T)).add_(drawn, alpha=self.decay)
        self.momentum_bias.mul_(_MOMENTUM).add_(gradient.sum(0))
        lr = self.lr * (1 - self.step_count / self.steps)
        self.weights.add_(self.momentum, alpha=-lr)
        self.bias.add_(self.momentum_bias, alpha=-lr)
        self.step_count += 1


class LastLayer(Method):
    labels: ClassVar = {"finetune": "Fine-tuned (last layer)", "logistic": "Logistic regression"}
    moves_base = True
    numbers: ClassVar = {
        "finetune_lr": Number(0.3, rows=("finetune",)),
        "finetune_steps": Number(300, whole=True, rows=("finetune",)),
        "logistic_lr": Number(0.03, rows=("logistic",)),
        "logistic_steps": Number(300, whole=True, rows=("logistic",)),
    }

    def __init__(self, name: str, base: Base) -> None:
        self.base, self.base_labels = base, base.train.labels
        self.lr, self.steps = base.numbers[f"{name}_lr"], int(base.numbers[f"{name}_steps"])
        self.balanced = name == "logistic"

    def start(self, support: Support) -> Layer:
        """Return the layer before its training: the backbone's classifier, and rows of zeros for novel classes."""
        base = self.base
        return Layer(
            torch.cat([base.rows, base.rows.new_zeros(len(support), base.rows.shape[1])]),
            torch.cat([base.bias, base.bias.new_zeros(len(support))]),
            self.lr,
            self.steps,
        )

    def embed(self, activations: torch.Tensor) -> torch.Tensor:
        """Return activations [n, C] in the form that is multiplied with the rows."""
        return activations

    def embed_queries(self, queries: torch.Tensor) -> torch.Tensor:
        """Return what ``embed`` does, for the queries that are scored with all supports."""
        return queries

    def take(self, support: Support) -> Scorer:
        base, classes = self.base, len(self.base.rows)
        novel, labels = _images(support)
        labels += classes
        share = len(support) / (classes + len(support)) if self.balanced else _share(novel, base)
        layer, rng = self.start(support), np.random.RandomState(0)
        for _ in range(self.steps):
            rows = self._base_rows(rng)
            picked = torch.from_numpy(rng.permutation(len(novel))[:_NOVEL]).to(novel.device)
            inputs = self.embed(torch.cat([_load(base, rows), novel[picked]]))
            labels_of_batch = torch.cat([torch.from_numpy(self.base_labels[rows]).to(novel.device), labels[picked]])
            # The gradient of the weighted cross-entropy with respect to the logits.
            gradient = torch.softmax(layer(inputs), dim=1)
            gradient[torch.arange(len(labels_of_batch)), labels_of_batch] -= 1
            layer.step(inputs, _weigh(gradient, share))
        return lambda queries: layer(self.embed_queries(queries))

    def _base_rows(self, rng: np.random.RandomState) -> np.ndarray:
        offsets = self.base.train.offsets
        if not self.balanced:
            return rng.randint(0, offsets[-1], _BATCH)
        classes = rng.randint(0, len(offsets) - 1, _BATCH)
        return offsets[classes] + (rng.random_sample(_BATCH) * np.diff(offsets)[classes]).astype(np.int64)


class LinearOracle(LastLayer):
    labels: ClassVar = {"linear_oracle": "Linear classifier"}
    oracle = True
    numbers: ClassVar = {"linear_oracle_lr": Number(0.1), "linear_oracle_steps": Number(3000, whole=True)}


class LikeAChild(Method):
    labels: ClassVar = {"child": "Learning like a child"}
    numbers: ClassVar = {"child_lr": Number(3.0), "child_steps": Number(300, whole=True)}

    def __init__(self, name: str, base: Base) -> None:
        self.base, self.lr, steps = base, base.numbers["child_lr"], int(base.numbers["child_steps"])
        # The base images are the same for all supports, and the base rows are fixed, so that the softmax only needs
        # the sum over the base classes. Computing it once makes a training ten times cheaper.
        self.rows = np.random.RandomState(0).randint(0, len(base.train.rows), (steps, _BATCH))
        self.sums = [self._sum(_load(base, rows)) for rows in self.rows]

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return products(queries, self.base.rows, self.base.bias)

    def _sum(self, queries: torch.Tensor) -> torch.Tensor:
        """Return log sum exp of the base logits [Q]."""
        return self.base_scores(queries).logsumexp(1)

    def take(self, support: Support) -> Scorer:
        novel, labels = _images(support)
        share, novel_sums = _share(novel, self.base), self._sum(novel)
        zeros = novel.new_zeros(len(support), novel.shape[1]), novel.new_zeros(len(support))
        layer = Layer(*zeros, self.lr, len(self.rows))
        rng = np.random.RandomState(0)
        for rows, sums in zip(self.rows, self.sums, strict=True):
            picked = torch.from_numpy(rng.permutation(len(novel))[:_NOVEL]).to(novel.device)
            inputs = torch.cat([_load(self.base, rows), novel[picked]])
            logits = layer(inputs)
            whole = torch.logaddexp(torch.cat([sums, novel_sums[picked]]), logits.logsumexp(1))
            gradient = (logits - whole[:, None]).exp()
            gradient[torch.arange(_BATCH, len(gradient)), labels[picked]] -= 1
            layer.step(inputs, _weigh(gradient, share))
        return layer


def _images(support: Support) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all supports as one batch [n, C], and their classes [n], counted from 0."""
    images = torch.cat(list(support)) if len(support) else support.flatten(0, 1)
    counts = torch.tensor(
        [len(images_of_class) for images_of_class in support], dtype=torch.int64, device=images.device
    )
    return images, torch.repeat_interleave(torch.arange(len(support), device=images.device), counts)


def _share(novel: torch.Tensor, base: Base) -> float:
    """Return the share of novel images among all images."""
    return len(novel) / (len(novel) + len(base.train.rows))


def _weigh(gradient: torch.Tensor, share: float) -> torch.Tensor:
    """Scale a step's gradient [B, N] by its images' weights, in place, and return it: base images come first, then the
    novel ones, which together weigh ``share``."""
    gradient[:_BATCH] *= (1 - share) / _BATCH
    gradient[_BATCH:] *= share / max(len(gradient) - _BATCH, 1)
    return gradient


def _load(base: Base, rows: np.ndarray) -> torch.Tensor:
    """Load the stored activations [n, C] of these rows onto the device."""
    return torch.from_numpy(base.train.rows[rows]).to(base.means.device).float()
