"""Configuration of activations, predictors and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dist_train.config.checks import at_least, require
from dist_train.config.pretrain import Precision

_PREDICTORS = ("phi1", "phi2", "phi2star")
Views = Literal["centre", "ten"]
Rule = Literal["max", "mean", "rows"]
LearnPrecision = Literal["auto", "bf16", "fp16", "tf32", "fp32"]


@dataclass(kw_only=True)
class ExtractConfig:
    """Configure the pass of the frozen backbone over every image."""

    batch: int = 256
    """Images per forward pass on one rank; with ten views each crop counts, and at least one image is taken."""
    block: int = 4096
    """Rows between two records of progress; an interruption costs at most one block per rank."""
    precision: Precision = "bf16"
    """Precision of the forward pass, as in pretrain.precision; activations are stored as float16."""
    views: Views = "centre"
    """centre: an image's activation is that of its centre crop (release). ten: it is the mean over ten crops: the four
    corners and the centre, each also mirrored (Krizhevsky et al. 2012; the paper's multi-view activations)."""

    def __post_init__(self) -> None:
        at_least(self, "extract", 1, "batch", "block")


@dataclass(kw_only=True)
class LearnConfig:
    """Configure the training of the predictors (paper: section 3; release: the authors' MiniImageNet code)."""

    methods: list[str] = field(default_factory=lambda: [*_PREDICTORS])
    """Methods to train: phi1 (one layer), phi2 (two), phi2star (two, on class means only), and the other
    methods of docs/methods.md that learn from the base activations."""
    steps: int = 75_000
    """Optimiser steps (paper: 300 epochs of 250 batches)."""
    lr: float = 1e-3
    """Peak learning rate (paper and release)."""
    schedule: Literal["constant", "release", "cosine"] = "constant"
    """constant: lr throughout (the paper names one rate). release: 0.5, 0.1 and 0.01 times lr after 50, 120 and 175 of
    the release's 200 epochs, stretched over ``steps``. cosine: half a cosine to zero."""
    momentum: float = 0.9
    """SGD momentum (paper)."""
    weight_decay: float = 5e-4
    """The lambda of the loss (paper)."""
    p_mean: float = 0.9
    """Probability that a class is represented by its mean (paper 0.9, release 0.3)."""
    normalise_input: bool = True
    """L2-normalise the statistic before phi (release; the paper does not say)."""
    normalise_output: bool = True
    """L2-normalise the predicted rows (paper and release)."""
    normalise_query: bool = False
    """L2-normalise the query (release: no, so that its norm acts as a temperature)."""
    identity_init: bool = True
    """Linear layers start as the identity (release); else torch's default."""
    bias: bool = True
    """Trainable biases, zero at the start (release)."""
    seed: int = 0
    """Seed of the predictors' training, in addition to the run's; it does not change the backbone."""
    precision: LearnPrecision = "auto"
    """Precision of the training, as in pretrain.precision. auto: bf16 on GPUs and CPUs with instructions for it (AMX,
    AVX-512 bf16, ARM's), else fp32; a training that goes on keeps what it began with. The accuracy that is logged is
    computed exactly, as in all tables."""
    cuda_graph: bool = False
    """Launch each step as one CUDA graph in place of about a hundred kernels, on one GPU and in any precision but fp16;
    elsewhere it changes nothing. Not the default, because we have not run it."""
    log_every: int = 500
    """Steps between lines in TensorBoard and metrics.jsonl."""
    checkpoint_every: int = 5000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        at_least(self, "learn", 1, "steps", "log_every", "checkpoint_every")
        at_least(self, "learn", 0, "lr", "momentum", "weight_decay", "seed")
        require(0 <= self.p_mean <= 1, "learn.p_mean", self.p_mean, "in [0, 1]")
        ok = bool(self.methods) and len(set(self.methods)) == len(self.methods)
        require(ok, "learn.methods", self.methods, "names of methods that learn, each once")


@dataclass(kw_only=True)
class EvaluateConfig:
    """Configure the evaluation: seeded draws of support images, with all classes scored together or in episodes."""

    protocol: Literal["joint", "episodes", "released"] = "joint"
    """joint: base and novel classes together (paper, section 4.1). episodes: a few novel classes alone, as on
    MiniImageNet. released: episodes as the authors' MiniImageNet code scores them (docs/methods.md)."""
    methods: list[str] = field(default_factory=lambda: ["nn", "mean", *_PREDICTORS])
    """Rows of the table, by the names in docs/methods.md (nn, mean, phi2, finetune, ridge, phi_plus, ...)."""
    shots: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Numbers of support images per novel class (paper: 1, 2, 3)."""
    rule: Rule = "max"
    """How phi1, phi2, phi2star, phi2mean and phi2cal combine k support images. max: the largest of the k responses
    (paper). mean: phi of the mean activation (the release's 5-shot). rows: the mean of the k predicted rows, at their
    length."""
    options: dict[str, float] = field(default_factory=dict)
    """Options of methods, by the names in docs/methods.md, as in ``{ridge_weight: 10}``; each is above zero."""
    draws: int = 100
    """Number of seeded draws of the support set (the paper shows one), at least 20 for a meaningful interval; or the
    number of episodes (release: 1000)."""
    ways: int = 5
    """Classes per episode (release)."""
    queries: int = 15
    """Query images per class of an episode (Ravi & Larochelle 2017); ``released`` takes all that are not support."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        at_least(self, "evaluate", 2, "draws", "ways")
        at_least(self, "evaluate", 1, "queries")
        require(0 <= self.seed < 2**32, "evaluate.seed", self.seed, "in [0, 2^32)")
        ok = bool(self.shots) and min(self.shots) >= 1
        require(ok, "evaluate.shots", self.shots, "positive numbers")
        ok = len(set(self.shots)) == len(self.shots)
        require(ok, "evaluate.shots", self.shots, "different numbers")
        ok = bool(self.methods) and len(set(self.methods)) == len(self.methods)
        require(ok, "evaluate.methods", self.methods, "names of methods, each once")
        ok = self.protocol != "released" or self.rule == "mean"
        require(ok, "evaluate.rule", self.rule, "mean with evaluate.protocol=released: its phi takes the mean")

    @property
    def images(self) -> int:
        """Return how many training images every novel class must have."""
        return max(self.shots) + {"joint": 0, "episodes": self.queries, "released": 1}[self.protocol]
