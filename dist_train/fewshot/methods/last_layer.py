"""Methods that continue to train the last layer, on base images and supports together (paper, Tables 1 and 2).

The backbone's own classifier gets a row of zeros for every novel class and is trained further by SGD on the
frozen activations of base images and supports:

- ``finetune``, the paper's "Fine-tuned ResNet": trains all rows; images are sampled uniformly. Here the layers below
  stay frozen, so that a draw takes seconds; finetune_network.py has the whole network.
- ``child``, "Learning like a Child" (Mao et al. 2015) as a row of the paper's Table 1: trains the novel rows and their
  biases only. Mao et al. add words to a captioning network, and keep the new biases at the mean of the old ones (read
  in published notes on their paper, not in the paper).
- ``logistic``: trains all rows; classes are sampled uniformly, as in the baseline of Hariharan & Girshick 2017
  (``LowShotDataset.get_sample`` and ``training_loop`` of ``low_shot.py`` of their code,
  facebookresearch/low-shot-shrink-hallucinate; not compared with the paper's text). Theirs begins with random rows and
  takes 10,000 steps of 1,000 images, at a constant rate and with ten times the weight decay.
- ``linear_oracle``: as ``finetune``, with all images of the novel classes.

The loss of a step is the mean over a batch of base images and the mean over novel images, each weighted by its share
of all images. The expected gradient is that of sampling from all images together, but every step sees novel ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import ClassVar

import numpy as np
import torch

from dist_train.fewshot.method import Base, Method, Number, Scorer, Support
from dist_train.models.products import products

_BATCH = 256  # base images in a step, and at most as many novel images
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
        self.name, self.base, self.base_labels = name, base, base.train.labels
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
        return self._scorer(*self._train([support])[0])

    def take_first(self, support: torch.Tensor, shots: Sequence[int]) -> Iterator[Scorer]:
        kept, supports = self.base.trainings.setdefault(self.name, {}), [support[:, :k] for k in shots]
        if not kept and not self.base.keep:
            return starmap(self._scorer, self._train(supports))
        key = f"{shots} {hashlib.sha256(support.cpu().numpy().tobytes()).hexdigest()}"
        layers = kept.pop(key, None) or self._train(supports)
        if self.base.keep:
            kept[key] = [(rows.cpu(), bias.cpu()) for rows, bias in layers]
        return starmap(self._scorer, layers)

    def _train(self, supports: Sequence[Support]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Train a layer for each set of supports, and return their rows and biases. All see the same base images in a
        step, which are read once."""
        classes, rng = len(self.base.rows), np.random.RandomState(0)
        trainings = [_Training(self.start(support), support, classes, self._share_of(support)) for support in supports]
        for training in trainings:
            training.novel = self.embed(training.novel)
        for _ in range(self.steps):
            rows = self._base_rows(rng)
            images = self.embed(_load(self.base, rows))
            labels = torch.from_numpy(self.base_labels[rows]).to(images.device)
            for training in trainings:
                training.step(images, labels)
        return [(training.layer.weights, training.layer.bias) for training in trainings]

    def _scorer(self, rows: torch.Tensor, bias: torch.Tensor) -> Scorer:
        rows, bias = rows.to(self.base.means.device), bias.to(self.base.means.device)
        return lambda queries: products(self.embed_queries(queries), rows, bias)

    def _share_of(self, support: Support) -> float:
        """Return what the novel images of a step weigh together."""
        return len(support) / (len(self.base.rows) + len(support)) if self.balanced else _share(support, self.base)

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
        return next(self.take_first(support, [support.shape[1]]))

    def take_first(self, support: torch.Tensor, shots: Sequence[int]) -> Iterator[Scorer]:
        trainings = [self._training(support[:, :k]) for k in shots]
        novel_sums = [self._sum(training.novel) for training in trainings]
        for rows, sums in zip(self.rows, self.sums, strict=True):
            images = _load(self.base, rows)
            for training, of_novel in zip(trainings, novel_sums, strict=True):
                training.step(images, None, (sums, of_novel))
        return iter([training.layer for training in trainings])

    def _training(self, support: torch.Tensor) -> _Training:
        zeros = support.new_zeros(len(support), support.shape[2]), support.new_zeros(len(support))
        return _Training(Layer(*zeros, self.lr, len(self.rows)), support, 0, _share(support, self.base))


class _Training:
    """Train a layer with one set of supports.

    Args:
        layer: the layer before its training.
        support: the images of its novel classes.
        first: the row of the first novel class in the layer.
        share: what the novel images of a step weigh together.

    Attributes:
        novel: activations of all supports, [n, C].
    """

    def __init__(self, layer: Layer, support: Support, first: int, share: float) -> None:
        self.layer, self.share, self._rng = layer, share, np.random.RandomState(1)
        self.novel, labels = _images(support)
        self._labels = labels + first

    def step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None,
        others: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """Take a step with these base images [_BATCH, C], and some of the novel images.

        Args:
            labels: their rows in the layer, int64 [_BATCH]; None: the layer has only novel classes.
            others: log sum exp of the logits of classes outside the layer, of these images and of all ``novel`` ones.
        """
        picked = torch.from_numpy(self._rng.permutation(len(self.novel))[:_BATCH]).to(images.device)
        inputs = torch.cat([images, self.novel[picked]])
        # The gradient of the weighted cross-entropy with respect to the logits.
        gradient = self.layer(inputs)
        if others is None:
            gradient = torch.softmax(gradient, dim=1)
        else:
            outside = torch.cat([others[0], others[1][picked]])
            gradient = (gradient - torch.logaddexp(outside, gradient.logsumexp(1))[:, None]).exp()
        own = self._labels[picked] if labels is None else torch.cat([labels, self._labels[picked]])
        gradient[torch.arange(len(gradient) - len(own), len(gradient), device=own.device), own] -= 1
        self.layer.step(inputs, _weigh(gradient, self.share))


def _images(support: Support) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all supports as one batch [n, C], and their classes [n], counted from 0."""
    images = torch.cat(list(support)) if len(support) else support.flatten(0, 1)
    counts = torch.tensor(
        [len(images_of_class) for images_of_class in support], dtype=torch.int64, device=images.device
    )
    return images, torch.repeat_interleave(torch.arange(len(support), device=images.device), counts)


def _share(support: Support, base: Base) -> float:
    """Return the share of novel images among all images."""
    novel = sum(len(images) for images in support)
    return novel / (novel + len(base.train.rows))


def _weigh(gradient: torch.Tensor, share: float) -> torch.Tensor:
    """Scale a step's gradient [B, N] by its images' weights, in place, and return it: base images come first, then the
    novel ones, which together weigh ``share``."""
    gradient[:_BATCH] *= (1 - share) / _BATCH
    gradient[_BATCH:] *= share / max(len(gradient) - _BATCH, 1)
    return gradient


def _load(base: Base, rows: np.ndarray) -> torch.Tensor:
    """Load the stored activations [n, C] of these rows onto the device."""
    return torch.from_numpy(base.train.rows[rows]).to(base.means.device).float()
