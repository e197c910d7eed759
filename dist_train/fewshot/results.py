"""The results of an evaluation, as ``evaluate/results.json`` keeps them: typed, versioned, with means and intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from dist_train.fewshot.table_row import Curves, half_width

VERSION = 1
"""The version of the format. Files without a version are older: their keys mean the same, and some are missing."""


@dataclass(frozen=True)
class Interval:
    """A mean over support draws or episodes, with its uncertainty, in percent (or in points, for a difference).

    Attributes:
        mean: the mean over ``draws``.
        half_width: half-width of the 95% t-interval of the mean, or one standard deviation: ``measure`` says which.
        draws: the values, in the order of the draws; empty for a paired difference.
        measure: what ``half_width`` is, and its key in JSON.
    """

    mean: float
    half_width: float
    draws: tuple[float, ...] = ()
    measure: Literal["ci95", "std"] = "ci95"

    @classmethod
    def of(cls, draws: Sequence[float]) -> Self:
        """Return the mean of the draws with its 95% t-interval, whose half-width is 0 for one draw."""
        values = np.asarray(draws, np.float64)
        return cls(float(values.mean()), float(half_width(values)), tuple(round(v, 6) for v in values.tolist()))

    @classmethod
    def spread(cls, draws: Sequence[float]) -> Self:
        """Return the mean of the draws with their standard deviation (n - 1, as Torch has it)."""
        values = np.asarray(draws, np.float64)
        deviation = float(np.std(values, ddof=1))
        return cls(float(values.mean()), deviation, tuple(round(v, 6) for v in values.tolist()), "std")

    @classmethod
    def paired(cls, draws: Sequence[float], others: Sequence[float]) -> Self:
        """Return the mean difference between two methods, draw by draw, with its 95% t-interval.

        The supports of a draw are the same for both, so what makes a draw easy cancels. Where a method has fewer draws,
        they are the first ones of the other's, and are compared with these.
        """
        difference = cls.of([a - b for a, b in zip(draws, others, strict=False)])
        return cls(difference.mean, difference.half_width)

    def to_json(self) -> dict[str, Any]:
        """Return {"mean", "ci95" or "std", "draws"}; without draws where there are none."""
        draws = {"draws": list(self.draws)} if self.draws else {}
        return {"mean": self.mean, self.measure: self.half_width, **draws}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` returns.

        Raises:
            KeyError: there is no mean, or no half-width.
        """
        measure: Literal["ci95", "std"] = "std" if "std" in values else "ci95"
        return cls(values["mean"], values[measure], tuple(values.get("draws", ())), measure)


Metrics = Mapping[str, Interval]
"""Metric -> its interval: those of ``joint.Draw`` and ``LowShotScorer``, or ``accuracy`` for episodes."""


@dataclass(frozen=True)
class MethodResult:
    """One method's part of the results.

    Attributes:
        shots: number of shots -> metrics.
        curves: number of shots -> curves; empty for episodes.
    """

    shots: Mapping[int, Metrics]
    curves: Mapping[int, Curves] = field(default_factory=dict)

    @property
    def draws(self) -> int:
        """The number of draws: the first ones of ``Results.draws``, or all of them; 0 where they are not recorded."""
        return len(next(iter(next(iter(self.shots.values())).values())).draws)


@dataclass(frozen=True)
class SplitFacts:
    """Which classes were novel.

    Attributes:
        name, hash: the split's name and hash.
        holdout: which of its classes took the part of the novel ones: "novel" or "pseudo-novel".
    """

    name: str
    hash: str
    holdout: str = "novel"


@dataclass(frozen=True)
class Counts:
    """How many classes, or images, of each kind."""

    base: int
    novel: int


@dataclass(frozen=True)
class EpisodeFacts:
    """What an episode consists of.

    Attributes:
        ways: classes.
        queries: images of each class that are classified; None for all, as released.
    """

    ways: int
    queries: int | None


@dataclass(frozen=True)
class BackboneFacts:
    """Which trained network the activations are from, or the training started from.

    Attributes:
        source: its name, such as "timm:resnet50.a1_in1k".
        trained_on: the data set, in words; "" where it is not known.
        novel_seen: how many of the novel classes were in its training; None where that is not known.
        fine_tuned: whether this run has trained it further.
    """

    source: str
    trained_on: str = ""
    novel_seen: int | None = None
    fine_tuned: bool = False


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of an evaluation.

    Attributes:
        methods: name in ``evaluate.methods`` -> its part, without oracles.
        shots, draws, seed, rule, options: keys of ``evaluate``; of episodes, ``draws`` counts them.
        interval: what every half-width is, in words.
        classes: classes that are scored.
        split, shards, commit, command: where the numbers are from; ``shards`` is a hash.
        samples: what ``shards`` is the hash of.
        protocol: ``evaluate.protocol``.
        oracles: name -> metrics, of methods that are shown all training images of the novel classes.
        seconds: name -> seconds that its row took, oracles included.
        queries: images that are classified; None for episodes.
        older: name -> the commit that made its row, where that is of other code than this version's.
        episodes: what an episode consists of; None for joint scoring.
        left_out: names of the oracles, where there are no novel classes to show them.
        backbone: the trained network; None where the run trained its own from scratch.
    """

    methods: Mapping[str, MethodResult]
    shots: Sequence[int]
    draws: int
    interval: str
    classes: Counts
    split: SplitFacts
    shards: str
    commit: str
    command: str
    protocol: str = "joint"
    oracles: Mapping[str, Metrics] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    queries: Counts | None = None
    seed: int = 0
    rule: str = "max"
    options: Mapping[str, float] = field(default_factory=dict)
    older: Mapping[str, str] = field(default_factory=dict)
    episodes: EpisodeFacts | None = None
    left_out: Sequence[str] = ()
    samples: Literal["shards", "features"] = "shards"
    backbone: BackboneFacts | None = None

    @property
    def base_only(self) -> bool:
        """Whether there are no novel classes: then the metrics are base_top1 and base_top5, the only number of shots is
        0, and there are no curves."""
        return self.classes.novel == 0

    @property
    def ranked_by(self) -> str:
        """The metric by which methods are ranked."""
        return "base_top1" if self.base_only else "harmonic"

    def to_json(self) -> dict[str, Any]:
        """Return the results as ``results.json`` has them."""
        joint = self.episodes is None
        values: dict[str, Any] = {
            "version": VERSION,
            "protocol": self.protocol,
            "methods": {
                name: {str(k): _metrics_to_json(metrics) for k, metrics in result.shots.items()}
                for name, result in self.methods.items()
            },
        }
        if joint:
            values["oracles"] = {name: _metrics_to_json(metrics) for name, metrics in self.oracles.items()}
            values["curves"] = {
                name: {str(k): curves.to_json() for k, curves in result.curves.items()}
                for name, result in self.methods.items()
                if result.curves
            }
        values |= {
            "seconds": dict(self.seconds),
            "shots": list(self.shots),
            "draws": self.draws,
            "interval": self.interval,
            **({"queries": vars(self.queries)} if self.queries else {}),
            "classes": vars(self.classes),
            "split": vars(self.split),
            "shards": self.shards,
            **({"samples": self.samples} if self.samples != "shards" else {}),
            "seed": self.seed,
            "rule": self.rule,
            "options": dict(self.options),
            "commit": self.commit,
            "older": dict(self.older),
            "command": self.command,
            **({"episodes": vars(self.episodes)} if self.episodes else {}),
            **({"left_out": list(self.left_out)} if self.left_out else {}),
            **({"backbone": vars(self.backbone)} if self.backbone else {}),
        }
        return {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` returns, of this version or an older one.

        Raises:
            ValueError: a key is missing, or the file is of a newer version.
        """
        try:
            version = values.get("version", 0)
            if version > VERSION:
                raise ValueError(f"version {version} is newer than this program's ({VERSION}); update dist-train")
            curves = values.get("curves") or {}
            optional = ("protocol", "seconds", "seed", "rule", "options", "older", "left_out", "samples")
            return cls(
                methods={
                    name: MethodResult(
                        {int(k): _metrics_from_json(metrics) for k, metrics in by_shots.items()},
                        {int(k): Curves.from_json(by_name) for k, by_name in curves.get(name, {}).items()},
                    )
                    for name, by_shots in values["methods"].items()
                },
                oracles={name: _metrics_from_json(metrics) for name, metrics in (values.get("oracles") or {}).items()},
                classes=Counts(**values["classes"]),
                queries=Counts(**values["queries"]) if "queries" in values else None,
                split=SplitFacts(**values["split"]),
                episodes=EpisodeFacts(**values["episodes"]) if "episodes" in values else None,
                backbone=BackboneFacts(**values["backbone"]) if "backbone" in values else None,
                **{key: values[key] for key in ("shots", "draws", "interval", "shards", "commit", "command")},
                **{key: values[key] for key in optional if values.get(key) is not None},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the results of an evaluation ({type(error).__name__}: {error})") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``results.json``.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged, or of a newer version; the file is named.
        """
        try:
            return cls.from_json(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _metrics_to_json(metrics: Metrics) -> dict[str, Any]:
    return {metric: interval.to_json() for metric, interval in metrics.items()}


def _metrics_from_json(values: Mapping[str, Any]) -> dict[str, Interval]:
    return {metric: Interval.from_json(interval) for metric, interval in values.items()}
