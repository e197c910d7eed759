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

from dist_train.fewshot.method import Base, Method, Scorer, Support

_BATCH = 256  # base images a step, and novel ones at most
_MOMENTUM, _DECAY = 0.9, 1e-4  # of ResNet's training (He et al. 2016)


class LastLayer(Method):
    labels: ClassVar = {
        "finetune": "Fine-tuned (last layer)",
        "child": "Learning like a child",
        "logistic": "Logistic regression",
    }
    moves_base = True
    defaults: ClassVar = {
        "finetune_lr": 0.3,
        "finetune_steps": 300,
        "child_lr": 3.0,
        "child_steps": 300,
        "logistic_lr": 0.03,
        "logistic_steps": 300,
    }

    def __init__(self, name: str, base: Base) -> None:
        self.base, self.truth = base, base.train.labels
        self.lr, self.steps = base.numbers[f"{name}_lr"], int(base.numbers[f"{name}_steps"])
        self.novel_only, self.balanced = name == "child", name == "logistic"

    def take(self, support: Support) -> Scorer:
        base, classes = self.base, len(self.base.rows)
        novel = torch.cat(list(support))
        counts = torch.tensor([len(images) for images in support], device=novel.device)
        labels = classes + torch.repeat_interleave(torch.arange(len(support), device=novel.device), counts)
        share = len(support) / (classes + len(support)) if self.balanced else len(novel) / (
            len(novel) + len(base.train.rows))  # fmt: skip
        weights = torch.cat([base.rows, base.rows.new_zeros(len(support), base.rows.shape[1])])
        bias = torch.cat([base.bias, base.bias.new_zeros(len(support))])
        moving = slice(classes, None) if self.novel_only else slice(None)
        momentum, momentum_bias = torch.zeros_like(weights[moving]), torch.zeros_like(bias[moving])
        rng = np.random.RandomState(0)
        for step in range(self.steps):
            rows = self._base_rows(rng)
            some = torch.from_numpy(rng.permutation(len(novel))[:_BATCH]).to(novel.device)
            inputs = torch.cat([torch.from_numpy(base.train.rows[rows]).to(novel.device).float(), novel[some]])
            truth = torch.cat([torch.from_numpy(self.truth[rows]).to(novel.device), labels[some]])
            each = torch.cat([weights.new_full((_BATCH,), (1 - share) / _BATCH),
                              weights.new_full((len(some),), share / len(some))])  # fmt: skip
            # Of the weighted cross-entropy by the logits.
            gradient = torch.softmax(inputs @ weights.T + bias, dim=1)
            gradient[torch.arange(len(truth)), truth] -= 1
            gradient = (gradient * each[:, None])[:, moving]
            momentum.mul_(_MOMENTUM).add_(gradient.T @ inputs).add_(weights[moving], alpha=_DECAY)
            momentum_bias.mul_(_MOMENTUM).add_(gradient.sum(0))
            lr = self.lr * (1 - step / self.steps)
            weights[moving] -= lr * momentum
            bias[moving] -= lr * momentum_bias
        return lambda queries: queries @ weights.T + bias

    def _base_rows(self, rng: np.random.RandomState) -> np.ndarray:
        offsets = self.base.train.offsets
        if not self.balanced:
            return rng.randint(0, offsets[-1], _BATCH)
        classes = rng.randint(0, len(offsets) - 1, _BATCH)
        return offsets[classes] + (rng.random_sample(_BATCH) * np.diff(offsets)[classes]).astype(np.int64)


class LinearOracle(LastLayer):
    labels: ClassVar = {"linear_oracle": "Linear classifier"}
    oracle = True
    defaults: ClassVar = {"linear_oracle_lr": 0.1, "linear_oracle_steps": 3000}
