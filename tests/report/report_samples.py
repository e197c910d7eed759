"""What a report shows, made up."""

from __future__ import annotations

from dist_train.fewshot.results import Interval, Metrics
from dist_train.report.class_vectors import PAPER_IMPACT, ChannelImpact, ClassMaps, Diagonal, MappedClass
from dist_train.report.examples import Example, Examples, Query
from dist_train.report.page import Pictures
from dist_train.report.per_class import ClassAccuracy, ClassReport, Confusion, Role

METRICS = ("base_top1", "base_top5", "novel_top1", "novel_top5", "harmonic", "ausuc")


def metrics(*means: float) -> Metrics:
    """Return the metrics of joint scoring over three draws, half a point apart."""
    return {
        name: Interval(mean, 0.125, (mean - 0.5, mean, mean + 0.5)) for name, mean in zip(METRICS, means, strict=True)
    }


IMAGE = "data:image/jpeg;base64,AAAA"


def make_pictures(text: str = "{}") -> Pictures:
    """Return everything that a report can show; ``text`` is a pattern for every name in it."""
    named = text.format
    rows: list[tuple[str, Role, float, float]] = [
        ("cat", "base", 60.0, 2.0), ("dog", "base", 50.0, 9.0), ("jar", "base", 40.0, 0.0),
        ("emu", "novel", 30.0, 60.0), ("fox", "novel", 20.0, 70.0), ("gnu", "novel", 10.0, 80.0),
    ]  # fmt: skip
    return Pictures(
        maps=ClassMaps(
            [
                MappedClass(f"n{number}", named(name), named(group))
                for number, (name, group) in enumerate(
                    [("cat", "animal"), ("dog", "animal"), ("oak", "plant"), ("jar", "other")]
                )
            ],
            {"means": [[0, 0], [4, 0], [2, 2], [2, 4]], "rows": [[0, 0], [1, 0], [1, 1], [0, 1]]},
            {"means": 100.0, "rows": 66.67},
        ),
        channels={named("trained"): ChannelImpact(0.02, 0.005, 0.9, [0.03, 0.02, 0.01]), "paper": PAPER_IMPACT},
        diagonal=Diagonal([1.0, 0.9, 0.7], 33.33, 0.001),
        classes=ClassReport(
            "phi2",
            1,
            [
                ClassAccuracy(f"n{number}", named(name), role, 50, top1, other, named("emu"), 4.0)
                for number, (name, role, top1, other) in enumerate(rows)
            ],
            {
                "novel": [Confusion(named("fox"), named("dog"), "base", 40.0)],
                "base": [Confusion(named("dog"), named("emu"), "novel", 4.0)],
            },
        ),
        examples=Examples(
            "phi2",
            1,
            [Example(named("emu"), 30.0, [IMAGE], [Query(IMAGE, named("emu"), 1), Query("", named("cat"), 7)])],
        ),
    )
