"""The last layer trained on, with the supports among the base images (paper, Table 1 and 2).

The backbone's own classifier gets a row of zeros for every novel class and is trained further by SGD on the
frozen activations of base images and supports:

- ``finetune``, the paper's "Fine-tuned ResNet": all rows, every image as often as it occurs. Here the layers
  below stay as they are, so that a draw costs seconds.
- ``child``, "Learning like a Child" (Mao et al. 2015): the novel rows only.
- ``logistic``: all rows, every class as often as any other, as Hariharan & Girshick's baseline samples.
- ``linear_oracle``: as ``finetune``, with all images of the novel classes.

A step's loss is over a batch of base images and over novel images, each weighted by its share of the whole:
the gradient's mean is that of drawing from all of them, but a class with one image is not missed for epochs.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from dist_train.fewshot.method import Base, Method, Number, Scorer, Support

_BATCH = 256  # base images a step, and novel ones at most
_MOMENTUM, _DECAY = 0.9, 1e-4  # of ResNet's training (He et al. 2016)


class Layer:
    """Rows [N, C] and biases [N] of a linear classifier, moved by SGD whose rate falls to zero in a line."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor, lr: float, steps: int) -> None:
        self.weights, self.bias, self.lr, self.steps = weights, bias, lr, steps
        self.momentum, self.momentum_bias, self.taken = torch.zeros_like(weights), torch.zeros_like(bias), 0

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """[Q, C] -> logits [Q, N]."""
        return inputs @ self.weights.T + self.bias

    def step(self, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        """``gradient``: of the loss by the logits of ``inputs``."""
        self.momentum.mul_(_MOMENTUM).add_(gradient.T @ inputs).add_(self.weights, alpha=_DECAY)
        self.momentum_bias.mul_(_MOMENTUM).add_(gradient.sum(0))
        lr = self.lr * (1 - self.taken / self.steps)
        self.weights -= lr * self.momentum
        self.bias -= lr * self.momentum_bias
        self.taken += 1


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
        self.base, self.truth = base, base.train.labels
        self.lr, self.steps = base.numbers[f"{name}_lr"], int(base.numbers[f"{name}_steps"])
        self.balanced = name == "logistic"

    def take(self, support: Support) -> Scorer:
        base, classes = self.base, len(self.base.rows)
        novel, labels = _images(support)
        labels += classes
        share = len(support) / (classes + len(support)) if self.balanced else _share(novel, base)
        layer = Layer(
            torch.cat([base.rows, base.rows.new_zeros(len(support), base.rows.shape[1])]),
            torch.cat([base.bias, base.bias.new_zeros(len(support))]),
            self.lr,
            self.steps,
        )
        rng = np.random.RandomState(0)
        for _ in range(self.steps):
            rows = self._base_rows(rng)
            some = torch.from_numpy(rng.permutation(len(novel))[:_BATCH]).to(novel.device)
            inputs = torch.cat([_load(base, rows), novel[some]])
            truth = torch.cat([torch.from_numpy(self.truth[rows]).to(novel.device), labels[some]])
            # Of the weighted cross-entropy by the logits.
            gradient = torch.softmax(layer(inputs), dim=1)
            gradient[torch.arange(len(truth)), truth] -= 1
            layer.step(inputs, gradient * _weights(share, some))
        return layer

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
        # The same base images whatever the supports, and of their base classes, which stay as they are, a
        # softmax only needs the sum: with it known, a training costs a tenth.
        self.rows = np.random.RandomState(0).randint(0, len(base.train.rows), (steps, _BATCH))
        self.sums = [self._sum(_load(base, rows)) for rows in self.rows]

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return queries @ self.base.rows.T + self.base.bias

    def _sum(self, queries: torch.Tensor) -> torch.Tensor:
        return self.base_scores(queries).logsumexp(1)

    def take(self, support: Support) -> Scorer:
        novel, labels = _images(support)
        share, novel_sums = _share(novel, self.base), self._sum(novel)
        nothing = novel.new_zeros(len(support), novel.shape[1]), novel.new_zeros(len(support))
        layer = Layer(*nothing, self.lr, len(self.rows))
        rng = np.random.RandomState(0)
        for rows, sums in zip(self.rows, self.sums, strict=True):
            some = torch.from_numpy(rng.permutation(len(novel))[:_BATCH]).to(novel.device)
            inputs = torch.cat([_load(self.base, rows), novel[some]])
            logits = layer(inputs)
            whole = torch.logaddexp(torch.cat([sums, novel_sums[some]]), logits.logsumexp(1))
            gradient = (logits - whole[:, None]).exp()
            gradient[torch.arange(_BATCH, len(gradient)), labels[some]] -= 1
            layer.step(inputs, gradient * _weights(share, some))
        return layer


def _images(support: Support) -> tuple[torch.Tensor, torch.Tensor]:
    """All images [n, C], and their classes from 0 [n]."""
    images = torch.cat(list(support))
    counts = torch.tensor([len(some) for some in support], device=images.device)
    return images, torch.repeat_interleave(torch.arange(len(support), device=images.device), counts)


def _share(novel: torch.Tensor, base: Base) -> float:
    """Of novel images among all."""
    return len(novel) / (len(novel) + len(base.train.rows))


def _weights(share: float, some: torch.Tensor) -> torch.Tensor:
    """Of a step's images in its loss [B, 1]: base images, then ``some`` novel ones, which weigh ``share``."""
    parts = ((1 - share, _BATCH), (share, len(some)))
    return torch.cat([torch.full((count, 1), weight / count, device=some.device) for weight, count in parts])


def _load(base: Base, rows: np.ndarray) -> torch.Tensor:
    """Stored activations [n, C] of these rows, on the device."""
    return torch.from_numpy(base.train.rows[rows]).to(base.means.device).float()
